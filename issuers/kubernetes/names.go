package kubernetes

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// namePrefix and 26 characters are the name of everything that is a lease's own;
// Kubernetes cuts none off (63 are allowed in the strictest place).
const namePrefix = "mayfly-"

// Labels and annotations of an object that is ours.
const (
	domain          = "mayfly-broker.github.io/"
	labelManagedBy  = "app.kubernetes.io/managed-by"
	labelTarget     = domain + "target" // which target's: several may be on one cluster
	labelLease      = domain + "lease"
	labelProbe      = domain + "check" // of what a rights check makes and deletes
	noteGeneration  = domain + "generation"
	noteTerm        = domain + "term"
	noteEnd         = domain + "end"
	noteMark        = domain + "mark"
	managedBy       = "mayfly"
	anchorType      = domain + "lease" // the type of an anchor, which tells it from secrets with content
	fieldManager    = "mayfly"
	fencePrefix     = "mayfly-fence-"
	probePrefix     = "mayfly-check-"
	bindingJoin     = "-" // between a lease's name and that of a ClusterRole
	maxClusterRole  = 200
	maxResourceName = 253
)

var (
	leaseName     = regexp.MustCompile(`^mayfly-[0-9a-z]{26}$`)
	labelPattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) // RFC 1123: a namespace
	domainPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	wordPattern   = regexp.MustCompile(`^[a-z0-9]([a-z0-9_.:-]*[a-z0-9])?$`) // a ClusterRole that a scope can name
)

func isNamespace(s string) bool { return labelPattern.MatchString(s) }

// isAccount: RFC 1123 subdomains of up to 253 characters.
func isAccount(s string) bool { return len(s) <= 253 && domainPattern.MatchString(s) }

// mark says which lease and generation an object is of, and which leader's term
// made it.
type mark struct {
	lease      string
	generation uint64
	term       uint64
}

// marker writes and reads marks: an HMAC-SHA-256 under the target's mark_key over
// the object's place and what its annotations say.
type marker struct {
	key secret.Text
	id  string // of the target, public
}

func newMarker(key secret.Text) marker {
	m := marker{key: key}
	m.id = m.tag("target", "")[:16]
	return m
}

// tag is a hexadecimal HMAC over fields that no two different inputs share.
func (m marker) tag(fields ...string) string {
	mac := hmac.New(sha256.New, []byte(m.key.Reveal()))
	mac.Write([]byte("mayfly.kubernetes.v1"))
	for _, f := range fields {
		fmt.Fprintf(mac, "\x00%d\x00%s", len(f), f)
	}
	return hex.EncodeToString(mac.Sum(nil))
}

func (m marker) sign(at ref, k mark) string {
	return m.tag("mark", at.res.plural, at.namespace, at.name, k.lease, strconv.FormatUint(k.generation, 10), strconv.FormatUint(k.term, 10))
}

// meta is the metadata of a new object of ours.
func (m marker) meta(at ref, k mark, end time.Time) metadata {
	out := metadata{
		Name: at.name, Namespace: at.namespace,
		Labels: map[string]string{labelManagedBy: managedBy, labelTarget: m.id},
		Annotations: map[string]string{
			noteGeneration: strconv.FormatUint(k.generation, 10), noteTerm: strconv.FormatUint(k.term, 10), noteMark: m.sign(at, k),
		},
	}
	if k.lease != "" {
		out.Labels[labelLease] = k.lease
	}
	if !end.IsZero() {
		out.Annotations[noteEnd] = end.UTC().Format(time.RFC3339)
	}
	return out
}

// read returns an object's mark, if it is this target's own and of this place.
func (m marker) read(at ref, o metadata) (mark, bool) {
	generation, err1 := strconv.ParseUint(o.Annotations[noteGeneration], 10, 64)
	term, err2 := strconv.ParseUint(o.Annotations[noteTerm], 10, 64)
	k := mark{o.Labels[labelLease], generation, term}
	if err1 != nil || err2 != nil || !hmac.Equal([]byte(o.Annotations[noteMark]), []byte(m.sign(at, k))) {
		return mark{}, false
	}
	return k, true
}

// selector finds what bears this target's label.
func (m marker) selector() string { return labelTarget + "=" + m.id }

func (m marker) fenceName() string { return fencePrefix + m.id }

// checkLease refuses a lease whose name is not the one that this package
// derives.
func checkLease(l issuers.Lease) error {
	if !leaseName.MatchString(l.Name) || l.Name != (Kind{}).CredentialName(l.ID, l.Generation) {
		return refused("lease %q: the name %q is not mayfly- and 26 characters of 0-9, a-z", l.ID, l.Name)
	}
	return nil
}
