package ledger

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// Query reads the ledger. It is valid only within the transaction that r
// belongs to. Err returns the first record that did not decode.
type Query struct{ v *view }

// NewQuery returns a Query over r.
func NewQuery(r Reader) Query { return Query{&view{Reader: r}} }

// Err returns the first corruption met.
func (q Query) Err() error { return q.v.err }

// Clock returns ledger time in Unix milliseconds.
func (q Query) Clock() int64 { return q.v.clock() }

// Size returns the number of recorded commands; 0 before genesis.
func (q Query) Size() uint64 { return q.v.size() }

// PolicyEpoch returns the sequence of the last change of any object.
func (q Query) PolicyEpoch() uint64 { return q.v.policyEpoch() }

// Genesis returns the cluster's first record, without its objects.
func (q Query) Genesis() (Genesis, bool) {
	var g Genesis
	ok := q.v.load(bucketMeta, metaGenesis, &g)
	return g, ok
}

// Object returns one object.
func (q Query) Object(kind, name string) (Object, bool) { return q.v.object(kind, name) }

// Spec decodes an object's spec into out.
func (q Query) Spec(kind, name string, out any) (Object, bool) { return q.v.spec(kind, name, out) }

// Objects returns the objects of a kind in name order.
func (q Query) Objects(kind string) []Object {
	var out []Object
	q.v.Scan(bucketObject, []byte(kind+"/"), nil, func(k, b []byte) bool {
		var o Object
		if err := json.Unmarshal(b, &o); err != nil {
			q.v.corrupt(bucketObject, k, err)
			return false
		}
		out = append(out, o)
		return true
	})
	return out
}

// Secret returns a sealed field of an object.
func (q Query) Secret(kind, name, field string) []byte {
	return q.v.Get(bucketSecret, []byte(kind+"/"+name+"/"+field))
}

// Groups returns the names of the groups that principal is in at ms, sorted.
func (q Query) Groups(principal string, ms int64) []string {
	var out []string
	for _, o := range q.Objects(KindGroup) {
		var g GroupSpec
		if json.Unmarshal(o.Spec, &g) != nil {
			continue // Apply refused anything else
		}
		for _, m := range g.Members {
			if m.Name == principal && (m.Until == nil || m.Until.UnixMilli() > ms) {
				out = append(out, o.Name)
				break
			}
		}
	}
	return out
}

// Key returns a registered key.
func (q Query) Key(thumbprint string) (Key, bool) {
	var k Key
	ok := q.v.load(bucketKey, []byte(thumbprint), &k)
	return k, ok
}

// KeysOf returns a principal's keys.
func (q Query) KeysOf(principal string) []Key {
	var out []Key
	for _, id := range q.v.ids(bucketKeyOf, prefix(principal), MaxKeys) {
		if k, ok := q.Key(id); ok {
			out = append(out, k)
		}
	}
	return out
}

// Enrolment returns an enrolment token's record by its hash, spent or not.
func (q Query) Enrolment(hash string) (Enrolment, bool) {
	var e Enrolment
	ok := q.v.load(bucketEnrolment, []byte(hash), &e)
	return e, ok
}

// Spent reports whether one-shot evidence was used.
func (q Query) Spent(id string) bool { return q.v.Get(bucketSpent, []byte(id)) != nil }

// Session returns a session.
func (q Query) Session(id string) (Session, bool) { return q.v.session(id) }

// Frozen returns what is contained.
func (q Query) Frozen() []FreezeRecord {
	var out []FreezeRecord
	q.v.Scan(bucketFrozen, nil, nil, func(k, b []byte) bool {
		var f FreezeRecord
		if err := json.Unmarshal(b, &f); err != nil {
			q.v.corrupt(bucketFrozen, k, err)
			return false
		}
		out = append(out, f)
		return true
	})
	return out
}

// IsFrozen reports whether something is contained.
func (q Query) IsFrozen(kind, name string) bool { return q.v.frozen(kind, name) }

// Task returns a task.
func (q Query) Task(id string) (Task, bool) { return q.v.task(id) }

