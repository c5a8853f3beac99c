package issuertest

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewLeaseID returns a lease id as the broker makes them: 26 lower-case
// characters.
func NewLeaseID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails; see crypto/rand
	return idEncoding.EncodeToString(b[:])
}

// NewLease returns the first generation of a fresh lease for kind k: ten
// minutes long, to be minted within half a minute from now.
func NewLease(k issuers.Kind, s scope.Scope) issuers.Lease {
	now := time.Now()
	l := issuers.Lease{
		ID:           NewLeaseID(),
		Generation:   1,
		Role:         "test/role",
		RoleVersion:  1,
		Scope:        s,
		Principal:    "workload:conformance",
		TaskID:       NewLeaseID(),
		Purpose:      "ticket:123",
		NotBefore:    now,
		NotAfter:     now.Add(10 * time.Minute),
		MintDeadline: now.Add(30 * time.Second),
	}
	l.Name = k.CredentialName(l.ID, l.Generation)
	return l
}

// Ample is how long a deadline must be for a call like f to reach the target before
// it, on a machine as busy as this one is now. A deadline that passes before the
// target has heard of the call shows nothing of the target.
func Ample(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Second + 5*time.Since(began)
}

// Regenerate returns the lease as the broker writes it for a re-mint: the next
// generation, with a fresh mint deadline.
func Regenerate(k issuers.Kind, l issuers.Lease) issuers.Lease {
	l.Generation++
	l.Name = k.CredentialName(l.ID, l.Generation)
	l.MintDeadline = time.Now().Add(30 * time.Second)
	return l
}

// HostileStrings are strings that have broken quoting, logging, name and
// comment syntax of one system or another.
func HostileStrings() []string {
	return []string{
		`'; DROP TABLE orders; --`,
		`"; DROP ROLE admin; --`,
		"$$; DROP TABLE orders; $$",
		`\'; DROP TABLE orders; --`,
		"`; DROP TABLE orders; `",
		"*/ DROP TABLE orders /*",
		"a\nNOTICE: forged line",
		"a\x00b",
		"{{.Secret}} %s %n ${HOME} $(id)",
		`{"lease":"forged"}`,
		"\u202egnp.exe",
		"\xff\xfe not UTF-8",
		"ΑΒΓ ｄｒｏｐ 🦟",
		strings.Repeat("x", 5000),
		" ",
		"",
	}
}

func checkReceipt(revocable bool, r issuers.Receipt) error {
	switch {
	case revocable && r.Proof != issuers.ProofAbsent && r.Proof != issuers.ProofRevoked:
		return fmt.Errorf("proof %q; a kind that can revoke proves %q or %q", r.Proof, issuers.ProofAbsent, issuers.ProofRevoked)
	case !revocable && r.Proof != issuers.ProofExpiresOnly:
		return fmt.Errorf("proof %q; a kind that cannot revoke says %q (HAZARDS 18)", r.Proof, issuers.ProofExpiresOnly)
	case strings.TrimSpace(r.Detail) == "":
		return fmt.Errorf("no Detail; it says what was asked and what was answered")
	case strings.ContainsAny(r.Detail, "\r\n"):
		return fmt.Errorf("the Detail %q is more than one line", r.Detail)
	case r.SessionsEnded < 0 || r.OwnedDropped < 0:
		return fmt.Errorf("negative counts: %+v", r)
	}
	return nil
}
