package ledger

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// commandVersion is the envelope's version. A change of any body's shape is a
// new command type; golden files keep every shape that ever shipped.
const commandVersion = 1

// Header is what every command carries beside its body.
type Header struct {
	// AtMS is the proposer's wall clock, Unix milliseconds. Ledger time is the
	// largest one seen: it never decreases (HAZARDS 24).
	AtMS int64 `json:"at_ms"`
	// Node and Term say which leader proposed.
	Node  string `json:"node,omitempty"`
	Term  uint64 `json:"term,omitempty"`
	Actor Actor  `json:"actor"`
	// Decision is the policy decision that let the command be proposed, or that
	// it records, with its reasons (law 5). DecisionID finds it again.
	DecisionID string `json:"decision_id,omitempty"`
	// Decision is a line of its own in the encoding: Apply never reads it.
	Decision json.RawMessage `json:"-"`
	// Idem, where set, makes the command take effect once per principal and key.
	Idem *Idem `json:"idempotency,omitempty"`
	// Commitments are SHA-256(salt ‖ secret) of each secret that travels with
	// the command outside its leaf (HAZARDS 25), by name, sorted.
	Commitments []Commitment `json:"commitments,omitempty"`
}

// Actor is who caused a command.
type Actor struct {
	Principal string `json:"principal,omitempty"` // empty: the broker itself
	Session   string `json:"session,omitempty"`
	Instance  string `json:"instance,omitempty"`
	Address   string `json:"address,omitempty"` // client IP
}

// Idem is an idempotency key with the hash of the request that it came with.
type Idem struct {
	Key  string `json:"key"`
	Hash string `json:"hash"`
}

// Commitment binds a secret that is not in the leaf.
type Commitment struct {
	Name   string `json:"name"`
	SHA256 []byte `json:"sha256"`
}

// Secret is a secret that travels beside the command's public part. It is
// sealed with the log entry and again with the state.
type Secret struct {
	Name  string `json:"name"` // object kind/name/field
	Salt  []byte `json:"salt"`
	Value []byte `json:"value"`
}

// Commitment is what the leaf holds instead of the secret.
func (s Secret) Commitment() Commitment {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s.Salt))))
	h.Write(s.Salt)
	h.Write(s.Value)
	return Commitment{Name: s.Name, SHA256: h.Sum(nil)}
}

// Body is a command's own part: one struct per type.
type Body interface {
	// Type is the command's stable name.
	Type() string
	// apply checks everything first and writes only if nothing is refused.
	apply(s *state, c *context) Result
}

// context is what apply sees of the command around its body.
type context struct {
	Header
	now     int64 // ledger time, ms
	seq     uint64
	secrets []Secret
}

// head is the first line of a command's public part.
type head struct {
	V    int    `json:"v"`
	Type string `json:"type"`
	Header
}

// bodies lists every command type, newest last. It is the one registry.
var bodies = map[string]func() Body{
	"genesis":            func() Body { return new(Genesis) },
	"change_objects":     func() Body { return new(ChangeObjects) },
	"issue_enrolment":    func() Body { return new(IssueEnrolment) },
	"add_key":            func() Body { return new(AddKey) },
	"remove_key":         func() Body { return new(RemoveKey) },
	"open_session":       func() Body { return new(OpenSession) },
	"end_session":        func() Body { return new(EndSession) },
	"start_task":         func() Body { return new(StartTask) },
	"heartbeat_task":     func() Body { return new(HeartbeatTask) },
	"end_task":           func() Body { return new(EndTask) },
	"record_decision":    func() Body { return new(RecordDecision) },
	"open_lease":         func() Body { return new(OpenLease) },
	"remint_lease":       func() Body { return new(RemintLease) },
	"extend_lease":       func() Body { return new(ExtendLease) },
	"end_leases":         func() Body { return new(EndLeases) },
	"record_withdrawals": func() Body { return new(RecordWithdrawals) },
	"force_end":          func() Body { return new(ForceEnd) },
	"freeze":             func() Body { return new(Freeze) },
	"release":            func() Body { return new(Release) },
	"issue_join_token":   func() Body { return new(IssueJoinToken) },
	"admit_node":         func() Body { return new(AdmitNode) },
	"sweep":              func() Body { return new(Sweep) },
	"request_grant":      func() Body { return new(RequestGrant) },
	"approve_grant":      func() Body { return new(ApproveGrant) },
	"end_grant":          func() Body { return new(EndGrant) },
	"review_grant":       func() Body { return new(ReviewGrant) },
	"make_change":        func() Body { return new(MakeChange) },
	"record_delivery":    func() Body { return new(RecordDelivery) },
	"want_rotation":      func() Body { return new(WantRotation) },
	"schedule_rotation":  func() Body { return new(ScheduleRotation) },
	"begin_rotation":     func() Body { return new(BeginRotation) },
	"fail_rotation":      func() Body { return new(FailRotation) },
	"finish_rotation":    func() Body { return new(FinishRotation) },
	"turn_keys":          func() Body { return new(TurnKeys) },
	"turn_cluster":       func() Body { return new(TurnCluster) },
}

// Types returns the names of all command types, sorted.
func Types() []string {
	return slices.Sorted(maps.Keys(bodies))
}

