package broker_test

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
	"golang.org/x/mod/sumdb/tlog"
)

// settleBound is how long after its end a credential may still be there though
// a leader lives and the target answers: the mint deadline and its margin, the
// longest back-off of a lane or a parked lease, and some seconds.
const settleBound = 15*time.Second + ledger.WithdrawMarginMS*time.Millisecond + time.Minute + 10*time.Second

// accountChanged checks each account at the instant in which it is made or
// altered on a target.
func (w *world) accountChanged(before, after *brokertest.Account) {
	q := w.query()
	l, ok := q.LeaseNamed(after.Name)
	switch {
	case !ok:
		w.violated("law 1", "%s is on its target and the ledger does not name it", after.Name)
	case ledger.BareID(l.ID) != after.LeaseID || after.Generation > l.Generation:
		w.violated("law 1", "%s is generation %d; the ledger knows %d of %s", after.Name, after.Generation, l.Generation, l.ID)
	case l.State == ledger.LeaseEnded:
		w.violated("law 2", "%s appears though its lease has ended with receipt %s", after.Name, l.End.Receipt)
	case l.Grant.Role == "t2/priv" && !w.people.signed[l.ID]: // that role has a floor at all times
		w.violated("law 4", "%s is on its target, and nobody has signed for it", after.Name)
	case after.Until.UnixMilli() > l.ExpiresMS:
		w.violated("law 3", "%s lives until %d, its lease until %d", after.Name, after.Until.UnixMilli(), l.ExpiresMS)
	}
	if before != nil && before.Generation > after.Generation {
		w.violated("generation", "%s goes from generation %d back to %d", after.Name, before.Generation, after.Generation)
	}
}

// committed checks each command that took effect.
func (w *world) committed(raw []byte, res ledger.Result) {
	q := w.query()
	if q.Clock() < w.clockMS {
		w.violated("time", "ledger time goes from %d back to %d", w.clockMS, q.Clock())
	}
	w.clockMS = q.Clock()
	d, err := ledger.Decode(raw)
	if err != nil || !res.OK() || res.Replayed {
		return
	}
	switch b := d.Body.(type) {
	case *ledger.OpenLease:
		w.checkIssued(q, res.ID)
		w.checkCaps(q, res.ID)
	case *ledger.RemintLease:
		w.checkIssued(q, b.ID)
	case *ledger.ExtendLease:
		w.checkIssued(q, b.ID)
	case *ledger.StartTask:
		w.checkTask(q, res.ID)
	case *ledger.RecordWithdrawals:
		for _, id := range res.Also {
			w.checkReceipt(q, id)
		}
	}
}

// checkIssued: what may be minted or lives on is within its role and task, has its
// co-signatures, and touches nothing contained.
func (w *world) checkIssued(q ledger.Query, id string) {
	l, _ := q.Lease(id)
	var role ledger.RoleSpec
	if _, ok := q.Spec(ledger.KindRole, l.Grant.Role, &role); !ok {
		w.violated("law 3", "%s is on a role that does not exist", id)
		return
	}
	w.checkSigned(q, l, role)
	if err := scope.Covers(role.Scope, l.Grant.Scope); err != nil {
		w.violated("law 3", "%s exceeds its role: %v", id, err)
	}
	if l.ExpiresMS > l.NotAfterMS || l.NotAfterMS > l.OpenedMS+role.TTL.Max.MS() {
		w.violated("law 3", "%s lives until %d, at most %d, opened at %d", id, l.ExpiresMS, l.NotAfterMS, l.OpenedMS)
	}
	t, _ := q.Task(l.Grant.TaskID)
	if t.Scope != nil && scope.Covers(t.Scope, l.Grant.Scope) != nil || l.NotAfterMS > t.DeadlineMS || t.State != ledger.TaskOpen {
		w.violated("law 3", "%s exceeds its task %s (%s)", id, t.ID, t.State)
	}
	for _, a := range append([]ledger.Task{t}, q.Ancestors(t)...) {
		if a.State != ledger.TaskOpen || a.DueMS() <= q.Clock() || q.IsFrozen(ledger.KindPrincipal, a.Principal) {
			w.violated("hazard 20", "%s is issued in task %s, which is over or contained", id, a.ID)
		}
	}
	if q.IsFrozen(ledger.KindTarget, l.Target) || l.Target == "t1" && q.IsFrozen(ledger.KindZone, "z1") {
		w.violated("hazard 20", "%s is issued on a contained target", id)
	}
}

