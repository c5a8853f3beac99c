package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// replayPage is how many commands one call replays: so many that a call is
// worth it, so few that progress is seen.
const replayPage = 20_000

func policyReplayCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "replay", Usage: "decide recorded history again by drafts, and show what would change",
		Description: `Each document given with -f takes the place of the live policy of its name, or is
added; the others stay. Without drafts the live policies decide: that shows what
changed since. Nothing is written. What was recorded is taken as it was: groups,
labels and time of day are those of the request.

Ends with 0 whatever would change; --exit-code ends with 1 where something would.

Examples:
  mayfly policy replay -f team.cedar                          # the newest 10000 commands
  mayfly policy replay -f policies/ --since 720h
  mayfly policy replay --delete old --exit-code -o json`,
		Flags: []cli.Flag{
			fileFlag(),
			&cli.StringSliceFlag{Name: "delete", Usage: "without this live policy (`NAME`)"},
			&cli.DurationFlag{Name: "since", Usage: "only what is not older (`D`)"},
			&cli.IntFlag{Name: "limit", Value: 10_000, Usage: "so many of the newest commands of the ledger; with --since, all of them (`N`; 0 is no limit)"},
			&cli.BoolFlag{Name: "exit-code", Usage: "end with 1 if anything would change"},
		},
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			in, err := s.replayRequest(c)
			if err != nil {
				return err
			}
			a, err := s.replay(c.Context, cl, in)
			if err != nil {
				return err
			}
			if err := s.show(a, func(p *page) { p.replayed(a) }); err != nil {
				return err
			}
			if c.Bool("exit-code") && a.Differences() > 0 {
				return told(exitFailed)
			}
			return nil
		}),
	}
}

// replayRequest reads the drafts and the range.
func (s *shell) replayRequest(c *cli.Context) (wire.PolicyReplayRequest, error) {
	in := wire.PolicyReplayRequest{Delete: c.StringSlice("delete"), Limit: replayPage}
	since, limit := c.Duration("since"), c.Int("limit")
	if c.IsSet("since") && !c.IsSet("limit") {
		limit = 0
	}
	if since < 0 || limit < 0 {
		return in, usage("--since and --limit are not negative")
	}
	if since > 0 {
		from := time.Now().Add(-since).UTC()
		in.Since = &from
	}
	if in.Last = uint64(limit); limit == 0 && in.Since == nil {
		begin := time.UnixMilli(0).UTC()
		in.Since = &begin
	}
	if len(c.StringSlice("file")) == 0 {
		return in, nil
	}
	var err error
	in.Policies, err = s.drafts(c)
	return in, err
}

// drafts reads the policies that -f names.
func (s *shell) drafts(c *cli.Context) ([]wire.Object, error) {
	all, err := s.documents(c, false)
	if err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(all.Objects, func(o wire.Object) bool { return o.Kind != "Policy" })
	if len(out) == 0 {
		return nil, usage("there is no policy in %s", strings.Join(c.StringSlice("file"), ", "))
	}
	return out, nil
}

// replay asks until the whole range is done, and joins the answers.
func (s *shell) replay(ctx context.Context, cl *client.Client, in wire.PolicyReplayRequest) (wire.PolicyReplayAnswer, error) {
	whole, err := cl.ReplayPolicies(ctx, in)
	for err == nil && whole.Next > 0 {
		if whole.Next <= whole.From || whole.Next <= in.From {
			return whole, failed("bad_answer", "the cluster does not get on: it stopped at command %d", whole.Next)
		}
		s.notice("replayed %d of %d commands", whole.Next-whole.From, whole.To-whole.From)
		in.From, in.To = whole.Next, whole.To
		var more wire.PolicyReplayAnswer
		if more, err = cl.ReplayPolicies(ctx, in); err == nil {
			err = joinReplays(&whole, more)
		}
	}
	if whole.Groups == nil {
		whole.Groups = []wire.PolicyReplayGroup{}
	}
	return whole, err
}

