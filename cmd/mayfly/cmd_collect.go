package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func waitFlag() cli.Flag {
	return &cli.DurationFlag{Name: "wait", Usage: "wait so long for approvals (`D`)"}
}

// ownForms are the forms of a credential that other programs expect.
var ownForms = []string{asEnv, asCredentialProcess, asExecCredential}

func grantCollectCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "collect", Usage: "pick up what was approved: the credential, or that the change is made", ArgsUsage: "GRANT",
		Description: `Prints what request would have printed, in the same forms. A grant that still
waits ends with 4; --wait waits for the approvers, and an interruption leaves the
grant waiting. A change is made with its last approval; collecting it tells that.

Examples:
  mayfly grant collect g_…
  mayfly grant collect g_… --wait 30m -o env
  mayfly grant collect g_… --csr server.csr --field credential.certificate`,
		Flags: []cli.Flag{
			waitFlag(),
			&cli.StringFlag{Name: "csr", Usage: "a certificate request in PEM; - is stdin (`F`)"},
			&cli.StringFlag{Name: "public-key", Usage: "the key to bind the credential to: JWK, PEM or OpenSSH (`F`)"},
		},
		Action: func(c *cli.Context) error {
			if err := s.formats(ownForms...); err != nil {
				return err
			}
			args, err := require(c, 1, 1)
			if err != nil {
				return err
			}
			var in wire.CollectRequest
			if in.CSR, in.PublicKey, err = s.boundTo(c); err != nil {
				return err
			}
			cl, err := s.open(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			a, err := s.collectGrant(c, cl, args[0], in)
			if err != nil {
				return err
			}
			return s.showCollected(c, a)
		},
	}
}

// collectGrant collects, waiting as long as --wait says.
func (s *shell) collectGrant(c *cli.Context, cl *client.Client, id string, in wire.CollectRequest) (client.Access, error) {
	wait := c.Duration("wait")
	if wait <= 0 {
		return cl.CollectGrant(c.Context, id, in)
	}
	a, err := s.await(c.Context, cl, id, in, wait)
	if !stillWaits(err) {
		return a, err
	}
	g, err := cl.Grant(context.WithoutCancel(c.Context), id)
	if err != nil {
		return a, err
	}
	return client.Access{AccessAnswer: wire.AccessAnswer{Status: client.StatusWaiting, GrantID: g.ID, Role: g.Role, TaskID: g.TaskID, DecisionID: g.DecisionID,
		Waiting: wire.Waiting{Hash: g.Hash, CollectBefore: g.CollectBefore, URL: g.URL, Needs: g.Needs, StepUp: g.StepUp}}}, nil
}

func (s *shell) showCollected(c *cli.Context, a client.Access) error {
	switch {
	case slices.Contains(ownForms, s.output) && a.Status == client.StatusWaiting:
		return s.waitingError(c, a)
	case slices.Contains(ownForms, s.output):
		return s.showDelivered(a.AccessAnswer)
	case a.Status != client.StatusWaiting && a.LeaseID == "" && len(a.Credential) == 0: // a change
		return s.show(a, func(p *page) {
			p.printf("%s %s\n", clean(a.GrantID), p.paint(green, "is approved, and the change is made"))
		})
	default:
		return s.showAccess(c, a)
	}
}

// await waits for approvals and collects. Its error is the context's when they
// did not come; see [stillWaits].
func (s *shell) await(ctx context.Context, cl *client.Client, id string, in wire.CollectRequest, wait time.Duration) (client.Access, error) {
	end := time.Now().Add(wait)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	return s.whileHeld(ctx, end, func() (client.Access, error) { return cl.AwaitAndCollect(ctx, id, in, s.progress()) })
}