// Encode makes the bytes of a command: a version byte, the length of the public
// part, the public part, and the secrets. The public part is what the leaf
// covers and the audit shows: two or three lines of JSON, which are the head,
// the body and the decision. Commitments are filled in here.
func Encode(h Header, b Body, secrets ...Secret) ([]byte, error) {
	h.Commitments = nil
	for _, s := range secrets {
		if len(s.Salt) < 16 {
			return nil, fmt.Errorf("ledger: secret %s: a salt of at least 16 bytes is needed", s.Name)
		}
		h.Commitments = append(h.Commitments, s.Commitment())
	}
	first, err := json.Marshal(head{V: commandVersion, Type: b.Type(), Header: h})
	if err != nil {
		return nil, fmt.Errorf("ledger: cannot encode %s: %w", b.Type(), err)
	}
	second, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("ledger: cannot encode %s: %w", b.Type(), err)
	}
	if bytes.IndexByte(h.Decision, '\n') >= 0 {
		return nil, fmt.Errorf("ledger: the decision of a %s command is not one line", b.Type())
	}
	size := len(first) + 1 + len(second)
	if len(h.Decision) > 0 {
		size += 1 + len(h.Decision)
	}
	out := binary.AppendUvarint(append(make([]byte, 0, size+8), commandVersion), uint64(size))
	out = append(append(append(out, first...), '\n'), second...)
	if len(h.Decision) > 0 {
		out = append(append(out, '\n'), h.Decision...)
	}
	if len(secrets) > 0 {
		sec, err := json.Marshal(secrets)
		if err != nil {
			return nil, fmt.Errorf("ledger: cannot encode secrets: %w", err)
		}
		out = append(out, sec...)
	}
	if len(out) > MaxCommandBytes {
		return nil, fmt.Errorf("ledger: a %s command of %d bytes; at most %d are allowed", b.Type(), len(out), MaxCommandBytes)
	}
	return out, nil
}

// Decoded is a command taken apart.
type Decoded struct {
	Type   string
	Header Header
	Body   Body
	// Public is the exact text that the leaf covers.
	Public  []byte
	secrets []Secret
}

// Decode reads a command strictly: an unknown version, type or member is an
// error, because a replica that ignored one would diverge (HAZARDS 2).
func Decode(raw []byte) (Decoded, error) {
	public, rest, err := split(raw)
	if err != nil {
		return Decoded{}, err
	}
	d, err := DecodePublic(public)
	if err != nil {
		return Decoded{}, err
	}
	if len(rest) > 0 {
		if err := strict(rest, &d.secrets); err != nil {
			return Decoded{}, fmt.Errorf("ledger: secrets of a %s command do not decode", d.Type)
		}
	}
	return d, checkCommitments(d.Header.Commitments, d.secrets)
}

// DecodePublic reads a command's public part, as the audit log holds it.
func DecodePublic(public []byte) (Decoded, error) {
	first, rest, ok := bytes.Cut(public, []byte{'\n'})
	second, decision, decided := bytes.Cut(rest, []byte{'\n'})
	if !ok || decided && (len(decision) == 0 || bytes.IndexByte(decision, '\n') >= 0) {
		return Decoded{}, fmt.Errorf("ledger: a command has two lines, or three with its decision")
	}
	var h head
	if err := strict(first, &h); err != nil {
		return Decoded{}, fmt.Errorf("ledger: command does not decode: %w", err)
	}
	if h.V != commandVersion {
		return Decoded{}, fmt.Errorf("ledger: command version %d is not known to this build (it knows %d)", h.V, commandVersion)
	}
	newBody, ok := bodies[h.Type]
	if !ok {
		return Decoded{}, fmt.Errorf("ledger: command type %q is not known to this build", h.Type)
	}
	b := newBody()
	if err := strict(second, b); err != nil {
		return Decoded{}, fmt.Errorf("ledger: body of a %s command does not decode: %w", h.Type, err)
	}
	h.Decision = decision
	return Decoded{Type: h.Type, Header: h.Header, Body: b, Public: public}, nil
}

// PublicJSON is a command's public part as one JSON object, for people and
// programs; the leaf covers the lines themselves.
func PublicJSON(public []byte) json.RawMessage {
	lines := bytes.SplitN(public, []byte{'\n'}, 3)
	names := [...]string{`{"head":`, `,"body":`, `,"decision":`}
	var out []byte
	for i, l := range lines {
		out = append(append(out, names[i]...), l...)
	}
	out = append(out, '}')
	if !json.Valid(out) {
		return json.RawMessage("null")
	}
	return out
}

func split(raw []byte) (public, rest []byte, err error) {
	if len(raw) < 2 || len(raw) > MaxCommandBytes || raw[0] != commandVersion {
		return nil, nil, fmt.Errorf("ledger: %d bytes are not a command of version %d", len(raw), commandVersion)
	}
	n, used := binary.Uvarint(raw[1:])
	if used <= 0 || n > uint64(len(raw)-1-used) {
		return nil, nil, fmt.Errorf("ledger: command is cut short")
	}
	start := 1 + used
	return raw[start : start+int(n)], raw[start+int(n):], nil
}

// strict decodes JSON that must have no unknown member and nothing after it.
func strict(b []byte, out any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(out); err != nil {
		return err
	}
	if dec.InputOffset() != int64(len(b)) {
		return fmt.Errorf("more follows after the value")
	}
	return nil
}

func checkCommitments(want []Commitment, got []Secret) error {
	if len(want) != len(got) {
		return fmt.Errorf("ledger: %d commitments for %d secrets", len(want), len(got))
	}
	for i, s := range got {
		c := s.Commitment()
		if c.Name != want[i].Name || !hmac.Equal(c.SHA256, want[i].SHA256) {
			return fmt.Errorf("ledger: secret %d does not match its commitment", i)
		}
	}
	return nil
}
