package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// endGrant is one of the client's ways to end a grant.
type endGrant func(*client.Client, context.Context, string, wire.EndGrantRequest) (wire.Grant, error)

// minPrefix is how much of a hash must be given: 32 bits, which nobody hits by
// accident, and which whoever could aim at them would have to aim at all.
const minPrefix = 8

// signingFlags say with which key, and confirm without a person being asked.
func signingFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "key", Usage: "sign with this OpenSSH key or JWK; of a .pub file, the private half is the agent's (`FILE`)"},
		&cli.BoolFlag{Name: "agent", Usage: "sign with the one registered key that the ssh-agent holds"},
		&cli.StringFlag{Name: "hash", Usage: "the document's hash, at least 8 hex digits of it, instead of being asked (`PREFIX`)"},
	}, more...)
}

func grantApproveCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "approve", Usage: "read what is asked for, and sign it", ArgsUsage: "GRANT",
		Description: `Shows the document: what the cluster has proven apart from what the requester
claims. The hash is computed here, from what is shown, and that is what is
signed. Without --key the approval key of this home signs, or else the one
registered key that the ssh-agent holds.

Nobody is asked when --hash names the document; nothing else stands in for it.

Examples:
  mayfly grant approve g_…
  mayfly grant approve g_… --key ~/.ssh/id_ed25519_sk.pub
  mayfly grant approve g_… --hash 3f9a0c12`,
		Flags: signingFlags(),
		Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
			g, err := cl.Grant(c.Context, args[0])
			if err != nil {
				return err
			}
			shown, err := s.present(c, cl, g, "Approve it? Type yes: ")
			if err != nil {
				return err
			}
			signer, done, err := s.signer(c, cl)
			if err != nil {
				return err
			}
			defer done()
			sig, err := s.sign(signer, shown.Domain, shown.Hash)
			if err != nil {
				return err
			}
			if g, err = cl.ApproveGrant(c.Context, g.ID, wire.ApproveRequest{Hash: shown.HashText(), Signature: sig}); err != nil {
				return err
			}
			return s.show(g, func(p *page) {
				p.printf("%s\n", p.paint(green, "signed with "+clean(keyTitle(signer.Key()))))
				p.printf("%s is %s", clean(g.ID), clean(g.State))
				if g.State == wire.GrantWaiting {
					p.printf(": needs %s", needsText(g.Needs))
				}
				p.printf("\n")
			})
		}),
	}
}

func grantReviewCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "review", Usage: "say afterwards whether an emergency was one", ArgsUsage: "GRANT",
		Description: `Examples:
  mayfly grant review g_… --verdict justified --note "incident 77, seen by the on-call"
  mayfly grant review g_… --verdict unjustified --note "nobody was paged" --hash 3f9a0c12`,
		Flags: signingFlags(
			&cli.StringFlag{Name: "verdict", Usage: "`justified|unjustified`"},
			&cli.StringFlag{Name: "note", Usage: "what you found (`N`)"},
		),
		Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
			verdict, note := c.String("verdict"), strings.ToValidUTF8(c.String("note"), "\uFFFD")
			if verdict != "justified" && verdict != "unjustified" {
				return usage("--verdict %q: want justified or unjustified", verdict)
			}
			g, err := cl.Grant(c.Context, args[0])
			if err != nil {
				return err
			}
			shown, err := s.present(c, cl, g, "Sign that it was "+verdict+"? Type yes: ")
			if err != nil {
				return err
			}
			hash, err := shown.Review(verdict, note)
			if err != nil {
				return err
			}
			signer, done, err := s.signer(c, cl)
			if err != nil {
				return err
			}
			defer done()
			sig, err := s.sign(signer, approve.DomainReview, hash)
			if err != nil {
				return err
			}
			if g, err = cl.ReviewGrant(c.Context, g.ID, wire.ReviewRequest{Verdict: verdict, Note: note, Signature: sig}); err != nil {
				return err
			}
			return s.show(g, func(p *page) {
				p.printf("%s: %s\n", clean(g.ID), verdict)
				if g.Review != nil {
					p.review(g.Review)
				}
			})
		}),
	}
}

// sign signs, and says so first: a security key wants to be touched.
func (s *shell) sign(signer approve.Signer, domain string, hash [32]byte) (wire.Signature, error) {
	if strings.HasPrefix(signer.Key().SSH, "sk-") {
		s.notice("touch your security key")
	}
	return signer.Sign(domain, hash)
}

