package azure_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/azure"
	"github.com/mayfly-broker/mayfly/issuers/azure/azuretest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
)

// The application may do all of the account; a SAS what its lease's scope says, on
// a real Azurite.
func TestLaw3AzureSASDoesNoMoreThanItsScope(t *testing.T) {
	is := open(t, bySAS())
	reader := sasOf(mint(t, is, lease(allow("read", "az://orders/*"))))
	lister := sasOf(mint(t, is, lease(allow("list", "az://orders/*"))))
	writer := sasOf(mint(t, is, lease(allow("create write", "az://orders/*"))))
	remover := sasOf(mint(t, is, lease(allow("write delete", "az://orders/tmp"))))
	one := sasOf(mint(t, is, lease(allow("read", "az://orders/2026/a.txt"))))
	const list = "restype=container&comp=list"
	for _, x := range []struct {
		sas, method, path, query string
		want                     int
	}{
		{reader, "GET", "orders/2026/a.txt", "", 200},
		{reader, "GET", "other/2026/a.txt", "", 403},
		{reader, "GET", "orders", list, 403},
		{reader, "PUT", "orders/2026/a.txt", "", 403},
		{reader, "DELETE", "orders/2026/a.txt", "", 403},
		{reader, "DELETE", "orders", "restype=container", 403},
		{lister, "GET", "orders", list, 200},
		{lister, "GET", "other", list, 403},
		{lister, "GET", "orders/2026/a.txt", "", 403},
		{writer, "PUT", "orders/new", "", 201},
		{writer, "GET", "orders/new", "", 403},
		{writer, "PUT", "other/new", "", 403},
		{writer, "DELETE", "orders/new", "", 403},
		{one, "GET", "orders/2026/a.txt", "", 200},
		{one, "GET", "orders/2026/b.txt", "", 403},
		{one, "GET", "other/2026/a.txt", "", 403},
		{one, "GET", "orders", list, 403},
		{remover, "PUT", "orders/tmp", "", 201},
		{remover, "DELETE", "orders/new", "", 403},
		{remover, "DELETE", "orders/tmp", "", 202},
		{strings.Replace(one, "sp=r", "sp=rw", 1), "GET", "orders/2026/a.txt", "", 403}, // what is signed
		{strings.Replace(reader, "sr=c", "sr=b", 1), "GET", "orders/2026/a.txt", "", 403},
	} {
		if got := status(t, x.sas, x.method, x.path, x.query); got != x.want {
			t.Errorf("%s %s?%s: status %d, want %d", x.method, x.path, x.query, got, x.want)
		}
	}
	near := sasOf(mint(t, open(t, bySAS().with(spec{"ip_range": "127.0.0.1"})), lease(theScope)))
	if got := status(t, near, "GET", "orders/2026/a.txt", ""); got != 200 || !strings.Contains(near, "sip=127.0.0.1") {
		t.Errorf("from within ip_range: status %d", got)
	}
}

// A SAS ends with its lease, to the second, by the storage account's clock.
func TestHazard18AzureSASEndsWithItsLease(t *testing.T) {
	is := open(t, bySAS())
	l := lease(theScope)
	l.NotAfter = time.Now().Add(8 * time.Second)
	c := mint(t, is, l)
	end, err := time.Parse(time.RFC3339, c.Public["expiration"])
	if err != nil || end.After(l.NotAfter) {
		t.Fatalf("the lease ends at %s, its credential says %q: %v", l.NotAfter, c.Public["expiration"], err)
	}
	if got := status(t, sasOf(c), "GET", "orders/2026/a.txt", ""); got != 200 && time.Now().Before(end) {
		t.Fatalf("before the lease's end: status %d", got)
	}
	eventually(t, "the SAS is of no use", func() bool { return status(t, sasOf(c), "GET", "orders/2026/a.txt", "") == 403 })
	if now := time.Now(); now.Before(end) {
		t.Errorf("it ended at %s already, before %s", now, end)
	}
	q, err := url.ParseQuery(sasOf(c))
	if err != nil || q.Get("ske") != q.Get("se") || q.Get("spr") != "https" {
		t.Errorf("%v: the key that signs outlives the SAS: %s", err, q.Get("ske"))
	}
	receipt := is.Withdraw(t.Context(), []issuers.Lease{l})[0].Receipt
	if receipt.Proof != issuers.ProofExpiresOnly || !strings.Contains(receipt.Detail, c.Public["expiration"]) {
		t.Errorf("the receipt %+v does not say %s", receipt, c.Public["expiration"])
	}
}

