package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// grant is a permission and the leases opened on it.
type grant struct {
	ID         string       `json:"grant_id"`
	State      string       `json:"state"`
	Role       string       `json:"role"`
	Principal  string       `json:"principal"`
	TaskID     string       `json:"task_id"`
	Purpose    string       `json:"purpose,omitempty"`
	DecisionID string       `json:"decision_id"`
	OpenedAt   time.Time    `json:"opened_at"`
	NotAfter   time.Time    `json:"not_after"`
	Leases     []wire.Lease `json:"leases"`
}

// grantsOf gathers leases by grant, in the order of their first lease. A grant
// is open while one of its leases is.
func grantsOf(list []wire.Lease) []grant {
	out := []grant{}
	at := map[string]int{}
	for _, l := range list {
		i, ok := at[l.GrantID]
		if !ok {
			i = len(out)
			at[l.GrantID] = i
			out = append(out, grant{ID: l.GrantID, State: l.State, Role: l.Role, Principal: l.Principal, TaskID: l.TaskID, Purpose: l.Purpose, DecisionID: l.DecisionID, OpenedAt: l.OpenedAt, NotAfter: l.NotAfter})
		}
		g := &out[i]
		g.Leases = append(g.Leases, l)
		if l.State == "open" || l.State == "ending" && g.State == "ended" {
			g.State = l.State
		}
	}
	return out
}

func grantCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "grant", Category: forWorkloads, Usage: "permissions that were given, and what was issued on them",
		Subcommands: []*cli.Command{grantListCommand(s), {
			Name: "show", Usage: "one grant and its leases", ArgsUsage: "GRANT",
			Description: `Examples:
  mayfly grant show g_…`,
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				g, err := s.grant(c, cl, args[0])
				if err != nil {
					return err
				}
				return s.show(g, func(p *page) {
					p.card("grant", g.ID, "state", g.State, "role", g.Role, "principal", g.Principal, "task", g.TaskID, "purpose", g.Purpose, "decision", g.DecisionID,
						"opened", p.both(g.OpenedAt), "not after", p.both(g.NotAfter))
					for _, l := range g.Leases {
						p.printf("  %s  %s, %s\n", clean(l.ID), clean(l.State), leaseEnd(p, l))
					}
				})
			}),
		}, {
			Name: "revoke", Usage: "end every lease of a grant", ArgsUsage: "GRANT",
			Description: `Examples:
  mayfly grant revoke g_… --reason "the work is done"`,
			Flags: []cli.Flag{&cli.StringFlag{Name: "reason", Usage: "why, for the record (`R`)"}},
			Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
				g, err := s.grant(c, cl, args[0])
				if err != nil {
					return err
				}
				for i, l := range g.Leases {
					if l.State == "ended" {
						continue
					}
					if g.Leases[i], err = cl.Revoke(c.Context, l.ID, wire.RevokeRequest{Reason: c.String("reason")}); err != nil {
						return err
					}
				}
				g = grantsOf(g.Leases)[0]
				return s.show(g, func(p *page) {
					p.printf("%s is %s, with %s\n", clean(g.ID), clean(g.State), count(len(g.Leases), "lease"))
				})
			}),
		}},
	}
}

func grantListCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "list grants",
		Description: `Examples:
  mayfly grant list --mine
  mayfly grant list --target orders -o json`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "mine", Usage: "only your own"},
			&cli.StringFlag{Name: "state", Usage: "`open|ending|ended`"},
			&cli.StringFlag{Name: "target", Usage: "on which target (`T`)"},
			&cli.StringFlag{Name: "principal", Usage: "whose (`P`)"},
			&cli.StringFlag{Name: "task", Usage: "in which task (`T`)"},
			limitFlag(),
		},
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			if c.Bool("mine") {
				me, err := cl.Whoami(c.Context)
				if err != nil {
					return err
				}
				if err := c.Set("principal", me.Principal); err != nil {
					return err
				}
			}
			leases, err := s.leases(c, cl)
			if err != nil {
				return err
			}
			list := grantsOf(leases)
			return s.show(list, func(p *page) { grantTable(p, list) })
		}),
	}
}

func grantTable(p *page, list []grant) {
	var rows [][]cell
	for _, g := range list {
		rows = append(rows, []cell{plain(g.ID), {g.State, inkOfState[g.State]}, plain(g.Role), plain(g.Principal), plain(g.Purpose), plain(fmt.Sprint(len(g.Leases))), plain(p.when(g.NotAfter))})
	}
	p.table("no grants", []string{"GRANT", "STATE", "ROLE", "PRINCIPAL", "PURPOSE", "LEASES", "NOT AFTER"}, rows)
}

// grant finds a grant by the leases opened on it.
func (s *shell) grant(c *cli.Context, cl *client.Client, id string) (grant, error) {
	var mine []wire.Lease
	after := ""
	for {
		list, err := cl.Leases(c.Context, client.Filter{Limit: pageSize, After: after})
		if err != nil {
			return grant{}, err
		}
		for _, l := range list {
			if l.GrantID == id {
				mine = append(mine, l)
			}
		}
		if len(list) < pageSize {
			break
		}
		after = list[len(list)-1].ID
	}
	if len(mine) == 0 {
		return grant{}, failed("grant_not_found", "there is no grant %q that you may see; list them with: mayfly grant list", id)
	}
	return grantsOf(mine)[0], nil
}
