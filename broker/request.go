package broker

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// staleRetries is how often a request is decided again when the ledger moved
// between reading and committing.
const staleRetries = 4

// Request issues a credential (DESIGN, section 3): decide, commit, mint,
// deliver. With an idempotency key that was used before, the caller gets its
// own lease again: the same account, a fresh secret.
func (e *Engine) Request(ctx context.Context, c Caller, in wire.AccessRequest) (wire.AccessAnswer, error) {
	ask, err := parseAccess(in)
	if err != nil {
		return wire.AccessAnswer{}, err
	}
	if lease, ok, err := e.earlier(c); err != nil || ok {
		if err != nil {
			return wire.AccessAnswer{}, err
		}
		return e.repeat(ctx, c, lease)
	}
	return e.request(ctx, c, ask)
}

// request decides until the ledger stands still long enough.
func (e *Engine) request(ctx context.Context, c Caller, ask access) (wire.AccessAnswer, error) {
	for range staleRetries {
		p, err := e.plan(ctx, c, ask)
		if err != nil {
			return wire.AccessAnswer{}, err
		}
		var answer wire.AccessAnswer
		var again bool
		switch {
		case p.before != "":
			return e.CollectGrant(ctx, c, p.before, wire.CollectRequest{CSR: ask.CSR, PublicKey: ask.PublicKey})
		case p.ask != nil:
			answer, again, err = e.wait(ctx, c, p, ask)
		case p.back != "":
			err = e.giveBack(ctx, c, p.back, ask.Role)
		default:
			answer, again, err = e.issue(ctx, c, p)
		}
		if !again {
			return answer, err
		}
	}
	return wire.AccessAnswer{}, fault.New(fault.Unavailable, "busy", "Policies or objects kept changing while the request was decided. Retry.")
}

// access is a request, parsed.
type access struct {
	wire.AccessRequest
	ttl   time.Duration
	scope scope.Scope
	csr   []byte
	// grant is what is being collected, with its document; nil for a request.
	grant    *ledger.Cosigned
	document *cosign.GrantDocument
}

func parseAccess(in wire.AccessRequest) (access, error) {
	a := access{AccessRequest: in}
	var err error
	switch {
	case in.Role == "":
		return a, fault.New(fault.Invalid, "role_missing", "Name the role that is wanted, as target/role.")
	case in.Task != "" && in.Purpose != "":
		return a, fault.New(fault.Invalid, "purpose_beside_task", "A purpose beside a task is ambiguous: the task has its own. Leave one out.")
	case in.Emergency && strings.TrimSpace(in.Reason) == "":
		return a, fault.New(fault.Invalid, "reason_missing", "An emergency needs a reason: --emergency --reason \"…\". Reviewers will read it.")
	case len(in.Reason) > ledger.MaxReasonBytes:
		return a, fault.New(fault.Invalid, "reason_too_long", "A reason has at most %d bytes.", ledger.MaxReasonBytes)
	case len(in.Purpose) > ledger.MaxPurposeBytes:
		return a, fault.New(fault.Invalid, "purpose_too_long", "A purpose has at most %d bytes.", ledger.MaxPurposeBytes)
	case len(in.PublicKey) > 4096 || len(in.CSR) > 16<<10:
		return a, fault.New(fault.Invalid, "too_large", "A public key has at most 4 KiB, a certificate request 16 KiB.")
	}
	if a.ttl, err = parseTTL(in.TTL); err != nil {
		return a, err
	}
	if len(in.Scope) > 0 {
		if a.scope, err = scope.Parse(in.Scope); err != nil {
			return a, fault.Wrap(err, fault.Invalid, "invalid_authorization_details", "%v", err)
		}
	}
	if in.CSR != "" {
		block, rest := pem.Decode([]byte(in.CSR))
		if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
			return a, fault.New(fault.Invalid, "csr_malformed", "csr must be one PEM block of type CERTIFICATE REQUEST.")
		}
		a.csr = block.Bytes
	}
	return a, nil
}

