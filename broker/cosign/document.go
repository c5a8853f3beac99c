package cosign

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Domains of signed documents: the first bytes under the hash, the namespace of
// an SSH signature, the type of a JWS.
const (
	DomainGrant  = "mayfly.grant.v1"  // access for a task: [GrantDocument]
	DomainChange = "mayfly.change.v1" // a change of configuration: [ChangeDocument]
	DomainKey    = "mayfly.key.v1"    // an approver's key: [KeyDocument]
	DomainReview = "mayfly.review.v1" // an emergency grant, afterwards: [ReviewDocument]
)

// Hash is what is signed: SHA-256 of the domain, a NUL and the canonical document.
type Hash [sha256.Size]byte

// String returns the hash in lower-case hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Sum hashes a canonical document under a domain.
func Sum(domain string, canonical []byte) Hash {
	h := sha256.New()
	h.Write([]byte(domain))
	h.Write([]byte{0})
	h.Write(canonical)
	return Hash(h.Sum(nil))
}

// Requester is who asks, and how it proved who it is. Everything here was
// checked by the broker; what is merely claimed stands outside.
type Requester struct {
	Principal string `json:"principal"`
	Instance  string `json:"instance,omitempty"`
	Owner     string `json:"owner,omitempty"`
	Model     string `json:"model,omitempty"`
	Version   string `json:"version,omitempty"`
	// Chain holds the principals on whose behalf it works, nearest first.
	Chain       []string          `json:"chain,omitempty"`
	Method      string            `json:"method"`
	Binding     string            `json:"binding"`
	Key         string            `json:"key,omitempty"` // thumbprint the session is bound to
	AttestedKey bool              `json:"attested_key"`
	Facts       map[string]string `json:"facts,omitempty"`
}

// Need asks for Count people of Group.
type Need struct {
	Group string `json:"group"`
	Count int    `json:"count"`
	By    string `json:"by"` // "role", "policy:<id>" or "genesis"
}

// Policy is a policy that made the decision, bound by its text and its object's version.
type Policy struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Version uint64 `json:"version"`
	Hash    string `json:"hash"`
}

// Common is what every document that approvers sign begins with.
type Common struct {
	Type        string `json:"type"` // the domain
	Cluster     string `json:"cluster"`
	Incarnation int    `json:"incarnation"`
	GrantID     string `json:"grant_id"`
	Nonce       string `json:"nonce"` // 32 random bytes, base64url
	RequestedMS int64  `json:"requested_ms"`
	// CollectBeforeMS ends the waiting: afterwards nothing can be approved or collected.
	CollectBeforeMS int64     `json:"collect_before_ms"`
	Requester       Requester `json:"requester"`
	Decision        string    `json:"decision"`
	Policies        []Policy  `json:"policies"`
	Needs           []Need    `json:"needs"`
}

// GrantDocument is the permission to mint one role within one task.
type GrantDocument struct {
	Common
	Role          string          `json:"role"`
	RoleVersion   uint64          `json:"role_version"`
	Target        string          `json:"target"`
	TargetVersion uint64          `json:"target_version"`
	Scope         json.RawMessage `json:"scope"`      // effective authorization_details
	WholeRole     bool            `json:"whole_role"` // none was asked for: all that role and task allow
	Task          Task            `json:"task"`
	// Purpose is claimed by the requester.
	Purpose   string `json:"purpose"`
	TTLS      int64  `json:"ttl_s"`   // of one credential before renewal
	TotalS    int64  `json:"total_s"` // of one credential with all renewals
	EndsByMS  int64  `json:"ends_by_ms"`
	MaxLeases int    `json:"max_leases"`
	// StepUp asks the requester's person to sign too, with that kind of key.
	StepUp string `json:"step_up,omitempty"`
	// Emergency is a grant that begins without its approvals and is reviewed afterwards.
	Emergency bool   `json:"emergency,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// Task is the task of a grant.
type Task struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
	Parent string `json:"parent,omitempty"`
	// DeadlineMS is when the task ends, and all within it.
	DeadlineMS int64 `json:"deadline_ms"`
}

// ChangeDocument is a change of objects, approvers' keys, or both.
type ChangeDocument struct {
	Common
	Reason  string         `json:"reason,omitempty"`
	Objects []ObjectChange `json:"objects,omitempty"`
	Keys    []NewKey       `json:"keys,omitempty"`
}

// ObjectChange is one object, written or deleted.
type ObjectChange struct {
	Kind    string          `json:"kind"`
	Name    string          `json:"name"`
	Version uint64          `json:"version"` // that is replaced; 0: new
	Delete  bool            `json:"delete,omitempty"`
	Spec    json.RawMessage `json:"spec,omitempty"`
	// Secrets are the sealed fields that change, with the hash of salt and value.
	Secrets []SecretChange `json:"secrets,omitempty"`
	// Override: a secret among them takes the place of a rotated one.
	Override bool `json:"override,omitempty"`
}

// SecretChange commits to a secret without telling it.
type SecretChange struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // hex
}

// NewKey gives a person a key to approve with.
type NewKey struct {
	Principal string `json:"principal"`
	Key       Key    `json:"key"`
}

// KeyDocument is signed by the key that vouches for a new one of the same
// person, and by the new one itself.
type KeyDocument struct {
	Type      string `json:"type"`
	Cluster   string `json:"cluster"`
	Principal string `json:"principal"`
	Key       Key    `json:"key"`
}

// ReviewDocument is a reviewer's word on an emergency grant.
type ReviewDocument struct {
	Type    string `json:"type"`
	Cluster string `json:"cluster"`
	GrantID string `json:"grant_id"`
	Grant   string `json:"grant"`   // hash of its document, hex
	Verdict string `json:"verdict"` // justified or unjustified
	Note    string `json:"note,omitempty"`
}
