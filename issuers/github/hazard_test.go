package github_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/github"
	"github.com/mayfly-broker/mayfly/issuers/github/githubtest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
)

var theScope = allow("contents:read", "Acme/orders")

func lease() issuers.Lease { return issuertest.NewLease(github.Kind{}, theScope) }

func mint(t testing.TB, i issuers.Issuer, l issuers.Lease) issuers.Credential {
	t.Helper()
	c, err := i.Mint(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func withdraw(t testing.TB, i issuers.Issuer, l issuers.Lease) issuers.Outcome {
	t.Helper()
	return i.Withdraw(t.Context(), []issuers.Lease{l})[0]
}

func mustFail(t testing.TB, i issuers.Issuer, l issuers.Lease, kind issuers.ErrorKind) error {
	t.Helper()
	_, err := i.Mint(t.Context(), l)
	if err == nil || issuers.KindOf(err) != kind {
		t.Fatalf("%v; want kind %s", err, kind)
	}
	return err
}

// on lets one path answer by itself.
func on(path string, f func(w http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, path) {
			return false
		}
		f(w)
		return true
	}
}

func status(code int) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { http.Error(w, `{"message":"as the test says"}`, code) }
}

// The JWT ends with the mint deadline by GitHub's clock: a message that was on its
// way for too long makes nothing.
func TestHazard8GitHubLateMintIsRefusedByItsClock(t *testing.T) {
	s := fresh(t)
	i := open(t, github.New(), target(s, map[string]any{"installation_id": githubtest.Installation}))
	s.Ahead(40 * time.Second)
	l := lease() // to be minted within 30 s
	mustFail(t, i, l, issuers.Refused)
	if n := s.Live(); n != 0 {
		t.Fatalf("%d tokens were made after the mint deadline", n)
	}
	if o := withdraw(t, i, l); o.Err != nil || o.Receipt.Proof != issuers.ProofAbsent {
		t.Errorf("nothing was made, and the outcome is %+v", o)
	}
	l.MintDeadline = time.Now().Add(time.Minute)
	mint(t, i, l)
}

// A withdrawal waits for the mint of the same lease, and revokes what it brings.
func TestHazard8GitHubWithdrawalWaitsForAMintUnderWay(t *testing.T) {
	s := fresh(t)
	i := open(t, github.New(), target(s, nil))
	arrived, leave := make(chan struct{}), make(chan struct{})
	s.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/access_tokens") {
			close(arrived)
			<-leave
		}
		return false
	})
	l, minted, ended := lease(), make(chan error, 1), make(chan issuers.Outcome, 1)
	go func() { _, err := i.Mint(t.Context(), l); minted <- err }()
	<-arrived
	go func() { ended <- i.Withdraw(context.WithoutCancel(t.Context()), []issuers.Lease{l})[0] }()
	close(leave)
	if err := <-minted; err != nil {
		t.Fatal(err)
	}
	if o := <-ended; o.Err != nil || o.Receipt.Proof != issuers.ProofRevoked || s.Live() != 0 {
		t.Fatalf("%+v, and %d tokens live", o, s.Live())
	}
}

