package vault_test

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers/vault"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

const plainSpec = `{"address":"https://vault.internal"}`

func TestSpecSaysWhatIsAllowed(t *testing.T) {
	for _, good := range []string{
		plainSpec,
		`{"address":"https://a:8200","addresses":["https://b","https://10.0.0.1:8201"],"tls":{"ca_file":"/ca.pem","server_name":"vault"},"paths":["database/creds/*","pki/issue/web?*","kv/x"],"max_ttl":"8h"}`,
		`{"address":"http://127.0.0.1:8200"}`, `{"address":"http://localhost"}`, `{"address":"http://[::1]:8200"}`,
		`{"address":"https://a","auth":{"method":"approle","role_id":"x","mount":"teams/approle"},"namespace":"team/sub"}`,
		`{"address":"https://a","auth":{"method":"kubernetes","role":"mayfly"}}`,
		`{"address":"https://a","auth":{"method":"cert"},"tls":{"client_cert":"x"}}`,
	} {
		if err := (vault.Kind{}).CheckSpec(json.RawMessage(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{
		`{}`, `{"address":""}`, `{"address":"vault.internal:8200"}`, `{"address":"http://vault.internal:8200"}`, `{"address":"http://10.0.0.1"}`, `{"address":"ftp://a"}`,
		`{"address":"https://user:pw@a"}`, `{"address":"https://a/v1"}`, `{"address":"https://a?x=1"}`, `{"address":"https://a#x"}`, `{"address":"unix:///run/vault.sock"}`,
		`{"address":"http://127.0.0.1","tls":{"ca":"x"}}`, `{"address":"https://a","tls":{"ca":"x","ca_file":"y"}}`, `{"address":"https://a","tls":{"insecure":true}}`,
		`{"address":"https://a","auth":{"method":"userpass"}}`, `{"address":"https://a","auth":{"method":"approle"}}`, `{"address":"https://a","auth":{"method":"jwt","role":"x"}}`,
		`{"address":"https://a","auth":{"method":"jwt","role":"x","jwt_file":"relative"}}`, `{"address":"https://a","auth":{"method":"kubernetes"}}`, `{"address":"https://a","auth":{"method":"cert"}}`,
		`{"address":"https://a","auth":{"role_id":"x"}}`, `{"address":"https://a","auth":{"token":"s.clear"}}`, `{"address":"https://a","token_role":"a/b"}`, `{"address":"https://a","token_role":".."}`,
		`{"address":"https://a","token_policy":"root"}`, `{"address":"https://a","token_policy":"Root"}`, `{"address":"https://a","token_policy":"mayfly-ended"}`,
		`{"address":"https://a","namespace":"../x"}`, `{"address":"https://a","auth":{"mount":"a/../b"}}`, `{"address":"https://a","auth":{"mount":"a?b"}}`,
		`{"address":"https://a","paths":["sys/*"]}`, `{"address":"https://a","paths":["*"]}`, `{"address":"https://a","max_ttl":"1s"}`, `{"address":"https://a","max_ttl":"-8h"}`,
		`{"address":"https://a","max_request_duration":"2h"}`, `{"address":"https://a","max_connections":1000}`, `{"address":"https://a","max_connections":-1}`,
	} {
		if err := (vault.Kind{}).CheckSpec(json.RawMessage(bad)); err == nil || !strings.HasPrefix(err.Error(), "vault: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestScopeStaysWithinTheTargetsPaths(t *testing.T) {
	spec := json.RawMessage(`{"address":"https://a","paths":["database/creds/app","pki/issue/web?*","kv/*","ssh/creds/otp"]}`)
	for location, ok := range map[string]bool{
		"database/creds/app": true, "database/creds/app2": false, "database/creds/*": false, "pki/issue/web?common_name=a": true, "pki/issue/web?*": true, "pki/issue/webx?common_name=a": false,
		"kv/a": true, "kv/a/b": true, "kv/*": true, "kv/a/*": true, "kvx/a": false, "ssh/creds/otp?ip=1.2.3.4": true, "ssh/creds/*": false,
	} {
		if err := (vault.Kind{}).CheckScope(spec, allow("read", location)); (err == nil) != ok {
			t.Errorf("%s: %v", location, err)
		}
	}
	roles, err := vault.Kind{}.Roles(spec)
	if err != nil || len(roles) != 2 || roles[0].Suffix != "database-creds-app" || roles[1].Suffix != "ssh-creds-otp" {
		t.Errorf("%+v, %v", roles, err)
	}
}

// A role may say prefix/*, and a request narrows it; nothing reads a wildcard.
func TestWildcardIsForRolesAlone(t *testing.T) {
	for _, location := range []string{"database/creds/*", "database/*", "pki/issue/web?*"} {
		s := allow("read", location)
		if err := (vault.Kind{}).CheckScope(json.RawMessage(plainSpec), s); err != nil {
			t.Errorf("%s: %v", location, err)
		}
		if items, err := vault.Compile([]byte(plainSpec), s); err == nil {
			t.Errorf("%s is read as %v", location, items)
		}
	}
	f := newFixture(t, shared)
	_, err := f.open(1).Mint(t.Context(), lease(allow("read", "database/creds/*")))
	if err == nil || !strings.Contains(err.Error(), "which secret is wanted") {
		t.Errorf("%v", err)
	}
	outer := allow("read", "database/creds/*")
	if err := scope.Covers(outer, allow("read", "database/creds/app")); err != nil {
		t.Error(err)
	}
}

func TestHazard16VaultTokenIsDerivedFromTheWholeLease(t *testing.T) {
	key := secret.New(strings.Repeat("k", 64))
	l := lease(allow("read", "database/creds/app"))
	token := vault.TokenOf(key, l.ID)
	if token != vault.TokenOf(key, l.ID) || strings.Contains(token, ".") || len(token) < 64 || strings.Contains(token, l.ID) {
		t.Errorf("the token %q", token)
	}
	if token == vault.TokenOf(secret.New(strings.Repeat("l", 64)), l.ID) || token == vault.TokenOf(key, l.ID[:25]+"x") {
		t.Error("another key or lease has the same token")
	}
	meta := vault.MetaOf(key, l, 7, "m")
	if id, generation, ended, ok := vault.ReadMeta(key, meta); !ok || id != l.ID || generation != 1 || ended {
		t.Errorf("%v %v %v %v", id, generation, ended, ok)
	}
	for k, v := range map[string]string{"mayfly_lease": "x", "mayfly_generation": "2", "mayfly_term": "8", "mayfly_mint": "n", "mayfly_ended": "true", "mayfly_mark": strings.Repeat("0", 64)} {
		changed := map[string]string{}
		for a, b := range meta {
			changed[a] = b
		}
		changed[k] = v
		if _, _, _, ok := vault.ReadMeta(key, changed); ok {
			t.Errorf("another %s reads as ours", k)
		}
	}
	if _, _, _, ok := vault.ReadMeta(key, nil); ok {
		t.Error("no metadata read as ours")
	}
}

// FuzzCompile: whatever a scope says, what it becomes is read by a path that stays
// where it says, and has no part in what rules over Vault.
func FuzzCompile(f *testing.F) {
	good := []scope.Scope{allow("read", "database/creds/app"), allow("issue", "pki/issue/web?common_name=a.example"), allow("static", "secret/data/app?version=3"), allow("read", "a/*"), allow("write", "a/b?*")}
	for _, s := range slices.Concat(good, hostile(), invalid()) {
		raw, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(plainSpec), raw)
	}
	f.Fuzz(func(t *testing.T, spec, raw []byte) {
		s, err := scope.Parse(raw)
		if err != nil {
			return
		}
		items, err := vault.Compile(spec, s)
		if err != nil {
			return
		}
		for _, i := range items {
			path, query := i[1], i[2]
			u, err := url.Parse("https://vault/v1/" + path)
			if err != nil || u.Path != "/v1/"+path || u.RawQuery != "" || u.Fragment != "" || u.JoinPath().Path != u.Path {
				t.Fatalf("%q is another path in a URL: %v", path, err)
			}
			for _, segment := range strings.Split(path, "/") {
				if segment == "" || segment == ".." || slices.Contains([]string{"sys", "auth", "identity", "cubbyhole"}, strings.ToLower(segment)) {
					t.Fatalf("%q", path)
				}
			}
			if strings.ContainsAny(path+query, "*\r\n\x00 ") {
				t.Fatalf("%q %q", path, query)
			}
		}
	})
}

// FuzzRecord: whatever a lease's token noted, what is taken from it can be named in
// a call's path.
func FuzzRecord(f *testing.F) {
	f.Add(`{"leases":["database/creds/app/abc","pki/issue/web/x.ns1"]}`)
	f.Add(`{"leases":["../sys/seal"]}`)
	f.Add(`{"leases":["a/../../sys/seal","a/b?x","a//b"]}`)
	f.Add(`{}`)
	f.Add(`x`)
	f.Fuzz(func(t *testing.T, text string) {
		ids, err := vault.ReadRecord(text)
		if err != nil {
			return
		}
		for _, id := range ids {
			u, err := url.Parse("https://vault/v1/sys/leases/revoke/" + id)
			if err != nil || u.JoinPath().Path != "/v1/sys/leases/revoke/"+id || u.RawQuery != "" {
				t.Fatalf("%q", id)
			}
		}
	})
}

func TestMaxTTLIsTheSpecs(t *testing.T) {
	if got := (vault.Kind{}).MaxTTL(json.RawMessage(`{"address":"https://a","max_ttl":"8h"}`)); got != 8*time.Hour {
		t.Error(got)
	}
	if got := (vault.Kind{}).MaxTTL(json.RawMessage(plainSpec)); got != 0 {
		t.Error(got)
	}
}
