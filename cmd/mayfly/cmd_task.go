package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// pageSize is what lists fetch at a time; the API's own bound.
const pageSize = 1000

func limitFlag() cli.Flag {
	return &cli.IntFlag{Name: "limit", Value: pageSize, Usage: "at most so many (`N`; 0 is no limit)"}
}

// collect reads pages of a list until it ends or holds limit; 0 is no limit.
func collect[T any](limit int, page func(limit int, after string) ([]T, error), id func(T) string) ([]T, error) {
	out := []T{}
	for limit == 0 || len(out) < limit {
		want := pageSize
		if limit > 0 {
			want = min(want, limit-len(out))
		}
		after := ""
		if len(out) > 0 {
			after = id(out[len(out)-1])
		}
		more, err := page(want, after)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
		if len(more) < want {
			break
		}
	}
	return out, nil
}

func taskCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "task", Category: forWorkloads, Usage: "pieces of work, in which access is issued and with which it ends",
		Subcommands: []*cli.Command{taskStartCommand(s), taskEndCommand(s), taskListCommand(s), {
			Name: "heartbeat", Usage: "keep a task from lapsing", ArgsUsage: "TASK",
			Description: `Examples:
  mayfly task heartbeat nightly-report`,
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				t, err := cl.HeartbeatTask(c.Context, args[0])
				if err != nil {
					return err
				}
				return s.show(t, func(p *page) { p.line(t.ID + " is due " + p.when(t.DueAt)) })
			}),
		}, {
			Name: "show", Usage: "one task, its leases and its children", ArgsUsage: "TASK",
			Description: `Examples:
  mayfly task show nightly-report
  mayfly task show t_… --field leases`,
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				t, err := cl.Task(c.Context, args[0])
				if err != nil {
					return err
				}
				return s.show(t, func(p *page) { taskCard(p, t) })
			}),
		}},
	}
}

func taskStartCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "start", Usage: "open a task", ArgsUsage: "NAME",
		Description: `The name is unique among your open tasks. A child task (--parent) can be given
to another principal; it never has more scope or time than its parent.

Examples:
  mayfly task start nightly-report --purpose "monthly figures, ticket 4711" --ttl 2h
  mayfly task start clean-up --purpose "drop test rows" --parent nightly-report --for agent:coder \
    --scope '[{"type":"database","identifier":"orders","actions":["delete"],"tables":[{"name":"public.test"}]}]'`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "purpose", Usage: "what the access is for; it stands in every decision (`P`)"},
			&cli.DurationFlag{Name: "ttl", Usage: "until the deadline (`D`; default 1h, at most the parent's)"},
			&cli.StringFlag{Name: "parent", Usage: "the task of which this is a part (`T`)"},
			&cli.StringFlag{Name: "for", Usage: "the principal who works in it (`PRINCIPAL`)"},
			&cli.StringFlag{Name: "scope", Usage: "authorization_details that narrow it: a file, - or the JSON itself (`F|JSON`)"},
			&cli.DurationFlag{Name: "lapse", Usage: "end the task when no heartbeat comes for so long (`D`)"},
		},
		Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
			if c.String("purpose") == "" {
				return usage("--purpose P is missing: what is the access for?")
			}
			scope, err := s.scopeFlag(c)
			if err != nil {
				return err
			}
			t, err := cl.StartTask(c.Context, wire.StartTaskRequest{Name: args[0], Purpose: c.String("purpose"), TTL: duration(c, "ttl"),
				Parent: c.String("parent"), For: c.String("for"), Scope: scope, Lapse: duration(c, "lapse")})
			if err != nil {
				return err
			}
			return s.show(t, func(p *page) { taskCard(p, t) })
		}),
	}
}

// scopeFlag reads --scope: JSON as it stands, or a file that holds it.
func (s *shell) scopeFlag(c *cli.Context) (json.RawMessage, error) {
	text := strings.TrimSpace(c.String("scope"))
	if text == "" {
		return nil, nil
	}
	raw := []byte(text)
	if text[0] != '[' && text[0] != '{' {
		var err error
		if raw, err = s.document(text); err != nil {
			return nil, failed("no_file", "--scope: %v", err)
		}
	}
	if !json.Valid(raw) {
		return nil, usage("--scope is not JSON; want authorization_details like [{\"type\":\"database\",\"identifier\":\"orders\",\"actions\":[\"select\"]}]")
	}
	return raw, nil
}

func taskEndCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "end", Usage: "end a task, its children, and everything issued in them", ArgsUsage: "TASK",
		Description: `Examples:
  mayfly task end nightly-report
  mayfly task end nightly-report --wait 30s       # until the targets have confirmed`,
		Flags: []cli.Flag{&cli.DurationFlag{Name: "wait", Usage: "wait for the targets to confirm (`D`; at most 60s)"}},
		Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
			a, err := cl.EndTask(c.Context, args[0], c.Duration("wait"))
			if err != nil {
				return err
			}
			if a.Ended == nil {
				a.Ended = []string{}
			}
			return s.show(a, func(p *page) {
				p.printf("%s ended, with %s below it; ", clean(a.Task.ID), count(len(a.Ended), "task"))
				switch {
				case a.Leases == 0:
					p.line("nothing was issued in it")
				case a.Withdrawn:
					p.line(withdrawn(a))
				default:
					p.line(count(a.Leases, "lease") + " being withdrawn")
				}
				if t := a.WorksUntil; t != nil && t.After(p.now) {
					p.line("what cannot be withdrawn may work until " + p.both(*t) + ", or longer where its receipt says so")
				}
			})
		}),
	}
}

func taskListCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "list tasks",
		Description: `Examples:
  mayfly task list
  mayfly task list --state ended --principal agent:coder -o json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "state", Usage: "`open|ended`"},
			&cli.StringFlag{Name: "principal", Usage: "whose (`P`)"},
			limitFlag(),
		},
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			list, err := collect(c.Int("limit"), func(limit int, after string) ([]wire.Task, error) {
				return cl.Tasks(c.Context, client.Filter{State: c.String("state"), Principal: c.String("principal"), Limit: limit, After: after})
			}, func(t wire.Task) string { return t.ID })
			if err != nil {
				return err
			}
			return s.show(list, func(p *page) {
				var rows [][]cell
				for _, t := range list {
					name := t.Name
					if t.Implicit {
						name = "(implicit)"
					}
					rows = append(rows, []cell{plain(t.ID), plain(name), {t.State, inkOfState[t.State]}, plain(t.Principal), plain(t.Purpose), plain(p.when(t.StartedAt)), plain(due(p, t))})
				}
				p.table("no tasks", []string{"TASK", "NAME", "STATE", "PRINCIPAL", "PURPOSE", "STARTED", "DUE"}, rows)
			})
		}),
	}
}

var inkOfState = map[string]colour{"open": green, "ending": yellow, "ended": dim}

func due(p *page, t wire.Task) string {
	if t.EndedAt != nil {
		return "ended " + p.when(*t.EndedAt)
	}
	return p.when(t.DueAt)
}

func taskCard(p *page, t wire.Task) {
	scope := ""
	if len(t.Scope) > 0 {
		scope = t.Scope.String()
	}
	implicit := ""
	if t.Implicit {
		implicit = "yes: it ends with its lease"
	}
	dueAt := ""
	if !t.DueAt.Equal(t.Deadline) {
		dueAt = p.both(t.DueAt) + " without a heartbeat"
	}
	p.card("task", t.ID, "name", t.Name, "implicit", implicit, "state", t.State, "purpose", t.Purpose, "principal", t.Principal, "started by", t.StartedBy,
		"parent", t.Parent, "scope", scope, "started", p.both(t.StartedAt), "deadline", p.both(t.Deadline), "lapses", dueAt,
		"ended", p.bothPtr(t.EndedAt), "because", t.EndReason, "leases", strings.Join(t.Leases, ", "), "children", strings.Join(t.Children, ", "))
}

func leaseCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "lease", Category: forWorkloads, Usage: "minted credentials and their lives",
		Subcommands: []*cli.Command{leaseListCommand(s), {
			Name: "show", Usage: "one lease, with its receipt once it has ended", ArgsUsage: "LEASE",
			Description: `Examples:
  mayfly lease show l_…`,
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				l, err := cl.Lease(c.Context, args[0])
				if err != nil {
					return err
				}
				return s.show(l, func(p *page) { leaseCard(p, l) })
			}),
		}, {
			Name: "renew", Usage: "extend a lease", ArgsUsage: "LEASE",
			Description: `A lease is never extended beyond its not_after.

Examples:
  mayfly lease renew l_…
  mayfly lease renew l_… --ttl 30m`,
			Flags: []cli.Flag{&cli.DurationFlag{Name: "ttl", Usage: "for so long from now (`D`)"}},
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				l, err := cl.Renew(c.Context, args[0], wire.RenewRequest{TTL: duration(c, "ttl")})
				if err != nil {
					return err
				}
				return s.show(l, func(p *page) { p.line(l.ID + " expires " + p.both(l.ExpiresAt)) })
			}),
		}, {
			Name: "revoke", Usage: "end a lease, and the sessions its credential opened", ArgsUsage: "LEASE",
			Description: `With --force the lease ends without the target's word: for a target that is
gone for good.

