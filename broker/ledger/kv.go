package ledger

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
)

// Reader reads an ordered key-value state. Values are the caller's to keep
// until the transaction ends, and must not be changed.
type Reader interface {
	// Get returns the value, or nil when the key is absent.
	Get(bucket string, key []byte) []byte
	// Scan calls fn in key order for each key that has prefix, starting at from
	// where from is longer, until fn returns false.
	Scan(bucket string, prefix, from []byte, fn func(key, value []byte) bool)
}

// Writer is a Reader that sees its own writes. The state must not be changed
// while a Scan runs.
type Writer interface {
	Reader
	Put(bucket string, key, value []byte)
	Delete(bucket string, key []byte)
}

// Buckets of the state. Keys are ids, names and big-endian numbers; they are
// stored in the clear, so nothing secret may stand in one (law 6).
const (
	bucketMeta      = "meta"      // clock, size, genesis, policy epoch
	bucketObject    = "object"    // kind / name → Object
	bucketSecret    = "secret"    // kind / name / field → the secret
	bucketKey       = "key"       // thumbprint → Key
	bucketKeyOf     = "key_of"    // principal \0 thumbprint
	bucketKeyGone   = "key_gone"  // thumbprint of a removed key to approve with; "founder" \0 principal
	bucketEnrolment = "enrolment" // token hash → Enrolment
	bucketSession   = "session"   // id → Session
	bucketSessionOf = "session_of"
	bucketSpent     = "spent"       // one-shot evidence → expiry
	bucketDueSweep  = "due_sweep"   // ms ‖ bucket \0 key: what only needs forgetting
	bucketTask      = "task"        // id → Task
	bucketTaskOf    = "task_of"     // parent \0 id
	bucketTaskName  = "task_name"   // principal \0 name → id, open tasks only
	bucketTaskDue   = "task_due"    // ms ‖ id, open explicit tasks only
	bucketTaskEnds  = "task_ends"   // id: ended, leases not all ending yet
	bucketInstance  = "instance"    // principal \0 instance \0 role → implicit task
	bucketLease     = "lease"       // id → Lease
	bucketLeaseTask = "lease_task"  // task \0 id, open leases only
	bucketLeaseOf   = "lease_of"    // principal \0 id, open leases only
	bucketLeaseOn   = "lease_on"    // target \0 id, leases not ended
	bucketLeaseDue  = "lease_due"   // ms ‖ id, open leases only
	bucketEnding    = "ending"      // target \0 id → not before, ms
	bucketName      = "name"        // credential name → lease id
	bucketGrant     = "grant"       // id → Cosigned
	bucketGrantOf   = "grant_of"    // principal \0 id, unfinished ones only
	bucketGrantTask = "grant_task"  // task \0 id, unfinished ones only
	bucketGrantDue  = "grant_due"   // ms ‖ id, unfinished ones only
	bucketCooling   = "cooling"     // principal \0 role → until, ms
	bucketReview    = "review"      // person \0 id: emergencies not yet reviewed
	bucketCount     = "count"       // live and per-minute counters
	bucketIdem      = "idempotency" // principal \0 key → outcome
	bucketFrozen    = "frozen"      // kind / name → Freeze
	bucketEntry     = "entry"       // seq → Entry
	bucketTree      = "tree"        // stored-hash index → hash
	bucketDecision  = "decision"    // decision id → seq
	bucketDelivery  = "delivery"    // webhook sink → Delivery

	bucketAccountOn   = "account_on"   // target \0 username → Account
	bucketRotation    = "rotation"     // kind / name → Rotation
	bucketRotationDue = "rotation_due" // ms ‖ kind / name → target
	bucketTurning     = "turning"      // target \0 kind / name: the next secret may be in use
	bucketLetGo       = "let_go"       // lease on an account, ending → turns of the account by then
	bucketHolder      = "holder"       // account \0 lease, leases not ended; the account alone: they all stand here
	bucketRotated     = "rotated"      // kind / name → seq of the last secret that came into use
)

// key joins parts with NUL, which no part may contain.
func key(parts ...string) []byte { return []byte(strings.Join(parts, "\x00")) }

// prefix is key with a closing NUL: the common prefix of all longer keys.
func prefix(parts ...string) []byte { return append(key(parts...), 0) }

// objectKey is the key of an object: kinds have no slash, names may.
func objectKey(kind, name string) []byte { return []byte(kind + "/" + name) }

// due is a key that sorts by time.
func due(ms int64, id string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(max(ms, 0))), id...)
}

// splitDue is the reverse of due.
func splitDue(k []byte) (ms int64, id string) {
	if len(k) < 8 {
		return 0, ""
	}
	return int64(binary.BigEndian.Uint64(k)), string(k[8:])
}

func beUint(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func toUint(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// view reads typed records. A record that does not decode is corruption: the
// first such error sticks and is returned by Apply or by the query.
type view struct {
	Reader
	err error
}

// state is a view that writes.
type state struct {
	view
	w    Writer
	memo *memo
}

func (v *view) corrupt(bucket string, k []byte, err error) {
	if v.err == nil {
		v.err = fmt.Errorf("ledger: record %s/%q does not decode: %w", bucket, k, err)
	}
}

// load decodes a record into out and reports whether it exists.
func (v *view) load(bucket string, k []byte, out any) bool {
	b := v.Get(bucket, k)
	if b == nil {
		return false
	}
	if err := json.Unmarshal(b, out); err != nil {
		v.corrupt(bucket, k, err)
		return false
	}
	return true
}

// save encodes a record. Records are plain structs that always encode.
func (s *state) save(bucket string, k []byte, rec any) {
	b, err := json.Marshal(rec)
	if err != nil {
		s.corrupt(bucket, k, err)
		return
	}
	s.w.Put(bucket, k, b)
}

func (s *state) put(bucket string, k, v []byte) { s.w.Put(bucket, k, v) }
func (s *state) del(bucket string, k []byte)    { s.w.Delete(bucket, k) }

// ids returns up to limit ids that follow prefix in an index bucket.
func (v *view) ids(bucket string, prefix []byte, limit int) []string {
	var out []string
	v.Scan(bucket, prefix, nil, func(k, _ []byte) bool {
		out = append(out, string(k[len(prefix):]))
		return len(out) < limit
	})
	return out
}
