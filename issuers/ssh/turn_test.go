package ssh_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	xssh "golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/ssh"
	"github.com/mayfly-broker/mayfly/secret"
)

// firstShape is a target's secret as the first version sealed it: one key in
// PKCS#8, without headers.
const firstShape = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIOPXjXufUk2nKPypYCZDwZIBP8RyF3wdMVqRkUZfVBI2
-----END PRIVATE KEY-----
`

// A rotation is how a target gets another algorithm; a key in OpenSSH's own format
// is turned as one of ours is.
func TestRotationChangesTheAlgorithm(t *testing.T) {
	target := newTarget(t, `{}`)
	raw, err := xssh.ParseRawPrivateKey([]byte(target.Secrets[ssh.SecretKey].Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	block, err := xssh.MarshalPrivateKey(raw, "brought by hand")
	if err != nil {
		t.Fatal(err)
	}
	target.Secrets = map[string]secret.Text{ssh.SecretKey: secret.New(string(pem.EncodeToMemory(block)))}
	target.Spec = json.RawMessage(`{"ca_algorithm":"ecdsa-p256"}`)
	for _, c := range []struct {
		step   issuers.KeyTurn
		signed string
		keys   int
	}{{issuers.KeyPublish, xssh.KeyAlgoED25519, 2}, {issuers.KeyUse, xssh.KeyAlgoECDSA256, 2}, {issuers.KeyRetire, xssh.KeyAlgoECDSA256, 1}} {
		if target.Secrets, err = (ssh.Kind{}).TurnKeys(t.Context(), target.Spec, target.Secrets, c.step); err != nil {
			t.Fatal(err)
		}
		i := mustOpen(t, target)
		cert := mustCert(t, mint(t, i, user("ann")))
		lines := strings.Count(string(published(t, i, "ca.pub")), "\n")
		if cert.SignatureKey.Type() != c.signed || lines != c.keys {
			t.Errorf("after step %d: signed by %s, %d keys are published", c.step, cert.SignatureKey.Type(), lines)
		}
		if docs, err := i.(issuers.Publisher).Publish(context.Background()); err != nil || strings.Contains(string(docs["ca.pub"]), "PRIVATE") {
			t.Errorf("after step %d: %v", c.step, err)
		}
	}
}

// Keys that somebody put together by hand: the first signs, and retiring leaves it
// alone.
func TestKeysPutThereByHandCanBeRetired(t *testing.T) {
	one, other := newTarget(t, `{}`), newTarget(t, `{}`)
	secrets := map[string]secret.Text{ssh.SecretKey: secret.New(one.Secrets[ssh.SecretKey].Reveal() + other.Secrets[ssh.SecretKey].Reveal())}
	for _, step := range []issuers.KeyTurn{issuers.KeyPublish, issuers.KeyUse} {
		if _, err := (ssh.Kind{}).TurnKeys(t.Context(), one.Spec, secrets, step); err == nil {
			t.Errorf("step %d is taken from two keys of no phase", step)
		}
	}
	out, err := ssh.Kind{}.TurnKeys(t.Context(), one.Spec, secrets, issuers.KeyRetire)
	if err != nil || !out[ssh.SecretKey].Equal(one.Secrets[ssh.SecretKey]) {
		t.Errorf("retiring the key that does not sign: %v", err)
	}
}

func TestKeyTimes(t *testing.T) {
	publish, honour := ssh.Kind{}.KeyTimes(json.RawMessage(`{"max_ttl":"30m","key_publish":"10m"}`))
	if publish != 10*time.Minute || honour != 40*time.Minute {
		t.Errorf("%s and %s", publish, honour)
	}
	for _, bad := range []string{"1s", "721h", "soon"} {
		if (ssh.Kind{}).CheckSpec(json.RawMessage(`{"key_publish":"`+bad+`"}`)) == nil {
			t.Errorf("key_publish %s is allowed", bad)
		}
	}
}
