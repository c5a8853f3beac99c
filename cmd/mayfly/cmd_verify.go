package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/audit/replay"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client"
)

func auditVerifyCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "check an export with no broker at hand, or the live ledger", ArgsUsage: "[FILE]",
		Description: `With FILE (- is stdin) nothing is asked of any broker: the chain and its
signature are checked, and the whole ledger is executed again from its genesis
record, so that every co-signature and every outcome is verified. That takes an
export from the beginning; of a part, --chain-only checks the chain alone.
Without --key the keys are those that the export names, and the report says so.

Without FILE the live ledger's tree and signature are checked, by the broker.

Examples:
  mayfly audit verify ledger.jsonl
  mayfly audit verify ledger.jsonl --key mayfly.example/audit+1f2e3d4c+AY…
  mayfly audit verify part.jsonl --chain-only
  mayfly audit verify                              # the live one`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "key", Usage: "a verifier key had from elsewhere; may be given several times (`VKEY`)"},
			&cli.BoolFlag{Name: "chain-only", Usage: "check the chain of entries alone: no co-signatures, no outcomes"},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Len() == 0 {
				if c.Bool("chain-only") {
					return usage("--chain-only is for an export: name its FILE")
				}
				return s.with(0, 0, s.verifyLive)(c)
			}
			if err := s.formats(); err != nil {
				return err
			}
			args, err := require(c, 0, 1)
			if err != nil {
				return err
			}
			return s.verifyFile(c.Context, args[0], c.StringSlice("key"), c.Bool("chain-only"))
		},
	}
}

func (s *shell) verifyLive(c *cli.Context, cl *client.Client, _ []string) error {
	a, err := cl.AuditVerify(c.Context, s.verifyProgress())
	if err != nil {
		return err
	}
	if err := s.show(a, func(p *page) {
		p.printf("%s\n", verdict(p, a.OK))
		p.card("entries", fmt.Sprint(a.Size), "root", a.Root)
		for _, problem := range a.Problems {
			p.line("  " + problem)
		}
		p.line("  note: The tree and its signature. To verify every co-signature and outcome: mayfly audit export > FILE, mayfly audit verify FILE.")
	}); err != nil {
		return err
	}
	if !a.OK {
		return told(exitFailed)
	}
	return nil
}

func verdict(p *page, ok bool) string {
	if ok {
		return p.paint(green, "verified")
	}
	return p.paint(red, "NOT VERIFIED")
}

