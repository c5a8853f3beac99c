package vault_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/vault"
)

// begin does by hand what a mint does first, and then dies: the lease's token
// stands, by Vault's clock for that long.
func (f *fixture) begin(l issuers.Lease, term uint64, ttl time.Duration) (token string) {
	f.t.Helper()
	token = vault.TokenOf(f.secrets[vault.SecretMark], l.ID)
	f.server.Do(f.t, http.MethodPut, "auth/token/create/mayfly", map[string]any{
		"id": token, "policies": []string{"mayfly-leases"}, "no_default_policy": true, "display_name": l.Name, "ttl": fmt.Sprintf("%ds", int(ttl.Seconds())),
		"meta": vault.MetaOf(f.secrets[vault.SecretMark], l, term, "dead"), "renewable": true,
	})
	return token
}

// A mint that dies after it has read, and before it noted anything down, leaves
// what a later leader finds by the lease's id alone.
func TestLaw1VaultMintThatDiedIsFound(t *testing.T) {
	f := newFixture(t, shared)
	l := lease(allow("read", "database/creds/app"))
	token := f.begin(l, 1, 10*time.Minute)
	if err := f.server.Call(t.Context(), http.MethodGet, "database/creds/app", token, nil, nil); err != nil {
		t.Fatal(err)
	}
	if n := f.accounts(l); n != 1 {
		t.Fatalf("%d accounts", n)
	}
	if r := f.withdraw(f.open(2), l); r.Proof != issuers.ProofAbsent || !strings.Contains(r.Detail, "had not come to its end") {
		t.Errorf("%+v", r)
	}
	eventually(t, "Vault revokes what the token read", func() bool { return f.gone(t.Context(), l) == nil })
}