// TaskNamed returns the id of a principal's open task of that name.
func (q Query) TaskNamed(principal, name string) string {
	return string(q.v.Get(bucketTaskName, key(principal, name)))
}

// Children returns the ids of a task's children.
func (q Query) Children(task string) []string {
	return q.v.ids(bucketTaskOf, prefix(task), MaxTaskTree)
}

// Ancestors returns a task's ancestors, nearest first.
func (q Query) Ancestors(t Task) []Task {
	var out []Task
	for len(out) <= MaxTaskDepth && t.Parent != "" {
		p, ok := q.v.task(t.Parent)
		if !ok {
			break
		}
		out = append(out, p)
		t = p
	}
	return out
}

// Lease returns a lease.
func (q Query) Lease(id string) (Lease, bool) { return q.v.lease(id) }

// LeaseNamed returns the lease that a credential's name belongs to.
func (q Query) LeaseNamed(name string) (Lease, bool) {
	id := q.v.Get(bucketName, []byte(name))
	if id == nil {
		return Lease{}, false
	}
	return q.v.lease(string(id))
}

// LeasesOfTask, LeasesOf and LeasesOn return ids of leases: open ones of a task
// and of a principal, not-ended ones on a target.
func (q Query) LeasesOfTask(task string, limit int) []string {
	return q.v.ids(bucketLeaseTask, prefix(task), limit)
}

// LeasesOf returns the ids of a principal's open leases.
func (q Query) LeasesOf(principal string, limit int) []string {
	return q.v.ids(bucketLeaseOf, prefix(principal), limit)
}

// LeasesOn returns the ids of a target's leases that have not ended.
func (q Query) LeasesOn(target string, limit int) []string {
	return q.v.ids(bucketLeaseOn, prefix(target), limit)
}

// Cosigned returns a grant that has a record of its own.
func (q Query) Cosigned(id string) (Cosigned, bool) { return q.v.cosigned(id) }

// CosignedGrants calls fn for such grants with id > after, in order of age.
func (q Query) CosignedGrants(after string, fn func(Cosigned) bool) {
	scanFrom(q.v, bucketGrant, after, fn)
}

// WaitingGrants returns the ids of a principal's unfinished grants.
func (q Query) WaitingGrants(principal string) []string {
	return q.v.ids(bucketGrantOf, prefix(principal), MaxWaiting)
}

// DueGrants is DueLeases for unfinished grants that nobody collected in time.
func (q Query) DueGrants(ms int64, limit int) (ids []string, next int64) {
	return q.v.due(bucketGrantDue, ms, limit)
}

// Quorum returns how many places of each need are filled as of ms, how many
// people could fill them, and whether the step-up is done.
func (q Query) Quorum(ms int64, g Cosigned) (have, eligible []int, steppedUp bool) {
	have, steppedUp = q.v.quorum(ms, g)
	involved, _ := q.v.involved(g)
	for _, m := range q.v.members(ms, g.Needs, involved) {
		eligible = append(eligible, len(persons(m)))
	}
	return have, eligible, steppedUp
}

// ReviewQuorum is Quorum for the review of an emergency.
func (q Query) ReviewQuorum(ms int64, g Cosigned) (have, eligible []int) {
	g.Needs, g.StepUp, g.Signed = g.Review.Needs, "", g.Review.signed()
	have, eligible, _ = q.Quorum(ms, g)
	return have, eligible
}

// ReviewHash is what a reviewer of that verdict and note signs, in hex.
func (q Query) ReviewHash(g Cosigned, verdict, note string) (string, error) {
	return reviewHash(q.v.clusterID(), g, verdict, note)
}

// MaySign says why principal could not sign the grant now; "" if it could. For
// an emergency the question is about its review.
func (q Query) MaySign(ms int64, g Cosigned, principal string) (why string) {
	if g.Review != nil {
		g.Needs, g.StepUp, g.Signed = g.Review.Needs, "", g.Review.signed()
	}
	s := &state{view: view{Reader: q.v.Reader}}
	res := s.checkSigner(&context{now: ms}, g, &Signed{Principal: principal, Person: s.person(principal), Signature: cosign.Signature{Kind: cosign.KindPasskey}})
	if q.v.err == nil {
		q.v.err = s.err
	}
	if res.OK() {
		return ""
	}
	return res.Detail
}

