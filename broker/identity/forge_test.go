package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/secret"
)

// noon is the time of every test: nothing here reads the clock.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type claims map[string]any

// with returns a copy of c with one more claim; nil removes it.
func (c claims) with(name string, value any) claims {
	out := claims{}
	for k, v := range c {
		out[k] = v
	}
	if out[name] = value; value == nil {
		delete(out, name)
	}
	return out
}

// forge signs any header and payload with any key, as an attacker may: the
// library would refuse to make most of what must be refused.
func forge(t testing.TB, key any, header, payload any) string {
	t.Helper()
	input := base64.RawURLEncoding.EncodeToString(asJSON(t, header)) + "." + base64.RawURLEncoding.EncodeToString(asJSON(t, payload))
	alg := ""
	if h, ok := header.(claims); ok {
		alg, _ = h["alg"].(string)
	}
	sum := sha256.Sum256([]byte(input))
	var sig []byte
	var err error
	switch k := key.(type) {
	case nil:
	case []byte:
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(input))
		sig = mac.Sum(nil)
	case *rsa.PrivateKey:
		if alg == "PS256" {
			sig, err = rsa.SignPSS(rand.Reader, k, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			sig, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
		}
	case *ecdsa.PrivateKey:
		r, s, serr := ecdsa.Sign(rand.Reader, k, sum[:])
		err, sig = serr, make([]byte, 64)
		if err == nil {
			r.FillBytes(sig[:32])
			s.FillBytes(sig[32:])
		}
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(input))
	default:
		t.Fatalf("cannot sign with %T", key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// asJSON encodes v; raw JSON (duplicates, nonsense) passes as it is.
func asJSON(t testing.TB, v any) []byte {
	t.Helper()
	if raw, ok := v.(json.RawMessage); ok {
		return raw
	}
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func newP256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// rsaKey is shared: making one takes a quarter of a second.
var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func newClientKey(t testing.TB) *keys.Key {
	t.Helper()
	k, err := keys.Generate(keys.P256)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// jwkOf returns a public JWK with kid and alg.
func jwkOf(t testing.TB, public crypto.PublicKey, kid, alg, use string) claims {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKey{Key: public, KeyID: kid, Algorithm: alg, Use: use})
	if err != nil {
		t.Fatal(err)
	}
	out := claims{}
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// issuer is an OpenID provider over real TLS on loopback.
type issuer struct {
	*httptest.Server
	key *ecdsa.PrivateKey

	mu        sync.Mutex
	kid       string
	fetches   int
	discovery func(w http.ResponseWriter, r *http.Request) // nil: an honest answer
	jwks      func(w http.ResponseWriter, r *http.Request)
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{key: newP256(t), kid: "k1"}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(i.serve))
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	discovery, jwks, kid := i.discovery, i.jwks, i.kid
	i.mu.Unlock()
	switch r.URL.Path {
	case "/good/discovery": // where a redirect would lead, were it followed
		writeJSON(w, claims{"issuer": i.URL, "jwks_uri": i.URL + "/good/keys"})
	case "/good/keys":
		writeJSON(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: kid}}})
	case discoveryPath:
		if discovery != nil {
			discovery(w, r)
			return
		}
		writeJSON(w, claims{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "response_types_supported": []string{"id_token"}})
	case "/keys":
		i.mu.Lock()
		i.fetches++
		i.mu.Unlock()
		if jwks != nil {
			jwks(w, r)
			return
		}
		text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
			{Key: i.key.Public(), KeyID: kid, Algorithm: "ES256", Use: "sig"},
			{Key: rsaKey().Public(), KeyID: "rsa", Use: "sig"},
		}})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(text)
	default:
		http.NotFound(w, r)
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) fetched() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

// token signs c with the issuer's key.
func (i *issuer) token(t testing.TB, c claims) string {
	t.Helper()
	i.mu.Lock()
	kid := i.kid
	i.mu.Unlock()
	return forge(t, i.key, claims{"alg": "ES256", "typ": "JWT", "kid": kid}, c)
}

// claims are those of a good token of this issuer.
func (i *issuer) claims() claims {
	return claims{
		"iss": i.URL, "sub": "job-7", "aud": "https://mayfly.example", "jti": "id-1",
		"iat": noon.Unix(), "nbf": noon.Unix(), "exp": noon.Add(5 * time.Minute).Unix(), "team": "blue",
	}
}

// spec is a method for this issuer; more overrides or adds fields.
func (i *issuer) spec(more claims) claims {
	out := claims{
		"type": "oidc", "issuer": i.URL, "audience": "https://mayfly.example",
		"bind": []any{claims{"when": claims{"team": "blue"}, "as": "workload:deploy"}},
	}
	for k, v := range more {
		out[k] = v
	}
	return out
}

func (i *issuer) deps() Deps { return Deps{HTTP: i.Client(), FetchTimeout: 2 * time.Second} }

func parse(t testing.TB, spec any) Method {
	t.Helper()
	m, err := ParseMethod("m", asJSON(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func attestor(t testing.TB, spec any, deps Deps) Attestor {
	t.Helper()
	a, err := NewAttestor(parse(t, spec), deps)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// attest offers a token, with a client key if jkt is given.
func attest(t testing.TB, a Attestor, token, jkt string) (Attested, error) {
	t.Helper()
	return a.Attest(t.Context(), Evidence{Method: "m", Token: secret.New(token), ClientJKT: jkt}, noon)
}

// wantCode fails unless err is a *fault.Error with this code. An empty code
// wants success.
func wantCode(t testing.TB, what string, err error, code string) {
	t.Helper()
	var fe *fault.Error
	switch {
	case code == "" && err != nil:
		t.Errorf("%s: %v, want success", what, err)
	case code == "":
	case err == nil:
		t.Errorf("%s: accepted, want %s", what, code)
	case !errors.As(err, &fe):
		t.Errorf("%s: %T, want *fault.Error", what, err)
	case fe.StableCode() != code:
		t.Errorf("%s: %v, want %s", what, err, code)
	case fe.Kind == fault.Internal:
		t.Errorf("%s: internal: %v", what, err)
	}
}

// pemOf encodes certificates.
func pemOf(certs ...*x509.Certificate) string {
	out := ""
	for _, c := range certs {
		out += "-----BEGIN CERTIFICATE-----\n" + base64.StdEncoding.EncodeToString(c.Raw) + "\n-----END CERTIFICATE-----\n"
	}
	return out
}
