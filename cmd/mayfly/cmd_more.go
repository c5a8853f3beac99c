package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

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