// stillWaits says whether waiting was given up, by the clock or by a signal,
// rather than ended by an answer.
func stillWaits(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// progress tells on stderr what a grant waits for, whenever that changes.
func (s *shell) progress() func(wire.Grant) {
	said := ""
	return func(g wire.Grant) {
		text := ""
		if g.State == wire.GrantWaiting {
			text = "waiting for " + needsText(g.Needs)
			if g.CollectBefore != nil {
				text += ", until " + clock(*g.CollectBefore)
			}
		}
		if text != "" && text != said {
			s.notice("%s", text)
		}
		said = text
	}
}

// waitingAnswer is what the contract says of an answer that waits.
type waitingAnswer struct {
	Status        string        `json:"status"`
	GrantID       string        `json:"grant_id"`
	Hash          string        `json:"hash"`
	CollectBefore *time.Time    `json:"collect_before"`
	URL           string        `json:"url"`
	Needs         []waitingNeed `json:"needs"`
	StepUp        string        `json:"step_up,omitempty"` // the requester must sign, too, with a key of this kind
}

type waitingNeed struct {
	Group    string `json:"group"`
	Required int    `json:"required"`
	Have     int    `json:"have"`
	Eligible int    `json:"eligible"`
}

// showWaiting prints an answer that waits; the exit code is 4.
func (s *shell) showWaiting(c *cli.Context, a client.Access) error {
	doc := waitingAnswer{Status: a.Status, GrantID: a.GrantID, Hash: a.Hash, CollectBefore: a.CollectBefore, URL: a.URL, Needs: []waitingNeed{}, StepUp: a.StepUp}
	for _, n := range a.Needs {
		doc.Needs = append(doc.Needs, waitingNeed{n.Group, n.Required, n.Have, n.Eligible})
	}
	if err := s.show(doc, func(p *page) { p.line(waitingText(c, a.GrantID, a.Waiting)) }); err != nil {
		return err
	}
	return told(exitWaiting)
}

// waitingSentence says who must approve, where and until when.
func waitingSentence(id string, w wire.Waiting) string {
	needs := needsText(w.Needs)
	switch {
	case w.StepUp != "" && needs != "":
		needs += ", and the requester's own " + w.StepUp
	case w.StepUp != "":
		needs = "the requester's own " + w.StepUp
	}
	text := "Waiting for approval: grant " + id + " needs " + or(needs, "approvers")
	if w.URL != "" {
		text += ", at " + w.URL
	}
	if w.CollectBefore != nil {
		text += ", until " + clock(*w.CollectBefore)
	}
	return text + "."
}

// waitingText is waitingSentence, and below it how to collect.
func waitingText(c *cli.Context, id string, w wire.Waiting) string {
	text := waitingSentence(id, w)
	if w.StepUp != "" {
		text += "\nYou must sign too, with your " + w.StepUp + ": open that address in a browser."
	}
	collect := "mayfly grant collect " + id
	for _, flag := range []string{"csr", "public-key"} {
		if f := c.String(flag); f != "" {
			collect += " --" + flag + " " + quoteArg(f)
		}
	}
	return text + "\nThen collect it: " + collect + "   (--wait 1h waits for them)"
}

// quoteArg quotes where a shell would not take the word as it is.
func quoteArg(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/") == "" {
		return s
	}
	return quoteShell(s)
}

// waitingError is showWaiting where stdout is some other program's.
func (s *shell) waitingError(c *cli.Context, a client.Access) error {
	fmt.Fprintln(s.err, cleanLines(waitingText(c, a.GrantID, a.Waiting)))
	return told(exitWaiting)
}

// changeWaits goes on after a change that must be co-signed: with --wait it
// waits and makes it; else, or when approvals do not come, it says how to. Show
// prints the change, waiting or made.
func (s *shell) changeWaits(c *cli.Context, cl *client.Client, id string, w *wire.Waiting, show func(waits bool) error) error {
	if wait := c.Duration("wait"); wait > 0 {
		_, err := s.await(c.Context, cl, id, wire.CollectRequest{}, wait)
		if err == nil {
			return show(false)
		}
		if !stillWaits(err) {
			return err
		}
	}
	if w == nil {
		g, err := cl.Grant(context.WithoutCancel(c.Context), id)
		if err != nil {
			return err
		}
		w = &wire.Waiting{Hash: g.Hash, CollectBefore: g.CollectBefore, URL: g.URL, Needs: g.Needs}
	}
	if err := show(true); err != nil {
		return err
	}
	fmt.Fprintln(s.err, cleanLines("Nothing is changed yet. "+waitingSentence(id, *w)+"\nIt is made once they have; to wait for it: mayfly grant collect "+id+" --wait 1h"))
	return told(exitWaiting)
}
