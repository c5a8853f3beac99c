package ledger

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Result is what a command came to. Code "ok" means that it took effect; any
// other code is a refusal, and then the state has changed by nothing but the
// record of the command.
type Result struct {
	Code   string `json:"code"`
	Detail string `json:"detail,omitempty"`
	// Seq is the command's place in the ledger: its leaf in the Merkle tree.
	Seq uint64 `json:"seq"`
	// Replayed says that the idempotency key had been used: the result is the
	// first command's.
	Replayed bool `json:"-"`
	// ID names what the command made or changed, where one thing was.
	ID string `json:"id,omitempty"`
	// Also names further ids: superseded tasks, ended leases, new versions.
	Also []string `json:"also,omitempty"`
	// Value is a small answer of the command's own, stable JSON.
	Value json.RawMessage `json:"value,omitempty"`
}

// OK reports whether the command took effect.
func (r Result) OK() bool { return r.Code == CodeOK }

// Codes of results. CodeStale asks the proposer to read and decide again.
const (
	CodeOK               = "ok"
	CodeStale            = "stale_decision"
	CodeInvalid          = "invalid"
	CodeNotFound         = "not_found"
	CodeExists           = "already_exists"
	CodeConflict         = "version_conflict"
	CodeInUse            = "in_use"
	CodeNotGenesis       = "already_initialised"
	CodeIdemMismatch     = "idempotency_key_reused"
	CodeTaskEnded        = "task_ended"
	CodeTaskForeign      = "task_not_yours"
	CodeTaskTree         = "task_tree_too_large"
	CodeNarrow           = "scope_exceeds"
	CodeTTL              = "ttl_exceeds"
	CodeFrozen           = "contained"
	CodeApprovalRequired = "approval_required"
	CodeCapRole          = "cap_per_principal"
	CodeCapInstance      = "cap_per_instance"
	CodeCapRate          = "mints_per_minute"
	CodeCapCount         = "too_many"
	CodeTokenSpent       = "token_spent"
	CodeLeaseEnded       = "lease_ended"
	CodeLastAdmin        = "would_leave_no_administrator"
	CodeGeneration       = "generation_conflict"
	CodeQuorum           = "quorum_impossible"
	CodeSelfApproval     = "self_approval"
	CodeNotEligible      = "not_eligible"
	CodeTwice            = "already_approved"
	CodeGrantOver        = "grant_over"
	CodeGrantVoid        = "grant_void"
	CodeCooling          = "cooling_down"
	CodeSignature        = "signature_invalid"
	CodeEmergency        = "emergency_refused"
	CodeStepUp           = "step_up_required"
	CodeVouch            = "key_not_vouched"
	CodeRotating         = "rotation_in_progress"
	CodeAccountHeld      = "account_held"
)

func refuse(code, detail string, args ...any) Result {
	return Result{Code: code, Detail: fmt.Sprintf(detail, args...)}
}

func done(id string, also ...string) Result { return Result{Code: CodeOK, ID: id, Also: also} }

// Apply is [Machine.Apply] without a memory.
func Apply(w Writer, raw []byte) (Result, error) { return new(Machine).Apply(w, raw) }

// Machine applies commands. It remembers how the bytes of roles and targets
// decode, and nothing else: it gives what a fresh Machine would. The zero value
// is ready. It is not safe for concurrent use.
type Machine struct{ memo memo }

// Apply applies one command to the state and records it. It is pure. An error
// means that the command or the state cannot be read: the node must stop.
func (m *Machine) Apply(w Writer, raw []byte) (Result, error) {
	d, err := Decode(raw)
	if err != nil {
		return Result{}, err
	}
	s, c, res, replayed := m.execute(w, d)
	s.record(c, res, d.Public)
	if c.DecisionID != "" && !replayed {
		s.put(bucketDecision, []byte(c.DecisionID), beUint(c.seq))
	}
	if s.err != nil {
		return Result{}, s.err
	}
	return res, nil
}

// execute is Apply without the record: what [Replayer] does too.
func (m *Machine) execute(w Writer, d Decoded) (*state, *context, Result, bool) {
	s := &state{view: view{Reader: w}, w: w, memo: &m.memo}
	c := &context{Header: d.Header, secrets: d.secrets, seq: s.size(), now: max(s.clock(), d.Header.AtMS)}

	res, replayed := s.replay(c)
	if !replayed {
		if res = s.precheck(c, d.Body); res.OK() {
			res = d.Body.apply(s, c)
		}
		s.remember(c, res)
	}
	res.Seq, res.Replayed = c.seq, replayed
	s.put(bucketMeta, metaClock, beUint(uint64(c.now)))
	return s, c, res, replayed
}

