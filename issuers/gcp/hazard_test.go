package gcp_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/gcp"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
)

// The service account may do all of Cloud Storage; the token what its lease's
// scope says, as the stand-in reads access boundaries.
func TestLaw3GCPTokenDoesNoMoreThanItsScope(t *testing.T) {
	g, s := google(t)
	is := open(t, g, s)
	reader := mint(t, is, lease(allow("get list", "gs://orders/2026/*")))
	creator := mint(t, is, lease(allow("create", "gs://orders/in/*")))
	writer := mint(t, is, lease(allow("create delete", "gs://orders/in/*")))
	all := mint(t, is, lease(allow("get list create delete update", "gs://orders/in/*")))
	lister := mint(t, is, lease(allow("list", "gs://orders/*")))
	one := mint(t, is, lease(allow("get", "gs://orders/2026/a")))
	both := mint(t, is, lease(append(allow("get", "gs://orders/2026/*"), allow("create", "gs://orders/out/*")...)))
	for _, x := range []struct {
		c              issuers.Credential
		what, at, name string
		want           bool
	}{
		{reader, "get", "orders", "2026/a", true},
		{reader, "get", "orders", "2025/a", false},
		{reader, "get", "orders", "top", false},
		{reader, "get", "other", "2026/a", false},
		{reader, "get", "orders-eu", "2026/a", false},
		{reader, "create", "orders", "2026/a", false},
		{reader, "delete", "orders", "2026/a", false},
		{reader, "list", "orders", "2026/", true},
		{reader, "list", "orders", "2026/a", true},
		{reader, "list", "orders", "202", false},
		{reader, "list", "orders", "", false},
		{reader, "list", "other", "2026/", false},
		{creator, "create", "orders", "in/x", true},
		{creator, "delete", "orders", "in/x", false},
		{creator, "get", "orders", "in/x", false},
		{writer, "delete", "orders", "in/x", true},
		{writer, "get", "orders", "in/x", false},
		{writer, "list", "orders", "in/", false},
		{writer, "list", "orders", "", false},
		{all, "update", "orders", "in/x", true},
		{all, "update", "orders", "out/x", false},
		{all, "list", "orders", "", false},
		{lister, "list", "orders", "", true},
		{lister, "list", "orders", "2026/", true},
		{lister, "get", "orders", "2026/a", false},
		{one, "get", "orders", "2026/a", true},
		{one, "get", "orders", "2026/ab", false},
		{both, "get", "orders", "2026/a", true},
		{both, "create", "orders", "2026/a", false},
		{both, "get", "orders", "out/a", false},
	} {
		if got := g.Allowed(x.c.Secret["access_token"].Reveal(), x.what, x.at, x.name); got != x.want {
			t.Errorf("%s gs://%s/%s: %t, want %t", x.what, x.at, x.name, got, x.want)
		}
	}
}