// parseTTL reads a duration; empty is 0.
func parseTTL(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fault.New(fault.Invalid, "ttl_malformed", "%q is not a length of time; write it like 90s, 15m or 8h.", s)
	}
	return d, nil
}

// plan is a decided request, ready to be committed.
type plan struct {
	command ledger.OpenLease
	// ask is set instead where the request must wait; before names an unfinished
	// grant of the same request.
	ask    *ledger.RequestGrant
	before string
	ruling ruling
	role   ledger.RoleSpec
	target *target
	// back is a lease that the same instance gives back before it asks again.
	back string
}

// ground on which one request stands, as read in one transaction.
type footing struct {
	role    ledger.RoleSpec
	roleObj ledger.Object
	target  *targetDoc
	task    *ledger.Task
	chain   []string
	scope   scope.Scope
	maxTTL  time.Duration // the kind's own bound; 0: none
	maxBy   string        // what maxTTL is: "target", "account"
	account ledger.AccountSpec
}

// plan reads, narrows and decides. On success the plan holds an acquired
// target, which issue releases.
func (e *Engine) plan(ctx context.Context, c Caller, a access) (p plan, err error) {
	var denied *fault.Error
	err = e.viewing(ctx, func(q ledger.Query) error {
		f, ferr := e.footing(q, c, a)
		r, derr := e.decide(q, c, e.accessQuestion(q, c, a, f))
		if derr != nil {
			return derr
		}
		p.ruling = r
		var first *issuers.Pending
		if errors.As(ferr, &first) && !r.Decision.Permit {
			ferr = nil // whom policy refuses cannot have a plugin asked
		}
		if ferr != nil {
			// What cannot be granted whatever policy says is still a refusal
			// that stands in the ledger, unless it is a mere typing error.
			if fe := fault.As(ferr); fe.Kind == fault.Denied {
				denied = fe
				return nil
			}
			return ferr
		}
		if !r.Decision.Permit {
			denied = fault.New(fault.Denied, denialCode(r.Decision), "%s", denialText(c, r))
			return nil
		}
		if denied = e.checkCaps(q, c, f); denied != nil {
			return nil
		}
		if denied = a.checkAgain(f, r); denied != nil {
			return nil
		}
		if a.asks(f, r) {
			if g, ok := e.asked(q, c, a, f); ok {
				p.before = g.ID
				return nil
			}
			cmd, err := e.ask(q, c, a, f, r)
			p.ask = &cmd
			return err
		}
		if p.back, err = e.checkHolder(q, c, a, f); err != nil || p.back != "" {
			return err
		}
		p.role = f.role
		if p.target, err = e.targets.acquire(q, ledger.RoleTarget(a.Role)); err != nil {
			return err
		}
		p.command, err = e.compose(q, c, a, f, r, p.target)
		return err
	})
	if denied != nil {
		err = e.recordDenial(ctx, c, p.ruling, denied)
	}
	if err != nil && p.target != nil {
		e.targets.release(p.target)
		p.target = nil
	}
	return p, err
}

// footing reads what the request stands on and narrows its scope.
func (e *Engine) footing(q ledger.Query, c Caller, a access) (f footing, err error) {
	g, err := e.decider.at(q)
	if err != nil {
		return f, err
	}
	role := g.role(q, a.Role)
	if role == nil {
		return f, fault.New(fault.NotFound, "role_not_found", "Role %s does not exist. List roles with: mayfly get role", a.Role)
	}
	f.role, f.roleObj = role.spec, role.object
	if f.target = g.target(q, ledger.RoleTarget(a.Role)); f.target == nil {
		return f, fault.New(fault.NotFound, "target_not_found", "Target %s does not exist.", ledger.RoleTarget(a.Role))
	}
	if f.task, f.chain, err = e.taskFor(q, c, a); err != nil {
		return f, err
	}
	f.scope, err = narrow(f.role.Scope, f.task, a.scope)
	if err != nil {
		return f, err
	}
	if f.role.Account != "" {
		return f, f.standOnAccount(q, a)
	}
	rest := f.target.rest
	kind, err := e.kind(f.target.spec.Type)
	if err != nil {
		return f, err
	}
	if err := kind.CheckScope(rest, f.scope); err != nil {
		return f, fault.Wrap(err, fault.Invalid, "invalid_authorization_details", "%v", err)
	}
	if b, ok := kind.(issuers.Bounder); ok {
		f.maxTTL, f.maxBy = b.MaxTTL(rest), "target"
	}
	return f, f.checkTTL(a)
}