// precheck holds for every command: genesis first and once.
func (s *state) precheck(c *context, b Body) Result {
	_, isGenesis := b.(*Genesis)
	switch {
	case isGenesis && c.seq != 0:
		return refuse(CodeNotGenesis, "The cluster is initialised already.")
	case !isGenesis && c.seq == 0:
		return refuse(CodeInvalid, "The first command must be the genesis record.")
	}
	return done("")
}

// Keys of bucketMeta.
var (
	metaClock   = []byte("clock")
	metaSize    = []byte("size")
	metaEpoch   = []byte("policy_epoch")
	metaGenesis = []byte("genesis")
)

func (v *view) clock() int64 { return int64(toUint(v.Get(bucketMeta, metaClock))) }
func (v *view) size() uint64 { return toUint(v.Get(bucketMeta, metaSize)) }

// policyEpoch is the sequence of the last change that may alter a decision:
// policies, groups, principals, roles, targets, zones.
func (v *view) policyEpoch() uint64 { return toUint(v.Get(bucketMeta, metaEpoch)) }

// idemRecord is the remembered outcome of an idempotency key.
type idemRecord struct {
	Hash   string `json:"hash"`
	Result Result `json:"result"`
}

// replay answers a command whose idempotency key was used before. The answer
// of a refusal is not remembered: asking again may succeed.
func (s *state) replay(c *context) (Result, bool) {
	if c.Idem == nil {
		return Result{}, false
	}
	if c.Idem.Key == "" || len(c.Idem.Key) > MaxNameBytes {
		return refuse(CodeInvalid, "An idempotency key has 1 to %d bytes.", MaxNameBytes), true
	}
	var rec idemRecord
	if !s.load(bucketIdem, key(c.Actor.Principal, c.Idem.Key), &rec) {
		return Result{}, false
	}
	switch {
	case rec.Hash != c.Idem.Hash:
		return refuse(CodeIdemMismatch, "This idempotency key was used for another request. Use a new key."), true
	case s.gaveNothing(rec):
		return Result{}, false
	}
	return rec.Result, true
}

// gaveNothing reports whether a remembered outcome is a lease whose mint has
// failed: the client that retries with the same key has a right to a new one.
func (v *view) gaveNothing(rec idemRecord) bool {
	if !strings.HasPrefix(rec.Result.ID, PrefixLease) {
		return false
	}
	l, ok := v.lease(rec.Result.ID)
	return ok && l.End != nil && l.End.Reason == EndMintFailed
}

func (s *state) remember(c *context, res Result) {
	if c.Idem == nil || !res.OK() {
		return
	}
	res.Seq = c.seq
	k := key(c.Actor.Principal, c.Idem.Key)
	s.save(bucketIdem, k, idemRecord{Hash: c.Idem.Hash, Result: res})
	s.forgetAt(c.now+IdempotencyMS, bucketIdem, k)
}

// forgetAt marks a record that a later sweep may delete.
func (s *state) forgetAt(ms int64, bucket string, k []byte) {
	s.put(bucketDueSweep, due(ms, bucket+"\x00"+string(k)), []byte{1})
}

// Sweep forgets what is past its time: sessions, spent evidence, idempotency
// keys, enrolment tokens. The leader proposes it when there is something to do.
type Sweep struct {
	Max int `json:"max"`
}

// Type implements [Body].
func (*Sweep) Type() string { return "sweep" }

func (b *Sweep) apply(s *state, c *context) Result {
	limit := min(max(b.Max, 1), MaxSweepBatch)
	var keys [][]byte
	s.Scan(bucketDueSweep, nil, nil, func(k, _ []byte) bool {
		if ms, _ := splitDue(k); ms > c.now || len(keys) == limit {
			return false
		}
		keys = append(keys, append([]byte(nil), k...))
		return true
	})
	for _, k := range keys {
		s.forget(k)
	}
	return Result{Code: CodeOK, Value: fmt.Appendf(nil, "%d", len(keys))}
}

func (s *state) forget(k []byte) {
	_, rest := splitDue(k)
	s.del(bucketDueSweep, k)
	for i := range rest {
		if rest[i] != 0 {
			continue
		}
		bucket, rk := rest[:i], []byte(rest[i+1:])
		if bucket == bucketSession {
			s.dropSession(string(rk))
			return
		}
		s.del(bucket, rk)
		return
	}
}
