package jwt_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	jose_jwt "github.com/go-jose/go-jose/v4/jwt"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/jwt"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	broker   = "https://mayfly.example:8700"
	audience = "https://api.example/orders"
)

// newTarget makes a target's secrets as `target add` would.
func newTarget(t testing.TB, spec string) issuers.Target {
	t.Helper()
	secrets, err := jwt.Kind{}.MakeSecrets(json.RawMessage(spec))
	if err != nil {
		t.Fatal(err)
	}
	return issuers.Target{Name: "api", Spec: json.RawMessage(spec), Secrets: secrets, Issuer: broker}
}

func mustOpen(t testing.TB, target issuers.Target) issuers.Issuer {
	t.Helper()
	i, err := jwt.Kind{}.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

// published is the key set that a verifier would fetch.
func published(t testing.TB, i issuers.Issuer) jose.JSONWebKeySet {
	t.Helper()
	docs, err := i.(issuers.Publisher).Publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(docs["jwks"], &set); err != nil {
		t.Fatal(err)
	}
	return set
}

// service is a service that accepts the target's tokens: it knows the key set,
// the issuer, its own name and the algorithm, and nothing else of us.
type service struct {
	keys     jose.JSONWebKeySet
	alg      jose.SignatureAlgorithm
	audience string
}

func (s service) accept(token string, at time.Time) (jose_jwt.Claims, error) {
	var claims jose_jwt.Claims
	parsed, err := jose_jwt.ParseSigned(token, []jose.SignatureAlgorithm{s.alg})
	if err != nil {
		return claims, err
	}
	header := parsed.Headers[0]
	if header.ExtraHeaders["typ"] != "at+jwt" {
		return claims, fmt.Errorf("typ is %v", header.ExtraHeaders["typ"])
	}
	keys := s.keys.Key(header.KeyID)
	if len(keys) != 1 || keys[0].Algorithm != string(s.alg) || keys[0].Use != "sig" {
		return claims, fmt.Errorf("kid %q is not published once, for %s", header.KeyID, s.alg)
	}
	if err := parsed.Claims(keys[0].Key, &claims); err != nil {
		return claims, err
	}
	return claims, claims.ValidateWithLeeway(jose_jwt.Expected{
		Issuer: broker, AnyAudience: jose_jwt.Audience{s.audience}, Time: at,
	}, 0)
}

func tokenOf(c issuers.Credential) string { return c.Secret["token"].Reveal() }

func grant(audiences []string, privileges ...string) scope.Scope {
	return scope.Scope{{Type: "jwt", Locations: audiences, Actions: []string{"use"}, Privileges: privileges}}
}

func TestConformance(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA} {
		t.Run(string(alg), func(t *testing.T) {
			target := newTarget(t, fmt.Sprintf(`{"alg":%q}`, alg))
			api := service{keys: published(t, mustOpen(t, target)), alg: alg, audience: audience}
			two := []string{audience, "https://api.example/users"}
			issuertest.Run(t, issuertest.Harness{
				Keys:     keysOf(alg),
				Kind:     jwt.Kind{},
				Target:   target,
				Scope:    grant(two, "read", "write"),
				Narrower: grant(two[:1], "read"),
				Invalid:  invalidScopes(),
				Accepted: []scope.Scope{
					grant(two), grant([]string{"urn:example:api"}),
					{{Type: "jwt", Locations: two, Actions: []string{"use", "list"}}},
				},
				Hostile: []scope.Scope{
					grant([]string{`a","sub":"human:operator`}), grant([]string{"<script>\u2028"}),
					grant([]string{"a\nb"}), grant([]string{"\xff"}), grant(two, "read write"),
				},
				Use: func(_ context.Context, c issuers.Credential) error {
					_, err := api.accept(tokenOf(c), time.Now())
					return err
				},
				Gone: func(context.Context, issuers.Lease) error { return nil }, // nothing is kept anywhere
				Expires: func(c issuers.Credential) (time.Time, error) {
					claims, err := api.accept(tokenOf(c), time.Now())
					if err != nil {
						return time.Time{}, err
					}
					return claims.Expiry.Time(), nil
				},
			})
		})
	}
}

func invalidScopes() []scope.Scope {
	one := []string{audience}
	return []scope.Scope{
		grant(nil),
		grant([]string{"https://api.example/*"}),
		grant([]string{"*"}),
		grant(one, "UPPER"),
		{{Type: "jwt", Locations: one, Actions: []string{"list"}}},
		{{Type: "jwt", Locations: one, Actions: []string{"use"}, Identifier: "x"}},
		{{Type: "jwt", Locations: one, Actions: []string{"use"}, Datatypes: []string{"pii"}}},
		{{Type: "jwt", Locations: one, Actions: []string{"use"}, Tables: []scope.Table{{Name: "a.b"}}}},
		grant(make([]string, scope.MaxMembers+1)),
		grant([]string{strings.Repeat("x", scope.MaxName+1)}),
		grant(longList(scope.MaxMembers)),
	}
}