func (f footing) checkTTL(a access) error {
	if a.ttl > time.Duration(f.role.TTL.Max) {
		return fault.New(fault.Denied, "ttl_exceeds_role", "A ttl of %s was asked for; role %s allows at most %s.", a.ttl, a.Role, time.Duration(f.role.TTL.Max))
	}
	return nil
}

// standOnAccount: what a role on an account gives out is there already. Where two
// names take turns, it is sure to work for the grace and no longer.
func (f *footing) standOnAccount(q ledger.Query, a access) (err error) {
	if len(a.csr) > 0 || len(a.PublicKey) > 0 {
		return fault.New(fault.Invalid, "invalid_request", "Role %s gives out an account; csr and public_key mean nothing for it.", a.Role)
	}
	if f.account, err = onAccount(q, f.role); err != nil {
		return err
	}
	if len(f.account.Usernames) == ledger.MaxSlots {
		f.maxTTL, f.maxBy = time.Duration(f.account.Grace), "account"
	}
	return f.checkTTL(a)
}

// taskFor finds the named task, which must be the caller's and open, and the
// principals on whose behalf it runs, nearest first.
func (e *Engine) taskFor(q ledger.Query, c Caller, a access) (*ledger.Task, []string, error) {
	if a.Task == "" {
		return nil, nil, nil
	}
	t, err := e.findTask(q, c, a.Task)
	if err != nil {
		return nil, nil, err
	}
	if t.Principal != c.Session.Principal {
		return nil, nil, fault.New(fault.Denied, "task_not_yours", "Task %s belongs to another principal. Ask in a task of your own.", a.Task)
	}
	now := e.now().UnixMilli()
	var chain []string
	for i, x := range append([]ledger.Task{t}, q.Ancestors(t)...) {
		if x.State != ledger.TaskOpen || x.DueMS() <= now {
			return nil, nil, fault.New(fault.Denied, "task_ended", "Task %s has ended. Start a new one.", x.ID)
		}
		if i > 0 && x.Principal != c.Session.Principal {
			chain = append(chain, x.Principal)
		}
	}
	return &t, chain, nil
}

// narrow computes the effective scope: what is asked for, which must lie within
// the role's and the task's; or, when nothing is asked for, all that both allow.
func narrow(role scope.Scope, task *ledger.Task, asked scope.Scope) (scope.Scope, error) {
	limit := role
	if task != nil && task.Scope != nil {
		both, err := scope.Intersect(role, task.Scope)
		if err != nil {
			return nil, fault.New(fault.Denied, "scope_exceeds_task", "The task's scope and the role's have nothing in common.")
		}
		limit = both
	}
	if asked == nil {
		return limit, nil
	}
	if err := scope.Covers(role, asked); err != nil {
		return nil, fault.New(fault.Denied, "scope_exceeds_role", "The scope is wider than the role: %v. Ask for less.", err)
	}
	if task != nil && task.Scope != nil {
		if err := scope.Covers(task.Scope, asked); err != nil {
			return nil, fault.New(fault.Denied, "scope_exceeds_task", "The scope is wider than the task: %v. Ask for less.", err)
		}
	}
	return asked, nil
}

