package console

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// perPage is how long lists are.
const perPage = 50

// inboxBody is the page of what waits for the caller.
type inboxBody struct {
	Pending []wire.Grant
	Reviews []wire.Grant
	Mine    []wire.Grant
	Keys    int // passkeys of the caller
}

func (s *Console) inbox(x *exchange) error {
	ctx := x.r.Context()
	var b inboxBody
	pending, err := x.engine.Grants(ctx, x.caller, GrantFilter{Pending: true, Limit: maxBadge})
	if err != nil {
		return err
	}
	for _, g := range pending {
		switch {
		case !g.MayApprove:
		case g.State == wire.GrantWaiting:
			b.Pending = append(b.Pending, g)
		default:
			b.Reviews = append(b.Reviews, g)
		}
	}
	mine, err := x.engine.Grants(ctx, x.caller, GrantFilter{Mine: true, Limit: perPage})
	if err != nil {
		return err
	}
	for _, g := range mine {
		if slices.Contains([]string{wire.GrantWaiting, wire.GrantApproved, wire.GrantOpen}, g.State) {
			b.Mine = append(b.Mine, g)
		}
	}
	// The soonest to lapse first: that is the order in which to decide.
	slices.SortStableFunc(b.Pending, func(a, b wire.Grant) int {
		if a.CollectBefore == nil || b.CollectBefore == nil {
			return 0
		}
		return a.CollectBefore.Compare(*b.CollectBefore)
	})
	keys, err := x.engine.Passkeys(ctx, x.caller)
	if err != nil {
		return err
	}
	b.Keys = len(keys)
	return x.show("inbox", page{Title: "Inbox", Nav: "inbox", Body: b})
}

// states are what lists of grants can be narrowed to.
var states = []string{wire.GrantWaiting, wire.GrantApproved, wire.GrantOpen, wire.GrantEnded, wire.GrantDenied, wire.GrantCancelled, wire.GrantExpired,
	wire.GrantVoid, wire.GrantRevoked}

type grantsBody struct {
	Grants    []wire.Grant
	States    []string
	State     string
	Principal string
	Mine      bool
	Next      string
}

func (s *Console) listGrants(x *exchange) error {
	b := grantsBody{States: states, State: x.query("state"), Principal: x.query("principal"), Mine: x.query("mine") != ""}
	var err error
	b.Grants, err = x.engine.Grants(x.r.Context(), x.caller, GrantFilter{State: b.State, Principal: b.Principal, Mine: b.Mine, Limit: perPage, After: x.query("after")})
	if err != nil {
		return err
	}
	if len(b.Grants) == perPage {
		b.Next = b.Grants[perPage-1].ID
	} else if x.query("after") == "" {
		slices.Reverse(b.Grants) // all on one page: the newest first
	}
	return x.show("grants", page{Title: "Grants", Nav: "grants", Body: b})
}

// grantBody is the page of one grant.
type grantBody struct {
	Grant wire.Grant
	Paper *Paper
	// Unreadable says why the document is not laid out.
	Unreadable *fault.Error
	Decision   *wire.Decision
	// Before is what the requester had last, and Against how this differs.
	Before  *wire.Grant
	Against []Line
	Sum     string
	// Limits are the other bounds that differ.
	Limits  []Was
	Changes []ObjectDiff
	Can     Can
	Keys    []broker.Passkey
	// Challenge is the grant's hash as a passkey signs it, base64url.
	Challenge string
	RPID      string
}

// Can is what the caller may do to a grant in its present state, as far as the
// page knows; the engine has the last word.
type Can struct{ Approve, Deny, Cancel, Revoke, Review bool }

// Was is a bound that is not what it was.
type Was struct{ Name, Before, Now string }

// ObjectDiff is a change of one object.
type ObjectDiff struct {
	Kind, Name, Action string
	Lines              []Line
	Secrets            []string
	// Moved says that the object is no longer what the change was made against.
	Moved bool
}

func (s *Console) showGrant(x *exchange) error { return s.grantPage(x, http.StatusOK, nil) }

