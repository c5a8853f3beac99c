package cosign_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
)

// A form means what it was made from, and is its own form.
func FuzzCanonical(f *testing.F) {
	for _, d := range documents(f) {
		f.Add(d)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		form, err := cosign.CanonicalJSON(raw)
		if err != nil {
			return
		}
		if again, err := cosign.CanonicalJSON(form); err != nil || !bytes.Equal(again, form) {
			t.Fatalf("the form of %q is %q, and of that %q, %v", raw, form, again, err)
		}
		var a, b any
		if err := json.Unmarshal(raw, &a); err != nil {
			t.Fatalf("%q has the form %q, but encoding/json refuses it: %v", raw, form, err)
		}
		if err := json.Unmarshal(form, &b); err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%q and its form %q mean two things (%v)", raw, form, err)
		}
		if same, err := cosign.Canonical(b); err != nil || !bytes.Equal(same, form) {
			t.Fatalf("%q decoded has the form %q, %v, not %q", raw, same, err, form)
		}
		if !bytes.Contains(raw, []byte(`\ufffd`)) {
			if same, err := cosign.Canonical(json.RawMessage(raw)); err != nil || !bytes.Equal(same, form) {
				t.Fatalf("%q as a part has the form %q, %v, not %q", raw, same, err, form)
			}
		}
	})
}

// parts are the parts of a signature that come from outside.
const parts = 6

// mend replaces cut bytes at a place of one part.
func mend(s cosign.Signature, part, at, cut int, with []byte) cosign.Signature {
	change := func(b []byte) []byte {
		at := min(at, len(b))
		return slices.Concat(b[:at], with, b[min(at+cut, len(b)):])
	}
	switch part % parts {
	case 0:
		s.AuthenticatorData = change(s.AuthenticatorData)
	case 1:
		s.ClientDataJSON = change(s.ClientDataJSON)
	case 2:
		s.Assertion = change(s.Assertion)
	case 3:
		s.SSHSIG = change(s.SSHSIG)
	case 4:
		s.JWS = string(change([]byte(s.JWS)))
	case 5:
		s.Key = string(change([]byte(s.Key)))
	}
	return s
}

