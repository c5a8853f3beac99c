package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// proofRotated is the receipt of a lease on an account whose secret was replaced
// since: what the lease gave out opens nothing.
const proofRotated = "rotated"

// onAccount reads what a role on an account gives out.
func onAccount(q ledger.Query, role ledger.RoleSpec) (ledger.AccountSpec, error) {
	var a ledger.AccountSpec
	if _, ok := q.Spec(ledger.KindAccount, role.Account, &a); !ok {
		return a, fault.New(fault.NotFound, "not_found", "Account %s does not exist.", role.Account)
	}
	_, _, err := present(q, role.Account, a)
	return a, err
}

// present is the name and the secret that an account is entered by now.
func present(q ledger.Query, account string, a ledger.AccountSpec) (username string, s secret.Text, err error) {
	r, _ := q.Rotation(ledger.RotationSubject(ledger.KindAccount, account))
	raw := q.SlotSecret(account, r.Active)
	switch {
	case raw == nil:
		detail := "Nobody has told the broker its secret, and its first rotation is not done"
		if r.Problem != "" {
			detail += ": " + r.Problem
		}
		return "", s, &fault.Error{Kind: fault.Unavailable, Code: "account_not_ready", RetryAfter: 2 * time.Second,
			Detail: fmt.Sprintf("Account %s cannot be given out yet. %s. Retry, or look with: mayfly get account %s", account, detail, account)}
	case len(a.Usernames) == 1 && (r.InFlight() || r.Urgent): // urgent: somebody holds it who must not
		return "", s, &fault.Error{Kind: fault.Unavailable, Code: "account_turning", RetryAfter: time.Second,
			Detail: fmt.Sprintf("The secret of account %s is being replaced just now. Retry.", account)}
	}
	return a.Usernames[r.Active], secret.New(string(raw)), nil
}

// checkHolder refuses a second holder of an account that has one at a time, as
// Apply would, before it is in the log; the ledger's word counts. back is the
// lease of an earlier run of the same instance, which nobody uses any more.
func (e *Engine) checkHolder(q ledger.Query, c Caller, a access, f footing) (back string, err error) {
	if !f.account.RotateAfterUse {
		return "", nil
	}
	for _, id := range q.Holders(f.role.Account, 1) {
		l, _ := q.Lease(id)
		task, _ := q.Task(l.Grant.TaskID)
		g := l.Grant
		switch {
		case l.State != ledger.LeaseOpen:
			return "", turningAfterUse(f.role.Account, l)
		case f.task == nil && task.Implicit && c.Session.Instance != "" && g.Principal == c.Session.Principal && g.Instance == c.Session.Instance && g.Role == a.Role:
			return id, nil
		}
		return "", &fault.Error{Kind: fault.Conflict, Code: ledger.CodeAccountHeld,
			RetryAfter: max(time.Second, min(time.UnixMilli(l.ExpiresMS).Sub(e.now()), maxHeldRetry)),
			Detail:     fmt.Sprintf("Account %s has one holder at a time, since its secret is replaced after each use: %s. Wait for it with --wait; or have the lease ended: mayfly lease revoke %s", f.role.Account, l.Holds(), id)}
	}
	return "", nil
}

// maxHeldRetry is after how long who waits for an account asks again at the
// latest: its holder may give it back early.
const maxHeldRetry = 5 * time.Second

// turningAfterUse is the answer while the secret that the last holder had is being
// replaced.
func turningAfterUse(account string, l ledger.Lease) error {
	detail := ""
	if l.End != nil && l.End.Problem != "" {
		detail = " (" + l.End.Problem + ")"
	}
	return &fault.Error{Kind: fault.Unavailable, Code: "account_turning", RetryAfter: time.Second,
		Detail: fmt.Sprintf("Account %s: %s%s. Retry.", account, l.Holds(), detail)}
}

// giveBack ends the lease of an earlier run of the caller's instance. Where accounts
// are shared a new lease supersedes it in one command; here its secret is to be
// replaced first.
func (e *Engine) giveBack(ctx context.Context, c Caller, lease, role string) error {
	h := e.header(c)
	h.Idem = nil
	if _, err := e.commit(ctx, h, &ledger.EndLeases{IDs: []string{lease}, Reason: ledger.EndRevoked}); err != nil {
		return err
	}
	e.wake()
	return &fault.Error{Kind: fault.Unavailable, Code: "account_turning", RetryAfter: time.Second,
		Detail: fmt.Sprintf("Role %s: what this instance was given before is being replaced (lease %s). Retry.", role, lease)}
}

