package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func grantCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "grant", Category: forWorkloads, Usage: "permissions: asked for, approved, used",
		Subcommands: []*cli.Command{
			grantListCommand(s), grantShowCommand(s), grantCollectCommand(s), grantApproveCommand(s),
			grantEndCommand(s, "deny", "refuse what waits for your approval", "mayfly grant deny g_… --reason \"not during the freeze\"", (*client.Client).DenyGrant),
			grantEndCommand(s, "cancel", "withdraw your own request", "mayfly grant cancel g_…", (*client.Client).CancelGrant),
			grantEndCommand(s, "revoke", "end a grant and every lease on it", "mayfly grant revoke g_… --reason \"the work is done\"", (*client.Client).RevokeGrant),
			grantReviewCommand(s),
		},
	}
}

func grantShowCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "show", Usage: "one grant: its state, its document, who signed, its leases", ArgsUsage: "GRANT",
		Description: `Examples:
  mayfly grant show g_…
  mayfly grant show g_… --field state`,
		Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
			g, err := cl.Grant(c.Context, args[0])
			if err != nil {
				return err
			}
			var shown *shownDocument
			var before *wire.PreviousAccess
			if s.output == asTable && s.field == "" {
				before = s.beforeOf(c.Context, cl, g)
			}
			if len(g.Document) > 0 && s.output == asTable && s.field == "" {
				if shown, err = s.checked(c, cl, g); err != nil {
					return err
				}
			}
			return s.show(g, func(p *page) {
				p.grant(g)
				if g.Opens != nil {
					p.line("")
					p.opens(*g.Opens)
				}
				if before != nil {
					p.line("")
					p.before(before)
				}
				if shown != nil {
					p.line("")
					p.document(shown)
				}
			})
		}),
	}
}

// grantEndCommand is deny, cancel or revoke.
func grantEndCommand(s *shell, name, what, example string, end endGrant) *cli.Command {
	return &cli.Command{
		Name: name, Usage: what, ArgsUsage: "GRANT",
		Description: "Examples:\n  " + example,
		Flags:       []cli.Flag{&cli.StringFlag{Name: "reason", Usage: "why, for the record (`R`)"}},
		Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
			g, err := end(cl, c.Context, args[0], wire.EndGrantRequest{Reason: strings.TrimSpace(c.String("reason"))})
			if err != nil {
				return err
			}
			return s.show(g, func(p *page) {
				p.printf("%s is %s, with %s\n", clean(g.ID), clean(g.State), count(len(g.Leases), "lease"))
			})
		}),
	}
}

func grantListCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "list grants",
		Description: `Examples:
  mayfly grant list --mine
  mayfly grant list --pending                     # what waits for an approval or a review
  mayfly grant list --overdue                     # emergencies that nobody reviewed in time
  mayfly grant list --target orders -o json`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "mine", Usage: "only your own"},
			&cli.BoolFlag{Name: "pending", Usage: "only those that wait for somebody's approval or review"},
			&cli.BoolFlag{Name: "overdue", Usage: "only emergencies whose review is overdue"},
			&cli.StringFlag{Name: "state", Usage: "`waiting|approved|open|ended|denied|cancelled|expired|void|revoked`"},
			&cli.StringFlag{Name: "target", Usage: "on which target (`T`)"},
			&cli.StringFlag{Name: "principal", Usage: "whose (`P`)"},
			&cli.StringFlag{Name: "task", Usage: "in which task, by id (`T`)"},
			limitFlag(),
		},
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			list, err := grantsOf(c, cl)
			if err != nil {
				return err
			}
			return s.show(list, func(p *page) { grantTable(p, list) })
		}),
	}
}

// grantsOf lists the grants that the flags describe. Target and task are sorted
// out here: the API has no filter for them.
func grantsOf(c *cli.Context, cl *client.Client) ([]wire.Grant, error) {
	f := client.GrantFilter{Mine: c.Bool("mine"), Pending: c.Bool("pending"), Overdue: c.Bool("overdue"), State: c.String("state"), Principal: c.String("principal")}
	target, task, limit := c.String("target"), c.String("task"), c.Int("limit")
	most := limit
	if target+task != "" {
		most = 0
	}
	list, err := collect(most, func(limit int, after string) ([]wire.Grant, error) {
		f.Limit, f.After = limit, after
		return cl.Grants(c.Context, f)
	}, func(g wire.Grant) string { return g.ID })
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(g wire.Grant) bool {
		return target != "" && g.Target != target || task != "" && g.TaskID != task
	})
	if limit > 0 && len(list) > limit {
		list = list[:limit]
	}
	return list, nil
}

var inkOfGrant = map[string]colour{wire.GrantWaiting: yellow, wire.GrantApproved: green, wire.GrantOpen: green, wire.GrantEnded: dim, wire.GrantDenied: red,
	wire.GrantCancelled: dim, wire.GrantExpired: dim, wire.GrantVoid: red, wire.GrantRevoked: red}

func grantTable(p *page, list []wire.Grant) {
	var rows [][]cell
	for _, g := range list {
		what := g.Role
		if g.Kind == wire.GrantChange {
			what = "(change of configuration)"
		}
		if g.Kind == wire.GrantEmergency {
			what += " (emergency)"
		}
		rows = append(rows, []cell{plain(g.ID), {g.State, inkOfGrant[g.State]}, plain(what), plain(g.Principal), plain(or(g.Purpose, g.Reason)), plain(openNeeds(g)), plain(grantUntil(p, g))})
	}
	p.table("no grants", []string{"GRANT", "STATE", "WHAT", "PRINCIPAL", "PURPOSE", "NEEDS", "UNTIL"}, rows)
}