// FuzzVerify puts anything into a good signature: nothing panics, and what
// verifies is the signature itself.
func FuzzVerify(f *testing.F) {
	var people []*cosigntest.Person
	for i, v := range cosigntest.Variants() {
		people = append(people, seeded(v))
		for part := range parts {
			f.Add(uint8(i), uint8(part), uint16(0), uint16(0), []byte{})
			f.Add(uint8(i), uint8(part), uint16(0), uint16(1000), []byte{})
			f.Add(uint8(i), uint8(part), uint16(10), uint16(1), []byte{0xff})
			f.Add(uint8(i), uint8(part), uint16(1000), uint16(0), []byte{0})
		}
	}
	for _, a := range attempts(f) {
		if a.want == "" && !strings.HasSuffix(a.name, "high s") {
			continue // another signature by the same key, and as good
		}
		i := slices.IndexFunc(people, func(p *cosigntest.Person) bool { return p.Thumbprint() == a.sig.Key })
		for part, b := range [][]byte{a.sig.AuthenticatorData, a.sig.ClientDataJSON, a.sig.Assertion, a.sig.SSHSIG, []byte(a.sig.JWS)} {
			if i >= 0 && len(b) > 0 {
				f.Add(uint8(i), uint8(part), uint16(0), uint16(10000), b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, who, part uint8, at, cut uint16, with []byte) {
		p := people[int(who)%len(people)]
		good := p.Sign(domain, hash)
		s := mend(good, int(part), int(at), int(cut), with)
		err := cosign.Verify(p.Key(), domain, hash, s)
		if err == nil && !sameMeaning(good, s) {
			t.Errorf("it verifies, but is not what was signed: %+v", s)
		}
		if err != nil && equal(good, s) {
			t.Errorf("the good signature is refused: %v", err)
		}
		if err == nil {
			if cosign.Verify(p.Key(), domain, other, s) == nil {
				t.Error("it verifies for another grant too")
			}
		}
	})
}

// FuzzKey feeds keys: what is checked verifies its owner's signatures or none.
func FuzzKey(f *testing.F) {
	for _, v := range cosigntest.Variants() {
		k := seeded(v).Key()
		f.Add(k.Kind, []byte(k.JWK), k.CredentialID, k.RPID, strings.Join(k.Origins, " "), k.SSHType, k.Application)
	}
	f.Fuzz(func(t *testing.T, kind string, jwk, id []byte, rp, origins, typ, app string) {
		k := cosign.Key{Kind: kind, JWK: jwk, CredentialID: id, RPID: rp, Origins: strings.Fields(origins), SSHType: typ, Application: app}
		name, err := cosign.Thumbprint(jwk)
		if k.Check() == nil {
			if raw, decodeErr := base64.RawURLEncoding.DecodeString(name); err != nil || decodeErr != nil || len(raw) != 32 {
				t.Errorf("a checked key has the thumbprint %q, %v", name, err)
			}
			form, err := cosign.Canonical(k)
			if err != nil {
				t.Errorf("a checked key has no canonical form: %v", err)
			}
			var again cosign.Key
			if err := json.Unmarshal(form, &again); err != nil || again.Check() != nil {
				t.Errorf("a checked key does not survive its form: %v, %v", err, again.Check())
			}
		}
		s := cosign.Signature{Verifier: 1, Kind: kind, Key: name}
		if cosign.Verify(k, domain, hash, s) == nil {
			t.Error("a signature without its parts verifies")
		}
	})
}

func equal(a, b cosign.Signature) bool {
	return bytes.Equal(a.AuthenticatorData, b.AuthenticatorData) && bytes.Equal(a.ClientDataJSON, b.ClientDataJSON) &&
		bytes.Equal(a.Assertion, b.Assertion) && bytes.Equal(a.SSHSIG, b.SSHSIG) && a.JWS == b.JWS && a.Key == b.Key
}

// sameMeaning allows what anybody may do to an ECDSA signature: negate its s.
// People's software signs without randomness, so nothing else verifies.
func sameMeaning(a, b cosign.Signature) bool {
	if equal(a, b) {
		return true
	}
	if a.Kind == cosign.KindPasskey && bytes.HasPrefix(a.Assertion, []byte{0x30}) {
		r, s := split(a.Assertion)
		a.Assertion = join(r, new(big.Int).Sub(order, s))
		return equal(a, b)
	}
	if a.Kind == cosign.KindJWS {
		at := strings.LastIndexByte(a.JWS, '.') + 1
		sig, err := base64.RawURLEncoding.DecodeString(a.JWS[at:])
		if err != nil {
			return false
		}
		new(big.Int).Sub(order, new(big.Int).SetBytes(sig[32:])).FillBytes(sig[32:])
		a.JWS = a.JWS[:at] + base64.RawURLEncoding.EncodeToString(sig)
		return equal(a, b)
	}
	if bytes.Contains(a.SSHSIG, []byte("ecdsa-sha2-nistp256")) {
		// The numbers come last, but for a security key's flags and counter.
		extra := 0
		if bytes.Contains(a.SSHSIG, []byte("sk-ecdsa-sha2-nistp256@openssh.com")) {
			extra = 5
		}
		return len(a.SSHSIG) > 150+extra && len(b.SSHSIG) > 150+extra &&
			negated(a.SSHSIG[:len(a.SSHSIG)-extra], b.SSHSIG[:len(b.SSHSIG)-extra])
	}
	return false
}

// negated says whether two blobs differ in their last number alone, which in
// one is the other's negative.
func negated(a, b []byte) bool {
	s := func(blob []byte) *big.Int {
		for n := 33; n > 0; n-- { // the longest length that fits
			at := len(blob) - n
			if bytes.Equal(blob[at-4:at], []byte{0, 0, 0, byte(n)}) {
				return new(big.Int).SetBytes(blob[at:])
			}
		}
		return new(big.Int)
	}
	return new(big.Int).Add(s(a), s(b)).Cmp(order) == 0
}
