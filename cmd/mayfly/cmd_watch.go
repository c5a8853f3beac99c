package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func policyCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "policy", Category: forOperators, Usage: "what may be asked of whom, and why it was decided so",
		Subcommands: []*cli.Command{{
			Name: "explain", Usage: "why a past decision came out as it did", ArgsUsage: "DECISION",
			Description: `Examples:
  mayfly policy explain d_…
  mayfly policy explain d_… -o json --field decision.policies`,
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				d, err := cl.Decision(c.Context, args[0])
				if err != nil {
					return err
				}
				return s.show(d, func(p *page) {
					p.card("decision", d.ID, "entry", strconv.FormatUint(d.Seq, 10), "at", p.both(d.At), "by", d.Actor, "command", d.Command)
					p.line("")
					p.line(strings.TrimRight(d.Text, "\n"))
				})
			}),
		}, {
			Name: "test", Usage: "run cases against the live policies, or against drafts", ArgsUsage: "CASES",
			Description: `CASES is a YAML or JSON file: {cases: [{name, request, want: {permit: true}}]}.
Ends with 1 if a case fails.

Examples:
  mayfly policy test cases.yaml
  mayfly policy test cases.yaml -f draft/          # instead of the live policies`,
			Flags: []cli.Flag{fileFlag()},
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				in, err := s.policyCases(c, args[0])
				if err != nil {
					return err
				}
				a, err := cl.TestPolicies(c.Context, in)
				if err != nil {
					return err
				}
				if a.Results == nil {
					a.Results = []wire.CaseResult{}
				}
				if err := s.show(a, func(p *page) { caseLines(p, a) }); err != nil {
					return err
				}
				if a.Failed > 0 {
					return told(exitFailed)
				}
				return nil
			}),
		}, policyReplayCommand(s)},
	}
}

func caseLines(p *page, a wire.PolicyTestAnswer) {
	for _, r := range a.Results {
		mark := p.paint(green, "pass")
		if !r.OK {
			mark = p.paint(red, "FAIL")
		}
		p.printf("%s  %s", mark, clean(r.Name))
		if r.Detail != "" {
			p.printf(": %s", clean(r.Detail))
		}
		p.printf("\n")
	}
	p.printf("%d passed, %d failed\n", a.Passed, a.Failed)
}

// policyCases reads cases, and drafts where -f names them.
func (s *shell) policyCases(c *cli.Context, file string) (wire.PolicyTestRequest, error) {
	var in wire.PolicyTestRequest
	data, err := s.document(file)
	if err != nil {
		return in, failed("no_file", "%v", err)
	}
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return in, usage("%s: %s", file, err.Error())
	}
	var doc struct {
		Cases json.RawMessage `json:"cases"`
	}
	if json.Unmarshal(raw, &doc) == nil && len(doc.Cases) > 0 {
		raw = doc.Cases
	}
	in.Cases = raw
	if len(c.StringSlice("file")) == 0 {
		return in, nil
	}
	in.Policies, err = s.drafts(c)
	return in, err
}

func reconcileCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "reconcile", Category: forWatchers, ArgsUsage: "[TARGET]",
		Usage: "compare what is on the targets with the ledger",
		Description: `What the ledger knows as ended is removed at once. What no lease names, and a
lease whose credential is missing, is only shown: it waits for a person, who puts
one target right with --heal. Ends with 1 if there is a difference that stays.

Examples:
  mayfly reconcile
  mayfly reconcile orders -o json
  mayfly reconcile orders --heal --yes --reason "left by the drill of Tuesday"`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "heal", Usage: "remove what no lease names, and end leases whose credential is missing"},
			&cli.BoolFlag{Name: "yes", Usage: "go on without being asked"},
			&cli.StringFlag{Name: "reason", Usage: "why, for the record (`R`)"},
		},
		Action: s.with(0, 2, func(c *cli.Context, cl *client.Client, args []string) error {
			in := wire.ReconcileRequest{Heal: c.Bool("heal")}
			var err error
			if len(args) > 0 {
				if in.Target, err = named("Target", args); err != nil {
					return err
				}
			}
			if in.Heal {
				if in.Target == "" {
					return usage("--heal puts one target right: mayfly reconcile TARGET --heal")
				}
				if in.Reason, err = s.confirm(c, "remove from target "+clean(in.Target)+" what no lease names, and end the leases whose credential is missing there"); err != nil {
					return err
				}
			}
			list, err := cl.Reconcile(c.Context, in)
			if err != nil {
				return err
			}
			if list == nil {
				list = []wire.Drift{}
			}
			if err := s.show(list, func(p *page) { driftLines(p, in.Target, list) }); err != nil {
				return err
			}
			for _, d := range list {
				if d.Error != "" || len(d.Unknown)+len(d.Ended)+len(d.Missing) > len(d.Healed) {
					return told(exitFailed)
				}
			}
			return nil
		}),
	}
}