// Nobody need be there for a mint that died: by Vault's own clock its token ends
// with the mint's time, and what it read goes with it.
func TestLaw2VaultMintThatDiedEndsByItself(t *testing.T) {
	f := newFixture(t, shared)
	l := lease(allow("read", "database/creds/app"))
	var token string
	read := func(l issuers.Lease, ttl time.Duration) {
		token = f.begin(l, 1, ttl)
		if err := f.server.Call(t.Context(), http.MethodGet, "database/creds/app", token, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	like := lease(l.Scope)
	ample := issuertest.Ample(func() { read(like, 10*time.Minute) })
	f.withdraw(f.open(2), like)
	read(l, ample+time.Second) // in whole ones
	eventually(t, "the token of a dead mint ends", func() bool { return f.gone(t.Context(), l) == nil })
	// what is sent with it later does nothing (HAZARDS 8)
	if err := f.server.Call(t.Context(), http.MethodGet, "database/creds/app", token, nil, nil); err == nil {
		t.Error("the token of a mint past its deadline still reads")
	}
}

// The lease's end is Vault's own: it comes without the broker, and only then.
func TestLaw2VaultEndsWithoutTheBroker(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(allow("read", "database/creds/app"))
	l.NotAfter = time.Now().Add(8 * time.Second)
	c := f.mint(is, l)
	if err := use(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	data, err := f.token(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	expires, err := time.Parse(time.RFC3339Nano, fmt.Sprint(data["expire_time"]))
	if err != nil || expires.After(l.NotAfter.Add(3*time.Second)) || expires.Before(l.NotAfter.Add(-3*time.Second)) {
		t.Errorf("the lease ends at %s, its token at %s (%v)", l.NotAfter, expires, err)
	}
	if err := is.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lease ends by itself", func() bool { return f.gone(t.Context(), l) == nil })
	if use(t.Context(), c) == nil {
		t.Error("the account outlives its lease")
	}
}

// What a lease reads does not end with the broker's own token.
func TestVaultLeaseOutlivesTheBrokersLogin(t *testing.T) {
	f := newFixture(t, shared)
	l := lease(allow("read", "database/creds/app"))
	c := f.mint(f.open(1), l)
	f.server.Do(t, http.MethodPut, "auth/token/revoke", map[string]any{"token": f.secrets[vault.SecretToken].Reveal()})
	if err := use(t.Context(), c); err != nil {
		t.Errorf("with the broker's token its leases ended: %v", err)
	}
	_, err := f.open(1).Mint(t.Context(), lease(allow("read", "database/creds/app")))
	wantKind(t, err, issuers.Refused)
	fresh := newFixture(t, shared)
	fresh.secrets[vault.SecretMark] = f.secrets[vault.SecretMark]
	fresh.withdraw(fresh.open(2), l)
	if err := f.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// A read that is slow inside Vault comes to its end after the lease was withdrawn,
// with nobody left to hear it: the tombstone takes it along.
func TestHazard8VaultLateReadEndsWithTheTombstone(t *testing.T) {
	f := newFixture(t, shared)
	f.spec["max_request_duration"] = "8s"
	is := f.open(2)
	l := lease(allow("read", "database/creds/slow"))
	token := f.begin(l, 1, 20*time.Second)
	read := make(chan error, 1)
	go func() { read <- f.server.Call(t.Context(), http.MethodGet, "database/creds/slow", token, nil, nil) }()
	eventually(t, "the read is under way", func() bool { return f.sleeping() })
	l.MintDeadline = time.Now().Add(time.Second)
	f.withdraw(is, l)
	if err := <-read; err != nil {
		t.Logf("the late read: %v", err) // Vault may refuse it by itself; nothing may be left either way
	} else if n := f.accounts(l); n != 1 {
		t.Fatalf("the late read made %d accounts; this test wants one", n)
	}
	eventually(t, "the tombstone takes the late read along", func() bool { return f.gone(t.Context(), l) == nil })
	eventually(t, "the tombstone itself ends", func() bool { data, err := f.token(t.Context(), l); return err == nil && data == nil })
	if err := f.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// While a mint is under way its token ends with the mint's own deadline.
func TestHazard8VaultTokenOfAMintEndsWithItsDeadline(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(allow("read", "database/creds/slow"))
	l.MintDeadline = time.Now().Add(15 * time.Second)
	failed := make(chan error, 1)
	go func() { _, err := is.Mint(t.Context(), l); failed <- err }()
	eventually(t, "the mint reads", func() bool { return f.sleeping() })
	data, err := f.token(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if ttl, _ := data["ttl"].(float64); ttl < 1 || ttl > 16 {
		t.Errorf("15 seconds before its deadline the mint's token lives %v", data["ttl"])
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if data, err = f.token(t.Context(), l); err != nil || data["ttl"].(float64) < 500 {
		t.Errorf("after the mint: %v, %v", data["ttl"], err)
	}
	f.withdraw(is, l)
}

// sleeping says whether a creation statement sleeps in the database.
func (f *fixture) sleeping() bool {
	var n int
	row := database.Admin(f.t, "postgres").QueryRow(f.t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)%' AND state = 'active' AND pid <> pg_backend_pid()")
	if err := row.Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n > 0
}

// A mint of a deposed leader that arrives after the withdrawal finds its id taken.
func TestHazard8VaultLateMintDoesNothing(t *testing.T) {
	f := newFixture(t, shared)
	old, next := f.open(1), f.open(2)
	l := lease(allow("read", "database/creds/app"))
	f.withdraw(next, l)
	_, err := old.Mint(t.Context(), l)
	wantKind(t, err, issuers.Superseded)
	token := vault.TokenOf(f.secrets[vault.SecretMark], l.ID)
	if err := f.server.Call(t.Context(), http.MethodGet, "database/creds/app", token, nil, nil); err == nil {
		t.Error("a tombstone reads secrets")
	}
	if err := f.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
	found, err := next.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range found {
		if x.LeaseID == l.ID {
			t.Error("a tombstone is listed as a credential")
		}
	}
}

// Two leaders mint the same lease at once; the older one's read ends last, and
// ends up under the newer one's token, which has the same id.
func TestHazard9VaultOlderMintThatEndsLastIsUndone(t *testing.T) {
	f := newFixture(t, shared)
	old, next := f.open(1), f.open(2)
	l := lease(allow("read", "database/creds/slow"))
	failed := make(chan error, 1)
	go func() { _, err := old.Mint(t.Context(), l); failed <- err }()
	eventually(t, "the older mint reads", func() bool { return f.sleeping() })
	newer := issuertest.Regenerate(vault.Kind{}, l)
	newer.Scope = allow("read", "database/creds/app")
	c := f.mint(next, newer)
	err := <-failed
	wantKind(t, err, issuers.Superseded)
	if err := use(t.Context(), c); err != nil {
		t.Errorf("the newer generation: %v", err)
	}
	if n := f.accounts(l); n != 1 {
		t.Errorf("the database has %d accounts of the lease; want the newer generation's alone", n)
	}
	f.withdraw(next, newer)
	if err := f.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// Mints that wait on a slow system behind Vault hold up no withdrawal.
func TestHazard17VaultSlowMintsHoldUpNoWithdrawal(t *testing.T) {
	f := newFixture(t, shared)
	f.spec["max_connections"] = 1
	is := f.open(1)
	l := lease(allow("read", "database/creds/app"))
	f.mint(is, l)
	done := make(chan issuers.Lease, 3)
	for range cap(done) {
		go func() {
			slow := lease(allow("read", "database/creds/slow"))
			_, _ = is.Mint(t.Context(), slow)
			done <- slow
		}()
	}
	eventually(t, "a slow mint is under way", func() bool { return f.sleeping() })
	f.withdraw(is, l)
	if len(done) == cap(done) {
		t.Error("the withdrawal waited for the mints")
	}
	for range cap(done) {
		f.withdraw(is, <-done)
	}
}

// A token under the lease's own id that does not bear the mark is nobody's to end.
func TestHazard16VaultForeignTokenIsLeftAlone(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(allow("read", "database/creds/app"))
	token := vault.TokenOf(f.secrets[vault.SecretMark], l.ID)
	f.server.Do(t, http.MethodPut, "auth/token/create/mayfly", map[string]any{"id": token, "policies": []string{"mayfly-leases"}, "meta": map[string]string{"mayfly_lease": l.ID}})
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Foreign)
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Foreign)
	wantKind(t, is.Extend(t.Context(), l), issuers.Foreign)
	if data, err := f.token(t.Context(), l); err != nil || data == nil {
		t.Errorf("the token is gone: %v", err)
	}
	// another target's key neither finds nor lists ours
	ours := lease(allow("read", "database/creds/app"))
	f.mint(is, ours)
	other := newFixture(t, shared)
	found, err := other.open(1).List(t.Context())
	if err != nil || len(found) != 0 {
		t.Errorf("another target lists %v, %v", found, err)
	}
	f.withdraw(is, ours)
}

// An end that Vault does not grant is refused, at the mint and at the renewal, and
// the words say what is possible.
func TestHazard13VaultEndIsTheOneThatVaultGrants(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	long := lease(allow("read", "database/creds/brief")) // ten minutes; Vault grants two
	_, err := is.Mint(t.Context(), long)
	wantKind(t, err, issuers.BadScope)
	if !strings.Contains(err.Error(), "ask for a shorter ttl") || !strings.Contains(err.Error(), "2m") {
		t.Errorf("%v", err)
	}
	if err := f.gone(t.Context(), long); err != nil {
		t.Error(err)
	}
	l := lease(allow("read", "database/creds/brief"))
	l.NotAfter = time.Now().Add(90 * time.Second) // more than its default of one minute
	c := f.mint(is, l)
	later := l
	later.NotAfter = time.Now().Add(time.Hour)
	err = is.Extend(t.Context(), later)
	wantKind(t, err, issuers.BadScope)
	if err := use(t.Context(), c); err != nil {
		t.Errorf("after a renewal that was refused: %v", err)
	}
	f.withdraw(is, l)
	f.spec["max_ttl"] = "2m"
	if got := (vault.Kind{}).MaxTTL(f.target(1).Spec); got != 2*time.Minute {
		t.Errorf("MaxTTL is %s", got)
	}
}

// What has no lease of Vault's is read only where the role says so, and its receipt
// does not claim an end.
func TestHazard18VaultWhatCannotBeRevokedSaysSo(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	for location, want := range map[string]string{
		"kv/plain": "a password of the old store", "secret/data/app": "a password of the new store", "secret/data/app?version=1": "a password of the new store",
	} {
		l := lease(allow("read", location))
		_, err := is.Mint(t.Context(), l)
		wantKind(t, err, issuers.BadScope)
		l = lease(allow("static", location))
		c := f.mint(is, l)
		if got := c.Secret["password"].Reveal(); got != want {
			t.Errorf("%s gives %q", location, got)
		}
		if r := f.withdraw(is, l); r.Proof != issuers.ProofExpiresOnly || !strings.Contains(r.Detail, "does not end") {
			t.Errorf("%s: %+v", location, r)
		}
	}
	l := lease(allow("issue", "pki/issue/web?common_name=a.example"))
	c := f.mint(is, l)
	later := l
	later.NotAfter = l.NotAfter.Add(time.Hour)
	wantKind(t, is.Extend(t.Context(), later), issuers.BadScope) // the certificate's end does not move
	if err := is.Extend(t.Context(), l); err != nil {
		t.Error(err)
	}
	var expires int64
	if err := json.Unmarshal([]byte(c.Public["expiration"]), &expires); err != nil {
		t.Fatal(err)
	}
	if end := time.Unix(expires, 0); end.After(l.NotAfter.Add(5*time.Second)) || end.Before(l.NotAfter.Add(-5*time.Second)) {
		t.Errorf("the lease ends at %s, the certificate at %s", l.NotAfter, end)
	}
	if !strings.HasPrefix(c.Secret["private_key"].Reveal(), "-----BEGIN") {
		t.Error("no private key")
	}
	if r := f.withdraw(is, l); r.Proof != issuers.ProofExpiresOnly || !strings.Contains(r.Detail, "by the ttl") {
		t.Errorf("%+v", r)
	}
	// with a lease of Vault's the certificate is revoked
	l = lease(allow("write", "pki/issue/leased?common_name=b.example"))
	c = f.mint(is, l)
	serial := c.Public["serial_number"]
	f.withdraw(is, l)
	if at := f.server.Do(t, http.MethodGet, "pki/cert/"+serial, nil)["revocation_time"]; at == nil || at == float64(0) {
		t.Errorf("the certificate is not revoked: %v", at)
	}
}
