package cosign_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
)

// Whoever signs with honest tools is believed, whatever the key and the domain.
func TestEveryKindOfKeySigns(t *testing.T) {
	for _, v := range cosigntest.Variants() {
		p := cosigntest.New(v)
		if err := p.Key().Check(); err != nil {
			t.Fatal(err)
		}
		for _, domain := range []string{cosign.DomainGrant, cosign.DomainChange, cosign.DomainKey, cosign.DomainReview} {
			hash := cosign.Sum(domain, []byte(`{}`))
			if err := cosign.Verify(p.Key(), domain, hash, p.Sign(domain, hash)); err != nil {
				t.Errorf("%s, %s: %v", v, domain, err)
			}
		}
	}
}

// TestHazard2KnownAttacksAreRefused: each for its own reason, so that none hides
// behind another's check.
func TestHazard2KnownAttacksAreRefused(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range attempts(t) {
		t.Run(a.name, func(t *testing.T) {
			if seen[a.name] {
				t.Fatal("two attempts have this name")
			}
			seen[a.name] = true
			err := cosign.Verify(a.key, domain, hash, a.sig)
			if a.want == "" {
				if err != nil {
					t.Errorf("an honest signature is refused: %v", err)
				}
				return
			}
			refused(t, err, a.want)
		})
	}
}

// refused wants an *Error that says so, in bounds.
func refused(t *testing.T, err error, want string) {
	t.Helper()
	var e *cosign.Error
	if !errors.As(err, &e) || e.Rule == "" || !strings.Contains(e.Detail, want) {
		t.Errorf("%v, wanted an error that says %q", err, want)
	}
	if err != nil && len(err.Error()) > 320 {
		t.Errorf("the error has %d bytes: %v", len(err.Error()), err)
	}
}

// A signature under one domain is none under another, also where the hash is
// the same by force.
func TestDomainsAreApart(t *testing.T) {
	for _, v := range []string{cosign.KindSSH, cosign.KindJWS} {
		p := cosigntest.New(v)
		err := cosign.Verify(p.Key(), cosign.DomainChange, hash, p.Sign(domain, hash))
		refused(t, err, map[string]string{cosign.KindSSH: "namespace", cosign.KindJWS: "typ is"}[v])
	}
	// A passkey signs the hash alone, which is another under each domain.
	p := cosigntest.New(cosign.KindPasskey)
	doc := []byte(`{}`)
	s := p.Sign(cosign.DomainGrant, cosign.Sum(cosign.DomainGrant, doc))
	refused(t, cosign.Verify(p.Key(), cosign.DomainChange, cosign.Sum(cosign.DomainChange, doc), s), "challenge")

	for _, bad := range []string{"", strings.Repeat("x", 65), "a\x00b", "é"} {
		refused(t, cosign.Verify(p.Key(), bad, hash, p.Sign(domain, hash)), "a domain has")
	}
}

// Errors echo what somebody sent: a little of it, and nothing that moves a cursor.
func TestErrorsEchoLittle(t *testing.T) {
	p := cosigntest.New(cosign.KindJWS)
	long := strings.Repeat("\x1b[2J'\"é", 5000)
	s := p.Sign(domain, hash)
	s.Key = long
	k := p.Key()
	k.Kind = long
	for _, err := range []error{
		cosign.Verify(p.Key(), domain, hash, s),
		cosign.Verify(p.Key(), long, hash, s),
		cosign.Verify(k, domain, hash, s),
		func() error { s := s; s.Kind = long; return cosign.Verify(p.Key(), domain, hash, s) }(),
	} {
		if err == nil || strings.ContainsAny(err.Error(), "\x1b\n") || strings.Count(err.Error(), "[2J") > 10 {
			t.Errorf("%q", err)
		}
		refused(t, err, "")
	}
}
