package ledger

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/scope"
)

// Kinds of objects that `apply` writes.
const (
	KindPrincipal  = "Principal"
	KindGroup      = "Group"
	KindAuthMethod = "AuthMethod"
	KindTarget     = "Target"
	KindRole       = "Role"
	KindPolicy     = "Policy"
	KindZone       = "Zone"
	KindAccount    = "Account"
	KindSink       = "Sink"
	KindPlugin     = "Plugin"
	KindCluster    = "Cluster"
)

// Kinds lists every kind, in the order in which `apply` writes them: what is
// named comes before what names it.
var Kinds = []string{KindZone, KindPrincipal, KindGroup, KindAuthMethod, KindTarget, KindRole, KindPolicy, KindAccount, KindSink, KindPlugin, KindCluster}

// Object is one named, versioned document.
type Object struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Version is the ledger sequence of the last change.
	Version   uint64          `json:"version"`
	Spec      json.RawMessage `json:"spec"`
	CreatedMS int64           `json:"created_ms"`
	ChangedMS int64           `json:"changed_ms"`
	ChangedBy string          `json:"changed_by,omitempty"`
	// Secrets names the sealed fields kept beside the object.
	Secrets []string `json:"secrets,omitempty"`
}

// Duration is a length of time that reads and writes as "15m" or "8h".
type Duration time.Duration

// MarshalJSON implements [json.Marshaler].
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON implements [json.Unmarshaler]; it takes Go's duration strings
// and refuses negative ones.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is a string like \"15m\"")
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration; write it like \"90s\", \"15m\" or \"8h\"", s)
	}
	*d = Duration(v)
	return nil
}

// MS returns d in milliseconds.
func (d Duration) MS() int64 { return time.Duration(d).Milliseconds() }

// PrincipalSpec is a Principal's spec.
type PrincipalSpec struct {
	Owner  string            `json:"owner,omitempty"` // a human, for agents and workloads
	Agent  *AgentSpec        `json:"agent,omitempty"`
	Zone   string            `json:"zone,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// AgentSpec describes an AI agent.
type AgentSpec struct {
	Model      string `json:"model,omitempty"`
	Version    string `json:"version,omitempty"`
	Provenance string `json:"provenance,omitempty"`
	Stage      string `json:"stage,omitempty"` // development, deployment, operation
}

// GroupSpec is a Group's spec.
type GroupSpec struct {
	Members []Member `json:"members"`
}

// Member is one member of a group, for ever or until an instant.
type Member struct {
	Name  string     `json:"name"`
	Until *time.Time `json:"until,omitempty"`
}

// TargetSpec is the part of a Target's spec that the broker itself reads; the
// rest belongs to the kind of target.
type TargetSpec struct {
	Type   string            `json:"type"`
	Zone   string            `json:"zone,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Rotation is when the target's own secret is replaced: its admin account's, or
	// its signing keys.
	Rotation *Schedule `json:"rotation,omitempty"`
}

// targetCommon names the members that TargetSpec takes out of a spec.
var targetCommon = []string{"type", "zone", "labels", "rotation"}

// SplitTarget takes a Target's spec apart: the broker's part and the kind's.
func SplitTarget(spec json.RawMessage) (TargetSpec, json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(spec, &all); err != nil {
		return TargetSpec{}, nil, fmt.Errorf("a target's spec is an object: %w", err)
	}
	common, rest := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if slices.Contains(targetCommon, k) {
			common[k] = all[k]
		} else {
			rest[k] = all[k]
		}
	}
	cb, err := json.Marshal(common)
	if err != nil {
		return TargetSpec{}, nil, err
	}
	var t TargetSpec
	if err := strict(cb, &t); err != nil {
		return t, nil, err
	}
	if t.Type == "" {
		return t, nil, fmt.Errorf("type is missing: which kind of target is it?")
	}
	if err := checkSchedule(t.Rotation); err != nil {
		return t, nil, err
	}
	rb, err := json.Marshal(rest)
	return t, rb, err
}