// Asked reports whether principal is in a group whose word is needed, be it for
// the grant or for its review.
func (q Query) Asked(ms int64, g Cosigned, principal string) bool {
	needs := g.Needs
	if g.Review != nil {
		needs = g.Review.Needs
	}
	for _, m := range q.v.membersAmong(ms, needs, []string{principal}) {
		if m[principal] != "" {
			return true
		}
	}
	return false
}

// Involved lists the persons who may not approve the grant.
func (q Query) Involved(g Cosigned) []string {
	out, _ := q.v.involved(g)
	return out
}

// Counts says why a signature no longer counts; "" if it does.
func (q Query) Counts(sg Signed) string { return q.v.uncounted(sg) }

// Stands says what has changed of what a grant rests on; "" if nothing has.
func (q Query) Stands(g Cosigned) string { return q.v.stands(g) }

// Custodians is the quorum for changes of configuration; none: dual control is off.
func (q Query) Custodians() []cosign.Need { return q.v.custodians() }

// UnderCustody reports whether a change needs the custodians' approval.
func (q Query) UnderCustody(o ObjectChange) bool {
	return len(q.v.custodians()) > 0 && q.v.underCustody(o)
}

// Voucher says who must vouch for a person's next key to approve with.
func (q Query) Voucher(principal string) string { return q.v.voucher(principal) }

// Person is the human behind a principal.
func (q Query) Person(principal string) string { return q.v.person(principal) }

// Unfinished returns the ids of grants that wait, or may still be collected.
func (q Query) Unfinished(limit int) []string {
	var out []string
	q.v.Scan(bucketGrantDue, nil, nil, func(k, _ []byte) bool {
		_, id := splitDue(k)
		out = append(out, id)
		return len(out) < limit
	})
	return out
}

// Unreviewed returns the ids of all emergencies that await their review.
func (q Query) Unreviewed(limit int) []string {
	var out []string
	q.v.Scan(bucketReview, nil, nil, func(k, _ []byte) bool {
		_, id, _ := strings.Cut(string(k), "\x00")
		out = append(out, id)
		return len(out) < limit
	})
	return out
}

// Leases calls fn for leases with id > after, in order of age, until it
// returns false.
func (q Query) Leases(after string, fn func(Lease) bool) {
	scanFrom(q.v, bucketLease, after, fn)
}

// Unexpired calls fn for the ids of a target's leases with id > after that are open
// or whose time was not up at ms, in order of age. Other targets' leases cost
// little: they are not decoded.
func (q Query) Unexpired(target, after string, ms int64, fn func(id string)) {
	name, err := json.Marshal(target)
	if err != nil { // a string
		return
	}
	mark := append([]byte(`"target":`), name...)
	q.v.Scan(bucketLease, nil, append([]byte(after), 0), func(k, b []byte) bool {
		if !bytes.Contains(b, mark) {
			return true
		}
		var l struct { // of a Lease
			Target    string `json:"target"`
			State     string `json:"state"`
			ExpiresMS int64  `json:"expires_ms"`
		}
		if err := json.Unmarshal(b, &l); err != nil {
			q.v.corrupt(bucketLease, k, err)
			return false
		}
		if l.Target == target && (l.State == LeaseOpen || l.ExpiresMS > ms) {
			fn(string(k))
		}
		return true
	})
}

// LeasesBetween calls fn for a principal's leases with from <= id < to, in order
// of age. look is called for every lease of anybody's in between, and ends the
// walk by returning false; whole reports that it did not. It costs little for
// other principals' leases: they are not decoded.
func (q Query) LeasesBetween(principal, from, to string, look func() bool, fn func(Lease)) (whole bool) {
	name, err := json.Marshal(principal)
	if err != nil { // a string
		return false
	}
	mark := append([]byte(`"principal":`), name...)
	whole = true
	q.v.Scan(bucketLease, nil, []byte(from), func(k, b []byte) bool {
		if string(k) >= to {
			return false
		}
		if whole = look(); !whole || !bytes.Contains(b, mark) {
			return whole
		}
		var l Lease
		if err := json.Unmarshal(b, &l); err != nil {
			q.v.corrupt(bucketLease, k, err)
			whole = false
		} else if l.Grant.Principal == principal {
			fn(l)
		}
		return whole
	})
	return whole
}

