package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

// try attests one token of the issuer at a given time.
func try(a Attestor, token string, now time.Time) error {
	_, err := a.Attest(context.Background(), Evidence{Method: "m", Token: secret.New(token)}, now)
	return err
}

func TestKeysAreFetchedOnceAndAgainWhenOld(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	if i.fetched() != 0 {
		t.Error("keys were fetched before anybody asked")
	}
	long := i.token(t, i.claims().with("exp", noon.Add(20*time.Hour).Unix()))
	for _, after := range []time.Duration{0, time.Minute, keysFresh - time.Second} {
		wantCode(t, after.String(), try(a, long, noon.Add(after)), "")
	}
	if i.fetched() != 1 {
		t.Errorf("%d fetches while the keys are fresh", i.fetched())
	}
	wantCode(t, "old", try(a, long, noon.Add(keysFresh)), "")
	if i.fetched() != 2 {
		t.Errorf("%d fetches, want a second", i.fetched())
	}
}

func TestAnothersTokenAsksForNoKeys(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	wantCode(t, "another issuer's", try(a, i.token(t, i.claims().with("iss", "https://evil.example")), noon), CodeIssuer)
	if i.fetched() != 0 {
		t.Error("it made us fetch")
	}
}

func TestARotatedKeyIsFoundAndAWithdrawnOneRefused(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	old := i.token(t, i.claims().with("exp", noon.Add(time.Hour).Unix()))
	wantCode(t, "before", try(a, old, noon), "")
	i.set(func() { i.kid, i.key = "k2", newP256(t) })
	rotated := i.token(t, i.claims())
	wantCode(t, "too soon to ask again", try(a, rotated, noon.Add(refreshEvery-time.Second)), CodeUnknownKey)
	wantCode(t, "the new key", try(a, rotated, noon.Add(refreshEvery)), "")
	wantCode(t, "the old key", try(a, old, noon.Add(refreshEvery)), CodeUnknownKey)
}

// A storm of tokens with unknown keys must neither reach the issuer nor keep
// good tokens from being accepted.
func TestUnknownKeyStormFetchesOnce(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	good := i.token(t, i.claims())
	var wg sync.WaitGroup
	for n := range 200 {
		storm := forge(t, i.key, claims{"alg": "ES256", "kid": fmt.Sprint("k-", n)}, i.claims())
		wg.Go(func() { wantCode(t, "unknown", try(a, storm, noon), CodeUnknownKey) })
		if n%10 == 0 {
			wg.Go(func() { wantCode(t, "good", try(a, good, noon), "") })
		}
	}
	wg.Wait()
	if i.fetched() != 1 {
		t.Fatalf("%d fetches for one storm", i.fetched())
	}
	wantCode(t, "after the interval", try(a, forge(t, i.key, claims{"alg": "ES256", "kid": "x"}, i.claims()), noon.Add(refreshEvery)), CodeUnknownKey)
	if i.fetched() != 2 {
		t.Errorf("%d fetches", i.fetched())
	}
}