// handOut delivers an account's present secret under a committed lease.
func (e *Engine) handOut(ctx context.Context, t *target, l ledger.Lease, account string) (wire.AccessAnswer, error) {
	var username string
	var s secret.Text
	err := e.view(func(q ledger.Query) error {
		// Ended since its commit: the secret may have been replaced for that, and the
		// one after is not the lease's.
		if cur, _ := q.Lease(l.ID); cur.State != ledger.LeaseOpen {
			return fault.New(fault.Conflict, ledger.CodeLeaseEnded, "Lease %s ended before anything was given out. Request again.", l.ID)
		}
		var a ledger.AccountSpec
		if _, ok := q.Spec(ledger.KindAccount, account, &a); !ok {
			return fault.New(fault.NotFound, "not_found", "Account %s does not exist.", account)
		}
		var err error
		username, s, err = present(q, account, a)
		return err
	})
	e.settled.end(l.ID)
	p, ok := t.issuer.(issuers.Presenter)
	if err == nil && !ok {
		err = fault.New(fault.Upstream, "target_refused", "Targets of type %s cannot give out accounts.", t.kind.Name())
	}
	var cred issuers.Credential
	if err == nil {
		if cred, err = p.Present(ctx, username, s); err != nil {
			err = upstream(t.name, err)
		}
	}
	if err != nil {
		e.giveUp(ctx, l)
		return wire.AccessAnswer{}, err
	}
	return accessAnswer(l, cred, false, e.now()), nil
}

// split parts a batch of ending leases: those on accounts, of which the target
// knows nothing, and those whose credentials are to be withdrawn there.
func split(batch []ledger.Lease) (onAccounts, minted []ledger.Lease) {
	for _, l := range batch {
		if _, ok := ledger.AccountOf(l); ok {
			onAccounts = append(onAccounts, l)
		} else {
			minted = append(minted, l)
		}
	}
	return onAccounts, minted
}

// letGo ends leases on accounts. The account lives on; where its spec asks for it,
// or the lease was withdrawn before its time, the lease has ended only when the
// secret that it gave out has been replaced.
func (e *Engine) letGo(ctx context.Context, batch []ledger.Lease) (items []ledger.Withdrawal, failed map[string]error) {
	failed = map[string]error{}
	for _, l := range batch {
		name, _ := ledger.AccountOf(l)
		receipt, want, err := e.lookAtAccount(name, l)
		if err == nil && want != nil {
			if _, err = e.commit(ctx, e.header(Caller{}), want); err == nil {
				e.wake()
			}
		}
		switch {
		case err != nil:
			failed[l.ID] = err
		case receipt == nil:
			failed[l.ID] = fmt.Errorf("waits for account %s to be rotated", name)
		default:
			// Settled: no mint of it was ever sent.
			items = append(items, ledger.Withdrawal{LeaseID: l.ID, LookedMS: e.now().UnixMilli(), Settled: true, Receipt: receiptJSON(*receipt)})
		}
	}
	return items, failed
}

// lookAtAccount says how a lease on an account has ended, or what it takes.
func (e *Engine) lookAtAccount(name string, l ledger.Lease) (receipt *issuers.Receipt, want *ledger.WantRotation, err error) {
	err = e.view(func(q ledger.Query) error {
		var a ledger.AccountSpec
		if _, ok := q.Spec(ledger.KindAccount, name, &a); !ok {
			receipt = &issuers.Receipt{Proof: issuers.ProofExpiresOnly, Detail: "the account is no longer known here; its secret is what it was"}
			return nil
		}
		cmd := ledger.WantRotation{Subject: ledger.RotationSubject(ledger.KindAccount, name), Reason: ledger.RotateUsed}
		held := false
		switch {
		case l.End.Reason == ledger.EndContained || l.End.Reason == ledger.EndRevoked && l.End.By != l.Grant.Principal:
			// A holder who gives a lease back needs nobody's leave for it; that must not
			// be a way to take the account from everybody else.
			cmd.Reason, cmd.Urgent = ledger.RotateWithdrawn, true
		case l.End.Reason == ledger.EndMintFailed && l.Generation == 1: // an earlier one may have given out the secret
			receipt = &issuers.Receipt{Proof: issuers.ProofAbsent, Detail: "nothing was given out"}
			return nil
		default:
			if !a.RotateAfterUse {
				receipt = &issuers.Receipt{Proof: issuers.ProofExpiresOnly, Detail: "the account lives on, and its secret until the next rotation"}
				return nil
			}
			held = e.heldYet(q, name)
		}
		r, _ := q.Rotation(cmd.Subject)
		switch {
		case r.Turns > q.LetGo(l.ID) && r.State == ledger.RotationIdle:
			receipt = &issuers.Receipt{Proof: proofRotated, Detail: "account " + name + " has had another secret since " + at(r.DoneMS).Format(time.RFC3339) + "; the target took it in a login"}
		case held: // the last of them turns it
		case r.Turns == q.LetGo(l.ID) && r.Wanted == "" && r.State != ledger.RotationTurning || cmd.Urgent && !r.Urgent:
			want = &cmd
		}
		return nil
	})
	return receipt, want, err
}