// longList is allowed by package scope, but too long for a header.
func longList(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("https://api.example/%02d/%s", i, strings.Repeat("x", 100))
	}
	return out
}

// One token says one thing to all its audiences, so two details cannot become one.
func TestLaw3PrivilegesOfOneAudienceDoNotReachAnother(t *testing.T) {
	both := append(grant([]string{"https://a.example"}, "admin"), grant([]string{"https://b.example"}, "read")...)
	if err := (jwt.Kind{}).CheckScope(json.RawMessage(`{}`), both); err == nil {
		t.Fatal("a scope of two audiences with different privileges is accepted")
	}
}

func TestBrokerItselfIsNoAudience(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	l := issuertest.NewLease(jwt.Kind{}, grant([]string{audience, broker}))
	if _, err := i.Mint(t.Context(), l); issuers.KindOf(err) != issuers.Refused {
		t.Fatalf("a token for the broker: %v; want refused", err)
	}
}

func TestNameOfAnotherLeaseIsRefused(t *testing.T) {
	i := mustOpen(t, newTarget(t, `{}`))
	l := issuertest.NewLease(jwt.Kind{}, grant([]string{audience}))
	l.Name = jwt.Kind{}.CredentialName(issuertest.NewLeaseID(), 1)
	if _, err := i.Mint(t.Context(), l); issuers.KindOf(err) != issuers.Refused {
		t.Fatalf("another lease's jti: %v; want refused", err)
	}
}

func TestAudiencesOfTheTarget(t *testing.T) {
	spec := json.RawMessage(`{"audiences":["https://api.example/orders","https://b.example"],"max_ttl":"10m"}`)
	if err := (jwt.Kind{}).CheckScope(spec, grant([]string{audience})); err != nil {
		t.Errorf("an audience of the target's is refused: %v", err)
	}
	if err := (jwt.Kind{}).CheckScope(spec, grant([]string{audience, "https://c.example"})); err == nil {
		t.Error("an audience that is not the target's is accepted")
	}
	roles, err := jwt.Kind{}.Roles(spec)
	if err != nil || len(roles) != 1 || roles[0].MaxTTL != 10*time.Minute || roles[0].DefaultTTL != 10*time.Minute {
		t.Errorf("Roles: %+v, %v", roles, err)
	}
	if roles, err := (jwt.Kind{}).Roles(json.RawMessage(`{}`)); err != nil || len(roles) != 0 {
		t.Errorf("Roles for unknown audiences: %+v, %v", roles, err)
	}
}

func TestSpecs(t *testing.T) {
	for spec, fine := range map[string]bool{
		`{}`: true, `{"alg":"ES256"}`: true, `{"alg":"EdDSA","max_ttl":"24h"}`: true, `{"max_ttl":"1m"}`: true,
		`{"alg":"none"}`: false, `{"alg":"HS256"}`: false, `{"alg":"RS256"}`: false, `{"max_ttl":"25h"}`: false,
		`{"max_ttl":"59s"}`: false, `{"max_ttl":"-1h"}`: false, `{"max_ttl":3600}`: false, `{"audiences":["*"]}`: false,
		`{"audiences":[""]}`: false, `null`: false, ``: false, `"x"`: false, `{"secret":"x"}`: false,
	} {
		if err := (jwt.Kind{}).CheckSpec(json.RawMessage(spec)); (err == nil) != fine {
			t.Errorf("CheckSpec(%s): %v", spec, err)
		}
	}
}

// A rotation appends the new key, then moves it to the front: tokens of both
// times verify against the one published set.
func TestRotatedKeysAreAllPublishedAndTheFirstSigns(t *testing.T) {
	oldTarget, newTarget := newTarget(t, `{}`), newTarget(t, `{}`)
	before := mustOpen(t, oldTarget)
	lease := func() issuers.Lease { return issuertest.NewLease(jwt.Kind{}, grant([]string{audience})) }
	oldToken, err := before.Mint(t.Context(), lease())
	if err != nil {
		t.Fatal(err)
	}
	rotated := oldTarget
	rotated.Secrets = map[string]secret.Text{jwt.SecretKeys: joinSets(t, newTarget, oldTarget)}
	after := mustOpen(t, rotated)
	newToken, err := after.Mint(t.Context(), lease())
	if err != nil {
		t.Fatal(err)
	}
	set := published(t, after)
	api := service{keys: set, alg: jose.ES256, audience: audience}
	for _, c := range []issuers.Credential{oldToken, newToken} {
		if _, err := api.accept(tokenOf(c), time.Now()); err != nil {
			t.Errorf("after the rotation: %v", err)
		}
	}
	onlyOld := service{keys: published(t, before), alg: jose.ES256, audience: audience}
	if _, err := onlyOld.accept(tokenOf(newToken), time.Now()); err == nil {
		t.Error("the first key of the set did not sign")
	}
}