// joinReplays adds what a later page found.
func joinReplays(whole *wire.PolicyReplayAnswer, more wire.PolicyReplayAnswer) error {
	if more.PolicyHash != whole.PolicyHash {
		return failed("policies_changed", "the live policies were changed meanwhile; run it again")
	}
	whole.Next, whole.Last = more.Next, cmp.Or(more.Last, whole.Last)
	if whole.First == nil {
		whole.First = more.First
	}
	for into, n := range map[*int]int{&whole.Entries: more.Entries, &whole.Decisions: more.Decisions, &whole.Moot: more.Moot, &whole.Unreadable: more.Unreadable, &whole.Same: more.Same,
		&whole.PermitToDeny: more.PermitToDeny, &whole.DenyToPermit: more.DenyToPermit, &whole.Obligations: more.Obligations, &whole.Omitted: more.Omitted} {
		*into += n
	}
	at := map[[4]string]int{}
	of := func(g wire.PolicyReplayGroup) [4]string {
		return [4]string{g.Change, g.Principal, g.Action, g.Resource}
	}
	for i, g := range whole.Groups {
		at[of(g)] = i
	}
	for _, g := range more.Groups {
		i, ok := at[of(g)]
		if !ok {
			whole.Groups = append(whole.Groups, g)
			continue
		}
		have := &whole.Groups[i]
		g.Count, g.Already, g.First = g.Count+have.Count, g.Already+have.Already, have.First
		*have = g // the newest example
	}
	sort := func(g wire.PolicyReplayGroup) int {
		return slices.IndexFunc(replaySorts, func(s replaySort) bool { return s.change == g.Change })
	}
	slices.SortStableFunc(whole.Groups, func(a, b wire.PolicyReplayGroup) int {
		return cmp.Or(cmp.Compare(sort(a), sort(b)), cmp.Compare(b.Count, a.Count))
	})
	return nil
}

// replaySort is a sort of differences.
type replaySort struct {
	change, title string
	ink           colour
}

// replaySorts begin with what would stop working.
var replaySorts = []replaySort{
	{wire.ChangePermitToDeny, "would be denied", red},
	{wire.ChangeDenyToPermit, "would be permitted", yellow},
	{wire.ChangeObligations, "would be permitted on other conditions", yellow},
}

// replayed prints what would change, by sort.
func (p *page) replayed(a wire.PolicyReplayAnswer) {
	for _, t := range replaySorts {
		title := false
		for _, g := range a.Groups {
			if g.Change != t.change {
				continue
			}
			if !title {
				title = true
				p.printf("%s\n", p.paint(t.ink, t.title))
			}
			p.replayGroup(g)
		}
		if title {
			p.printf("\n")
		}
	}
	if a.Omitted > 0 {
		p.printf("%s more in groups that are not shown\n", count(a.Omitted, "difference"))
	}
	span := "nothing"
	if a.First != nil && a.Last != nil {
		span = count(a.Entries, "command") + ", " + a.First.Local().Format("2006-01-02 15:04") + " to " + a.Last.Local().Format("2006-01-02 15:04")
	}
	p.printf("%s: %s decided again\n", span, count(a.Decisions, "decision"))
	p.printf("%d would be denied, %d permitted, %d on other conditions; %d the same\n", a.PermitToDeny, a.DenyToPermit, a.Obligations, a.Same)
	if a.Moot > 0 {
		p.printf("%d were permitted but refused for another reason, and left out\n", a.Moot)
	}
	if a.Unreadable > 0 {
		p.printf("%s\n", p.paint(red, strconv.Itoa(a.Unreadable)+" cannot be read by this build, and were left out"))
	}
}

func (p *page) replayGroup(g wire.PolicyReplayGroup) {
	when := p.when(g.Last)
	if first := p.when(g.First); first != when {
		when = first + " to " + when
	}
	p.printf("%6d×  %s\n", g.Count, clean(fmt.Sprintf("%s %s %s", g.Principal, g.Action, g.Resource)))
	p.printf("         %s %s\n         %s  %s\n", p.paint(dim, "before"), clean(g.Before), p.paint(dim, "after"), clean(g.After))
	if g.Already > 0 {
		p.printf("         %s\n", p.paint(dim, fmt.Sprintf("%d of them by the live policies already", g.Already)))
	}
	p.printf("         %s\n", p.paint(dim, clean(when+", as in "+g.DecisionID)))
}

// before prints what a grant's requester had before. It is the cluster's word:
// that it cannot be had keeps nobody from reading or signing the document.
func (p *page) before(a *wire.PreviousAccess) {
	last := ""
	if a.Last != nil {
		last = p.both(*a.Last)
	}
	had := ""
	if len(a.Scope) > 0 {
		had = a.Scope.String()
	}
	p.printf("%s\n", p.paint(bold, "Before, as the cluster says (nobody signs this)"))
	for _, l := range [][2]string{{"on " + a.Role, a.Text}, {"last", last}, {"had", had}, {"new", a.By}} {
		if l[1] != "" {
			p.printf("  %s  %s\n", p.paint(dim, clean(l[0])), clean(l[1]))
		}
	}
}

// beforeTime is how long an approver waits for what can be done without.
const beforeTime = 5 * time.Second

// beforeOf asks what a grant's requester had before; nil where it cannot be told.
func (s *shell) beforeOf(ctx context.Context, cl *client.Client, g wire.Grant) *wire.PreviousAccess {
	if g.Kind == wire.GrantChange || g.Role == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, beforeTime)
	defer cancel()
	a, err := cl.PreviousAccess(ctx, g.ID)
	if err != nil {
		s.notice("what %s had before cannot be told: %s", clean(g.Principal), clean(err.Error()))
		return nil
	}
	return &a
}
