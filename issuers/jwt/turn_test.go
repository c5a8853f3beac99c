package jwt_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/jwt"
	"github.com/mayfly-broker/mayfly/secret"
)

// firstShape is a target's secret as the first version sealed it: a bare JWK Set.
const firstShape = `{"keys":[{"use":"sig","kty":"EC","kid":"Q9oO7p7NCiv6_gAXprCA5l8Vgba1pW4czKx1McGHSx8","crv":"P-256","alg":"ES256","x":"pvI0qrO3UpTfgG7j4g59a1nfsVF1eVTp_HzS0SbPkYE","y":"4dq6f-3MixAN7CFik7Z00sROMB2WFVQICmbYJbCCgc4","d":"f-VBFeTp_lEDjz2LHOASOkMbE2QKwOgER1LgrzkGATU"}]}`

func keysOf(alg jose.SignatureAlgorithm) *issuertest.Keys {
	out := &issuertest.Keys{Verify: func(_ context.Context, documents map[string][]byte, c issuers.Credential) error {
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(documents["jwks"], &set); err != nil {
			return err
		}
		for _, k := range set.Keys {
			if !k.IsPublic() {
				return errors.New("a private key is published")
			}
		}
		_, err := service{keys: set, alg: alg, audience: audience}.accept(tokenOf(c), time.Now())
		return err
	}}
	if alg == jose.ES256 {
		out.Old = []map[string]secret.Text{{jwt.SecretKeys: secret.New(firstShape)}}
	}
	return out
}

// A rotation is how a target gets another algorithm; until the new key signs, the
// one before does, by its own.
func TestRotationChangesTheAlgorithm(t *testing.T) {
	target := newTarget(t, `{}`)
	target.Spec = json.RawMessage(`{"alg":"EdDSA"}`)
	if _, err := (jwt.Kind{}).Open(target); err == nil {
		t.Fatal("a target without a key of its algorithm opens")
	}
	for _, c := range []struct {
		step issuers.KeyTurn
		alg  jose.SignatureAlgorithm
		keys int
	}{{issuers.KeyPublish, jose.ES256, 2}, {issuers.KeyUse, jose.EdDSA, 2}, {issuers.KeyRetire, jose.EdDSA, 1}} {
		var err error
		if target.Secrets, err = (jwt.Kind{}).TurnKeys(t.Context(), target.Spec, target.Secrets, c.step); err != nil {
			t.Fatal(err)
		}
		i := mustOpen(t, target)
		token, err := i.Mint(t.Context(), issuertest.NewLease(jwt.Kind{}, grant([]string{audience})))
		if err != nil {
			t.Fatal(err)
		}
		set := published(t, i)
		if _, err := (service{keys: set, alg: c.alg, audience: audience}).accept(tokenOf(token), time.Now()); err != nil || len(set.Keys) != c.keys {
			t.Errorf("after step %d: %v, %d keys", c.step, err, len(set.Keys))
		}
	}
}

// Keys that somebody put together by hand, before there were steps: the first
// signs, and retiring leaves it alone.
func TestKeysPutThereByHandCanBeRetired(t *testing.T) {
	one, other := newTarget(t, `{}`), newTarget(t, `{}`)
	text := strings.TrimSuffix(one.Secrets[jwt.SecretKeys].Reveal(), "]}") + "," + strings.TrimPrefix(other.Secrets[jwt.SecretKeys].Reveal(), `{"keys":[`)
	secrets := map[string]secret.Text{jwt.SecretKeys: secret.New(text)}
	for _, step := range []issuers.KeyTurn{issuers.KeyPublish, issuers.KeyUse} {
		if _, err := (jwt.Kind{}).TurnKeys(t.Context(), one.Spec, secrets, step); err == nil {
			t.Errorf("step %d is taken from two keys of no phase", step)
		}
	}
	out, err := jwt.Kind{}.TurnKeys(t.Context(), one.Spec, secrets, issuers.KeyRetire)
	if err != nil || !out[jwt.SecretKeys].Equal(one.Secrets[jwt.SecretKeys]) {
		t.Errorf("retiring the key that does not sign: %v", err)
	}
}

func TestKeyTimes(t *testing.T) {
	publish, honour := jwt.Kind{}.KeyTimes(json.RawMessage(`{"max_ttl":"30m","key_publish":"10m"}`))
	if publish != 10*time.Minute || honour != 35*time.Minute {
		t.Errorf("%s and %s", publish, honour)
	}
	for _, bad := range []string{"1s", "721h", "soon"} {
		if (jwt.Kind{}).CheckSpec(json.RawMessage(`{"key_publish":"`+bad+`"}`)) == nil {
			t.Errorf("key_publish %s is allowed", bad)
		}
	}
}

// TestCheckNamesTheKeys: those that verifiers find in the published set, and which of
// them signs; a draft's are not those that will be.
func TestCheckNamesTheKeys(t *testing.T) {
	target := newTarget(t, `{}`)
	check := func() (all string) {
		t.Helper()
		found, err := mustOpen(t, target).(issuers.Checker).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if !f.OK {
				t.Errorf("%+v", f)
			}
			all += f.Name + ": " + f.Detail + "\n"
		}
		return all
	}
	first := check()
	kid, _, _ := strings.Cut(strings.TrimPrefix(first, "key: "), " ")
	if !strings.Contains(first, "(ES256) signs") || len(kid) != 43 {
		t.Errorf("one key: %q", first)
	}
	changed, err := jwt.Kind{}.TurnKeys(t.Context(), target.Spec, target.Secrets, issuers.KeyPublish)
	if err != nil {
		t.Fatal(err)
	}
	target.Secrets = changed
	if got := check(); !strings.Contains(got, kid+" (ES256) signs") || !strings.Contains(got, "key 2: ") || !strings.Contains(got, "does not sign") {
		t.Errorf("while the next one is published: %q", got)
	}
	target.Draft = true
	if got := check(); strings.Contains(got, kid) {
		t.Errorf("a draft's: %q", got)
	}
}
