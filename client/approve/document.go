package approve

import (
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/mayfly-broker/mayfly/client/escape"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

// maxDocument bounds a document, in bytes, as the cluster does.
const maxDocument = 1 << 20

// The documents, member for member as the cluster writes them. A member that is
// not here is one that this version could not show, so that nothing that holds
// it is signed.

type requester struct {
	Principal   string            `json:"principal"`
	Instance    string            `json:"instance,omitempty"`
	Owner       string            `json:"owner,omitempty"`
	Model       string            `json:"model,omitempty"`
	Version     string            `json:"version,omitempty"`
	Chain       []string          `json:"chain,omitempty"`
	Method      string            `json:"method"`
	Binding     string            `json:"binding"`
	Key         string            `json:"key,omitempty"`
	AttestedKey bool              `json:"attested_key"`
	Facts       map[string]string `json:"facts,omitempty"`
}

type need struct {
	Group string `json:"group"`
	Count int    `json:"count"`
	By    string `json:"by"`
}

type policy struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Version uint64 `json:"version"`
	Hash    string `json:"hash"`
}

type head struct {
	Type            string    `json:"type"`
	Cluster         string    `json:"cluster"`
	Incarnation     int       `json:"incarnation"`
	GrantID         string    `json:"grant_id"`
	Nonce           string    `json:"nonce"`
	RequestedMS     int64     `json:"requested_ms"`
	CollectBeforeMS int64     `json:"collect_before_ms"`
	Requester       requester `json:"requester"`
	Decision        string    `json:"decision"`
	Policies        []policy  `json:"policies"`
	Needs           []need    `json:"needs"`
}

type task struct {
	ID         string `json:"id"`
	Name       string `json:"name,omitempty"`
	Parent     string `json:"parent,omitempty"`
	DeadlineMS int64  `json:"deadline_ms"`
}

type access struct {
	head
	Role          string          `json:"role"`
	RoleVersion   uint64          `json:"role_version"`
	Target        string          `json:"target"`
	TargetVersion uint64          `json:"target_version"`
	Scope         json.RawMessage `json:"scope"`
	WholeRole     bool            `json:"whole_role"`
	Task          task            `json:"task"`
	Purpose       string          `json:"purpose"`
	TTLS          int64           `json:"ttl_s"`
	TotalS        int64           `json:"total_s"`
	EndsByMS      int64           `json:"ends_by_ms"`
	MaxLeases     int             `json:"max_leases"`
	StepUp        string          `json:"step_up,omitempty"`
	Emergency     bool            `json:"emergency,omitempty"`
	Reason        string          `json:"reason,omitempty"`
}

type change struct {
	head
	Reason  string         `json:"reason,omitempty"`
	Objects []ObjectChange `json:"objects,omitempty"`
	Keys    []newKey       `json:"keys,omitempty"`
}

// ObjectChange is one object that a change writes or deletes.
type ObjectChange struct {
	Kind    string          `json:"kind"`
	Name    string          `json:"name"`
	Version uint64          `json:"version"` // that is replaced; 0: new
	Delete  bool            `json:"delete,omitempty"`
	Spec    json.RawMessage `json:"spec,omitempty"`
	Secrets []SecretChange  `json:"secrets,omitempty"`
	// Override: a secret among them takes the place of a rotated one.
	Override bool `json:"override,omitempty"`
}

// SecretChange is a sealed field that a change sets.
type SecretChange struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // hex, of salt and value
}

type newKey struct {
	Principal string `json:"principal"`
	Key       key    `json:"key"`
}

type key struct {
	Kind         string          `json:"kind"`
	JWK          json.RawMessage `json:"jwk"`
	CredentialID []byte          `json:"credential_id,omitempty"`
	RPID         string          `json:"rp_id,omitempty"`
	Origins      []string        `json:"origins,omitempty"`
	SSHType      string          `json:"ssh_type,omitempty"`
	Application  string          `json:"application,omitempty"`
}

type keyDocument struct {
	Type      string `json:"type"`
	Cluster   string `json:"cluster"`
	Principal string `json:"principal"`
	Key       key    `json:"key"`
}

type reviewDocument struct {
	Type    string `json:"type"`
	Cluster string `json:"cluster"`
	GrantID string `json:"grant_id"`
	Grant   string `json:"grant"`
	Verdict string `json:"verdict"`
	Note    string `json:"note,omitempty"`
}

// Document is a document that was checked: it is what the hash says, and
// this version understands all of them.
type Document struct {
	Domain string
	Hash   [32]byte // computed here

	access *access // one of the two is set
	change *change
	scope  scope.Scope // of access
}

// HashText is the hash in lower-case hex.
func (d *Document) HashText() string { return hex.EncodeToString(d.Hash[:]) }

// Changes are the objects that a change writes or deletes.
func (d *Document) Changes() []ObjectChange {
	if d.change == nil {
		return nil
	}
	return d.change.Objects
}

func (d *Document) head() *head {
	if d.change != nil {
		return &d.change.head
	}
	return &d.access.head
}