// driftLines shows what was compared; target is the one that was named, if any.
func driftLines(p *page, target string, list []wire.Drift) {
	for _, d := range list {
		if d.Error == "" && len(d.Unknown)+len(d.Ended)+len(d.Missing) == 0 {
			p.printf("%s  %s\n", p.paint(green, "same"), clean(d.Target))
			continue
		}
		p.printf("%s  %s\n", p.paint(red, "DIFF"), clean(d.Target))
		p.card("      error", d.Error, "      unknown (ours by their mark, in no lease; a person decides)", strings.Join(d.Unknown, ", "),
			"      ended (still there; being removed)", strings.Join(d.Ended, ", "), "      missing (an open lease, no credential)", strings.Join(d.Missing, ", "),
			"      put right", strings.Join(d.Healed, ", "))
	}
	switch {
	case len(list) == 0 && target != "":
		p.line("target " + clean(target) + " cannot be compared: a target of its kind keeps no list of what was issued there")
	case len(list) == 0:
		p.line("there is no target whose catalogue can be compared")
	}
}

func containCommand(s *shell) *cli.Command {
	return freezeCommand(s, "contain", "freeze a principal, a target or a zone: sessions end, leases are withdrawn",
		`Reversible by release; what was withdrawn stays so.

Examples:
  mayfly contain agent:coder --dry-run
  mayfly contain agent:coder --reason "odd queries at night" --yes
  mayfly contain target/orders --reason "being restored" --yes`, (*client.Client).Contain)
}

func releaseCommand(s *shell) *cli.Command {
	return freezeCommand(s, "release", "end a containment",
		`Examples:
  mayfly release agent:coder --reason "false alarm, incident 12" --yes`, (*client.Client).Release)
}

func freezeCommand(s *shell, name, what, description string, do func(*client.Client, context.Context, wire.ContainRequest) (wire.ContainAnswer, error)) *cli.Command {
	return &cli.Command{
		Name: name, Category: forWatchers, ArgsUsage: "P|target/T|zone/Z", Usage: what, Description: description,
		Flags: confirmFlags(),
		Action: s.with(1, 2, func(c *cli.Context, cl *client.Client, args []string) error {
			in := wire.ContainRequest{DryRun: true, Reason: c.String("reason")}
			var err error
			if in.What, err = whom(args); err != nil {
				return err
			}
			a, err := do(cl, c.Context, in)
			if err != nil {
				return err
			}
			if !c.Bool("dry-run") {
				if in.Reason, err = s.confirm(c, fmt.Sprintf("%s %s (%s, %s)", name, clean(in.What), count(a.Sessions, "session"), count(a.Leases, "lease"))); err != nil {
					return err
				}
				in.DryRun = false
				if a, err = do(cl, c.Context, in); err != nil {
					return err
				}
			}
			return s.show(a, func(p *page) {
				verb := map[bool]string{true: "would affect", false: name + " done:"}[a.DryRun]
				p.printf("%s %s, %s, %s\n", verb, clean(a.What), count(a.Sessions, "session"), count(a.Leases, "lease"))
			})
		}),
	}
}

func auditCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "audit", Category: forWatchers, Usage: "the record of everything that happened",
		Subcommands: []*cli.Command{auditTailCommand(s), {
			Name: "show", Usage: "one entry in full", ArgsUsage: "SEQ",
			Description: `Examples:
  mayfly audit show 4711`,
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				seq, err := strconv.ParseUint(args[0], 10, 64)
				if err != nil {
					return usage("an entry is named by its number, not %q", args[0])
				}
				a, err := cl.AuditEntries(c.Context, seq, 1)
				if err != nil {
					return err
				}
				if len(a.Entries) == 0 || a.Entries[0].Seq != seq {
					return failed("entry_not_found", "there is no entry %d; the ledger has %d", seq, a.Size)
				}
				e := a.Entries[0]
				return s.show(e, func(p *page) {
					p.card("entry", strconv.FormatUint(e.Seq, 10), "at", p.both(e.At), "type", e.Type, "result", e.Result, "by", e.Actor, "decision", e.DecisionID)
					p.line("")
					p.line(strings.TrimRight(string(specText(e.Command)), "\n"))
				})
			}),
		}, {
			Name: "export", Usage: "write the ledger as JSON lines to stdout",
			Description: `The lines can be checked anywhere, with no broker, by audit verify FILE.

Examples:
  mayfly audit export > ledger.jsonl
  mayfly audit export --from 1000 --to 2000 > part.jsonl`,
			Flags: []cli.Flag{
				&cli.Uint64Flag{Name: "from", Usage: "the first entry (`SEQ`)"},
				&cli.Uint64Flag{Name: "to", Usage: "the entry after the last (`SEQ`; 0 is the end)"},
			},
			Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
				return cl.AuditExport(c.Context, c.Uint64("from"), c.Uint64("to"), s.exportTo())
			}),
		}, auditVerifyCommand(s)},
	}
}

func auditTailCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "tail", Usage: "the newest entries",
		Description: `Examples:
  mayfly audit tail
  mayfly audit tail --lines 100 --follow
  mayfly audit tail --follow -o json | jq .actor`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "lines", Aliases: []string{"n"}, Value: 20, Usage: "how many (`N`)"},
			&cli.BoolFlag{Name: "follow", Usage: "go on with what comes"},
		},
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			lines := c.Int("lines")
			if lines < 1 || lines > pageSize {
				return usage("--lines is 1 to %d", pageSize)
			}
			first, err := cl.AuditEntries(c.Context, 0, 1)
			if err != nil {
				return err
			}
			from := first.Size - min(first.Size, uint64(lines))
			if !c.Bool("follow") {
				a, err := cl.AuditEntries(c.Context, from, lines)
				if err != nil {
					return err
				}
				if a.Entries == nil {
					a.Entries = []wire.AuditEntry{}
				}
				return s.show(a.Entries, func(p *page) { entryLines(p, a.Entries) })
			}
			return s.follow(c.Context, cl, from)
		}),
	}
}

// follow prints entries as they come, one JSON document a line, until it is
// interrupted: then it is done.
func (s *shell) follow(ctx context.Context, cl *client.Client, from uint64) error {
	p := &page{w: s.out, now: time.Now(), paint: s.painter(s.out)}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		a, err := cl.AuditEntries(ctx, from, pageSize)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range a.Entries {
			from = e.Seq + 1
			if s.output == asTable {
				entryLines(p, []wire.AuditEntry{e})
				continue
			}
			line, err := json.Marshal(e)
			if err != nil {
				return err
			}
			p.printf("%s\n", escapeJSON(line))
		}
		if p.err != nil {
			return p.err
		}
		if len(a.Entries) == pageSize {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func entryLines(p *page, list []wire.AuditEntry) {
	for _, e := range list {
		p.printf("%6d  %s  %-18s %-10s %s", e.Seq, p.paint(dim, e.At.Local().Format("2006-01-02 15:04:05")), clean(e.Type), clean(or(e.Result, "ok")), clean(e.Actor))
		if e.DecisionID != "" {
			p.printf("  %s", p.paint(dim, clean(e.DecisionID)))
		}
		p.printf("\n")
	}
}
