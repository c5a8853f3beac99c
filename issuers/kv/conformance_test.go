package kv_test

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/kv"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

const plainSpec = `{"entries":{"billing/stripe":{"owner":"human:ann"},"billing/tax-office":{"owner":"human:ann"},"keystore":{"owner":"human:bob","encoding":"base64"}}}`

var values = map[string]string{
	"entries_billing/stripe_value":     "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
	"entries_billing/tax-office_value": "line one of a key\nline two of it",
	"entries_keystore_value":           "AAECAwQFBgcICQoLDA0ODxAREhM=",
}

func target(spec string, values map[string]string) issuers.Target {
	t := issuers.Target{Name: "secrets", Spec: json.RawMessage(spec), Version: 7, Secrets: map[string]secret.Text{}}
	for name, v := range values {
		t.Secrets[name] = secret.New(v)
	}
	return t
}

func open(t testing.TB, target issuers.Target) issuers.Issuer {
	t.Helper()
	i, err := kv.Kind{}.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

func read(locations ...string) scope.Scope {
	return scope.Scope{{Type: "kv", Actions: []string{"read"}, Locations: locations}}
}

// TestConformance leaves Gone and Unreachable untried: nothing is made anywhere,
// and there is nobody to reach.
func TestConformance(t *testing.T) {
	issuertest.Run(t, issuertest.Harness{
		Kind: kv.Kind{}, Target: target(plainSpec, values),
		Scope: read("billing/*", "keystore"), Narrower: read("billing/stripe"),
		Invalid: invalid(), Accepted: accepted(), Hostile: hostile(),
		Use: func(_ context.Context, c issuers.Credential) error { // the system at which the secret is known
			want := values["entries_billing/stripe_value"]
			if subtle.ConstantTimeCompare([]byte(c.Secret["billing.stripe"].Reveal()), []byte(want)) != 1 {
				return errors.New("the secret is not the one that is known here")
			}
			return nil
		},
		Gone:    func(context.Context, issuers.Lease) error { return nil },
		Expires: func(c issuers.Credential) (time.Time, error) { return time.Parse(time.RFC3339, c.Public["expires_at"]) },
	})
}

func accepted() []scope.Scope {
	return []scope.Scope{
		read("billing/*"), read("keystore"), read("billing/*", "billing/stripe", "keystore"),
		append(read("keystore"), read("billing/stripe")...),
	}
}

func invalid() []scope.Scope {
	return []scope.Scope{
		read(), // no location: never everything
		read("*"), read("bill*"), read("billing/s*"), read("billing"), read("billing/"), read("nothing/*"), read("/*"), read("unknown"), read("KEYSTORE"), read("keystore", "unknown"),
		{{Type: "kv", Actions: []string{"list"}, Locations: []string{"keystore"}}},
		{{Type: "kv", Actions: []string{"read", "write"}, Locations: []string{"keystore"}}},
		{{Type: "kv", Actions: []string{"read"}, Locations: []string{"keystore"}, Identifier: "x"}},
		{{Type: "kv", Actions: []string{"read"}, Locations: []string{"keystore"}, Privileges: []string{"x"}}},
		{{Type: "kv", Actions: []string{"read"}, Locations: []string{"keystore"}, Datatypes: []string{"x"}}},
		{{Type: "kv", Actions: []string{"read"}, Locations: []string{"keystore"}, Tables: []scope.Table{{Name: "a.b"}}}},
	}
}

func hostile() []scope.Scope {
	var out []scope.Scope
	for _, name := range append(issuertest.HostileStrings(), "../keystore", "billing/../keystore", "billing//stripe", "keystore_value", "billing/stripe_value", "billing.stripe", "billing/**", "*/*", "billing/*/", "billing/?", "[a-z]*") {
		out = append(out, read(name), read("billing/"+name), read("keystore", name), read(name+"/*"))
	}
	return out
}

func TestSpecs(t *testing.T) {
	one := func(name, members string) string { return `{"entries":{"` + name + `":{` + members + `}}}` }
	owned := `"owner":"human:ann"`
	for spec, fine := range map[string]bool{
		one("a", owned): true, one("a-b/c-9/9", owned): true, one("a", owned+`,"expires":"2020-01-01T00:00:00Z"`): true,
		one("a", owned+`,"expires":"2030-01-01T00:00:00+02:00","remind":"2029-01-01T00:00:00Z","encoding":"base64"`): true,
		`{"max_ttl":"24h","entries":{"a":{"owner":"team payments"}}}`:                                                true,
		`{}`: false, `{"entries":{}}`: false, `{"entries":{"a":null}}`: false, `null`: false, ``: false, `[]`: false,
		one("a", ``): false, one("a", `"owner":""`): false, one("a", `"owner":"a\u202eb"`): false, one("a", `"owner":"a\nb"`): false,
		one("", owned): false, one("A", owned): false, one("9", owned): false, one("a_b", owned): false, one("a.b", owned): false, one("a--b", owned): false, one("-a", owned): false,
		one("a-", owned): false, one("a/", owned): false, one("/a", owned): false, one("a//b", owned): false, one("..", owned): false, one("a*", owned): false, one("a b", owned): false,
		one(`a\u0000`, owned): false, one("ä", owned): false, one(strings.Repeat("a", 65), owned): false,
		one("path", owned): false, one("ld-preload", owned): false, one("mayfly/token", owned): false, one("bash-env", owned): false, one("version", owned): false, one("notice", owned): false,
		`{"entries":{"a-b":{"owner":"x"},"a/b":{"owner":"x"}}}`: false, // one variable for both
		one("a", owned+`,"encoding":"hex"`):                     false, one("a", owned+`,"expires":"tomorrow"`): false, one("a", owned+`,"expires":1`): false,
		one("a", owned+`,"expires":"2030-01-01T00:00:00Z","remind":"2031-01-01T00:00:00Z"`): false,
		`{"max_ttl":"25h","entries":{"a":{"owner":"x"}}}`:                                   false, `{"max_ttl":"1s","entries":{"a":{"owner":"x"}}}`: false, `{"max_ttl":"x","entries":{"a":{"owner":"x"}}}`: false,
		plainSpec + `{}`: false,
	} {
		if err := (kv.Kind{}).CheckSpec(json.RawMessage(spec)); (err == nil) != fine {
			t.Errorf("CheckSpec(%s): %v", spec, err)
		}
	}
}

// Somebody who writes a value where it stands in the clear is told so, and not quoted.
func TestLaw6KVValueInTheClearIsNotQuoted(t *testing.T) {
	const leak = "hunter2-in-the-clear"
	for _, spec := range []string{
		`{"entries":{"a":{"owner":"x","value":"` + leak + `"}}}`, `{"entries":{"a":{"owner":"x","` + leak + `":1}}}`, `{"entries":{"a":"` + leak + `"}}`,
		`{"entries":"` + leak + `"}`, `{"entries":{"a":{"owner":"x","expires":"` + leak + `"}}}`, `{"entries":{"a":{"owner":"x","encoding":"` + leak + `"}}}`,
		`{"entries":{"` + leak + `!":{"owner":"x"}}}`, `{"entries":{"a":{"owner":"x"}}} ` + leak,
	} {
		err := kv.Kind{}.CheckSpec(json.RawMessage(spec))
		if err == nil || strings.Contains(err.Error(), leak) {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

func TestRolesAreOneForEachEntry(t *testing.T) {
	roles, err := kv.Kind{}.Roles(json.RawMessage(plainSpec))
	if err != nil || len(roles) != 3 || roles[0].Suffix != "billing-stripe" || len(roles[0].Scope[0].Locations) != 1 {
		t.Fatalf("%+v, %v", roles, err)
	}
}