// Whatever the lease says, the target's max_ttl bounds it.
func TestHazard18AzureLifeIsCapped(t *testing.T) {
	s := bySAS().with(spec{"max_ttl": "20m"})
	if got := (azure.Kind{}).MaxTTL(s.raw(t)); got != 20*time.Minute {
		t.Errorf("MaxTTL is %s", got)
	}
	l := lease(theScope)
	l.NotAfter = l.NotBefore.Add(5 * time.Hour)
	c := mint(t, open(t, s), l)
	if end, err := time.Parse(time.RFC3339, c.Public["expiration"]); err != nil || end.After(l.NotBefore.Add(20*time.Minute)) {
		t.Errorf("it ends at %s, %v", end, err)
	}
}

// Entra chooses how long a token lives: one that would outlive its lease goes to nobody.
func TestHazard18AzureTokenThatOutlivesItsLeaseIsNotDelivered(t *testing.T) {
	s := spec{"way": "token", "tenant": azuretest.Tenant, "client_id": azuretest.Client, "authority": world.Entra.URL, "tls": spec{"ca": world.CAPEM}, "max_ttl": "3h",
		"resources": []string{"https://management.azure.com"}}
	is := open(t, s)
	l := lease(scope.Scope{{Type: "azure", Actions: []string{"token"}, Locations: []string{"https://management.azure.com"}}})
	_, err := is.Mint(t.Context(), l) // of ten minutes
	wantKind(t, err, issuers.Refused)
	l.NotAfter = time.Now().Add(2 * time.Hour)
	c := mint(t, is, l)
	if end, err := time.Parse(time.RFC3339, c.Public["expiration"]); err != nil || end.After(l.NotAfter) || len(c.Secret) != 1 {
		t.Errorf("it ends at %s, %v", end, err)
	}
	for _, bad := range []string{"https://management.azure.com/*", "https://graph.microsoft.com", "az://orders/*"} {
		if (azure.Kind{}).CheckScope(s.raw(t), scope.Scope{{Type: "azure", Actions: []string{"token"}, Locations: []string{bad}}}) == nil {
			t.Errorf("a token for %s is accepted", bad)
		}
	}
}

// An identity that is stuck on its way, and comes after the mint deadline, opens
// nothing: it ends with the deadline, by Entra's clock.
func TestHazard8AzureLateTokenIsRefusedByEntrasClock(t *testing.T) {
	is := open(t, bySAS())
	ample := issuertest.Ample(func() { mint(t, is, lease(theScope)) })
	stuck := make(chan struct{})
	world.Entra.Answer(func(http.ResponseWriter, *http.Request) { <-stuck })
	defer world.Entra.Answer(nil)
	l := lease(theScope)
	l.MintDeadline = time.Now().Add(ample + time.Second) // the token's times are in whole ones
	_, err := is.Mint(t.Context(), l)
	close(stuck)
	wantKind(t, err, issuers.Unknown)
	asked := world.Entra.Asked()
	token := asked[len(asked)-1].Get("client_assertion")
	timer := time.NewTimer(time.Until(l.MintDeadline) + time.Second) // exp is in whole seconds
	defer timer.Stop()
	<-timer.C
	if err := world.Entra.Trusted.Verify(t.Context(), token); err == nil || !strings.Contains(err.Error(), "the identity token is from") {
		t.Errorf("the late token is judged: %v", err)
	}
}

// A re-mint, however late, is a SAS of its own: it takes nothing from another.
func TestHazard9AzureEachGenerationIsASASOfItsOwn(t *testing.T) {
	is := open(t, bySAS())
	l := lease(theScope)
	next := issuertest.Regenerate(azure.Kind{}, l)
	newer, older := mint(t, is, next), mint(t, is, l)
	if sasOf(newer) == sasOf(older) {
		t.Error("two generations share a SAS")
	}
	for _, c := range []issuers.Credential{newer, older} {
		if got := status(t, sasOf(c), "GET", "orders/2026/a.txt", ""); got != 200 {
			t.Errorf("status %d", got)
		}
	}
	l.Name = next.Name
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Refused)
}