// grantPage shows a grant, and what went wrong in acting on it.
func (s *Console) grantPage(x *exchange, status int, problem *fault.Error) error {
	ctx := x.r.Context()
	g, err := x.engine.Grant(ctx, x.caller, x.r.PathValue("id"))
	if err != nil {
		return err
	}
	b := grantBody{Grant: g}
	p, err := paper(g)
	if err != nil {
		b.Unreadable = fault.As(err)
	}
	b.Paper = p
	if d, err := x.engine.Decision(ctx, x.caller, g.DecisionID); err == nil {
		b.Decision = &d
	}
	if err := s.addHistory(x, &b); err != nil {
		return err
	}
	if b.Keys, err = x.engine.Passkeys(ctx, x.caller); err != nil {
		return err
	}
	b.Can = b.can(x.me.Principal)
	if raw, err := hex.DecodeString(g.Hash); err == nil {
		b.Challenge = base64.RawURLEncoding.EncodeToString(raw)
	}
	if len(b.Keys) > 0 {
		b.RPID = b.Keys[0].RPID
	}
	what := "Grant"
	if g.Role != "" {
		what = g.Role
	}
	p2 := page{Title: what, Nav: "grants", Body: b, Problem: problem, Notice: notices[x.query("done")]}
	s.render(x.w, x.r, x.visitor, status, "grant", p2)
	return nil
}

// notices are what a page says after a change; the URL names them only.
var notices = map[string]string{
	"approve": "Your approval is recorded.",
	"deny":    "Denied. The requester sees your reason.",
	"cancel":  "Cancelled.",
	"revoke":  "Revoked. Its credentials are being withdrawn.",
	"review":  "Your review is recorded.",
	"key":     "The passkey is registered.",
	"asked":   "The passkey counts as soon as the approvers have agreed to it.",
	"removed": "The key is removed. It counts for nothing from now on.",
}

// addHistory adds what the requester had before, and what a change changes.
func (s *Console) addHistory(x *exchange, b *grantBody) error {
	ctx := x.r.Context()
	if b.Paper == nil || b.Unreadable != nil {
		return nil
	}
	if c := b.Paper.Change; c != nil {
		for _, o := range c.Objects {
			d := ObjectDiff{Kind: o.Kind, Name: o.Name, Action: "create"}
			before := ""
			if o.Version > 0 {
				d.Action = "update"
				live, err := x.engine.Object(ctx, x.caller, o.Kind, o.Name)
				if err == nil {
					before = readable(o.Kind, live.Spec)
				}
				d.Moved = err != nil || live.Version != o.Version
			}
			if o.Delete {
				d.Action = "delete"
			}
			d.Lines = diffLines(before, readable(o.Kind, o.Spec))
			for _, sec := range o.Secrets {
				name := sec.Name
				if o.Override {
					name += " (in place of a secret that was rotated)"
				}
				d.Secrets = append(d.Secrets, name)
			}
			b.Changes = append(b.Changes, d)
		}
		return nil
	}
	before, err := x.engine.Previous(ctx, x.caller, b.Grant.ID)
	if err != nil {
		return nil // nothing, or not the caller's to see: the page says that it knows of none
	}
	b.Before = &before
	was, err := paper(before)
	if err != nil || was == nil || was.Access == nil {
		b.Against, b.Sum = compared(before.Scope, b.Paper.Scope)
		return nil
	}
	b.Against, b.Sum = compared(was.Scope, b.Paper.Scope)
	for _, l := range []Was{
		{"one credential", span(was.TTL()), span(b.Paper.TTL())},
		{"with renewals", span(was.Total()), span(b.Paper.Total())},
		{"purpose", was.Access.Purpose, b.Paper.Access.Purpose},
	} {
		if l.Before != l.Now {
			b.Limits = append(b.Limits, l)
		}
	}
	return nil
}

func (b *grantBody) can(me string) Can {
	g := b.Grant
	live := g.State == wire.GrantWaiting || g.State == wire.GrantApproved
	return Can{
		Approve: g.State == wire.GrantWaiting && g.MayApprove && b.Paper != nil && b.Paper.True && b.Unreadable == nil,
		Deny:    g.State == wire.GrantWaiting && g.MayApprove,
		Cancel:  live && g.Principal == me,
		Revoke:  (g.State == wire.GrantApproved || g.State == wire.GrantOpen) && g.Principal != me,
		Review:  g.Review != nil && !g.Review.Done && g.MayApprove,
	}
}

