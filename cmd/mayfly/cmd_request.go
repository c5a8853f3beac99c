package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func requestCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "request", Category: forWorkloads, ArgsUsage: "ROLE",
		Usage: "ask for a credential",
		Description: `Without --task the request opens a task that ends with its lease. The
credential is printed once and never again: -o json for programs, -o env for a
shell, -o credential-process for AWS clients, -o exec-credential for kubectl.
The last three are kept in the home until they should be renewed.

Where people must approve first, the request ends with 4 and says how to collect
it later; with --wait it waits for them, and an interruption leaves it waiting.
--wait also waits for an account that somebody else holds.

Examples:
  mayfly request orders/readonly --purpose "ticket 4711"
  eval "$(mayfly request orders/readonly --purpose 'ticket 4711' -o env)" && psql
  mayfly request orders/readwrite --task nightly-report --ttl 15m --field credential.password
  mayfly request web/server --csr server.csr --purpose tls --field credential.certificate > server.pem
  mayfly request orders/readwrite --purpose "migration 42" --wait 30m
  mayfly request orders/readwrite --emergency --reason "incident 77: orders are lost"`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "task", Usage: "an open task of yours, by name or id (`T`)"},
			&cli.StringFlag{Name: "purpose", Usage: "what it is for, without a task (`P`)"},
			&cli.DurationFlag{Name: "ttl", Usage: "for how long (`D`; the role's default)"},
			&cli.StringFlag{Name: "scope", Usage: "authorization_details: a file, - or the JSON itself (`F|JSON`; all that role and task allow)"},
			waitFlag(),
			&cli.StringFlag{Name: "idempotency-key", Usage: "repeated with the same key, the request gets its own lease again (`K`)"},
			&cli.StringFlag{Name: "csr", Usage: "a certificate request in PEM; - is stdin (`F`)"},
			&cli.StringFlag{Name: "public-key", Usage: "the key to bind the credential to: JWK, PEM or OpenSSH (`F`)"},
			&cli.BoolFlag{Name: "emergency", Usage: "break glass; needs --reason and is reviewed"},
			&cli.StringFlag{Name: "reason", Usage: "why it is an emergency (`R`)"},
		},
		Action: func(c *cli.Context) error {
			args, err := require(c, 1, 2)
			if err != nil {
				return err
			}
			role, err := named("Role", args)
			if err != nil {
				return err
			}
			in, err := s.accessRequest(c, role)
			if err != nil {
				return err
			}
			cl, err := s.open(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			if slices.Contains(ownForms, s.output) {
				return s.requestFor(c, cl, in)
			}
			a, err := s.request(c, cl, in)
			if err != nil {
				return err
			}
			return s.showAccess(c, a)
		},
	}
}

// accessRequest reads a request's flags.
func (s *shell) accessRequest(c *cli.Context, role string) (wire.AccessRequest, error) {
	in := wire.AccessRequest{Role: role, Task: c.String("task"), Purpose: c.String("purpose"), TTL: duration(c, "ttl"), Emergency: c.Bool("emergency"), Reason: c.String("reason")}
	switch {
	case in.Task != "" && in.Purpose != "":
		return in, usage("--purpose beside --task: the task has its purpose (MAYFLY_TASK and MAYFLY_PURPOSE count too)")
	case in.Emergency && strings.TrimSpace(in.Reason) == "":
		return in, usage("--emergency needs --reason R")
	case c.IsSet("ttl") && c.Duration("ttl") <= 0:
		return in, usage("--ttl %s: want a length of time like 15m", c.Duration("ttl"))
	}
	var err error
	if in.Scope, err = s.scopeFlag(c); err != nil {
		return in, err
	}
	in.CSR, in.PublicKey, err = s.boundTo(c)
	return in, err
}

// boundTo reads what the credential is to be bound to.
func (s *shell) boundTo(c *cli.Context) (csr string, publicKey json.RawMessage, err error) {
	if f := c.String("csr"); f != "" {
		text, err := s.document(f)
		if err != nil {
			return "", nil, failed("no_file", "--csr: %v", err)
		}
		csr = string(text)
	}
	if f := c.String("public-key"); f != "" {
		data, err := s.document(f)
		if err != nil {
			return "", nil, failed("no_file", "--public-key: %v", err)
		}
		if publicKey, err = jwkOf(data); err != nil {
			return "", nil, err
		}
	}
	return csr, publicKey, nil
}