// openNeeds is what a grant still lacks.
func openNeeds(g wire.Grant) string {
	switch {
	case g.State == wire.GrantWaiting:
		return needsText(g.Needs)
	case g.Review != nil && !g.Review.Done:
		return "review by " + needsText(g.Review.Needs)
	default:
		return ""
	}
}

// grantUntil is the next end of a grant.
func grantUntil(p *page, g wire.Grant) string {
	switch {
	case g.EndedAt != nil:
		return "ended " + p.when(*g.EndedAt)
	case (g.State == wire.GrantWaiting || g.State == wire.GrantApproved) && g.CollectBefore != nil:
		return p.when(*g.CollectBefore)
	case g.EndsBy != nil:
		return p.when(*g.EndsBy)
	default:
		return ""
	}
}

// needsText says who must sign, as in "2 of dba (1 so far) and 1 of sre (none
// so far)".
func needsText(needs []wire.Need) string {
	var parts []string
	for _, n := range needs {
		so := fmt.Sprint(n.Have)
		if n.Have == 0 {
			so = "none"
		}
		parts = append(parts, fmt.Sprintf("%d of %s (%s so far)", n.Required, clean(n.Group), so))
	}
	return strings.Join(parts, " and ")
}

// clock is a time of day, with the day where it is another.
func clock(t time.Time) string {
	t = t.Local()
	if t.Format(time.DateOnly) == time.Now().Format(time.DateOnly) {
		return t.Format("15:04")
	}
	return t.Format("2006-01-02 15:04")
}

// grant prints what the cluster says of a grant; its document is another thing.
func (p *page) grant(g wire.Grant) {
	scope := ""
	if len(g.Scope) > 0 {
		scope = g.Scope.String()
	}
	leases := ""
	if g.MaxLeases > 0 {
		leases = fmt.Sprintf("%d of at most %d", len(g.Leases), g.MaxLeases)
	}
	p.card("grant", g.ID, "state", g.State, "kind", g.Kind, "role", g.Role, "target", g.Target, "principal", g.Principal, "task", g.TaskID,
		"purpose", g.Purpose, "reason", g.Reason, "scope", scope, "decision", g.DecisionID, "requested", p.both(g.RequestedAt), "collect before", p.bothPtr(g.CollectBefore),
		"ends by", p.bothPtr(g.EndsBy), "ended", p.bothPtr(g.EndedAt), "by", g.EndedBy, "because", g.EndReason, "leases", leases, "at", g.URL)
	for _, id := range g.Leases {
		p.printf("  %s\n", clean(id))
	}
	if g.State == wire.GrantWaiting {
		p.card("needs", needsText(g.Needs), "step-up", stepUpText(g.StepUp))
	}
	for _, a := range g.Approvals {
		note := ""
		if a.StepUp {
			note = ", the requester's own"
		}
		if !a.Counts {
			note += ", no longer counts: " + a.Why
		}
		p.printf("  approved by %s\n", clean(fmt.Sprintf("%s %s with the %s key %s%s", a.Principal, p.when(a.At), a.Kind, a.Key, note)))
	}
	if r := g.Review; r != nil {
		p.review(r)
	}
	if g.WhyNot != "" && g.State == wire.GrantWaiting {
		p.printf("  you cannot approve it: %s\n", clean(g.WhyNot))
	}
}

func (p *page) review(r *wire.Review) {
	state := "due " + p.when(r.Due)
	switch {
	case r.Done:
		state = "done"
	case r.Overdue:
		state = p.paint(red, "OVERDUE") + ", it was due " + p.when(r.Due)
	}
	p.printf("review  %s\n", state)
	if !r.Done {
		p.printf("  needs %s\n", needsText(r.Needs))
	}
	for _, v := range r.Verdicts {
		p.printf("  %s\n", clean(strings.TrimSuffix(fmt.Sprintf("%s by %s: %s", v.Verdict, v.Principal, v.Note), ": ")))
	}
}

func stepUpText(kind string) string {
	if kind == "" {
		return ""
	}
	return "the requester's own person must sign too, with a key of kind " + kind
}

// shownDocument is a document with what the objects that it changes are now.
type shownDocument struct {
	*approve.Document
	live map[string]wire.Object // by Kind/Name
}

// document prints what approvers sign.
func (p *page) document(d *shownDocument) {
	for i, section := range d.Sections(time.Local) {
		if i > 0 {
			p.printf("\n")
		}
		p.printf("%s\n", p.paint(bold, section.Title))
		p.section(section)
		if section.Title == approve.TitleAsked {
			p.objectChanges(d)
		}
	}
}

// opens prints what a grant on an account lets its requester into: a scope's
// "account billing: use" says to nobody where that leads.
func (p *page) opens(o wire.Opens) {
	p.printf("%s\n", p.paint(bold, "What it opens, as the cluster says (nobody signs this)"))
	p.printf("  %s\n  %s\n", clean(o.Text()), p.paint(yellow, clean(o.Secret)))
}

func (p *page) section(section approve.Section) {
	wide := 0
	for _, l := range section.Lines {
		wide = max(wide, len(l.Name))
	}
	for _, l := range section.Lines {
		value := clean(l.Value)
		if l.Loud {
			value = p.paint(red, value)
		}
		p.printf("  %s%s  %s\n", p.paint(dim, l.Name), strings.Repeat(" ", wide-len(l.Name)), value)
	}
}