// heldYet says whether somebody holds an account: from before its spec asked for one
// holder at a time there may be several.
func (e *Engine) heldYet(q ledger.Query, account string) bool {
	return slices.ContainsFunc(q.Holders(account, ledger.MaxEndBatch), func(id string) bool {
		l, _ := q.Lease(id)
		return l.State == ledger.LeaseOpen
	})
}

// checkAccountObject checks at the door what Apply leaves to this build.
func (e *Engine) checkAccountObject(q ledger.Query, plan []change, x change) error {
	var a ledger.AccountSpec
	if err := json.Unmarshal(x.Spec, &a); err != nil {
		return err
	}
	raw, ok := planned(q, plan, ledger.KindTarget, a.Target)
	if !ok {
		return fault.New(fault.NotFound, "target_not_found", "Account %s lives on target %s, which does not exist.", x.Name, a.Target)
	}
	spec, rest, err := ledger.SplitTarget(raw)
	if err != nil {
		return err
	}
	kind, err := e.kind(spec.Type)
	if err != nil {
		return err
	}
	holder, ok := kind.(issuers.AdminHolder)
	if !ok {
		return fmt.Errorf("accounts on targets of type %s cannot be rotated; these can: %s", spec.Type, strings.Join(e.rotatingKinds(), ", "))
	}
	admin, _, err := holder.Admin(rest)
	if err != nil {
		return err
	}
	if slices.Contains(a.Usernames, admin) {
		return fmt.Errorf("%s is the account that the broker itself enters target %s by; rotate it with: mayfly rotate target %s", admin, a.Target, a.Target)
	}
	return checkCron(a.Rotation)
}

// checkAdminIsNoAccount: a target is not entered by an account that is given out.
func checkAdminIsNoAccount(q ledger.Query, kind issuers.Kind, target string, rest []byte) error {
	holder, ok := kind.(issuers.AdminHolder)
	if !ok {
		return nil
	}
	admin, _, err := holder.Admin(rest)
	if err != nil {
		return err
	}
	if account := q.AccountNamed(target, admin); account != "" {
		return fmt.Errorf("%s is account %s, which the broker gives out; enter the target by another, or delete the account first", admin, account)
	}
	return nil
}