// Another opening of the target, as after a change of it or of the term, revokes what
// the one before has minted.
func TestHazard9GitHubMemoryOutlivesTheOpening(t *testing.T) {
	s := fresh(t)
	k, l := github.New(), lease()
	before := open(t, k, target(s, nil))
	mint(t, before, l)
	next := issuertest.Regenerate(k, l)
	mint(t, before, next)
	if n := s.Live(); n != 1 {
		t.Errorf("%d tokens live after a re-mint; the older one is to be revoked", n)
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	after := open(t, k, target(s, map[string]any{"max_ttl": "30m"}))
	mustFail(t, after, l, issuers.Superseded)
	if o := withdraw(t, after, next); o.Err != nil || o.Receipt.Proof != issuers.ProofRevoked || s.Live() != 0 {
		t.Errorf("%+v, and %d tokens live", o, s.Live())
	}
}

// Another process does not hold the token. Its lease goes on until GitHub has ended
// it, and the receipt claims nothing more.
func TestHazard18GitHubForgottenTokenEndsItself(t *testing.T) {
	s := fresh(t)
	l := lease()
	mint(t, open(t, github.New(), target(s, nil)), l)
	successor := open(t, github.New(), target(s, nil))
	o := withdraw(t, successor, l)
	end := l.MintDeadline.Add(time.Hour + time.Minute).Truncate(time.Second).UTC().Format(time.RFC3339)
	if issuers.KindOf(o.Err) != issuers.Unknown || !errors.Is(o.Err, github.ErrNotHeld) || !strings.Contains(o.Err.Error(), end) {
		t.Fatalf("a token lives that nobody can revoke, and the outcome is %+v", o)
	}
	next := issuertest.Regenerate(github.Kind{}, l) // half of the lease is here, and half is not
	mint(t, successor, next)
	if o := withdraw(t, successor, next); !errors.Is(o.Err, github.ErrNotHeld) || s.Live() != 1 {
		t.Fatalf("%+v, and %d tokens live; want the older one alone", o, s.Live())
	}
	l.MintDeadline = time.Now().Add(-time.Hour - 2*time.Minute)
	o = withdraw(t, open(t, github.New(), target(s, nil)), l)
	if o.Err != nil || o.Receipt.Proof != issuers.ProofExpiresOnly || !strings.Contains(o.Receipt.Detail, "not in this process's memory") {
		t.Errorf("an hour after the mint deadline: %+v", o)
	}
}

// An answer that never came may have been a token.
func TestHazard18GitHubLostAnswerIsNoProof(t *testing.T) {
	s := fresh(t)
	i := open(t, github.New(), target(s, nil))
	for name, f := range map[string]func(http.ResponseWriter){
		"broken off": func(w http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"500":        status(500), "502": status(502), "200": status(200),
		"no JSON":  func(w http.ResponseWriter) { w.WriteHeader(201); _, _ = w.Write([]byte("<html>")) },
		"no token": func(w http.ResponseWriter) { w.WriteHeader(201); _, _ = w.Write([]byte(`{"token":""}`)) },
		"a token for two headers": func(w http.ResponseWriter) {
			w.WriteHeader(201)
			_, _ = w.Write([]byte(`{"token":"ghs_0123456789012345\r\nX-Evil: 1"}`))
		},
		"too long": func(w http.ResponseWriter) { w.WriteHeader(201); _, _ = w.Write(make([]byte, 3<<20)) },
	} {
		s.Intercept(on("/access_tokens", f))
		l := lease()
		_, err := i.Mint(t.Context(), l)
		if issuers.KindOf(err) != issuers.Unknown {
			t.Errorf("%s: %v; want unknown", name, err)
		}
		if o := withdraw(t, i, l); !errors.Is(o.Err, github.ErrNotHeld) {
			t.Errorf("%s: the outcome is %+v", name, o)
		}
	}
}

// Only GitHub's own refusal of the token is a proof.
func TestHazard18GitHubReceiptIsGitHubsWord(t *testing.T) {
	s := fresh(t)
	i := open(t, github.New(), target(s, nil))
	l := lease()
	c := mint(t, i, l)
	for _, c := range []struct {
		name string
		f    func(http.ResponseWriter, *http.Request) bool
	}{
		{"500", on("/installation/token", status(500))},
		{"200", on("/installation/token", status(200))},
		{"404", on("/installation/token", status(404))},
		{"says so, and lies", on("/installation/token", status(204))},
		{"no answer", on("/installation/token", func(http.ResponseWriter) { panic(http.ErrAbortHandler) })},
		{"cannot be looked at", on("/installation/repositories", status(503))}, // and is revoked
	} {
		s.Intercept(c.f)
		if o := withdraw(t, i, l); issuers.KindOf(o.Err) != issuers.Unknown || o.Err == nil {
			t.Errorf("%s: %+v", c.name, o)
		}
	}
	s.Intercept(nil)
	if o := withdraw(t, i, l); o.Err != nil || s.Read(c.Secret["token"].Reveal(), "orders") == nil {
		t.Errorf("%+v", o)
	}
	// one that its holder revoked is absent
	l = lease()
	s.Grant(mint(t, i, l).Secret["token"].Reveal()).Revoked = true
	if o := withdraw(t, i, l); o.Err != nil || o.Receipt.Proof != issuers.ProofAbsent {
		t.Errorf("%+v", o)
	}
}

// The token has what the scope says and nothing else, whatever the App has.
func TestLaw3GitHubTokenDoesNoMoreThanItsScope(t *testing.T) {
	s := fresh(t)
	i := open(t, github.New(), target(s, nil))
	l := lease()
	l.Scope = allow("contents:read contents:write issues:read", "Acme/billing", "Acme/orders")
	c := mint(t, i, l)
	g := s.Grant(c.Secret["token"].Reveal())
	if !slices.Equal(g.Repositories, []string{"billing", "orders"}) || len(g.Permissions) != 3 || g.Permissions["contents"] != "write" || g.Permissions["issues"] != "read" || g.Permissions["metadata"] != "read" {
		t.Fatalf("%+v", g)
	}
	if c.Public["permissions"] != "contents:write issues:read metadata:read" || c.Public["repositories"] != "Acme/billing Acme/orders" || c.Public["missing"] != "" {
		t.Errorf("%v", c.Public)
	}
	if err := s.Read(c.Secret["token"].Reveal(), "x_y-z"); err == nil {
		t.Error("it reads a repository that is not in its scope")
	}
}

// An answer that gives more is an error, and the token is revoked before Mint returns.
func TestLaw3GitHubMoreThanWasAskedIsRevoked(t *testing.T) {
	s := fresh(t)
	i := open(t, github.New(), target(s, nil))
	for name, alter := range map[string]func(map[string]any){
		"all repositories":       func(a map[string]any) { a["repository_selection"] = "all" },
		"no selection":           func(a map[string]any) { delete(a, "repository_selection") },
		"no repositories":        func(a map[string]any) { delete(a, "repositories") },
		"another repository":     func(a map[string]any) { a["repositories"] = []any{map[string]any{"full_name": "Acme/billing"}} },
		"another owner's":        func(a map[string]any) { a["repositories"] = []any{map[string]any{"full_name": "Evil/orders"}} },
		"a higher level":         func(a map[string]any) { a["permissions"] = map[string]string{"contents": "write"} },
		"another permission":     func(a map[string]any) { a["permissions"] = map[string]string{"contents": "read", "issues": "read"} },
		"an unknown level":       func(a map[string]any) { a["permissions"] = map[string]string{"contents": "root"} },
		"no permissions":         func(a map[string]any) { delete(a, "permissions") },
		"a longer life":          func(a map[string]any) { a["expires_at"] = time.Now().Add(2 * time.Hour).Format(time.RFC3339) },
		"an end that has passed": func(a map[string]any) { a["expires_at"] = time.Now().Add(-time.Hour).Format(time.RFC3339) },
		"no end":                 func(a map[string]any) { delete(a, "expires_at") },
	} {
		s.Alter(alter)
		l := lease()
		mustFail(t, i, l, issuers.Refused)
		if n := s.Live(); n != 0 {
			t.Fatalf("%s: %d tokens live", name, n)
		}
		if o := withdraw(t, i, l); o.Err != nil || o.Receipt.Proof != issuers.ProofRevoked {
			t.Errorf("%s: %+v", name, o)
		}
	}
	s.Alter(func(a map[string]any) { a["permissions"] = map[string]string{"metadata": "read"} })
	if c := mint(t, i, lease()); c.Public["missing"] != "contents:read" {
		t.Errorf("fewer is fine, and said: %v", c.Public)
	}
	s.Alter(func(a map[string]any) { a["repository_selection"] = "all" })
	s.Intercept(on("/installation/token", status(500)))
	mustFail(t, i, lease(), issuers.Unknown)
}

// The App's key and tokens reach no error, whatever the key is.
func TestLaw6GitHubKeysThatAreNoneAreNotQuoted(t *testing.T) {
	const leak = "hunter2hunter2"
	good := target(shared, nil)
	for _, text := range []string{leak, "-----BEGIN RSA PRIVATE KEY-----\n" + leak + "aa\n-----END RSA PRIVATE KEY-----", shared.Key + leak, shared.Key + shared.Key, strings.Repeat(leak, 2000)} {
		bad := good
		bad.Secrets = secrets(text)
		if _, err := github.New().Open(bad); err == nil || strings.Contains(err.Error(), leak) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
	eight := good
	eight.Secrets = secrets(shared.Key8)
	l := lease()
	i := open(t, github.New(), eight)
	mint(t, i, l)
	withdraw(t, i, l)
}

// A GitHub that hangs holds nobody longer than the mint deadline.
func TestLaw8HangingGitHubDelaysNoLongerThanTheDeadline(t *testing.T) {
	s := fresh(t)
	ample := issuertest.Ample(func() { mint(t, open(t, github.New(), target(s, nil)), lease()) })
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	s.Intercept(on("/access_tokens", func(http.ResponseWriter) { <-hang }))
	l := lease()
	l.MintDeadline = time.Now().Add(ample)
	mustFail(t, open(t, github.New(), target(s, nil)), l, issuers.Unknown)
	if late := time.Since(l.MintDeadline); late > 15*time.Second {
		t.Errorf("it came back %s after its deadline", late)
	}
}
