package approve_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// The approver's side shares no code with the check of what it signs; this is
// where they are compared.

func TestDomainsAndKindsAreTheVerifiers(t *testing.T) {
	for ours, theirs := range map[string]string{approve.DomainGrant: cosign.DomainGrant, approve.DomainChange: cosign.DomainChange, approve.DomainKey: cosign.DomainKey,
		approve.DomainReview: cosign.DomainReview, approve.KindSSH: cosign.KindSSH, approve.KindJWS: cosign.KindJWS} {
		if ours != theirs {
			t.Errorf("%s here, %s there", ours, theirs)
		}
	}
	if approve.Sum(domain, []byte("{}")) != [32]byte(cosign.Sum(domain, []byte("{}"))) {
		t.Error("the hashes differ")
	}
}

// registered is a signer's key as the ledger would hold it.
func registered(t *testing.T, k approve.Key) cosign.Key {
	t.Helper()
	out := cosign.Key{Kind: k.Kind, JWK: k.JWK}
	if k.Kind == approve.KindSSH {
		public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k.SSH))
		if err != nil {
			t.Fatal(err)
		}
		out.JWK, out.SSHType = json.RawMessage(publicJWK(t, k.SSH)), public.Type()
		if public.Type() == ssh.KeyAlgoSKED25519 || public.Type() == ssh.KeyAlgoSKECDSA256 {
			out.Application = application
		}
	}
	return out
}

func everySigner(t *testing.T) map[string]approve.Signer {
	t.Helper()
	open := func(kind string) approve.Signer {
		s, err := approve.Open(keygen(t, kind, ""), nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	socket := realAgent(t)
	add(t, socket, keygen(t, "ed25519", ""), keygen(t, "ecdsa", ""))
	held, hard := signers(t, socket), signers(t, serve(t, &securityKeys{}))
	return map[string]approve.Signer{"file ed25519": open("ed25519"), "file ecdsa": open("ecdsa"), "jwk p256": jwkFile(t, p256), "jwk ed25519": jwkFile(t, ed),
		"agent ed25519": held[0], "agent ecdsa": held[1], "sk ed25519": hard[0], "sk ecdsa": hard[1]}
}

func TestTheClustersVerifierTakesOurSignatures(t *testing.T) {
	for name, s := range everySigner(t) {
		sig, err := s.Sign(domain, hash)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		in := cosign.Signature{Verifier: cosign.Verifier1, Kind: sig.Kind, Key: sig.Key, SSHSIG: sig.SSHSIG, JWS: sig.JWS}
		k := registered(t, s.Key())
		if err := cosign.Verify(k, domain, cosign.Hash(hash), in); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if cosign.Verify(k, approve.DomainChange, cosign.Hash(hash), in) == nil || cosign.Verify(k, domain, cosign.Hash{}, in) == nil {
			t.Errorf("%s: the signature is good for something else", name)
		}
		if got, err := cosign.Thumbprint(k.JWK); err != nil || got != s.Key().Thumbprint {
			t.Errorf("%s: thumbprint %s here, %s there, %v", name, s.Key().Thumbprint, got, err)
		}
	}
}

// Whatever the cluster writes, members that are empty and those that are not,
// is a document that can be shown.
func TestTheClustersDocumentsAreUnderstood(t *testing.T) {
	common := cosign.Common{Type: cosign.DomainGrant, Cluster: "c", GrantID: "g_1", Nonce: "n", RequestedMS: 1, CollectBeforeMS: 2, Decision: "d",
		Requester: cosign.Requester{Principal: "human:é\u2028\U0001f600", Method: "key", Binding: "dpop"}}
	full := common
	full.Incarnation = 2
	full.Requester = cosign.Requester{Principal: "agent:a", Instance: "i", Owner: "human:b", Model: "m", Version: "v", Chain: []string{"human:b"}, Method: "m", Binding: "cookie", Key: "k", AttestedKey: true,
		Facts: map[string]string{"<&>": "\x01\u007f\"\\", "z": "", "\ufb33": "1", "\U0001f600": "2"}}
	full.Policies = []cosign.Policy{{ID: "p", Object: "o", Version: 1 << 52, Hash: "h"}}
	full.Needs = []cosign.Need{{Group: "g", Count: 2, By: "role"}}
	change := func(c cosign.Common) cosign.Common { c.Type = cosign.DomainChange; return c }
	key := cosign.Key{Kind: cosign.KindPasskey, JWK: json.RawMessage(`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`), CredentialID: []byte{1}, RPID: "r", Origins: []string{"https://o"}, SSHType: "t", Application: "a"}
	for name, doc := range map[string]any{
		"bare grant": cosign.GrantDocument{Common: common, Scope: json.RawMessage(`[{"type":"jwt","actions":["sign"]}]`)},
		"full grant": cosign.GrantDocument{Common: full, Role: "r", RoleVersion: 1, Target: "t", TargetVersion: 2, Scope: json.RawMessage(`[{"type":"database","actions":["select"]}]`), WholeRole: true,
			Task: cosign.Task{ID: "t", Name: "n", Parent: "p", DeadlineMS: 1}, Purpose: "p", TTLS: 1, TotalS: 2, EndsByMS: 3, MaxLeases: 4, StepUp: "passkey", Emergency: true, Reason: "r"},
		"bare change": cosign.ChangeDocument{Common: change(common)},
		"full change": cosign.ChangeDocument{Common: change(full), Reason: "r", Keys: []cosign.NewKey{{Principal: "human:b", Key: key}}, Objects: []cosign.ObjectChange{
			{Kind: "Role", Name: "r", Version: 1, Spec: json.RawMessage(`{"b":[1,true,null,"<"],"a":{}}`), Secrets: []cosign.SecretChange{{Name: "s", SHA256: "h"}}}, {Kind: "Zone", Name: "z", Delete: true}, {Kind: "Target", Name: "t", Version: 2, Override: true}}},
	} {
		raw, err := cosign.Canonical(doc)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		domain := approve.DomainGrant
		if _, ok := doc.(cosign.ChangeDocument); ok {
			domain = approve.DomainChange
		}
		d, err := approve.Check(wire.Grant{ID: "g_1", Domain: domain, Hash: cosign.Sum(domain, raw).String(), Document: raw})
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, raw)
			continue
		}
		review, err := d.Review("justified", "it <was> burning \u2028")
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := cosign.Canonical(cosign.ReviewDocument{Type: cosign.DomainReview, Cluster: "c", GrantID: "g_1", Grant: hex.EncodeToString(d.Hash[:]), Verdict: "justified", Note: "it <was> burning \u2028"})
		if err != nil || cosign.Sum(cosign.DomainReview, theirs) != cosign.Hash(review) {
			t.Errorf("%s: the review's hash differs, %v", name, err)
		}
	}
}

func TestTheClustersKeyDocumentsAreUnderstood(t *testing.T) {
	for name, s := range everySigner(t) {
		raw, err := cosign.Canonical(cosign.KeyDocument{Type: cosign.DomainKey, Cluster: "c", Principal: "human:ann", Key: registered(t, s.Key())})
		if err != nil {
			t.Fatal(err)
		}
		sum := cosign.Sum(cosign.DomainKey, raw)
		got, err := approve.CheckKey(wire.KeyDocument{Document: raw, Hash: sum.String(), Domain: cosign.DomainKey}, "human:ann", s.Key())
		if err != nil || cosign.Hash(got) != sum {
			t.Errorf("%s: %v", name, err)
		}
	}
}