// rotatingKinds names the kinds on which accounts can be rotated.
func (e *Engine) rotatingKinds() []string {
	var out []string
	for name, k := range e.kinds {
		if _, ok := k.(issuers.AdminHolder); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// checkTargetRotation: a target with a schedule has something to rotate.
func checkTargetRotation(kind issuers.Kind, spec ledger.TargetSpec, rest []byte) error {
	if spec.Rotation == nil {
		return nil
	}
	if err := checkCron(spec.Rotation); err != nil {
		return err
	}
	if _, ok, err := issuers.TurnsKeys(kind, rest); ok {
		return err
	}
	_, _, err := turn{kind: kind, rest: rest, object: ledger.Object{Kind: ledger.KindTarget}}.login(0)
	return err
}

// planned is an object's spec as it will be once the plan is written.
func planned(q ledger.Query, plan []change, kind, name string) ([]byte, bool) {
	if i := slices.IndexFunc(plan, func(y change) bool { return y.Kind == kind && y.Name == name && !y.Delete }); i >= 0 {
		return plan[i].Spec, true
	}
	o, ok := q.Object(kind, name)
	return o.Spec, ok
}

// Rotate asks for a secret to be replaced now, and waits a little for it. Now
// also ends the grace of what was given out before.
func (e *Engine) Rotate(ctx context.Context, c Caller, in wire.RotateRequest) (wire.Rotation, error) {
	kind, err := canonicalKind(in.Kind)
	if err != nil {
		return wire.Rotation{}, err
	}
	var ask question
	var before ledger.Rotation
	subject := ledger.RotationSubject(kind, in.Name)
	err = e.view(func(q ledger.Query) error {
		if err := e.rotates(q, kind, in.Name, in.Now); err != nil {
			return err
		}
		before, _ = q.Rotation(subject)
		r, err := e.resourceOf(q, kind, in.Name)
		ask = question{action: policy.ActionRotate, resource: r}
		return err
	})
	if err != nil {
		return wire.Rotation{}, err
	}
	r, err := e.allow(ctx, c, ask)
	if err != nil {
		return wire.Rotation{}, err
	}
	h := e.header(c)
	h.DecisionID, h.Decision = r.ID, r.encode()
	if _, err := e.commit(ctx, h, &ledger.WantRotation{Subject: subject, Reason: ledger.RotateDemanded, Urgent: in.Now}); err != nil {
		return wire.Rotation{}, err
	}
	e.wake()
	return e.awaitTurn(ctx, subject, before)
}

// rotatable refuses what has no secret to replace.
func (e *Engine) rotatable(q ledger.Query, o ledger.Object) error {
	if o.Kind == ledger.KindAccount {
		return nil
	}
	spec, rest, err := ledger.SplitTarget(o.Spec)
	if err != nil {
		return err
	}
	kind, err := e.kind(spec.Type)
	if err != nil {
		return err
	}
	spec.Rotation = &ledger.Schedule{Cron: "0 0 * * *"}
	if err := checkTargetRotation(kind, spec, rest); err != nil {
		return fault.New(fault.Invalid, "does_not_rotate", "Target %s: %v.", o.Name, err)
	}
	return nil
}

// turnWait is how long an answer waits for a turn to be done or to fail.
const turnWait = 20 * time.Second

// awaitTurn waits until a turn that was asked for has taken effect, or has failed
// once, and says where it stands.
func (e *Engine) awaitTurn(ctx context.Context, subject string, before ledger.Rotation) (wire.Rotation, error) {
	ctx, cancel := context.WithTimeout(ctx, turnWait)
	defer cancel()
	for {
		changed := e.changed.next()
		var r ledger.Rotation
		var out wire.Rotation
		err := e.view(func(q ledger.Query) error {
			r, _ = q.Rotation(subject)
			out = wireRotation(q, r)
			return nil
		})
		stands := r.ID != before.ID && !r.InFlight() && r.Wanted == "" && !r.Urgent || r.Tries > 0 && (r.ID != before.ID || r.Tries > before.Tries)
		if err != nil || stands {
			return out, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return out, nil
		}
	}
}

// Rotations lists what rotates and what the caller may read, by what is due next.
func (e *Engine) Rotations(_ context.Context, c Caller) ([]wire.Rotation, error) {
	out := []wire.Rotation{}
	err := e.view(func(q ledger.Query) (err error) {
		q.Rotations(func(r ledger.Rotation) bool {
			kind, name := ledger.SplitSubject(r.Subject)
			var res policy.Resource
			if res, err = e.resourceOf(q, kind, name); err != nil {
				return false
			}
			if e.mayRead(q, c, res) {
				out = append(out, wireRotation(q, r))
			}
			return true
		})
		return err
	})
	slices.SortStableFunc(out, func(a, b wire.Rotation) int { return next(a).Compare(next(b)) })
	return out, err
}

// next is when something happens to a rotation; those without a time come last.
func next(r wire.Rotation) time.Time {
	switch {
	case r.NextAt != nil:
		return *r.NextAt
	case r.DueAt != nil:
		return *r.DueAt
	}
	return time.Unix(1<<40, 0)
}

func wireRotation(q ledger.Query, r ledger.Rotation) wire.Rotation {
	kind, name := ledger.SplitSubject(r.Subject)
	w := wire.Rotation{
		Kind: kind, Name: name, Target: r.Target, State: r.State, ID: r.ID, Reason: r.Reason, Turns: r.Turns, Wanted: r.Wanted,
		BegunAt: atOrNil(r.BegunMS), DoneAt: atOrNil(r.DoneMS), DueAt: atOrNil(r.DueMS), NextAt: atOrNil(r.AtMS), Tries: r.Tries, Problem: r.Problem,
	}
	var a ledger.AccountSpec
	if kind == ledger.KindAccount {
		if _, ok := q.Spec(kind, name, &a); ok && r.Active < len(a.Usernames) {
			w.Username = a.Usernames[r.Active]
		}
	}
	return w
}

// withRotation adds to an object what its rotation has come to.
func withRotation(q ledger.Query, o wire.Object) wire.Object {
	if r, ok := q.Rotation(ledger.RotationSubject(o.Kind, o.Name)); ok {
		w := wireRotation(q, r)
		o.Rotation = &w
	}
	return o
}

// unknownCredential is the answer for a name under which nothing was minted. An
// account that lives on has many holders: it says which leases to look at.
func (e *Engine) unknownCredential(q ledger.Query, username string) error {
	for _, o := range q.Objects(ledger.KindAccount) {
		var a ledger.AccountSpec
		if json.Unmarshal(o.Spec, &a) == nil && slices.Contains(a.Usernames, username) {
			return fault.New(fault.NotFound, "credential_shared", "%s is account %s, which is given out again and again. Who has had it: mayfly lease list --target %s", username, o.Name, a.Target)
		}
	}
	return fault.New(fault.NotFound, "credential_unknown", "No credential of that name was ever minted here.")
}