// present shows a grant's document and asks whether to go on. What it returns is
// what was shown.
func (s *shell) present(c *cli.Context, cl *client.Client, g wire.Grant, question string) (*shownDocument, error) {
	prefix := strings.ToLower(strings.TrimSpace(c.String("hash")))
	if prefix != "" && (len(prefix) < minPrefix || strings.Trim(prefix, "0123456789abcdef") != "") {
		return nil, usage("--hash %s: want at least %d hex digits of the document's hash", clean(prefix), minPrefix)
	}
	shown, err := s.checked(c, cl, g)
	if err != nil {
		return nil, err
	}
	w := s.out
	if s.output != asTable || s.field != "" { // stdout is for the result alone
		w = s.err
	}
	p := &page{w: w, now: time.Now(), paint: s.painter(w)}
	p.document(shown)
	p.printf("\n")
	if g.Opens != nil {
		p.opens(*g.Opens)
		p.printf("\n")
	}
	if before := s.beforeOf(c.Context, cl, g); before != nil {
		p.before(before)
		p.printf("\n")
	}
	if p.err != nil {
		return nil, p.err
	}
	if !g.MayApprove && g.WhyNot != "" {
		s.notice("the cluster says that you cannot: %s", clean(g.WhyNot))
	}
	switch {
	case prefix != "" && !strings.HasPrefix(shown.HashText(), prefix):
		return nil, failed(approve.CodeHashMismatch, "--hash %s is not this document's: its hash is %s. Nothing was signed", prefix, shown.HashText())
	case prefix != "":
		return shown, nil
	case !s.interactive():
		return nil, usage("nobody can be asked here: read the document, then give --hash with at least %d digits of its hash (%s…)", minPrefix, shown.HashText()[:minPrefix])
	}
	answer, err := s.question(question)
	if err != nil {
		return nil, err
	}
	if strings.ToLower(answer) != "yes" {
		return nil, failed("not_confirmed", "nothing was signed")
	}
	return shown, nil
}

// checked checks a grant's document against its hash, and reads what the objects
// that it changes are now, for comparison. Those are the cluster's word only;
// the document alone is signed, and shown whole.
func (s *shell) checked(c *cli.Context, cl *client.Client, g wire.Grant) (*shownDocument, error) {
	d, err := approve.Check(g)
	if err != nil {
		return nil, err
	}
	out := &shownDocument{Document: d, live: map[string]wire.Object{}}
	for _, x := range d.Changes() {
		if x.Version == 0 {
			continue
		}
		o, err := cl.Object(c.Context, x.Kind, x.Name)
		var e *client.Error
		if errors.As(err, &e) && (e.Problem.Kind == client.KindNotFound || e.Problem.Kind == client.KindDenied) {
			continue // gone, or not for this approver to read
		}
		if err != nil {
			return nil, err
		}
		out.live[x.Kind+"/"+x.Name] = o
	}
	return out, nil
}

// objectChanges prints the objects of a change, each against what it is now.
func (p *page) objectChanges(d *shownDocument) {
	for _, x := range d.Changes() {
		id := x.Kind + "/" + x.Name
		live, known := d.live[id]
		p.printf("\n")
		switch {
		case x.Delete:
			p.printf("%s\n", p.paint(red, "delete "+clean(id)))
		case x.Version == 0:
			p.printf("%s\n", p.paint(bold, "create "+clean(id)))
		case !known:
			p.printf("%s\n", p.paint(bold, "update "+clean(id)+" (what it is now cannot be read)"))
		case live.Version != x.Version:
			p.printf("%s\n", p.paint(red, clean(fmt.Sprintf("update %s (it is at version %d by now; this replaces %d)", id, live.Version, x.Version))))
		default:
			p.printf("%s\n", p.paint(bold, "update "+clean(id)))
		}
		for _, line := range wholeDiff(signedText(live.Spec), signedText(x.Spec)) {
			p.printf("%s\n", p.paint(inkOfDiff(line), clean(line)))
		}
	}
}

// signedText is a spec of which nothing is left out: that of a policy is its text
// only where it has nothing else.
func signedText(spec json.RawMessage) []byte {
	var members map[string]json.RawMessage
	if json.Unmarshal(spec, &members) == nil && len(members) == 1 || len(spec) == 0 {
		return specText(spec)
	}
	out, err := yaml.JSONToYAML(spec)
	if err != nil {
		return append(spec, '\n')
	}
	return out
}

// wholeDiff is a diff that leaves nothing of the new text out: what is signed is
// shown whole, even where the old text, which nobody signed, is a lie.
func wholeDiff(before, after []byte) []string {
	fresh := strings.SplitAfter(string(after), "\n")
	var out []string
	at := 0 // lines of fresh that are shown
	show := func(upTo int) {
		for ; at < upTo && at < len(fresh); at++ {
			if fresh[at] != "" {
				out = append(out, "  "+strings.TrimSuffix(fresh[at], "\n"))
			}
		}
	}
	inHunk := false
	for _, line := range strings.Split(string(diff.Diff("a", before, "b", after)), "\n") {
		var oldAt, oldLen, newAt, newLen int
		if _, err := fmt.Sscanf(line, "@@ -%d,%d +%d,%d @@", &oldAt, &oldLen, &newAt, &newLen); err == nil {
			inHunk = true
			if newLen > 0 {
				newAt--
			}
			show(newAt)
			continue
		}
		switch {
		case !inHunk || line == "":
		case line[0] == '-':
			out = append(out, "- "+line[1:])
		case line[0] == '+' && at < len(fresh):
			out = append(out, "+ "+strings.TrimSuffix(fresh[at], "\n"))
			at++
		case line[0] == ' ':
			show(at + 1)
		}
	}
	show(len(fresh))
	return out
}