// accessQuestion is what policy is asked.
func (e *Engine) accessQuestion(q ledger.Query, c Caller, a access, f footing) question {
	ttl := a.ttl
	if ttl == 0 {
		ttl = time.Duration(f.role.TTL.Default)
	}
	ctx := policy.Context{Purpose: a.Purpose, TTLSeconds: int64(ttl / time.Second), Scope: flatten(f.scope), Chain: f.chain}
	ctx.Emergency = a.Emergency
	if f.task != nil && !f.task.Implicit {
		ctx.Purpose = f.task.Purpose
		ctx.Task = policy.Task{ID: f.task.ID, Name: f.task.Name, Owner: f.task.Principal, Depth: int64(f.task.Depth)}
	}
	// Without a ground nothing is permitted either: see decide.
	res, _ := e.resourceOf(q, ledger.KindRole, a.Role)
	return question{action: policy.ActionRequest, resource: res, context: ctx}
}

// checkCaps refuses what a cap forbids before it would only fill the log.
func (e *Engine) checkCaps(q ledger.Query, c Caller, f footing) *fault.Error {
	limit := f.role.Caps.PerPrincipal
	if limit == 0 {
		limit = ledger.DefaultPerPrincipal
	}
	if c.Session.Instance == "" && q.LiveCount(c.Session.Principal, f.roleObj.Name) >= limit {
		return &fault.Error{Kind: fault.RateLimited, Code: ledger.CodeCapRole, RetryAfter: 30 * time.Second,
			Detail: fmt.Sprintf("%s holds %d live leases on %s, the most that caps.per_principal allows. End a task or revoke some first.", c.Session.Principal, limit, f.roleObj.Name)}
	}
	return nil
}

// compose writes the command that opens the lease.
func (e *Engine) compose(q ledger.Query, c Caller, a access, f footing, r ruling, t *target) (ledger.OpenLease, error) {
	id, err := e.newID(ledger.PrefixLease)
	if err != nil {
		return ledger.OpenLease{}, err
	}
	now := e.now()
	b := bound(now, a.ttl, f, r.Decision)
	cmd := ledger.OpenLease{Read: ledger.Read{PolicyEpoch: q.PolicyEpoch(), TargetVersion: f.target.object.Version}}
	cmd.Lease = ledger.Lease{
		ID: id, Target: t.name, Name: t.kind.CredentialName(ledger.BareID(id), 1), Generation: 1,
		OpenedMS:  now.UnixMilli(),
		ExpiresMS: b.expires.UnixMilli(), NotAfterMS: b.notAfter.UnixMilli(),
		MintDeadlineMS: now.Add(e.cfg.Timing.Mint).UnixMilli(),
		Revocable:      issuers.Revocable(t.kind, f.target.rest), CSR: a.csr, PublicKey: a.PublicKey,
		Grant: ledger.Grant{
			ID: ledger.PrefixGrant + ledger.BareID(id), DecisionID: r.ID, Principal: c.Session.Principal, Instance: c.Session.Instance,
			Chain: f.chain, Role: a.Role, RoleVersion: f.roleObj.Version, Scope: f.scope, Purpose: r.Request.Context.Purpose, BoundedBy: b.by,
		},
	}
	if f.role.Account != "" {
		cmd.Lease.Name, cmd.Lease.Revocable = ledger.AccountLease(f.role.Account, ledger.BareID(id)), f.account.RotateAfterUse
	}
	if f.task != nil {
		cmd.Lease.Grant.TaskID = f.task.ID
		a.onGrant(&cmd.Lease, now)
		return cmd, nil
	}
	task, err := e.newID(ledger.PrefixTask)
	if err != nil {
		return cmd, err
	}
	cmd.Lease.Grant.TaskID = task
	cmd.ImplicitTask = &ledger.Task{ID: task, Purpose: a.Purpose, Principal: c.Session.Principal, Instance: c.Session.Instance,
		Role: a.Role, Implicit: true, DeadlineMS: cmd.Lease.NotAfterMS}
	return cmd, nil
}