// actOnGrant does what a form of the grant's page asks for.
func (s *Console) actOnGrant(x *exchange) error {
	id, act := x.r.PathValue("id"), x.r.PathValue("act")
	if act == "review-hash" {
		return s.reviewHash(x, id)
	}
	err := s.do(x, id, act)
	if err == nil {
		return x.see("/grants/" + escapePath(id) + "?done=" + act)
	}
	e := fault.As(err)
	switch e.Kind {
	case fault.Invalid, fault.Denied, fault.Conflict, fault.Unavailable, fault.Indeterminate, fault.Upstream, fault.RateLimited:
		if s.grantPage(x, e.Kind.Status(), e) == nil {
			return nil
		}
	}
	return err
}

func (s *Console) do(x *exchange, id, act string) error {
	ctx, reason := x.r.Context(), strings.TrimSpace(x.form("reason"))
	if len(reason) > maxReason {
		return fault.New(fault.Invalid, "reason_too_long", "A reason has at most %d bytes.", maxReason)
	}
	var err error
	switch act {
	case "approve":
		var sig wire.Signature
		if sig, err = x.signature(""); err == nil {
			_, err = x.engine.ApproveGrant(ctx, x.caller, id, wire.ApproveRequest{Hash: x.form("hash"), Signature: sig})
		}
	case "deny", "revoke":
		if reason == "" {
			return fault.New(fault.Invalid, "reason_missing", "Say why: the requester reads it, and so does whoever looks later.")
		}
		if act == "deny" {
			_, err = x.engine.DenyGrant(ctx, x.caller, id, wire.EndGrantRequest{Reason: reason})
		} else {
			_, err = x.engine.RevokeGrant(ctx, x.caller, id, wire.EndGrantRequest{Reason: reason})
		}
	case "cancel":
		_, err = x.engine.CancelGrant(ctx, x.caller, id, wire.EndGrantRequest{Reason: reason})
	case "review":
		var sig wire.Signature
		if sig, err = x.signature(""); err == nil {
			_, err = x.engine.ReviewGrant(ctx, x.caller, id, wire.ReviewRequest{Verdict: x.form("verdict"), Note: reason, Signature: sig})
		}
	default:
		return fault.New(fault.NotFound, "page_not_found", "There is no such page.")
	}
	return err
}

// reviewHash tells the page's script what a review's signature covers.
func (s *Console) reviewHash(x *exchange, id string) error {
	sum, err := x.engine.ReviewHash(x.r.Context(), x.caller, id, x.form("verdict"), strings.TrimSpace(x.form("reason")))
	if err != nil {
		return err
	}
	raw, err := hex.DecodeString(sum)
	if err != nil {
		return err
	}
	writeJSON(x.w, http.StatusOK, map[string]string{"challenge": base64.RawURLEncoding.EncodeToString(raw)})
	return nil
}

// signature reads a passkey's signature out of a form. Its bytes go on as they
// came; prefix tells two in one form apart.
func (x *exchange) signature(prefix string) (wire.Signature, error) {
	sig := wire.Signature{Kind: "passkey", Key: x.form(prefix + "key")}
	if sig.JWS = x.form(prefix + "jws"); sig.JWS != "" {
		sig.Kind = "jws"
		return sig, nil
	}
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{"authenticator_data", &sig.AuthenticatorData}, {"client_data_json", &sig.ClientDataJSON}, {"assertion", &sig.Assertion}} {
		text := x.form(prefix + f.name)
		raw, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || text == "" || len(text) > maxSignature {
			return sig, fault.New(fault.Invalid, "signature_missing", "The form carries no signature of a passkey. Signing needs this page's script; without it, use: mayfly grant approve.")
		}
		*f.to = raw
	}
	if sig.Key == "" {
		return sig, fault.New(fault.Invalid, "signature_missing", "The passkey that signed is none of yours here.")
	}
	return sig, nil
}

// maxSignature is ten times what any authenticator sends.
const maxSignature = 16 << 10