func joinSets(t *testing.T, targets ...issuers.Target) secret.Text {
	t.Helper()
	var joined jose.JSONWebKeySet
	for _, target := range targets {
		var set jose.JSONWebKeySet
		if err := json.Unmarshal([]byte(target.Secrets[jwt.SecretKeys].Reveal()), &set); err != nil {
			t.Fatal(err)
		}
		joined.Keys = append(joined.Keys, set.Keys...)
	}
	out, err := json.Marshal(joined)
	if err != nil {
		t.Fatal(err)
	}
	return secret.New(string(out))
}

func TestLaw6PublishedKeysHoldNoPrivatePart(t *testing.T) {
	for _, alg := range []string{"ES256", "EdDSA"} {
		target := newTarget(t, `{"alg":"`+alg+`"}`)
		docs, err := mustOpen(t, target).(issuers.Publisher).Publish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var set struct{ Keys []map[string]any }
		if err := json.Unmarshal(docs["jwks"], &set); err != nil || len(set.Keys) != 1 {
			t.Fatalf("%s: %v", docs["jwks"], err)
		}
		for member := range set.Keys[0] {
			if !slices.Contains([]string{"kty", "crv", "x", "y", "kid", "alg", "use"}, member) {
				t.Errorf("%s: the published key has the member %q", alg, member)
			}
		}
	}
}

func TestOpenRefusesWhatCannotSign(t *testing.T) {
	good := newTarget(t, `{}`)
	change := func(f func(*issuers.Target)) issuers.Target { c := good; f(&c); return c }
	secrets := func(s string) func(*issuers.Target) {
		return func(t *issuers.Target) { t.Secrets = map[string]secret.Text{jwt.SecretKeys: secret.New(s)} }
	}
	public, err := json.Marshal(published(t, mustOpen(t, good)))
	if err != nil {
		t.Fatal(err)
	}
	renamed := strings.Replace(good.Secrets[jwt.SecretKeys].Reveal(), `"kid":"`, `"kid":"x`, 1)
	const leak = "a-secret-that-must-not-be-quoted"
	for name, target := range map[string]issuers.Target{
		"no URL":           change(func(t *issuers.Target) { t.Issuer = "" }),
		"relative URL":     change(func(t *issuers.Target) { t.Issuer = "/mayfly" }),
		"query":            change(func(t *issuers.Target) { t.Issuer = broker + "?x=1" }),
		"no secret":        change(func(t *issuers.Target) { t.Secrets = nil }),
		"no JSON":          change(secrets(leak)),
		"no keys":          change(secrets(`{"keys":[]}`)),
		"symmetric key":    change(secrets(`{"keys":[{"kty":"oct","k":"` + leak + `","alg":"HS256"}]}`)),
		"public key":       change(secrets(string(public))),
		"foreign kid":      change(secrets(renamed)),
		"another alg":      change(func(t *issuers.Target) { t.Spec = json.RawMessage(`{"alg":"EdDSA"}`) }),
		"unknown spec key": change(func(t *issuers.Target) { t.Spec = json.RawMessage(`{"algorithm":"EdDSA"}`) }),
	} {
		_, err := jwt.Kind{}.Open(target)
		if err == nil {
			t.Errorf("%s: Open succeeds", name)
		} else if strings.Contains(err.Error(), leak) {
			t.Errorf("%s: law 6: the error quotes the secret: %v", name, err)
		}
	}
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"alg":"ES256","max_ttl":"1h","audiences":["https://a.example"]}`))
	f.Add([]byte(`{"alg":"none"} {}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if (jwt.Kind{}).CheckSpec(raw) != nil {
			return
		}
		secrets, err := jwt.Kind{}.MakeSecrets(raw)
		if err != nil {
			t.Fatalf("CheckSpec accepts %q, MakeSecrets does not: %v", raw, err)
		}
		i, err := jwt.Kind{}.Open(issuers.Target{Spec: raw, Secrets: secrets, Issuer: broker})
		if err != nil {
			t.Fatalf("CheckSpec accepts %q, Open does not: %v", raw, err)
		}
		if err := i.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func mintError(t *testing.T, i issuers.Issuer, l issuers.Lease) *issuers.Error {
	t.Helper()
	_, err := i.Mint(t.Context(), l)
	var typed *issuers.Error
	if !errors.As(err, &typed) {
		t.Fatalf("Mint: %v; want an *issuers.Error", err)
	}
	return typed
}