Examples:
  mayfly lease revoke l_…
  mayfly lease revoke l_… --force --reason "the database was destroyed"`,
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "force", Usage: "do not wait for the target's word"},
				&cli.StringFlag{Name: "reason", Usage: "why, for the record (`R`)"},
			},
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				if c.Bool("force") && strings.TrimSpace(c.String("reason")) == "" {
					return usage("--force needs --reason R")
				}
				l, err := cl.Revoke(c.Context, args[0], wire.RevokeRequest{Force: c.Bool("force"), Reason: c.String("reason")})
				if err != nil {
					return err
				}
				return s.show(l, func(p *page) { revokedLines(p, l) })
			}),
		}},
	}
}

func leaseListCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "list leases",
		Description: `Examples:
  mayfly lease list
  mayfly lease list --state open --target orders --field id`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "state", Usage: "`open|ending|ended`"},
			&cli.StringFlag{Name: "target", Usage: "on which target (`T`)"},
			&cli.StringFlag{Name: "principal", Usage: "whose (`P`)"},
			&cli.StringFlag{Name: "task", Usage: "in which task (`T`)"},
			limitFlag(),
		},
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			list, err := s.leases(c, cl)
			if err != nil {
				return err
			}
			return s.show(list, func(p *page) {
				var rows [][]cell
				for _, l := range list {
					rows = append(rows, []cell{plain(l.ID), {l.State, inkOfState[l.State]}, plain(l.Role), plain(l.Principal), plain(l.Username), plain(p.when(l.OpenedAt)), plain(leaseEnd(p, l))})
				}
				p.table("no leases", []string{"LEASE", "STATE", "ROLE", "PRINCIPAL", "USERNAME", "OPENED", "ENDS"}, rows)
			})
		}),
	}
}

func (s *shell) leases(c *cli.Context, cl *client.Client) ([]wire.Lease, error) {
	f := client.Filter{State: c.String("state"), Target: c.String("target"), Principal: c.String("principal"), Task: c.String("task")}
	return collect(c.Int("limit"), func(limit int, after string) ([]wire.Lease, error) {
		f.Limit, f.After = limit, after
		return cl.Leases(c.Context, f)
	}, func(l wire.Lease) string { return l.ID })
}

func leaseEnd(p *page, l wire.Lease) string {
	if l.EndedAt == nil {
		return p.when(l.ExpiresAt)
	}
	ended := "ended " + p.when(*l.EndedAt)
	if r, yes := l.Outlived(); yes {
		ended += ", " + r.Proof
	}
	return ended
}

func leaseCard(p *page, l wire.Lease) {
	scope := ""
	if len(l.Scope) > 0 {
		scope = l.Scope.String()
	}
	p.card("lease", l.ID, "state", l.State, "role", l.Role, "target", l.Target, "username", l.Username, "principal", l.Principal, "instance", l.Instance,
		"on behalf of", strings.Join(l.Chain, ", "), "task", l.TaskID, "purpose", l.Purpose, "grant", l.GrantID, "decision", l.DecisionID, "scope", scope,
		"generation", generation(l.Generation), "opened", p.both(l.OpenedAt), "expires", p.both(l.ExpiresAt), "not after", notAfter(p, l.NotAfter, l.BoundedBy),
		"ending since", p.bothPtr(l.EndingAt), "ended", p.bothPtr(l.EndedAt), "because", l.EndReason, "ended by", l.EndedBy, "credential", outlives(p, l), "receipt", receiptText(l), "problem", l.Problem)
}

func receiptText(l wire.Lease) string {
	if string(l.Receipt) == "null" {
		return ""
	}
	return string(l.Receipt)
}

func generation(n uint64) string {
	if n < 2 {
		return ""
	}
	return strconv.FormatUint(n, 10) + " (minted again for a lost answer)"
}

func notAfter(p *page, t time.Time, by string) string {
	s := p.both(t)
	if by != "" && s != "" {
		s += ", set by " + by
	}
	return s
}

func whohasCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "whohas", Category: forWatchers, ArgsUsage: "USERNAME|SERIAL|JTI",
		Usage: "who got the credential with this name",
		Description: `Takes the name as the target shows it: a database user, a certificate's serial
number, a token's jti.

Examples:
  mayfly whohas mf_orders_3k7q…
  mayfly whohas 5f:1a:… --field principal`,
		Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
			w, err := cl.Whohas(c.Context, args[0])
			if err != nil {
				return err
			}
			if w.Approvals == nil {
				w.Approvals = []string{}
			}
			return s.show(w, func(p *page) {
				p.card("principal", w.Principal, "on behalf of", strings.Join(w.Chain, ", "), "state", w.State, "role", w.Role, "target", w.Target, "lease", w.LeaseID,
					"task", w.TaskID, "purpose", w.Purpose, "decision", w.DecisionID, "approved by", strings.Join(w.Approvals, ", "),
					"opened", p.both(w.Lease.OpenedAt), "expires", p.both(w.Lease.ExpiresAt), "ended", p.bothPtr(w.Lease.EndedAt),
					"credential", outlives(p, w.Lease), "receipt", receiptText(w.Lease), "problem", w.Lease.Problem)
			})
		}),
	}
}
