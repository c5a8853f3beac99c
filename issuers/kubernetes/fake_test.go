package kubernetes_test

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes"
	"github.com/mayfly-broker/mayfly/secret"
)

// fake opens an issuer on a server that answers as it is told, for what a real one
// does not do on demand.
func fake(t *testing.T, answer http.HandlerFunc) *kubernetes.Issuer {
	t.Helper()
	s := httptest.NewTLSServer(answer)
	t.Cleanup(s.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	secrets, err := kubernetes.Kind{}.MakeSecrets(nil)
	if err != nil {
		t.Fatal(err)
	}
	secrets[kubernetes.SecretToken] = secret.New("the-brokers-own-token")
	raw, err := json.Marshal(map[string]any{"address": s.URL, "tls": map[string]any{"ca": string(ca)}, "service_accounts": []string{"shop/deployer"}, "settle": "0s"})
	if err != nil {
		t.Fatal(err)
	}
	i, err := kubernetes.Kind{}.Open(issuers.Target{Name: "fake", Spec: raw, Secrets: secrets})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i.(*kubernetes.Issuer)
}

func refuse(w http.ResponseWriter, status int, reason, message string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "reason": reason, "message": message, "code": status})
}

// What an answer means for a mint, whose first request makes something, and for a
// withdrawal, whose first one looks.
func TestAnswersHaveTheirKind(t *testing.T) {
	for name, x := range map[string]struct {
		answer         http.HandlerFunc
		mint, withdraw issuers.ErrorKind
	}{
		"401":                   {func(w http.ResponseWriter, _ *http.Request) { refuse(w, 401, "Unauthorized", "Unauthorized") }, issuers.Refused, issuers.Refused},
		"403":                   {func(w http.ResponseWriter, _ *http.Request) { refuse(w, 403, "Forbidden", "no") }, issuers.Refused, issuers.Refused},
		"404 of a proxy":        {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not here", 404) }, issuers.Refused, issuers.Refused},
		"409 of something else": {func(w http.ResponseWriter, _ *http.Request) { refuse(w, 409, "Conflict", "no") }, issuers.Refused, issuers.Refused},
		"422":                   {func(w http.ResponseWriter, _ *http.Request) { refuse(w, 422, "Invalid", "no") }, issuers.Refused, issuers.Refused},
		"500":                   {func(w http.ResponseWriter, _ *http.Request) { refuse(w, 500, "InternalError", "etcd") }, issuers.Unknown, issuers.Unreachable},
		"503 of a proxy":        {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "none", 503) }, issuers.Unknown, issuers.Unreachable},
		"a redirect":            {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://127.0.0.1:1/", 307) }, issuers.Refused, issuers.Refused},
		"no JSON":               {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, issuers.Unknown, issuers.Unreachable},
		"too much":              {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat(" ", 2<<20)) }, issuers.Unknown, issuers.Unreachable},
		"a broken connection":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, issuers.Unknown, issuers.Unreachable},
		"control characters": {func(w http.ResponseWriter, _ *http.Request) {
			refuse(w, 403, "Forbidden", "a\r\nb\x1b[31m\u202e"+strings.Repeat("x", 5000))
		}, issuers.Refused, issuers.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			is := fake(t, x.answer)
			l := lease(tokenFor("shop/deployer"))
			_, err := is.Mint(t.Context(), l)
			wantKind(t, err, x.mint)
			wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, x.withdraw)
			if s := err.Error(); strings.ContainsAny(s, "\r\n\x1b\u202e") || len(s) > 2000 || strings.Contains(s, "the-brokers-own-token") {
				t.Errorf("%.300q", s)
			}
		})
	}
}

// A server that is too busy is asked again when it says so, as long as there is
// time; then nothing was done.
func TestThrottledCallsAreSentAgain(t *testing.T) {
	var calls atomic.Int32
	is := fake(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			w.Header().Set("Retry-After", "1")
			refuse(w, 429, "TooManyRequests", "busy")
			return
		}
		refuse(w, 404, "NotFound", "secrets not found")
	})
	l := lease(tokenFor("shop/deployer"))
	start := time.Now()
	if o := is.Withdraw(t.Context(), []issuers.Lease{l})[0]; o.Err != nil || calls.Load() != 2 || time.Since(start) < time.Second {
		t.Errorf("%+v after %d calls and %s", o, calls.Load(), time.Since(start))
	}
	is = fake(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3600")
		refuse(w, 429, "TooManyRequests", "busy")
	})
	l.MintDeadline = time.Now().Add(1500 * time.Millisecond)
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Unreachable)
}

// By the target's own clock the deadline has passed: no token is asked for.
func TestHazard8KubernetesTargetsClockCounts(t *testing.T) {
	var tokens atomic.Int32
	is := fake(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/token"):
			tokens.Add(1)
			refuse(w, 500, "InternalError", "no")
		case r.Method == http.MethodPost:
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]any{"uid": "1", "creationTimestamp": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}})
		default:
			refuse(w, 404, "NotFound", "not found")
		}
	})
	_, err := is.Mint(t.Context(), lease(tokenFor("shop/deployer")))
	wantKind(t, err, issuers.TooLate)
	if tokens.Load() > 0 {
		t.Error("hazard 8: a token was asked for after the deadline of the target's clock")
	}
}

// A list that expires while it is read begins again; one without end is refused.
func TestListsThatDoNotEnd(t *testing.T) {
	var pages atomic.Int32
	is := fake(t, func(w http.ResponseWriter, r *http.Request) {
		switch n := pages.Add(1); {
		case r.URL.Query().Get("continue") != "" && n == 2:
			refuse(w, 410, "Expired", "too old")
		case n <= 3:
			_, _ = io.WriteString(w, `{"metadata":{"continue":"next"},"items":[]}`)
		default:
			_, _ = io.WriteString(w, `{"metadata":{},"items":[]}`)
		}
	})
	if found, err := is.List(t.Context()); err != nil || len(found) != 0 || pages.Load() != 4 {
		t.Errorf("%v, %v after %d pages", found, err, pages.Load())
	}
	is = fake(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"metadata":{"continue":"next"},"items":[]}`)
	})
	_, err := is.List(t.Context())
	wantKind(t, err, issuers.Refused)
}

// A 404 that is not the API server's own word is no proof of absence.
func TestAbsenceIsTheAPIServersWord(t *testing.T) {
	is := fake(t, func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) })
	if o := is.Withdraw(t.Context(), []issuers.Lease{lease(tokenFor("shop/deployer"))})[0]; o.Err == nil {
		t.Errorf("a proxy's 404 became the receipt %+v", o.Receipt)
	}
}

// The server's certificate is verified: by the target's CA, for the address.
func TestServerIsVerified(t *testing.T) {
	for name, change := range map[string]map[string]any{
		"the system's CAs": {"tls": map[string]any{}},
		"another name":     {"tls": map[string]any{"ca": shared.CAPEM, "server_name": "elsewhere.test"}},
	} {
		f := newFixture(t, shared).with(change)
		_, err := f.open(1).Mint(t.Context(), lease(tokenFor("shop/deployer")))
		if issuers.KindOf(err) != issuers.Unreachable || !strings.Contains(err.Error(), "x509") {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := newFixture(t, shared).with(map[string]any{"tls": map[string]any{"ca": shared.CAPEM, "server_name": "localhost"}})
	if _, err := f.open(1).List(t.Context()); err != nil {
		t.Error(err)
	}
}