// request asks for a credential by a command's flags.
func (s *shell) request(c *cli.Context, cl *client.Client, in wire.AccessRequest) (client.Access, error) {
	ctx := c.Context
	if key := c.String("idempotency-key"); key != "" {
		ctx = client.WithIdempotencyKey(ctx, key)
	}
	return s.insist(ctx, cl, in, c.Duration("wait"))
}

// insist asks and, where people must approve, waits for them as long as wait
// allows. Their not coming is no error: the answer is the waiting one. It also
// waits for an account that has one holder at a time; that it is held yet when the
// time is over is an error.
func (s *shell) insist(ctx context.Context, cl *client.Client, in wire.AccessRequest, wait time.Duration) (client.Access, error) {
	end := time.Now().Add(wait)
	asked, err := s.whileHeld(ctx, end, func() (client.Access, error) { return cl.Request(ctx, in) })
	if err != nil || asked.Status != client.StatusWaiting || wait <= 0 {
		return asked, err
	}
	a, err := s.await(ctx, cl, asked.GrantID, wire.CollectRequest{CSR: in.CSR, PublicKey: in.PublicKey}, time.Until(end))
	if stillWaits(err) {
		return asked, nil
	}
	return a, err
}

// whileHeld asks again until end while somebody else holds the account.
func (s *shell) whileHeld(ctx context.Context, end time.Time, ask func() (client.Access, error)) (client.Access, error) {
	for said := false; ; said = true {
		a, err := ask()
		var e *client.Error
		if !errors.As(err, &e) || e.Problem.Code != client.CodeAccountHeld {
			return a, err
		}
		again := max(time.Second, time.Duration(e.Problem.RetryAfter)*time.Second)
		if time.Now().Add(again).After(end) {
			return a, err
		}
		if !said {
			s.notice("%s", clean(e.Problem.Detail))
		}
		if !pause(ctx, again) {
			return a, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// showAccess prints an answer: all of it, the credential with it.
func (s *shell) showAccess(c *cli.Context, a client.Access) error {
	if a.Status == client.StatusWaiting {
		return s.showWaiting(c, a)
	}
	if a.Replaced == nil {
		a.Replaced = []string{}
	}
	return s.show(a, func(p *page) { accessCard(p, a.AccessAnswer) })
}

// fieldOrder is how people read a credential; other fields follow by name.
var fieldOrder = []string{"username", "password", "host", "port", "database", "url", "token", "certificate", "private_key", "ca_chain", "access_key_id", "secret_access_key", "session_token"}

func accessCard(p *page, a wire.AccessAnswer) {
	scope := ""
	if len(a.Scope) > 0 {
		scope = a.Scope.String()
	}
	p.card("role", a.Role, "expires", p.both(a.ExpiresAt), "renewable", renewable(p, a), "scope", scope, "task", a.TaskID, "lease", a.LeaseID, "decision", a.DecisionID, "replaced", strings.Join(a.Replaced, ", "))
	p.line("")
	var long []string
	var short []string
	for _, k := range credentialFields(a.Credential) {
		if strings.Contains(strings.TrimSpace(a.Credential[k]), "\n") {
			long = append(long, k)
			continue
		}
		short = append(short, k, a.Credential[k])
	}
	p.card(short...)
	for _, k := range long {
		p.printf("%s\n%s\n", p.paint(dim, clean(k)), cleanLines(strings.TrimSpace(a.Credential[k])))
	}
}

func credentialFields(m map[string]string) []string {
	var out []string
	for _, k := range fieldOrder {
		if _, ok := m[k]; ok {
			out = append(out, k)
		}
	}
	for i, all := 0, pairs(m); i < len(all); i += 2 {
		if !slices.Contains(out, all[i]) {
			if _, ok := m[all[i]]; ok {
				out = append(out, all[i])
			}
		}
	}
	return out
}

func renewable(p *page, a wire.AccessAnswer) string {
	if !a.Renewable {
		return "no"
	}
	return fmt.Sprintf("until %s", notAfter(p, a.NotAfter, a.BoundedBy))
}
