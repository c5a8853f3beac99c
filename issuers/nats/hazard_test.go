package nats_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/nats"
	"github.com/mayfly-broker/mayfly/issuers/nats/natstest"
	"github.com/mayfly-broker/mayfly/secret"
)

// A deposed leader that signs after the lease's end makes nothing: its keys are
// revoked for whatever is ever issued to them, and not up to a moment.
func TestHazard8LateMintIsBornRevoked(t *testing.T) {
	f := newFixture(t, shared)
	l := lease(allow([]string{"publish"}, "a"))
	f.withdraw(f.open(2), l)
	// revocations compare seconds
	over := time.Now().Unix()
	eventually(t, "the next second", func() bool { return time.Now().Unix() > over })
	// It asks no server, as one would whose look-up had come back before the end.
	late := newFixture(t, shared)
	late.secrets = f.secrets
	c := late.offline().mint(late.open(1), l)
	if nc, err := f.dial(c); err == nil {
		nc.Close()
		t.Fatal("what was signed after the end logs in")
	}
}

// A JWT that is signed late ends with its lease all the same.
func TestHazard8LateMintEndsWithTheLease(t *testing.T) {
	f := newFixture(t, shared).offline()
	l := lease(allow([]string{"publish"}, "a"))
	l.NotBefore = l.NotBefore.Add(-9 * time.Minute)
	l.NotAfter = time.Now().Add(5 * time.Second)
	c := f.mint(f.open(1), l)
	u, err := jwt.DecodeUserClaims(c.Secret["jwt"].Reveal())
	if err != nil || u.Expires == 0 || time.Unix(u.Expires, 0).After(l.NotAfter) {
		t.Fatalf("the lease ends at %s, its JWT at %d (%v)", l.NotAfter, u.Expires, err)
	}
	nc := f.as(c)
	eventually(t, "the server ends the connection at the JWT's exp", nc.IsClosed)
	// in the second of its exp the server still lets it in, and out at once
	eventually(t, "the lease's end", func() bool { return time.Now().After(l.NotAfter) })
	if nc, err := f.dial(c); err == nil {
		nc.Close()
		t.Fatal("it logs in after the lease's end")
	}
}

// lockAs holds the lock on the account's updates as another broker would.
func (f *fixture) lockAs(term uint64) *natsgo.Conn {
	f.t.Helper()
	nc, err := f.server.SystemUser(natsgo.Name(fmt.Sprintf("%s%s/%020d/X", nats.LockPrefix, f.server.Account, term)))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(nc.Close)
	return nc
}