// Check computes the hash of a grant's document and compares it with the one
// that the cluster named; what it returns is all that may be shown and signed.
// Errors are *[Error] of [CodeHashMismatch] or [CodeDocument].
func Check(g wire.Grant) (*Document, error) {
	d := &Document{Domain: g.Domain}
	if len(g.Document) == 0 {
		return nil, refuse(CodeDocument, nil, "the grant %s has no document to sign: it needs no approval", escape.Line(g.ID))
	}
	var text []byte
	var err error
	if d.Hash, text, err = match(g.Domain, g.Hash, g.Document); err != nil {
		return nil, err
	}
	switch g.Domain {
	case DomainGrant:
		d.access = &access{}
		if err = decode(text, d.access); err == nil {
			d.scope, err = parseScope(d.access.Scope)
		}
	case DomainChange:
		d.change = &change{}
		err = decode(text, d.change)
	default:
		return nil, refuse(CodeDocument, nil, "the grant's document is of the kind %s, which this version cannot show; nothing was signed", escape.Quoted(g.Domain))
	}
	if err != nil {
		return nil, refuse(CodeDocument, err, "the grant's document says something that this version of mayfly cannot show; nothing was signed. Take the cluster's version")
	}
	if h := d.head(); h.Type != g.Domain || h.GrantID != g.ID {
		return nil, refuse(CodeHashMismatch, nil, "the document is of another grant (%s, %s) than the one that was asked for; nothing was signed", escape.Quoted(h.Type), escape.Quoted(h.GrantID))
	}
	return d, nil
}

// parseScope reads an effective scope; none at all is no error, but shown loudly.
func parseScope(raw json.RawMessage) (scope.Scope, error) {
	if text := string(raw); text == "" || text == "null" || text == "[]" {
		return nil, nil
	}
	return scope.Parse(raw)
}

// match is the hash of a document, if it is the one that was named, and the text
// that it is of: the canonical form, whatever escapes a document may have got on
// its way through JSON.
func match(domain, named string, document []byte) (sum [32]byte, text []byte, err error) {
	if text, err = canonicalJSON(document); err != nil {
		return sum, nil, refuse(CodeDocument, err, "the document cannot be read; nothing was signed")
	}
	sum = Sum(domain, text)
	want, err := hex.DecodeString(named)
	if err != nil || subtle.ConstantTimeCompare(want, sum[:]) != 1 {
		return sum, nil, refuse(CodeHashMismatch, nil, "THE DOCUMENT IS NOT WHAT THE CLUSTER'S HASH SAYS: the hash is %s, that of the document is %s. Nothing was signed; tell whoever runs the cluster",
			escape.Quoted(named), hex.EncodeToString(sum[:]))
	}
	return sum, text, nil
}

// decode reads a document that has one meaning only: its text is the canonical
// form of what was understood of it, so that no member is unknown, or named in
// another case.
func decode(document []byte, into any) error {
	if err := json.Unmarshal(document, into); err != nil {
		return err
	}
	again, err := canonical(into)
	if err != nil {
		return err
	}
	if string(again) != string(document) {
		return errMore
	}
	return nil
}

const (
	errTooLong = sentence("it is longer than 1 MiB")
	errMore    = sentence("it holds more than this version knows")
)

type sentence string

func (s sentence) Error() string { return string(s) }

// CheckKey checks that a key's document says that principal gets exactly the key
// k, and returns the hash that k, and a key that vouches for it, must sign.
func CheckKey(in wire.KeyDocument, principal string, k Key) ([32]byte, error) {
	hash, text, err := match(in.Domain, in.Hash, in.Document)
	if err != nil {
		return hash, err
	}
	var d keyDocument
	if err := decode(text, &d); err != nil {
		return hash, refuse(CodeDocument, err, "the key's document says something that this version of mayfly does not know; nothing was signed")
	}
	jwk, err := parseJWK(d.Key.JWK, "the document")
	if err != nil {
		return hash, err
	}
	name, err := thumbprint(jwk.Key)
	if err != nil {
		return hash, err
	}
	same := in.Domain == DomainKey && d.Type == DomainKey && d.Principal == principal && d.Key.Kind == k.Kind && name == k.Thumbprint &&
		d.Key.SSHType == k.sshType && d.Key.Application == k.application && d.Key.RPID == "" && len(d.Key.CredentialID)+len(d.Key.Origins) == 0
	if !same {
		return hash, refuse(CodeHashMismatch, nil, "the document registers another key, or for somebody else (%s), than was asked for; nothing was signed", escape.Quoted(d.Principal))
	}
	return hash, nil
}

// Review returns the hash of a reviewer's word on a grant, to be signed under
// [DomainReview].
func (d *Document) Review(verdict, note string) ([32]byte, error) {
	doc, err := canonical(reviewDocument{Type: DomainReview, Cluster: d.head().Cluster, GrantID: d.head().GrantID, Grant: d.HashText(), Verdict: verdict, Note: strings.ToValidUTF8(note, "\uFFFD")})
	if err != nil {
		return [32]byte{}, refuse(CodeDocument, err, "the review cannot be written")
	}
	return Sum(DomainReview, doc), nil
}