// bounds is how long a lease may live, and what bounds it.
type bounds struct {
	expires, notAfter time.Time
	by                string
}

// bound takes the earliest of role, policy and task for the hard end, and the
// asked-for or default ttl for the first expiry.
func bound(now time.Time, asked time.Duration, f footing, d policy.Decision) bounds {
	b := bounds{notAfter: now.Add(time.Duration(f.role.TTL.Max)), by: "role"}
	if m := d.Obligations.MaxTTL; m > 0 && now.Add(m).Before(b.notAfter) {
		b.notAfter, b.by = now.Add(m), "policy"
		for _, p := range d.Policies {
			if v, err := time.ParseDuration(p.Annotations["max_ttl"]); err == nil && v == m {
				b.by = "policy:" + p.ID
				break
			}
		}
	}
	if f.maxTTL > 0 && now.Add(f.maxTTL).Before(b.notAfter) {
		b.notAfter, b.by = now.Add(f.maxTTL), f.maxBy
	}
	if f.task != nil {
		if dl := time.UnixMilli(f.task.DeadlineMS); dl.Before(b.notAfter) {
			b.notAfter, b.by = dl, "task"
		}
	}
	ttl := time.Duration(f.role.TTL.Default)
	if asked > 0 {
		ttl = asked
	}
	b.expires = now.Add(ttl)
	if b.expires.After(b.notAfter) {
		b.expires = b.notAfter
	}
	return b
}

// issue commits a plan and mints. again means that the ledger moved and the
// request must be decided anew.
func (e *Engine) issue(ctx context.Context, c Caller, p plan) (answer wire.AccessAnswer, again bool, err error) {
	defer e.targets.release(p.target)
	turn, err := e.slot(ctx, p.target)
	if err != nil {
		return answer, false, err
	}
	defer turn.free()

	h := e.header(c)
	h.DecisionID, h.Decision = p.ruling.ID, p.ruling.encode()
	res, err := e.commit(ctx, h, &p.command)
	switch {
	case res.Code == ledger.CodeStale:
		return answer, true, nil
	case err != nil:
		return answer, false, err
	case res.Replayed: // another request with this key came first
		var l ledger.Lease
		if err := e.view(func(q ledger.Query) error { l, _ = q.Lease(res.ID); return nil }); err != nil {
			return answer, false, err
		}
		answer, err = e.repeat(ctx, c, l)
		return answer, false, err
	}
	e.settled.begin(p.command.Lease, p.target.term, true, e.now().UnixMilli())
	answer, err = e.mint(ctx, turn, p.command.Lease, p.role)
	answer.Replaced = append([]string{}, res.Also...)
	if len(res.Also) > 0 {
		e.wake()
	}
	return answer, false, err
}

// mint makes the credential that a committed lease names. A failure ends the
// lease: whatever the target did is withdrawn. The caller has told e.settled that
// the mint begins.
func (e *Engine) mint(ctx context.Context, s *slot, l ledger.Lease, role ledger.RoleSpec) (wire.AccessAnswer, error) {
	t := s.target
	if account, ok := ledger.AccountOf(l); ok {
		return e.handOut(ctx, t, l, account)
	}
	// The client may go away; the mint goes on to its deadline, so that its
	// outcome is known and a retry finds the account.
	mctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), time.UnixMilli(l.MintDeadlineMS))
	defer cancel()
	cred, err := s.mint(mctx, issuerLease(l, role))
	if fresh := e.reopened(mctx, t, err); fresh != nil {
		defer e.targets.release(fresh)
		t = fresh
		cred, err = fresh.mintOnce(mctx, issuerLease(l, role))
	}
	// An unknown outcome may still take effect: such a mint never returned.
	if err == nil || issuers.KindOf(err) != issuers.Unknown {
		e.settled.end(l.ID)
	}
	if err != nil {
		e.log.Warn("mint failed", "target", t.name, "lease", l.ID, "error", err)
		if issuers.KindOf(err) != issuers.Superseded { // then the newer generation lives
			e.giveUp(ctx, l)
		}
		return wire.AccessAnswer{}, upstream(t.name, err)
	}
	_, renewable := t.issuer.(issuers.Extender)
	return accessAnswer(l, cred, renewable, e.now()), nil
}