func (w *world) checkTask(q ledger.Query, id string) {
	t, _ := q.Task(id)
	for _, a := range q.Ancestors(t) {
		if t.DeadlineMS > a.DeadlineMS || a.Scope != nil && scope.Covers(a.Scope, t.Scope) != nil {
			w.violated("law 3", "task %s exceeds its ancestor %s", t.ID, a.ID)
		}
	}
}

// checkCaps counts what lives, not what the ledger's counters say.
func (w *world) checkCaps(q ledger.Query, id string) {
	l, _ := q.Lease(id)
	var role ledger.RoleSpec
	q.Spec(ledger.KindRole, l.Grant.Role, &role)
	live, mine := 0, 0
	q.Leases("", func(x ledger.Lease) bool {
		if x.State == ledger.LeaseOpen && x.Grant.Principal == l.Grant.Principal && x.Grant.Role == l.Grant.Role {
			live++
			if x.Grant.Instance != "" && x.Grant.Instance == l.Grant.Instance {
				mine++
			}
		}
		return true
	})
	if c := role.Caps.PerPrincipal; c > 0 && live > c {
		w.violated("caps", "%s holds %d leases on %s; the cap is %d", l.Grant.Principal, live, l.Grant.Role, c)
	}
	if c := role.Caps.PerInstance; c > 0 && mine > c {
		w.violated("caps", "instance %s holds %d leases on %s; the cap is %d", l.Grant.Instance, mine, l.Grant.Role, c)
	}
	if got := q.LiveCount(l.Grant.Principal, l.Grant.Role); got != live {
		w.violated("caps", "the ledger counts %d leases, %d live", got, live)
	}
}

// checkReceipt: a receipt tells the truth at the instant in which it is recorded.
func (w *world) checkReceipt(q ledger.Query, id string) {
	l, _ := q.Lease(id)
	if !bytes.Contains(l.End.Receipt, []byte(`"proof":"absent"`)) {
		w.violated("law 2", "%s ends with the receipt %s", id, l.End.Receipt)
	}
	if a, there := w.targets[l.Target].sys.Account(l.Name); there {
		w.violated("law 2", "%s has a receipt, and %s is on its target with %d sessions", id, a.Name, a.Sessions)
	}
}

// checkError: an answer that names a decision comes after its record (law 5).
func (w *world) checkError(err error) {
	var fe *fault.Error
	if !errors.As(err, &fe) {
		if err != nil {
			w.violated("errors", "a caller gets an error of no kind: %v", err)
		}
		return
	}
	if fe.Kind == fault.Internal {
		w.violated("errors", "a caller gets an internal error: %v", err)
	}
	if fe.DecisionID == "" {
		return
	}
	if _, ok := w.query().DecisionSeq(fe.DecisionID); !ok {
		w.violated("law 5", "decision %s was told to a caller and is not recorded: %v", fe.DecisionID, err)
	}
}

