package x509

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// warnBefore is when Check begins to warn of a CA's end: a CA that is made here lives
// for a year, and nobody has to touch it before. Of a shorter life it is the last
// third.
const warnBefore = 30 * 24 * time.Hour

// Check implements [issuers.Checker]: it shows the CA, and what of it ends when.
// Nobody is shown a draft's fingerprint: the CA that is made when the target is
// written is another.
func (i *issuer) Check(context.Context) ([]issuers.Finding, error) {
	now := time.Now()
	mend := "mayfly rotate target " + i.name + " makes a new one, published before it signs"
	if i.ca.cert.CheckSignatureFrom(i.ca.cert) != nil { // below somebody else's, which does not turn here
		mend = "write the target with a newer ca_certificate and its ca_key"
	}
	var out []issuers.Finding
	for n, c := range i.ca.certs {
		name := "ca"
		if n > 0 {
			name = fmt.Sprintf("ca %d", n+1)
		}
		f := issuers.Finding{Name: name, OK: true, Detail: fmt.Sprintf("%q, until %s", clip(c.Subject.CommonName), c.NotAfter.UTC().Format(time.RFC3339))}
		if !i.draft {
			f.Detail += fmt.Sprintf(" (SHA-256 %x)", sha256.Sum256(c.Raw))
		}
		left, early := c.NotAfter.Sub(now), min(warnBefore, c.NotAfter.Sub(c.NotBefore)/3)
		switch {
		case left <= 0:
			f.OK, f.Detail = false, f.Detail+"; it has expired: no verifier takes what it signs. "+mend
		case left < early:
			f.OK, f.Warning, f.Detail = false, true, f.Detail+"; it ends soon, and every certificate with it. "+mend
		}
		out = append(out, f)
	}
	return out, nil
}

// clip bounds a name that somebody else chose.
func clip(s string) string {
	if r := []rune(s); len(r) > 64 {
		return string(r[:64]) + "…"
	}
	return s
}