// Tasks calls fn for tasks with id > after, in order of age.
func (q Query) Tasks(after string, fn func(Task) bool) {
	scanFrom(q.v, bucketTask, after, fn)
}

func scanFrom[T any](v *view, bucket, after string, fn func(T) bool) {
	v.Scan(bucket, nil, []byte(after), func(k, b []byte) bool {
		if string(k) == after {
			return true
		}
		var rec T
		if err := json.Unmarshal(b, &rec); err != nil {
			v.corrupt(bucket, k, err)
			return false
		}
		return fn(rec)
	})
}

// DueLeases returns up to limit open leases whose time is up at ms, and when
// the next one is due (0: none).
func (q Query) DueLeases(ms int64, limit int) (ids []string, next int64) {
	return q.v.due(bucketLeaseDue, ms, limit)
}

// DueTasks is DueLeases for explicit tasks.
func (q Query) DueTasks(ms int64, limit int) (ids []string, next int64) {
	return q.v.due(bucketTaskDue, ms, limit)
}

// DueSweep reports whether a sweep would forget anything at ms.
func (q Query) DueSweep(ms int64) bool {
	ids, _ := q.v.due(bucketDueSweep, ms, 1)
	return len(ids) > 0
}

func (v *view) due(bucket string, ms int64, limit int) (ids []string, next int64) {
	v.Scan(bucket, nil, nil, func(k, _ []byte) bool {
		at, id := splitDue(k)
		if at > ms || len(ids) == limit {
			next = at
			return false
		}
		ids = append(ids, id)
		return true
	})
	return ids, next
}

// Rotation returns what is known of a subject's rotation.
func (q Query) Rotation(subject string) (Rotation, bool) { return q.v.rotation(subject) }

// Rotations calls fn for every rotation, by subject; what of the cluster's has
// never turned comes last.
func (q Query) Rotations(fn func(Rotation) bool) {
	stopped := false
	scanFrom(q.v, bucketRotation, "", func(r Rotation) bool { stopped = !fn(r); return !stopped })
	for _, subject := range clusterSubjects {
		if r, ok := unturned(subject); ok && !stopped && q.v.Get(bucketRotation, []byte(subject)) == nil {
			stopped = !fn(r)
		}
	}
}

// BarrierKeys calls fn for every barrier key after a number that was given out, as
// it travels, by number, until fn returns false.
func (q Query) BarrierKeys(after uint64, fn func(sealed []byte) bool) {
	q.v.Scan(bucketSecret, []byte(SubjectBarrier+"/"), []byte(BarrierSecret(after+1)), func(_, sealed []byte) bool {
		return fn(slices.Clone(sealed))
	})
}

// AccountNamed is the Account that holds a name on a target; empty: none does.
func (q Query) AccountNamed(target, username string) string {
	return q.v.accountNamed(target, username)
}

// DueRotations calls fn for every subject that the leader is to look at, with its
// target, until fn returns false. next is when the first one after them is due; 0:
// there is none, or fn wanted no more.
func (q Query) DueRotations(ms int64, fn func(subject, target string) bool) (next int64) {
	q.v.Scan(bucketRotationDue, nil, nil, func(k, target []byte) bool {
		at, subject := splitDue(k)
		if at > ms {
			next = at
			return false
		}
		return fn(subject, string(target))
	})
	return next
}

// Rotated is the sequence at which a secret of the subject last came into use; 0:
// none has by rotation.
func (q Query) Rotated(subject string) uint64 {
	return toUint(q.v.Get(bucketRotated, []byte(subject)))
}

