package policy

import (
	"net/netip"
	"time"
)

// The actions, for [Request.Action].
const (
	ActionRequest    = "request"
	ActionRenew      = "renew"
	ActionDelegate   = "delegate"
	ActionApprove    = "approve"
	ActionRevoke     = "revoke"
	ActionReview     = "review"
	ActionRotate     = "rotate"
	ActionContain    = "contain"
	ActionRelease    = "release"
	ActionRead       = "read"
	ActionAdminister = "administer"
)

// Request is one question: everything that a policy may look at. It is
// comparable to nothing and kept by nobody; Decide does not change it.
type Request struct {
	Principal Principal `json:"principal"`
	Action    string    `json:"action"`
	Resource  Resource  `json:"resource"`
	Context   Context   `json:"context,omitzero"`
}

// Principal is who asks.
type Principal struct {
	// Kind is "workload", "agent", "human" or "node".
	Kind string `json:"kind"`
	// Name comes without the kind: "coder", for agent:coder.
	Name string `json:"name"`
	// Groups are all groups it is in, directly or through others.
	Groups []string `json:"groups,omitempty"`
	// Owner is the "kind:name" that answers for it.
	Owner      string            `json:"owner,omitempty"`
	Model      string            `json:"model,omitempty"`
	Version    string            `json:"version,omitempty"`
	Provenance string            `json:"provenance,omitempty"`
	Stage      string            `json:"stage,omitempty"`
	Instance   string            `json:"instance,omitempty"`
	Zone       string            `json:"zone,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}

// Resource is what the action is done to.
type Resource struct {
	// Kind is an entity type of the schema: "Role", "Target", "Grant", …
	Kind string `json:"kind"`
	// Name is the object's; for a Principal, "kind:name".
	Name string `json:"name"`
	// Target, Zone and Type say where it belongs and what it is ("postgres").
	// Where the schema allows the kind to be in a Target or a Zone, it is.
	Target string `json:"target,omitempty"`
	Zone   string `json:"zone,omitempty"`
	Type   string `json:"type,omitempty"`
	// Owner is the "kind:name" it belongs to: of a grant, the requester.
	Owner string `json:"owner,omitempty"`
	// Involved are the principals with a part in it, as "kind:name": of a grant,
	// the requester, its owner and everybody in its delegation chain.
	Involved []string          `json:"involved,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	// Parents are what else it is in: all of them, not only the nearest.
	Parents []Ref `json:"parents,omitempty"`
}

// Ref names an object.
type Ref struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// Context is the circumstances.
type Context struct {
	Session Session `json:"session,omitzero"`
	Network Network `json:"network,omitzero"`
	// Zone is the zone of the client's network.
	Zone string `json:"zone,omitempty"`
	// Now is the time of the decision; it must be set.
	Now time.Time `json:"now,omitzero"`
	// Purpose is the client's claim.
	Purpose    string `json:"purpose,omitempty"`
	Task       Task   `json:"task,omitzero"`
	TTLSeconds int64  `json:"ttl_seconds,omitempty"`
	Scope      Scope  `json:"scope,omitzero"`
	Risk       int64  `json:"risk,omitempty"`
	// Chain are the principals on whose behalf this one acts, as "kind:name".
	Chain     []string `json:"chain,omitempty"`
	Emergency bool     `json:"emergency,omitempty"`
	// Device is what is known of the client's device.
	Device map[string]string `json:"device,omitempty"`
}

// Session is how the principal is logged in.
type Session struct {
	// Bound says that the session works only with a key the client holds.
	Bound bool `json:"bound,omitempty"`
	// Binding is how: "dpop", "mtls", or "" for a bearer session.
	Binding string `json:"binding,omitempty"`
	// AttestedKey says that the evidence itself named that key.
	AttestedKey bool   `json:"attested_key,omitempty"`
	Method      string `json:"method,omitempty"`
	AgeSeconds  int64  `json:"age_seconds,omitempty"`
	// Attestation is what the evidence says.
	Attestation map[string]string `json:"attestation,omitempty"`
}

// Network is where the request came from.
type Network struct {
	// IP is the client's address. The zero value means unknown, and then the
	// attribute is absent. An IPv4 address in IPv6 form counts as IPv4.
	IP netip.Addr `json:"ip,omitzero"`
}

// Task is the task the request is made in.
type Task struct {
	ID    string `json:"id,omitempty"`
	Name  string `json:"name,omitempty"`
	Owner string `json:"owner,omitempty"`
	// Depth is 0 for a task without a parent.
	Depth int64 `json:"depth,omitempty"`
}

// Scope is what the credential would touch, flattened for conditions. It must be
// the effective scope: where the client asked for nothing narrower, the role's
// own, spelt out. An empty list says "none" to a policy, not "all".
type Scope struct {
	Types       []string `json:"types,omitempty"`
	Identifiers []string `json:"identifiers,omitempty"`
	Locations   []string `json:"locations,omitempty"`
	Actions     []string `json:"actions,omitempty"`
	Datatypes   []string `json:"datatypes,omitempty"`
	Privileges  []string `json:"privileges,omitempty"`
	Tables      []string `json:"tables,omitempty"`
	Columns     []string `json:"columns,omitempty"`
	// Rows are the conditions of row filters, each after its table and a dot:
	// public.people.region = "eu".
	Rows []string `json:"rows,omitempty"`
}
