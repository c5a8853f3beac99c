package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client"
)

func apiCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "api", Category: forCluster, ArgsUsage: "METHOD PATH",
		Usage: "a signed raw call, for what has no command",
		Description: `PATH starts with a slash, or is taken under /api/v1/. The answer goes to stdout
as it is.

Examples:
  mayfly api GET whoami
  mayfly api GET '/api/v1/leases?state=open&limit=5'
  mayfly api POST tasks -d '{"name":"x","purpose":"y"}'
  mayfly api POST objects -d @objects.json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "data", Aliases: []string{"d"}, Usage: "the body: JSON, @FILE, or @- for stdin (`@F`)"},
			&cli.StringFlag{Name: "idempotency-key", Usage: "the Idempotency-Key of a call that changes something (`K`)"},
		},
		Action: s.with(2, 2, func(c *cli.Context, cl *client.Client, args []string) error {
			method := strings.ToUpper(args[0])
			if !slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, method) {
				return usage("%q is no method; want GET, POST, PUT, PATCH or DELETE", args[0])
			}
			body := []byte(c.String("data"))
			if f, ok := strings.CutPrefix(c.String("data"), "@"); ok {
				var err error
				if body, err = s.document(f); err != nil {
					return failed("no_file", "--data: %v", err)
				}
			}
			ctx := c.Context
			if k := c.String("idempotency-key"); k != "" {
				ctx = client.WithIdempotencyKey(ctx, k)
			}
			raw, err := cl.Raw(ctx, method, args[1], body)
			if err != nil {
				return err
			}
			return s.showAny(raw)
		}),
	}
}

// showAny prints an answer that may be JSON, or nothing, or other text.
func (s *shell) showAny(raw []byte) error {
	switch {
	case len(bytes.TrimSpace(raw)) == 0:
		return nil
	case !json.Valid(raw):
		_, err := fmt.Fprintln(s.out, cleanLines(strings.TrimRight(string(raw), "\n")))
		return err
	case s.output == asTable:
		s.output = asJSON
	}
	return s.showRaw(raw, nil)
}

func auditVerifyCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "check an export with no broker at hand, or the live ledger", ArgsUsage: "[FILE]",
		Description: `With FILE (- is stdin) nothing is asked of any broker. Without --key the keys
are those that the export names, and the report says so.

Examples:
  mayfly audit verify ledger.jsonl
  mayfly audit verify ledger.jsonl --key mayfly.example/audit+1f2e3d4c+AY…
  mayfly audit verify                              # the live one`,
		Flags: []cli.Flag{&cli.StringSliceFlag{Name: "key", Usage: "a verifier key had from elsewhere; may be given several times (`VKEY`)"}},
		Action: func(c *cli.Context) error {
			if c.Args().Len() == 0 {
				return s.with(0, 0, s.verifyLive)(c)
			}
			if err := s.formats(); err != nil {
				return err
			}
			args, err := require(c, 0, 1)
			if err != nil {
				return err
			}
			return s.verifyFile(args[0], c.StringSlice("key"))
		},
	}
}

func (s *shell) verifyLive(c *cli.Context, cl *client.Client, _ []string) error {
	a, err := cl.AuditVerify(c.Context)
	if err != nil {
		return err
	}
	if err := s.show(a, func(p *page) {
		p.printf("%s\n", verdict(p, a.OK))
		p.card("entries", fmt.Sprint(a.Size), "root", a.Root)
		for _, problem := range a.Problems {
			p.line("  " + problem)
		}
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

func (s *shell) verifyFile(file string, keys []string) error {
	in := s.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return failed("no_file", "%v", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	report, err := audit.VerifyExport(in, audit.Options{Trusted: keys, Describe: broker.Describe})
	var f *fault.Error
	if errors.As(err, &f) {
		code := f.Kind.Exit()
		if len(keys) == 0 || f.Kind != fault.Invalid || f.StableCode() != "invalid" {
			code = exitFailed // the export's fault, not the caller's
		}
		return &failure{code: code, kind: string(f.Kind), word: f.StableCode(), detail: "not verified: " + f.Detail}
	}
	if err != nil {
		return err
	}
	return s.show(map[string]any{
		"ok": true, "cluster_id": report.ClusterID, "incarnation": report.Incarnation, "from": report.From, "to": report.To, "size": report.Checkpoint.Size,
		"root": report.RootTo.String(), "first": report.First, "last": report.Last, "signed_by": report.SignedBy, "pinned": report.Pinned, "caveats": append([]string{}, report.Caveats()...),
	}, func(p *page) {
		p.printf("%s\n", verdict(p, true))
		p.card("cluster", report.ClusterID, "entries", fmt.Sprintf("%d up to %d", report.From, report.To), "root", report.RootTo.String(),
			"first", p.both(report.First), "last", p.both(report.Last), "signed by", strings.Join(report.SignedBy, ", "))
		for _, caveat := range report.Caveats() {
			p.line("  note: " + caveat)
		}
	})
}