func TestMisbehavingIssuers(t *testing.T) {
	huge := strings.Repeat(" ", maxKeySet+1)
	answer := func(body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
	}
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	many := strings.Repeat(`{"kty":"OKP"},`, maxKeys) + `{"kty":"OKP"}`
	for name, c := range map[string]struct {
		discovery, jwks func(http.ResponseWriter, *http.Request)
	}{
		"redirecting discovery": {discovery: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/good/discovery", http.StatusFound) }},
		"redirecting keys":      {jwks: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/good/keys", http.StatusFound) }},
		"huge discovery":        {discovery: answer(huge)},
		"huge keys":             {jwks: answer(huge + `{"keys":[]}`)},
		"not found":             {discovery: status(404)},
		"failing":               {jwks: status(500)},
		"created, not ok":       {jwks: status(201)},
		"another issuer":        {discovery: answer(`{"issuer":"https://evil.example","jwks_uri":"https://evil.example/k"}`)},
		"no issuer":             {discovery: answer(`{"jwks_uri":"https://evil.example/k"}`)},
		"not JSON":              {discovery: answer(`<html>`)},
		"no keys at all":        {jwks: answer(`{"keys":[]}`)},
		"keys not a list":       {jwks: answer(`{"keys":{}}`)},
		"too many keys":         {jwks: answer(`{"keys":[` + many + `]}`)},
		"a private key":         {jwks: answer(`{"keys":[{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`)},
		"symmetric keys only":   {jwks: answer(`{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"k1","alg":"HS256"}]}`)},
		"duplicate members":     {jwks: answer(`{"keys":[],"keys":[]}`)},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(t)
			i.set(func() { i.discovery, i.jwks = c.discovery, c.jwks })
			a := attestor(t, i.spec(nil), i.deps())
			err := try(a, i.token(t, i.claims()), noon)
			wantCode(t, name, err, CodeIssuerDown)
			if fe := fault.As(err); fe.Kind != fault.Unavailable || fe.RetryAfter <= 0 {
				t.Errorf("kind %q, retry after %s", fe.Kind, fe.RetryAfter)
			}
		})
	}
	t.Run("another issuer, our keys", func(t *testing.T) {
		i := newIssuer(t)
		i.set(func() {
			i.discovery = func(w http.ResponseWriter, _ *http.Request) {
				writeJSON(w, claims{"issuer": i.URL + "/", "jwks_uri": i.URL + "/keys"})
			}
		})
		wantCode(t, "issuer", try(attestor(t, i.spec(nil), i.deps()), i.token(t, i.claims()), noon), CodeIssuerDown)
	})
	t.Run("keys over http", func(t *testing.T) {
		i := newIssuer(t)
		i.set(func() {
			i.discovery = func(w http.ResponseWriter, _ *http.Request) {
				writeJSON(w, claims{"issuer": i.URL, "jwks_uri": "http://127.0.0.1:1/keys"})
			}
		})
		wantCode(t, "http", try(attestor(t, i.spec(nil), i.deps()), i.token(t, i.claims()), noon), CodeIssuerDown)
	})
	t.Run("not trusted", func(t *testing.T) {
		i := newIssuer(t)
		a := attestor(t, i.spec(nil), Deps{HTTP: &http.Client{}})
		wantCode(t, "unknown CA", try(a, i.token(t, i.claims()), noon), CodeIssuerDown)
	})
}

// slow makes the issuer's keys hang until the test or the request ends.
func (i *issuer) slow(t *testing.T) (release func()) {
	gate := make(chan struct{})
	release = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	i.set(func() {
		i.jwks = func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-gate:
			case <-r.Context().Done():
			}
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	return release
}

func TestSlowIssuerIsGivenUp(t *testing.T) {
	i := newIssuer(t)
	i.slow(t)
	deps := i.deps()
	deps.FetchTimeout = 500 * time.Millisecond // the second fetch must fit in it, on a busy machine
	a := attestor(t, i.spec(nil), deps)
	err := try(a, i.token(t, i.claims()), noon)
	wantCode(t, "slow", err, CodeIssuerDown)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the cause for the log is lost: %v", err)
	}
	// The next one does not wait again, nor ask again.
	wantCode(t, "soon after", try(a, i.token(t, i.claims()), noon.Add(time.Second)), CodeIssuerDown)
	if i.fetched() != 1 {
		t.Errorf("%d fetches", i.fetched())
	}
	i.set(func() { i.jwks = nil })
	wantCode(t, "when it is well again", try(a, i.token(t, i.claims()), noon.Add(refreshEvery)), "")
}