// verifyFile verifies an export. It ends with 0 only if all that was asked holds.
func (s *shell) verifyFile(ctx context.Context, file string, keys []string, chainOnly bool) error {
	in := s.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return failed("no_file", "%v", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	v := verified{chainOnly: chainOnly}
	if err := v.run(ctx, in, keys, s.verifyProgress()); err != nil {
		return notVerified(err, len(keys) > 0)
	}
	if err := s.show(v.json(), v.page); err != nil {
		return err
	}
	if !v.ok() {
		return told(exitFailed)
	}
	return nil
}

// progressEvery is how long a verification is silent.
const progressEvery = 5 * time.Second

// verifyProgress tells on stderr how far a long verification is.
func (s *shell) verifyProgress() func(done, total int64) {
	last := time.Now()
	return func(done, total int64) {
		if now := time.Now(); now.Sub(last) >= progressEvery {
			last = now
			s.notice("%d of %d entries verified", done, total)
		}
	}
}

// notVerified is the error of an export whose chain does not hold.
func notVerified(err error, keysGiven bool) error {
	var f *fault.Error
	if !errors.As(err, &f) {
		return err
	}
	code := f.Kind.Exit()
	if !keysGiven || f.Kind != fault.Invalid || f.StableCode() != "invalid" {
		code = exitFailed // the export's fault, not the caller's
	}
	return &failure{code: code, kind: string(f.Kind), word: f.StableCode(), detail: "not verified: " + f.Detail}
}

// verified is what a verification of an export came to.
type verified struct {
	chainOnly bool
	report    replay.Report
}

func (v *verified) run(ctx context.Context, in io.Reader, keys []string, progress func(done, total int64)) (err error) {
	opts := audit.Options{Trusted: keys, Describe: replay.Describe}
	if v.chainOnly {
		v.report.Chain, err = audit.VerifyExport(in, opts)
		return err
	}
	v.report, err = replay.Verify(ctx, in, replay.Options{Options: opts, Progress: progress})
	return err
}

func (v *verified) ok() bool { return v.chainOnly || v.report.Holds() }

// word is the verdict; a chain that does not hold is an error instead.
func (v *verified) word() string {
	switch {
	case v.ok() && !v.chainOnly:
		return "verified"
	case v.report.Result == nil:
		return "in_part"
	}
	return "not_verified"
}

func (v *verified) json() map[string]any {
	r := v.report.Chain
	return map[string]any{
		"ok": v.ok(), "verdict": v.word(), "cluster_id": r.ClusterID, "incarnation": r.Incarnation, "from": r.From, "to": r.To, "size": r.Checkpoint.Size,
		"root": r.RootTo.String(), "first": r.First, "last": r.Last, "signed_by": r.SignedBy, "pinned": r.Pinned,
		"caveats": append([]string{}, v.report.Caveats()...), "replay": v.report.Result,
	}
}

// Bounds of what the page for people lists; -o json has all.
const (
	shownApprovals = 20
	shownDefects   = 20
	shownKeys      = 50
)

func (v *verified) page(p *page) {
	r, x := v.report.Chain, v.report.Result
	switch v.word() {
	case "in_part":
		p.printf("%s\n", p.paint(yellow, "verified in part: the chain of entries"))
	default:
		p.printf("%s\n", verdict(p, v.ok()))
	}
	if x != nil {
		v.defects(p, x)
		approvalsTable(p, x)
		keysTable(p, x)
	}
	pairs := []string{"cluster", r.ClusterID, "entries", fmt.Sprintf("%d up to %d", r.From, r.To), "root", r.RootTo.String(),
		"first", p.both(r.First), "last", p.both(r.Last), "signed by", strings.Join(r.SignedBy, ", ")}
	if x != nil {
		pairs = append(pairs, counts(x)...)
	}
	p.card(pairs...)
	for _, caveat := range v.report.Caveats() {
		p.line("  note: " + caveat)
	}
}

func (v *verified) defects(p *page, x *replay.Result) {
	for _, d := range x.Defects[:min(len(x.Defects), shownDefects)] {
		p.printf("  %s\n", clean(d.Error()))
	}
	if n := int64(len(x.Defects)) + x.LeftOut.Defects; n > shownDefects {
		p.line(fmt.Sprintf("  and %d more, most of which follow from the first", n-shownDefects))
	}
	if x.Stopped != "" {
		p.printf("  %s\n", x.Stopped)
	}
}

func approvalsTable(p *page, x *replay.Result) {
	list := x.Approvals
	if n := int64(len(list)) + x.LeftOut.Approvals; n > shownApprovals {
		p.line(fmt.Sprintf("\nThe last %d approvals of %d; -o json lists the others.", shownApprovals, n))
		list = list[max(0, len(list)-shownApprovals):]
	} else {
		p.line("\nApprovals")
	}
	var rows [][]cell
	for _, a := range slices.Backward(list) {
		as := "approves"
		switch {
		case a.Verdict != "":
			as = a.Verdict
		case a.StepUp:
			as = "steps up"
		}
		rows = append(rows, []cell{plain(a.At.UTC().Format(time.DateTime)), plain(a.By), plain(a.KeyKind), plain(as), plain(a.What), plain(a.For), plain(a.Grant), plain(fmt.Sprint(a.Seq))})
	}
	p.table("Nobody approved anything.", []string{"AT (UTC)", "WHO", "WITH", "DOES", "WHAT", "FOR", "GRANT", "ENTRY"}, rows)
}

func keysTable(p *page, x *replay.Result) {
	p.line("\nKeys to approve with")
	var rows [][]cell
	for _, k := range x.Keys[:min(len(x.Keys), shownKeys)] {
		by := k.VouchedBy
		if by == "" {
			by = "NOBODY"
		}
		rows = append(rows, []cell{plain(k.At.UTC().Format(time.DateTime)), plain(k.Principal), plain(k.Kind), plain(k.Thumbprint), plain(by), plain(fmt.Sprint(k.Seq))})
	}
	p.table("Nobody has one.", []string{"AT (UTC)", "WHOSE", "KIND", "KEY", "VOUCHED FOR BY", "ENTRY"}, rows)
	if n := int64(len(x.Keys)) + x.LeftOut.Keys; n > shownKeys {
		p.line(fmt.Sprintf("and %d more; -o json lists them", n-shownKeys))
	}
	p.line("")
}

// counts are the pairs of a card.
func counts(x *replay.Result) []string {
	var founders, quorum []string
	for _, f := range x.Genesis.Founders {
		founders = append(founders, f.Principal)
	}
	for _, a := range x.Genesis.Approvals {
		quorum = append(quorum, fmt.Sprintf("%d of %s", a.Count, a.Group))
	}
	if len(quorum) == 0 {
		quorum = []string{"none"}
	}
	g, l, e := x.Grants, x.Leases, x.Reviews
	return []string{
		"founders", strings.Join(founders, ", "),
		"dual control", strings.Join(quorum, ", "),
		"executed", fmt.Sprintf("%d entries, %d of them refusals", x.Entries, x.Refused),
		"grants", fmt.Sprintf("%d asked for (%d access, %d changes, %d emergencies), %d approved; now %s", g.Asked, g.Access, g.Changes, g.Emergencies, g.Approved, tally(g.States)),
		"co-signatures", tally(x.Signatures),
		"leases", fmt.Sprintf("%d opened: %d on approved grants, %d on emergencies; %d on roles that ask for approvals", l.Opened, l.Cosigned, l.Emergency, l.Floored),
		"emergencies", fmt.Sprintf("%d, %d reviewed, %d not yet, %d overdue", e.Begun, e.Reviewed, e.Begun-e.Reviewed, e.Overdue),
		"changes", fmt.Sprintf("%d under dual control", x.Changes),
	}
}

// tally writes counts by name, in order of the names.
func tally(counts map[string]int64) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, fmt.Sprintf("%d %s", counts[name], name))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