// giveUp ends a lease whose mint failed, unless a newer generation of it is on
// its way: then that one decides. If even that cannot be committed, the lease
// ends by its expiry.
func (e *Engine) giveUp(ctx context.Context, l ledger.Lease) {
	newer := false
	err := e.view(func(q ledger.Query) error {
		cur, _ := q.Lease(l.ID)
		newer = cur.Generation > l.Generation
		return nil
	})
	if err != nil || newer {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := e.commit(ctx, e.header(Caller{}), &ledger.EndLeases{IDs: []string{l.ID}, Reason: ledger.EndMintFailed}); err != nil {
		e.log.Warn("failed mint not ended; it will expire", "lease", l.ID, "error", err)
	}
	e.wake()
}

// earlier finds the lease that the caller's idempotency key opened before.
func (e *Engine) earlier(c Caller) (l ledger.Lease, ok bool, err error) {
	if c.Idem == nil {
		return l, false, nil
	}
	err = e.view(func(q ledger.Query) error {
		hash, res, found := q.Idempotent(c.Session.Principal, c.Idem.Key)
		if !found {
			return nil
		}
		if hash != c.Idem.Hash {
			return fault.New(fault.Conflict, ledger.CodeIdemMismatch, "This idempotency key was used for another request. Use a new key.")
		}
		l, ok = q.Lease(res.ID)
		return nil
	})
	return l, ok, err
}

// repeat mints the next generation of a lease for a client that lost the
// answer: the same account, a fresh secret.
func (e *Engine) repeat(ctx context.Context, c Caller, l ledger.Lease) (answer wire.AccessAnswer, err error) {
	var t *target
	var role ledger.RoleSpec
	err = e.viewing(ctx, func(q ledger.Query) error {
		q.Spec(ledger.KindRole, l.Grant.Role, &role)
		t, err = e.targets.acquire(q, l.Target)
		return err
	})
	if err != nil {
		return answer, err
	}
	defer e.targets.release(t)
	turn, err := e.slot(ctx, t)
	if err != nil {
		return answer, err
	}
	defer turn.free()
	h := e.header(c)
	h.Idem = nil // the key belongs to the lease, not to this generation
	name := l.Name
	if _, ok := ledger.AccountOf(l); !ok {
		name = t.kind.CredentialName(ledger.BareID(l.ID), l.Generation+1)
	}
	next := ledger.RemintLease{ID: l.ID, Generation: l.Generation + 1, Name: name, MintDeadlineMS: e.now().Add(e.cfg.Timing.Mint).UnixMilli()}
	// From before the commit: once it stands the lease can be revoked and looked
	// for, and that look is not the last one while this mint is on its way.
	e.settled.begin(ledger.Lease{ID: l.ID, MintDeadlineMS: next.MintDeadlineMS}, t.term, false, e.now().UnixMilli())
	res, err := e.commit(ctx, h, &next)
	if err != nil {
		if res.Code != "" { // refused: no mint will follow; anything else may stand
			e.settled.end(l.ID)
		}
		return answer, err
	}
	// Read again: it may have been renewed meanwhile. What this mint makes must
	// be this generation, and done by this deadline.
	if err = e.view(func(q ledger.Query) error { l, _ = q.Lease(l.ID); return nil }); err != nil {
		return answer, err
	}
	l.Generation, l.Name, l.MintDeadlineMS = next.Generation, next.Name, next.MintDeadlineMS
	return e.mint(ctx, turn, l, role)
}