// The token ends with its lease, by Google's clock, whatever the way took.
func TestHazard18GCPTokenEndsWithItsLease(t *testing.T) {
	g, s := google(t)
	is := open(t, g, s)
	for _, life := range []time.Duration{6 * time.Second, time.Minute, time.Hour - time.Second} {
		l := lease(theScope)
		l.NotAfter = time.Now().Add(life)
		c := mint(t, is, l)
		end, err := time.Parse(time.RFC3339, c.Public["expiration"])
		if err != nil || end.After(l.NotAfter) || end.Before(time.Now()) {
			t.Errorf("a lease of %s ends at %s, its token at %q: %v", life, l.NotAfter, c.Public["expiration"], err)
		}
		receipt := is.Withdraw(t.Context(), []issuers.Lease{l})[0].Receipt
		if receipt.Proof != issuers.ProofExpiresOnly || !strings.Contains(receipt.Detail, l.NotAfter.UTC().Format(time.RFC3339)) {
			t.Errorf("the receipt %+v", receipt)
		}
	}
	// An answer that came late, or a lifetime that was not heeded: nobody gets it.
	g.Answer(":generateAccessToken", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"accessToken":"ya29.of-another-life","expireTime":"` + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `"}`))
	})
	before := len(g.Asked())
	_, err := is.Mint(t.Context(), lease(theScope))
	wantKind(t, err, issuers.Unknown)
	if n := len(g.Asked()) - before; n != 2 {
		t.Errorf("%d requests; the token was to go no further", n)
	}
}

// Whatever the lease says, the target's max_ttl bounds it.
func TestHazard18GCPLifeIsCapped(t *testing.T) {
	g, s := google(t)
	s = s.with(spec{"max_ttl": "20m"})
	if got := (gcp.Kind{}).MaxTTL(s.raw(t)); got != 20*time.Minute {
		t.Errorf("MaxTTL is %s", got)
	}
	l := lease(theScope)
	l.NotAfter = l.NotBefore.Add(5 * time.Hour)
	c := mint(t, open(t, g, s), l)
	if end, err := time.Parse(time.RFC3339, c.Public["expiration"]); err != nil || end.After(l.NotBefore.Add(20*time.Minute)) {
		t.Errorf("it ends at %s, %v", end, err)
	}
	if got := (gcp.Kind{}).MaxTTL([]byte(`{`)); got > time.Second {
		t.Errorf("a spec that does not read allows %s", got)
	}
}

// An identity that is stuck on its way, and comes after the mint deadline, opens
// nothing: it ends with the deadline, by STS's clock.
func TestHazard8GCPLateTokenIsRefusedBySTSsClock(t *testing.T) {
	g, s := google(t)
	is := open(t, g, s)
	ample := issuertest.Ample(func() { mint(t, is, lease(theScope)) })
	stuck := make(chan struct{})
	g.Answer("/v1/token", func(_ http.ResponseWriter, r *http.Request) { <-stuck })
	before := len(g.Asked())
	l := lease(theScope)
	l.MintDeadline = time.Now().Add(ample + time.Second) // the token's times are in whole ones
	_, err := is.Mint(t.Context(), l)
	close(stuck)
	wantKind(t, err, issuers.Unknown)
	asked := g.Asked()[before:]
	if len(asked) != 1 {
		t.Fatalf("%d requests", len(asked))
	}
	token := asked[0].Form.Get("subject_token")
	timer := time.NewTimer(time.Until(l.MintDeadline) + time.Second) // exp is in whole seconds
	defer timer.Stop()
	<-timer.C
	if err := g.Trusted.Verify(t.Context(), token); err == nil || !strings.Contains(err.Error(), "the identity token is from") {
		t.Errorf("the late token is judged: %v", err)
	}
}

// Nothing wide is ever delivered: not where STS does not narrow, nor where it says
// no, nor the federated token.
func TestLaw3GCPUnnarrowedTokenIsNeverDelivered(t *testing.T) {
	g, s := google(t)
	is := open(t, g, s)
	var wide string
	for what, h := range map[string]http.HandlerFunc{
		"the same token": func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte(`{"access_token":"` + wide + `","token_type":"Bearer"}`))
		},
		"no token": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"token_type":"Bearer"}`)) },
		"another one": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"access_token":"not one, a phrase","token_type":"Bearer"}`))
		},
		"a refusal": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) },
	} {
		g.Answer("/v1/token", func(w http.ResponseWriter, r *http.Request) {
			form := g.Asked()[len(g.Asked())-1].Form
			if form.Has("options") {
				wide = form.Get("subject_token")
				h(w, r)
				return
			}
			g.STS(w, r, form)
		})
		c, err := is.Mint(t.Context(), lease(theScope))
		if err == nil || len(c.Secret) > 0 || issuers.KindOf(err) != issuers.Unknown {
			t.Errorf("%s: %v, %v", what, c, err)
		}
	}
}

// A re-mint, however late, is a token of its own: it takes nothing from another.
func TestHazard9GCPEachGenerationIsATokenOfItsOwn(t *testing.T) {
	g, s := google(t)
	is := open(t, g, s)
	l := lease(theScope)
	next := issuertest.Regenerate(gcp.Kind{}, l)
	newer, older := mint(t, is, next), mint(t, is, l)
	if newer.Secret["access_token"].Equal(older.Secret["access_token"]) {
		t.Error("two generations share a token")
	}
	for _, c := range []issuers.Credential{newer, older} {
		if !g.Allowed(c.Secret["access_token"].Reveal(), "get", "orders", "2026/a") {
			t.Error("one of them does not work")
		}
	}
	l.Name = next.Name
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Refused)
}

// No action makes a key, changes who may enter, or hands out another credential.
func TestHazard10GCPActionsThatOutlastTheLeaseAreRefused(t *testing.T) {
	_, s := google(t)
	for _, action := range []string{"setiampolicy", "getiampolicy", "setretention", "overrideunlockedretention", "setacl"} {
		if (gcp.Kind{}).CheckScope(s.raw(t), allow(action, "gs://orders/*")) == nil {
			t.Errorf("%s is accepted", action)
		}
	}
}

func TestLaw8GCPHangingGoogleDelaysNoLongerThanTheDeadline(t *testing.T) {
	g, s := google(t)
	is := open(t, g, s)
	ample := issuertest.Ample(func() { mint(t, is, lease(theScope)) })
	goOn := make(chan struct{})
	defer close(goOn)
	g.Answer(":generateAccessToken", func(http.ResponseWriter, *http.Request) { <-goOn })
	l := lease(theScope)
	l.MintDeadline = time.Now().Add(ample + time.Second) // the token's times are in whole ones
	_, err := is.Mint(context.Background(), l)
	wantKind(t, err, issuers.Unknown)
	if late := time.Since(l.MintDeadline); late > 10*time.Second {
		t.Errorf("it came back %s after its deadline", late)
	}
}