// checkAnswer checks a credential that has reached its client.
func (w *world) checkAnswer(it *intent, a wire.AccessAnswer) {
	q := w.query()
	if _, ok := q.DecisionSeq(a.DecisionID); !ok {
		w.violated("law 5", "request %d is answered by decision %s, which is not recorded", it.id, a.DecisionID)
	}
	name, pwd := a.Credential["username"], a.Credential["password"]
	l, ok := q.LeaseNamed(name)
	if !ok || l.ID != a.LeaseID || l.Grant.Principal != it.who.Session.Principal {
		w.violated("law 7", "request %d received %s, which the ledger does not name as its own", it.id, name)
		return
	}
	if a.ExpiresAt.UnixMilli() > l.ExpiresMS {
		w.violated("law 3", "request %d is told %s; the lease ends at %d", it.id, a.ExpiresAt, l.ExpiresMS)
	}
	if it.lease != "" && it.lease != a.LeaseID && l.State == ledger.LeaseOpen {
		if first, _ := q.Lease(it.lease); first.End == nil || first.End.Reason != ledger.EndMintFailed {
			w.violated("idempotency", "request %d has two leases: %s and %s", it.id, it.lease, a.LeaseID)
		}
	}
	acc, there := w.targets[l.Target].sys.Account(name)
	switch {
	case l.State != ledger.LeaseOpen || l.ExpiresMS <= time.Now().UnixMilli(): // ended meanwhile
	case !there:
		w.violated("delivery", "request %d received %s, which is not on its target", it.id, name)
	case acc.Password != pwd && acc.Generation <= 1 && l.Generation == 1:
		w.violated("delivery", "request %d received a password that its target does not know", it.id)
	}
}

// checkRenewed: what a client is told of its lease holds on the target, but for
// what clocks may differ by.
func (w *world) checkRenewed(told wire.Lease) {
	l, _ := w.query().Lease(told.ID)
	a, there := w.targets[l.Target].sys.Account(l.Name)
	if l.State != ledger.LeaseOpen || l.ExpiresMS <= time.Now().UnixMilli() {
		return
	}
	if told.ExpiresAt.UnixMilli() > l.ExpiresMS {
		w.violated("law 3", "%s is told to live until %s; the ledger says %d", told.ID, told.ExpiresAt, l.ExpiresMS)
	}
	if !there || a.Until.Add(2*maxSkew).Before(told.ExpiresAt) {
		w.violated("delivery", "%s is told to live until %s; on its target it lives until %s", told.ID, told.ExpiresAt, a.Until)
	}
}

// checkConflict: a key that answers "ended" belongs to a lease that had lived.
func (w *world) checkConflict(it *intent, err error) {
	if fault.As(err).StableCode() == ledger.CodeGrantOver {
		return // somebody collected the grant that the request was led to
	}
	_, res, ok := w.query().Idempotent(it.who.Session.Principal, it.who.Idem.Key)
	l, found := w.query().Lease(res.ID)
	now := max(time.Now().UnixMilli(), w.query().Clock()) // a leader's wrong clock has moved the ledger's for good
	if !ok || !found || l.State == ledger.LeaseOpen && l.ExpiresMS > now || l.End != nil && l.End.Reason == ledger.EndMintFailed {
		w.violated("retry", "request %d conflicts though nothing was ever issued: %v", it.id, err)
	}
}

// checkAlways holds in every instant.
func (w *world) checkAlways() {
	q := w.query()
	for _, name := range w.names {
		for _, a := range w.targets[name].sys.Accounts() {
			if _, ok := q.LeaseNamed(a.Name); !ok {
				w.violated("law 1", "%s is on %s and the ledger does not name it", a.Name, name)
			}
		}
	}
	if err := q.Err(); err != nil {
		w.violated("state", "%v", err)
	}
}

// lastEnd is when the last lease and task must be over.
func (w *world) lastEnd() time.Time {
	last := time.Now().UnixMilli()
	w.query().Leases("", func(l ledger.Lease) bool {
		if l.State != ledger.LeaseEnded {
			last = max(last, l.NotAfterMS)
		}
		return true
	})
	w.query().CosignedGrants("", func(g ledger.Cosigned) bool {
		if g.State == ledger.GrantWaiting || g.State == ledger.GrantApproved {
			last = max(last, g.CollectBeforeMS)
		}
		return true
	})
	w.query().Tasks("", func(t ledger.Task) bool {
		if t.State == ledger.TaskOpen && !t.Implicit {
			last = max(last, t.DeadlineMS)
		}
		return true
	})
	return time.UnixMilli(last)
}