// A leader that froze between its reading of the account and its push holds the
// lock: nobody pushes beside it, and the next leader's fence waits for its end.
func TestHazard8FrozenUpdateIsWaitedFor(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(7)
	l := lease(allow([]string{"publish"}, "a"))
	f.mint(is, l)
	for _, term := range []uint64{3, 9} {
		frozen := f.lockAs(term)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		out := is.Withdraw(short, []issuers.Lease{l})
		wantKind(t, out[0].Err, issuers.Unreachable) // nothing was pushed
		cancel()
		patience := time.Minute // it need not wait for who is newer
		if term < 7 {
			patience = time.Second
		}
		short, cancel = context.WithTimeout(t.Context(), patience)
		if err := is.Fence(short); (err != nil) != (term < 7) {
			t.Errorf("the fence of term 7 while a leader of term %d updates: %v", term, err)
		}
		cancel()
		if len(f.claims().Revocations) > 0 && f.claims().IsClaimRevoked(f.userOf(is, l)) {
			t.Fatal("it was revoked beside another broker's update")
		}
		frozen.Close()
	}
	if err := is.Fence(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.withdraw(is, l)
}

// userOf is a lease's user as servers see it.
func (f *fixture) userOf(is *nats.Issuer, l issuers.Lease) *jwt.UserClaims {
	f.t.Helper()
	offline := newFixture(f.t, f.server)
	offline.secrets = f.secrets
	c := offline.offline().mint(offline.open(1), l)
	u, err := jwt.DecodeUserClaims(c.Secret["jwt"].Reveal())
	if err != nil {
		f.t.Fatal(err)
	}
	return u
}

// The server ends the lock itself, a minute later at most, whatever became of its
// holder.
func TestHazard8LockEndsByTheServersClock(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	watch := f.server.SystemConn(t)
	ctx, cancel := context.WithCancel(t.Context())
	blocker := f.lockAs(9) // greater: ours comes and goes
	var wg sync.WaitGroup
	wg.Go(func() { is.Withdraw(ctx, []issuers.Lease{lease(allow([]string{"publish"}, "a"))}) })
	var token string
	eventually(t, "the issuer's own lock shows", func() bool {
		m, err := watch.Request("$SYS.REQ.ACCOUNT."+f.server.System+".CONNZ", []byte(`{"auth":true}`), 5*time.Second)
		if err != nil {
			return false
		}
		_, rest, ok := strings.Cut(string(m.Data), fmt.Sprintf(`"name":"%s%s/%020d/`, nats.LockPrefix, f.server.Account, 1))
		if !ok {
			return false
		}
		_, rest, ok = strings.Cut(rest, `"jwt":"`)
		token, _, _ = strings.Cut(rest, `"`)
		return ok
	})
	cancel()
	wg.Wait()
	blocker.Close()
	u, err := jwt.DecodeUserClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(time.Unix(u.Expires, 0)); u.Expires == 0 || left > time.Minute {
		t.Errorf("the lock may be held for %s", left)
	}
	if u.Pub.Allow.Contains(">") || len(u.Pub.Allow) == 0 || len(u.Sub.Allow) != 1 {
		t.Errorf("its user may do more than it must: %v", u.Permissions)
	}
}

// Several brokers that revoke at once lose none of each other's revocations: the
// servers know no conditional update.
func TestHazard8NoRevocationIsLostAmongBrokers(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	const brokers, each = 4, 3
	var wg sync.WaitGroup
	creds := make([]issuers.Credential, brokers*each)
	errs := make([]error, len(creds))
	for b := range brokers {
		is := f.open(uint64(b/2) + 1)
		wg.Go(func() {
			for i := range each {
				n := b*each + i
				l := lease(allow([]string{"publish"}, "a"))
				if creds[n], errs[n] = is.Mint(t.Context(), l); errs[n] == nil {
					errs[n] = is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err
				}
			}
		})
	}
	wg.Wait()
	claims := f.claims()
	for n, c := range creds {
		if errs[n] != nil {
			t.Fatal(errs[n])
		}
		u, err := jwt.DecodeUserClaims(c.Secret["jwt"].Reveal())
		if err != nil {
			t.Fatal(err)
		}
		if !claims.IsClaimRevoked(u) {
			t.Errorf("the revocation of lease %d was lost", n)
		}
	}
}

// Revocations compare seconds, and re-mints come faster than that: each
// generation has a key of its own.
func TestHazard9GenerationsOfOneSecond(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	first := lease(allow([]string{"publish"}, "a"))
	second := issuertest.Regenerate(nats.Kind{}, first)
	old := f.as(f.mint(is, first))
	newest := f.mint(is, second)
	eventually(t, "the first generation's connection ends", old.IsClosed)
	if err := f.as(newest).FlushTimeout(10 * time.Second); err != nil {
		t.Fatalf("the second generation: %v", err)
	}
	_, err := is.Mint(t.Context(), first)
	wantKind(t, err, issuers.Superseded)
	f.withdraw(is, second)
	if nc, err := f.dial(newest); err == nil {
		nc.Close()
		t.Fatal("the second generation logs in after the end")
	}
	many := first
	many.Generation = nats.MaxGenerations + 1
	many.Name = nats.Kind{}.CredentialName(many.ID, many.Generation)
	_, err = is.Mint(t.Context(), many)
	wantKind(t, err, issuers.Refused)
}

// Other people's revocations, and whatever else stands in the account's JWT, are
// left as they are; ours go when their credentials are long over, and not before.
func TestHazard16OthersRevocationsAreLeftAlone(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	key := func() string {
		kp, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		public, err := kp.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return public
	}
	theirs, everybody, over, kept := key(), "*", key(), key()
	now := time.Now()
	claims := f.claims()
	claims.Revocations = jwt.RevocationList{
		theirs: now.Add(-time.Hour).Unix(), everybody: now.Add(-48 * time.Hour).Unix(),
		over: nats.Moment(now.Add(-time.Hour)), kept: nats.Moment(now.Add(-nats.KeepRevoked / 2)),
	}
	claims.Description = "of somebody else"
	if err := f.server.Push(t.Context(), claims); err != nil {
		t.Fatal(err)
	}
	is := f.open(1)
	f.withdraw(is, lease(allow([]string{"publish"}, "a")))
	after := f.claims()
	switch {
	case after.Revocations[theirs] != claims.Revocations[theirs], after.Revocations[everybody] != claims.Revocations[everybody]:
		t.Errorf("revocations of other people's have changed: %v", after.Revocations)
	case after.Description != claims.Description, len(after.SigningKeys) != 2, after.IssuedAt <= f.claims().IssuedAt-1:
		t.Errorf("the account has changed: %s", after)
	}
	if _, there := after.Revocations[over]; there {
		t.Error("a revocation of ours stays after its credential's end")
	}
	if _, there := after.Revocations[kept]; !there || len(after.Revocations) != 4 {
		t.Errorf("a revocation of ours went too early: %v", after.Revocations)
	}
}

// A push of an older copy of the account takes revocations back; the next sweep
// puts them in again.
func TestRevocationsThatAPushLostAreRestored(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	is := f.open(1)
	before := f.claims()
	l := lease(allow([]string{"publish"}, "a"))
	c := f.mint(is, l)
	f.withdraw(is, l)
	successor := f.open(2)
	if err := successor.Sweep(t.Context()); err != nil { // it learns what stands there
		t.Fatal(err)
	}
	if err := f.server.Push(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	f.as(c).Close() // it is alive again
	for _, i := range []*nats.Issuer{successor, is} {
		if err := i.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if nc, err := f.dial(c); err == nil {
			nc.Close()
			t.Fatal("after the sweep the withdrawn credential logs in")
		}
	}
}

// What cannot be revoked says so, is short, and ends by itself on the server.
func TestHazard18WithoutKeysItOnlyExpires(t *testing.T) {
	f := newFixture(t, shared).offline()
	k := nats.Kind{}
	if issuers.Revocable(k, f.raw()) || k.MaxTTL(f.raw()) != time.Hour {
		t.Errorf("revocable %v, at most %s", issuers.Revocable(k, f.raw()), k.MaxTTL(f.raw()))
	}
	is := f.open(1)
	l := lease(allow([]string{"publish"}, "a"))
	c := f.mint(is, l)
	out := f.withdraw(is, l)
	if r := out[0].Receipt; r.Proof != issuers.ProofExpiresOnly || !strings.Contains(r.Detail, l.NotAfter.UTC().Truncate(time.Second).Format(time.RFC3339)) {
		t.Errorf("the receipt: %+v", r)
	}
	f.as(c) // and it is true
	l.NotAfter = l.NotBefore.Add(30 * 24 * time.Hour)
	u, err := jwt.DecodeUserClaims(f.mint(is, l).Secret["jwt"].Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if end := time.Unix(u.Expires, 0); end.After(l.NotBefore.Add(time.Hour)) {
		t.Errorf("a lease of a month has a JWT until %s; max_ttl is an hour", end)
	}
	if !issuers.Revocable(k, newFixture(t, shared).raw()) {
		t.Error("a target with the means to revoke is not revocable")
	}
}

// Somebody says that the account was updated, and it was not: what counts is what
// the server holds.
func TestReceiptRestsOnTheServersMemory(t *testing.T) {
	s := natstest.Start(t, natstest.Memory())
	f := newFixture(t, s)
	rogue := s.SystemConn(t)
	answer := func(subject string, text func() string) {
		t.Helper()
		if _, err := rogue.Subscribe(subject, func(m *natsgo.Msg) { _ = m.Respond([]byte(text())) }); err != nil {
			t.Fatal(err)
		}
	}
	answer("$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP", s.AccountJWT)
	answer("$SYS.REQ.CLAIMS.UPDATE", func() string { return `{"server":{"id":"` + rogue.ConnectedServerId() + `"},"data":{"code":200}}` })
	if err := rogue.Flush(); err != nil {
		t.Fatal(err)
	}
	is := f.open(1)
	l := lease(allow([]string{"publish"}, "a"))
	f.as(f.mint(is, l))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	wantKind(t, is.Withdraw(ctx, []issuers.Lease{l})[0].Err, issuers.Unknown)
}

// A server that cannot be asked may still let the user in: no receipt until it
// answers. Mints go on meanwhile, also those of a leader that is new.
func TestWithdrawalWaitsForEveryServer(t *testing.T) {
	servers := natstest.StartCluster(t, 3)
	f := newFixture(t, servers[0])
	is := f.open(1)
	l := lease(allow([]string{"publish"}, "a"))
	c := f.mint(is, l)
	freeze(t, servers[2])
	if out := is.Withdraw(t.Context(), []issuers.Lease{l}); out[0].Err == nil {
		t.Errorf("proven without a server: %+v", out[0])
	}
	next := f.open(2)
	f.as(f.mint(next, lease(allow([]string{"publish"}, "a"))))
	if err := servers[2].Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the withdrawal goes through once the server is back", func() bool { return next.Withdraw(t.Context(), []issuers.Lease{l})[0].Err == nil })
	for _, s := range servers {
		other := newFixture(t, s)
		if nc, err := other.dial(c); err == nil {
			nc.Close()
			t.Error("a server still lets the user in")
		}
	}
}

// What lives must still find room to be revoked: minting stops before the
// account's JWT is as long as the server lets through.
func TestHazard17RoomForRevocations(t *testing.T) {
	f := newFixture(t, natstest.Start(t, natstest.Config("max_payload: 6000")))
	is := f.open(1)
	var leases []issuers.Lease
	var err error
	for range 60 {
		l := lease(allow([]string{"publish"}, "a"))
		if _, err = is.Mint(t.Context(), l); err != nil {
			break
		}
		live := lease(allow([]string{"publish"}, "a"))
		f.mint(is, live)
		leases = append(leases, live)
		f.withdraw(is, l)
	}
	wantKind(t, err, issuers.Refused)
	if !strings.Contains(err.Error(), "max_payload") {
		t.Errorf("it does not say why: %v", err)
	}
	f.withdraw(is, leases...)
	// an account that is full refuses the push, and says so; what has expired needs none
	full := make([]issuers.Lease, 64)
	for i := range full {
		full[i] = lease(allow([]string{"publish"}, "a"))
	}
	full[0].NotBefore, full[0].NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	out := is.Withdraw(t.Context(), full)
	if out[0].Err != nil || out[0].Receipt.Proof != issuers.ProofAbsent {
		t.Errorf("what has expired: %+v", out[0])
	}
	wantKind(t, out[1].Err, issuers.Refused)
}

// An operator key that the servers do not trust would shut everybody out of the
// account: it never signs.
func TestUntrustedOperatorKeySignsNothing(t *testing.T) {
	f := newFixture(t, shared)
	stranger, err := nkeys.CreateOperator()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := stranger.Seed()
	if err != nil {
		t.Fatal(err)
	}
	f.secrets[nats.SecretOperator] = secret.New(string(seed))
	before := f.claims()
	is := f.open(1)
	l := lease(allow([]string{"publish"}, "a"))
	f.mint(is, l)
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Refused)
	if after := f.claims(); after.ID != before.ID {
		t.Error("the account's JWT was pushed")
	}
}

// Somebody in the system account answers look-ups before the servers do: what it
// says of the account is not signed by the operator, and so never by us.
func TestForgedLookUpIsNotSigned(t *testing.T) {
	f := newFixture(t, natstest.StartCluster(t, 3)[0]) // the other servers' answers come later than the forger's
	forger, err := nkeys.CreateOperator()
	if err != nil {
		t.Fatal(err)
	}
	forged := f.claims()
	evil, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	public, err := evil.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	forged.SigningKeys.Add(public)
	token, err := forged.Encode(forger)
	if err != nil {
		t.Fatal(err)
	}
	token = edited(t, forger, token, func(claims map[string]any) { claims["iat"] = time.Now().Add(time.Hour).Unix() }) // the newest of all
	rogue := f.server.SystemConn(t)
	if _, err := rogue.Subscribe("$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP", func(m *natsgo.Msg) {
		for range 3 {
			_ = m.Respond([]byte(token))
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := rogue.Flush(); err != nil {
		t.Fatal(err)
	}
	is := f.open(1)
	for range 3 {
		l := lease(allow([]string{"publish"}, "a"))
		f.mint(is, l)
		f.withdraw(is, l)
	}
	rogue.Close()
	if c := f.claims(); len(c.SigningKeys) != 2 || len(c.Revocations) != 3 {
		t.Errorf("the account has %d signing keys and %d revocations", len(c.SigningKeys), len(c.Revocations))
	}
}