// RotationOwns says whether a sealed field is rotation's: whoever writes the object
// cannot put another secret there.
func (q Query) RotationOwns(kind, name, field string) bool { return q.v.ownsSecret(kind, name, field) }

// LetGo is how often an account had turned when a lease on it was set to end: one
// turn more, and at rest, and what the lease gave out is dead.
func (q Query) LetGo(lease string) uint64 { return toUint(q.v.Get(bucketLetGo, []byte(lease))) }

// HeldSecret is a secret that waits with its change; nil where there is none.
func (q Query) HeldSecret(grant, name string) []byte {
	return q.v.Get(bucketSecret, heldSecret(grant, name))
}

// Holders lists up to limit leases on an account that have not ended.
func (q Query) Holders(account string, limit int) []string { return q.v.holders(account, limit) }

// NextSecret is the one that a rotation in flight brings; nil where there is none.
func (q Query) NextSecret(subject string) []byte {
	return q.v.Get(bucketSecret, secretKey(secretOwner, subject, "next"))
}

// OldSecret is the one before the present secret of the slot being replaced.
func (q Query) OldSecret(r Rotation) []byte {
	return q.v.Get(bucketSecret, secretKey(secretOwner, r.Subject, oldField(r.Slot)))
}

// SlotSecret is the present secret of an account's slot; nil where nobody has told
// the broker one.
func (q Query) SlotSecret(account string, slot int) []byte {
	return q.v.Get(bucketSecret, slotKey(account, slot))
}

// EndingTasks returns ended tasks that still have open leases.
func (q Query) EndingTasks(limit int) []string { return q.v.ids(bucketTaskEnds, nil, limit) }

// Ending is a lease that waits for withdrawal.
type Ending struct {
	LeaseID     string
	Target      string
	NotBeforeMS int64
}

// Endings calls fn for every lease that waits for withdrawal, by target.
func (q Query) Endings(target string, fn func(Ending) bool) {
	var p []byte
	if target != "" {
		p = prefix(target)
	}
	q.v.Scan(bucketEnding, p, nil, func(k, b []byte) bool {
		t, id, ok := strings.Cut(string(k), "\x00")
		return !ok || fn(Ending{LeaseID: id, Target: t, NotBeforeMS: int64(toUint(b))})
	})
}

// LiveCount returns how many leases principal holds on role.
func (q Query) LiveCount(principal, role string) int { return q.v.count("p", principal, role) }

// Delivery returns how far a webhook has come; false for what is none.
func (q Query) Delivery(sink string) (Delivery, bool) { return q.v.delivery(sink) }

// Entry returns one recorded command.
func (q Query) Entry(seq uint64) (Entry, bool) {
	b := q.v.Get(bucketEntry, beUint(seq))
	if b == nil {
		return Entry{}, false
	}
	e, err := decodeEntry(seq, b)
	if err != nil {
		q.v.corrupt(bucketEntry, beUint(seq), err)
		return e, false
	}
	return e, true
}

// DecisionSeq returns the sequence of the command that recorded a decision.
func (q Query) DecisionSeq(id string) (uint64, bool) {
	b := q.v.Get(bucketDecision, []byte(id))
	return toUint(b), b != nil
}

// Idempotent returns the remembered result of a principal's idempotency key
// and the hash of the request it belongs to. ok is false where the key may be
// used anew: what it opened was a lease whose mint has failed.
func (q Query) Idempotent(principal, k string) (hash string, res Result, ok bool) {
	var rec idemRecord
	ok = q.v.load(bucketIdem, key(principal, k), &rec) && !q.v.gaveNothing(rec)
	return rec.Hash, rec.Result, ok
}

// SessionCount returns how many sessions a principal has.
func (q Query) SessionCount(principal string) int { return len(q.v.sessionIDs(principal)) }

// HashReader returns the stored hashes of the Merkle tree.
func (q Query) HashReader() tlog.HashReader { return treeReader(q) }

// Root returns the Merkle root over the first size commands.
func (q Query) Root(size uint64) (tlog.Hash, error) {
	return tree.Root(q.HashReader(), int64(size))
}