// checkOverdue: with a leader alive and targets that answer, nothing outlives
// its lease by more than the bound (law 2).
func (w *world) checkOverdue(since time.Time) {
	q := w.query()
	for _, name := range w.names {
		for _, a := range w.targets[name].sys.Accounts() {
			l, _ := q.LeaseNamed(a.Name)
			end := l.ExpiresMS
			if l.End != nil {
				end = min(end, l.End.SinceMS)
			}
			if over := time.Since(time.UnixMilli(max(end, since.UnixMilli()))); over > settleBound {
				w.violated("law 2", "%s (%s) is on %s %s after its end", a.Name, l.State, name, over)
			}
		}
	}
}

// checkQuiet: when everything has ended and the world is still, the targets are
// empty, each lease has its receipt, and the replicas are equal.
func (w *world) checkQuiet() {
	if len(w.wrong) > 0 {
		return
	}
	q := w.query()
	for _, name := range w.names {
		if left := w.targets[name].sys.Accounts(); len(left) > 0 {
			w.violated("law 2", "%d accounts are left on %s: %+v", len(left), name, left)
		}
	}
	q.Leases("", func(l ledger.Lease) bool {
		if l.State != ledger.LeaseEnded || l.End == nil || len(l.End.Receipt) == 0 {
			w.violated("law 2", "%s (%s) has no receipt at the end", l.ID, l.State)
		}
		return true
	})
	q.Tasks("", func(t ledger.Task) bool {
		if t.State != ledger.TaskEnded {
			w.violated("law 2", "task %s is open at the end", t.ID)
		}
		return true
	})
	w.checkGrantsQuiet(q)
	for _, p := range simPrincipals {
		for _, role := range []string{"t1/ro", "t1/rw", "t2/ro", "t2/priv"} {
			if n := q.LiveCount(p, role); n != 0 {
				w.violated("caps", "%s still counts %d leases on %s", p, n, role)
			}
		}
	}
	w.checkReplicas(q)
	if err := q.Err(); err != nil {
		w.violated("state", "%v", err)
	}
}

func (w *world) checkReplicas(q ledger.Query) {
	want := w.truth.Dump()
	for _, n := range w.nodes {
		w.catchUp(n, len(w.log))
		if n.mem.Dump() != want {
			w.violated("replicas", "%s's state differs", n.id)
		}
	}
	var leaves []tlog.Hash
	for seq := range q.Size() {
		e, ok := q.Entry(seq)
		d, err := ledger.Decode(w.log[seq])
		if !ok || err != nil || !bytes.Equal(e.Public, d.Public) {
			w.violated("ledger", "entry %d is not the command that was committed", seq)
			return
		}
		leaves = append(leaves, tree.LeafHash(tree.LeafData(e.Outcome(), e.Public)))
	}
	root, err := tree.Root(q.HashReader(), int64(q.Size()))
	if err != nil || root != merkle(leaves) {
		w.violated("ledger", "the root is not the entries': %v", err)
	}
	for _, x := range w.names {
		for _, pwd := range w.targets[x].sys.Passwords() {
			if slices.ContainsFunc(w.log, func(c []byte) bool { return bytes.Contains(c, []byte(pwd)) }) {
				w.violated("law 6", "a password stands in the log")
			}
		}
	}
}

// merkle is RFC 6962 §2.1, written from the text.
func merkle(leaves []tlog.Hash) tlog.Hash {
	switch len(leaves) {
	case 0:
		return tlog.Hash{}
	case 1:
		return leaves[0]
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	return tlog.NodeHash(merkle(leaves[:k]), merkle(leaves[k:]))
}