// RoleSpec is a Role's spec. The role's name is target/suffix.
type RoleSpec struct {
	Scope     scope.Scope `json:"scope"`
	TTL       RoleTTL     `json:"ttl"`
	Approvals []Approval  `json:"approvals,omitempty"`
	Emergency *Emergency  `json:"emergency,omitempty"`
	Caps      Caps        `json:"caps,omitzero"`
	OnEnd     OnEnd       `json:"on_end,omitzero"`
	// Account, where given, is the account that the role gives out, with its
	// present secret, instead of minting a credential.
	Account string            `json:"account,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// RoleTTL bounds a lease: Default where the request names none, Max for its
// whole life, renewals included.
type RoleTTL struct {
	Default Duration `json:"default"`
	Max     Duration `json:"max"`
}

// Approval is a floor: co-signatures that every replica demands.
type Approval struct {
	Group string `json:"group"`
	Count int    `json:"count"`
}

// Emergency lets a human skip the approvals once, marked and loud, for at most
// MaxTTL in all; the Review follows (HAZARDS 7).
type Emergency struct {
	MaxTTL Duration   `json:"max_ttl"`
	Review []Approval `json:"review"`
}

// Caps bound what one principal may hold; 0 means the default.
type Caps struct {
	PerInstance    int `json:"per_instance,omitempty"`
	PerPrincipal   int `json:"per_principal,omitempty"`
	MintsPerMinute int `json:"mints_per_minute,omitempty"`
}

// OnEnd says what becomes of what an account owns.
type OnEnd struct {
	Owned      string `json:"owned,omitempty"` // drop (default) or reassign
	ReassignTo string `json:"reassign_to,omitempty"`
}

// PolicySpec is a Policy's spec: one Cedar document.
type PolicySpec struct {
	Text string `json:"text"`
}

// ZoneSpec is a Zone's spec.
type ZoneSpec struct {
	Description string   `json:"description,omitempty"`
	Networks    []string `json:"networks,omitempty"` // CIDRs whose clients belong to the zone
}

// RoleTarget returns the target that a role name belongs to.
func RoleTarget(role string) string {
	target, _, _ := strings.Cut(role, "/")
	return target
}

// checkSpec validates what Apply itself relies on. Kind-specific parts (a
// target's own keys, Cedar text, a method's rules) were checked at the door by
// code that may differ between builds, so they must not decide anything here.
func checkSpec(kind, name string, spec json.RawMessage) error {
	if len(spec) > MaxSpecBytes {
		return fmt.Errorf("the spec has %d bytes; at most %d are allowed", len(spec), MaxSpecBytes)
	}
	switch kind {
	case KindPrincipal:
		return checkPrincipal(name, spec)
	case KindGroup:
		return checkGroup(spec)
	case KindTarget:
		_, _, err := SplitTarget(spec)
		return err
	case KindRole:
		return checkRole(name, spec)
	case KindAccount:
		return checkAccount(spec)
	case KindPolicy:
		var p PolicySpec
		return strict(spec, &p)
	case KindZone:
		var z ZoneSpec
		return strict(spec, &z)
	case KindSink:
		var k SinkSpec
		if err := strict(spec, &k); err != nil {
			return err
		}
		return k.check()
	case KindAuthMethod:
		var m map[string]json.RawMessage
		return strict(spec, &m)
	case KindPlugin:
		var p PluginSpec
		if err := strict(spec, &p); err != nil {
			return err
		}
		return p.check(name)
	case KindCluster:
		return checkCluster(name, spec)
	default:
		return fmt.Errorf("objects of kind %q cannot be written yet", kind)
	}
}

func checkPrincipal(name string, spec json.RawMessage) error {
	var p PrincipalSpec
	if err := strict(spec, &p); err != nil {
		return err
	}
	kind, err := PrincipalKind(name)
	if err != nil {
		return err
	}
	if kind == "agent" && p.Owner == "" {
		return fmt.Errorf("an agent needs an owner: the human who answers for it")
	}
	if p.Owner != "" && !strings.HasPrefix(p.Owner, "human:") {
		return fmt.Errorf("owner %q must be a human:name", p.Owner)
	}
	return nil
}

func checkGroup(spec json.RawMessage) error {
	var g GroupSpec
	if err := strict(spec, &g); err != nil {
		return err
	}
	if len(g.Members) > MaxMembers {
		return fmt.Errorf("%d members; at most %d are allowed", len(g.Members), MaxMembers)
	}
	for _, m := range g.Members {
		if _, err := PrincipalKind(m.Name); err != nil {
			return err
		}
	}
	return nil
}

func checkRole(name string, spec json.RawMessage) error {
	var r RoleSpec
	if err := strict(spec, &r); err != nil {
		return err
	}
	if t, suffix, ok := strings.Cut(name, "/"); !ok || t == "" || suffix == "" {
		return fmt.Errorf("a role is named target/role")
	}
	if _, err := r.Scope.Normalise(); err != nil {
		return err
	}
	if r.TTL.Default <= 0 || r.TTL.Max < r.TTL.Default {
		return fmt.Errorf("ttl needs default > 0 and max >= default")
	}
	if err := checkApprovals("approvals", r.Approvals); err != nil {
		return err
	}
	if e := r.Emergency; e != nil {
		if e.MaxTTL <= 0 || e.MaxTTL > r.TTL.Max || len(e.Review) == 0 {
			return fmt.Errorf("emergency needs max_ttl, at most ttl.max, and a review")
		}
		if err := checkApprovals("emergency.review", e.Review); err != nil {
			return err
		}
		reviewers := 0
		for _, a := range e.Review {
			reviewers += a.Count
		}
		if reviewers < 2 {
			return fmt.Errorf("emergency.review asks for at least two people: whoever skipped two pairs of eyes is looked at by two")
		}
	}
	if r.Account != "" {
		if want, err := AccountScope(r.Account).Normalise(); err != nil || r.Scope.String() != want.String() {
			return fmt.Errorf("the scope of a role on an account is all of the account: %s", AccountScope(r.Account))
		}
		if r.OnEnd != (OnEnd{}) {
			return fmt.Errorf("on_end is for credentials that are minted; an account lives on")
		}
	}
	if r.Caps.PerInstance < 0 || r.Caps.PerPrincipal < 0 || r.Caps.MintsPerMinute < 0 {
		return fmt.Errorf("caps cannot be negative")
	}
	switch r.OnEnd.Owned {
	case "", "drop":
	case "reassign":
		if r.OnEnd.ReassignTo == "" {
			return fmt.Errorf("on_end: reassign needs reassign_to, a no-login owner")
		}
	default:
		return fmt.Errorf("on_end.owned is drop or reassign, not %q", r.OnEnd.Owned)
	}
	return nil
}

// checkApprovals refuses a floor that nobody could read two ways: no zero, no
// group twice.
func checkApprovals(field string, list []Approval) error {
	total := 0
	for i, a := range list {
		if a.Group == "" || a.Count < 1 {
			return fmt.Errorf("%s need a group and a count of at least 1", field)
		}
		if slices.ContainsFunc(list[:i], func(x Approval) bool { return x.Group == a.Group }) {
			return fmt.Errorf("%s name group %s twice", field, a.Group)
		}
		total += a.Count
	}
	if len(list) > MaxNeeds || total > MaxApprovers {
		return fmt.Errorf("%s ask for at most %d groups and %d people in all", field, MaxNeeds, MaxApprovers)
	}
	return nil
}

// PrincipalKinds are the words before the colon of a principal's name.
var PrincipalKinds = []string{"workload", "agent", "human", "node"}

// PrincipalKind returns the kind of "kind:name", or an error that says what a
// principal's name looks like.
func PrincipalKind(name string) (string, error) {
	kind, rest, ok := strings.Cut(name, ":")
	if !ok || rest == "" || !slices.Contains(PrincipalKinds, kind) {
		return "", fmt.Errorf("%q is not a principal; write kind:name with kind one of %s", name, strings.Join(PrincipalKinds, ", "))
	}
	return kind, checkName(rest)
}

// checkName accepts names of objects: visible ASCII without spaces, quotes or
// backslashes, so that a name is the same in a shell, a URL, Cedar and a log.
func checkName(name string) error {
	if name == "" || len(name) > MaxNameBytes {
		return fmt.Errorf("a name has 1 to %d characters", MaxNameBytes)
	}
	for i := range len(name) {
		ch := name[i]
		if ch >= 'a' && ch <= 'z' || ch >= 'A' && ch <= 'Z' || ch >= '0' && ch <= '9' || strings.IndexByte("-_.:/@+", ch) >= 0 {
			continue
		}
		return fmt.Errorf("name %q may hold only letters, digits and - _ . : / @ +", name)
	}
	return nil
}