// Law 8: an issuer that is down breaks nothing for those whose keys are known,
// for an hour; then its silence may be hiding a withdrawn key.
func TestLaw8KnownKeysServeWhileTheIssuerIsDown(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(nil), i.deps())
	token := i.token(t, i.claims().with("exp", noon.Add(3*time.Hour).Unix()))
	wantCode(t, "up", try(a, token, noon), "")
	i.set(func() {
		i.jwks = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	})
	wantCode(t, "down, keys stale", try(a, token, noon.Add(keysFresh)), "")
	wantCode(t, "down, keys nearly too old", try(a, token, noon.Add(keysUsable-time.Second)), "")
	wantCode(t, "down for too long", try(a, token, noon.Add(keysUsable)), CodeIssuerDown)
	i.set(func() { i.jwks = nil })
	wantCode(t, "up again", try(a, token, noon.Add(keysUsable+refreshEvery)), "")
}

// While one request waits for a slow issuer, others go on with the keys they
// have; one that hangs up does not spoil the fetch.
func TestSlowRefreshDelaysOneRequestOnly(t *testing.T) {
	i := newIssuer(t)
	deps := i.deps()
	deps.FetchTimeout = 10 * time.Second
	a := attestor(t, i.spec(nil), deps)
	token := i.token(t, i.claims().with("exp", noon.Add(3*time.Hour).Unix()))
	wantCode(t, "up", try(a, token, noon), "")

	asked := make(chan struct{})
	gate := make(chan struct{})
	i.set(func() {
		i.jwks = func(w http.ResponseWriter, _ *http.Request) {
			close(asked)
			<-gate
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	later := noon.Add(keysFresh)
	ctx, hangUp := context.WithCancel(t.Context())
	first := make(chan error)
	go func() {
		_, err := a.Attest(ctx, Evidence{Method: "m", Token: secret.New(token)}, later)
		first <- err
	}()
	<-asked
	hangUp()
	wantCode(t, "beside the slow one", try(a, token, later), "")
	unknown := forge(t, i.key, claims{"alg": "ES256", "kid": "x"}, i.claims())
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.Attest(impatient, Evidence{Method: "m", Token: secret.New(unknown)}, later)
	wantCode(t, "needs the fetch, but has gone", err, CodeIssuerDown)
	close(gate)
	wantCode(t, "the slow one, with the keys there are", <-first, "")
}

func TestIssuerWithItsOwnCA(t *testing.T) {
	i := newIssuer(t)
	root := i.Certificate()
	if !root.IsCA {
		t.Fatal("the test server's certificate is no CA's")
	}
	a := attestor(t, i.spec(claims{"ca": pemOf(root)}), Deps{HTTP: &http.Client{}})
	wantCode(t, "with ca", try(a, i.token(t, i.claims()), noon), "")
	_, err := NewAttestor(parse(t, i.spec(claims{"ca": pemOf(root)})), Deps{HTTP: &http.Client{Transport: roundTripper{}}})
	wantCode(t, "a transport that cannot take it", err, CodeMethodUnusable)
}

type roundTripper struct{}

func (roundTripper) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("no") }

func TestKeysFromAFile(t *testing.T) {
	i := newIssuer(t)
	file := filepath.Join(t.TempDir(), "jwks.json")
	write := func(kid string) {
		t.Helper()
		if err := os.WriteFile(file, asJSON(t, claims{"keys": []any{jwkOf(t, i.key.Public(), kid, "", "sig")}}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	spec := i.spec(claims{"type": "jwt", "jwks_file": file})
	_, err := NewAttestor(parse(t, spec), Deps{})
	wantCode(t, "a node that reads no files", err, CodeMethodUnusable)
	a := attestor(t, spec, Deps{ReadFile: os.ReadFile})
	token := i.token(t, i.claims())
	wantCode(t, "missing", try(a, token, noon), CodeIssuerDown)
	write("k1")
	wantCode(t, "there", try(a, token, noon.Add(refreshEvery)), "")
	write("k2")
	i.set(func() { i.kid = "k2" })
	wantCode(t, "rotated", try(a, i.token(t, i.claims()), noon.Add(2*refreshEvery)), "")
}
