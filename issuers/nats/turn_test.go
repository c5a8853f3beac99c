package nats_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/nats"
	"github.com/mayfly-broker/mayfly/issuers/nats/natstest"
	"github.com/mayfly-broker/mayfly/secret"
)

// A leader may die at any instant of a turn: whoever comes next mints by what the
// ledger holds, what was given out goes on, and the same step leads on.
func TestRotationSurvivesAKillAtEveryStep(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	b := newBook(f)
	dies := map[issuers.KeyTurn]bool{issuers.KeyUse: true, issuers.KeyRetire: true}
	n := 0
	for ; dies[issuers.KeyUse] || dies[issuers.KeyRetire]; n++ {
		if n > 60 {
			t.Fatal("a step has no end")
		}
		old := b.key()
		c0 := b.mustLogIn("before")
		b.turn(issuers.KeyPublish)
		c1 := b.mustLogIn("published", c0)
		dies[issuers.KeyUse] = b.killedAt(t, issuers.KeyUse, n)
		c2 := b.mustLogIn("killed in its use", c0, c1)
		b.turn(issuers.KeyUse)
		c3 := b.mustLogIn("used", c0, c1, c2)
		if b.key() == old {
			t.Fatal("the old key still signs")
		}
		dies[issuers.KeyRetire] = b.killedAt(t, issuers.KeyRetire, n)
		c4 := b.mustLogIn("killed in its retirement", c3)
		b.turn(issuers.KeyRetire)
		b.mustLogIn("retired", c3, c4)
		for _, c := range []issuers.Credential{c0, c1, c2} {
			f.mustNotLogIn(c, "after its retirement")
		}
		claims := f.claims()
		if claims.SigningKeys.Contains(old) || !claims.SigningKeys.Contains(b.key()) || len(claims.SigningKeys) != 2 {
			t.Fatalf("killed at %d, the account lists %v", n, claims.SigningKeys.Keys())
		}
	}
	if n < 8 {
		t.Errorf("only %d messages in a step", n)
	}
}

// A client that asks for what it needs, and uses it for as long as it was given it,
// sees no refused login and no dropped connection through whole turns.
func TestRotationRefusesNobody(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	b := newBook(f)
	const life = 4 * time.Second
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	logins := make([]int, 3)
	for i := range logins {
		wg.Go(func() {
			for ctx.Err() == nil {
				l := lease(allow([]string{"publish"}, "orders.*"))
				l.NotAfter = time.Now().Add(life)
				c, err := b.leader().Mint(t.Context(), l)
				if err != nil {
					t.Errorf("Mint: %v", err)
					return
				}
				// a second for the JWT's whole seconds, and one for its last
				if !f.logsInUntil(c, l.NotAfter.Add(-2*time.Second), &logins[i]) {
					return
				}
			}
		})
	}
	for range 3 {
		old := b.key()
		for _, step := range []issuers.KeyTurn{issuers.KeyPublish, issuers.KeyUse, issuers.KeyRetire} {
			if step == issuers.KeyRetire { // what the old one signed has ended
				over := time.Now().Add(life)
				eventually(t, "the old key's users end", func() bool { return time.Now().After(over) })
			}
			b.turn(step)
		}
		if f.claims().SigningKeys.Contains(old) {
			t.Error("the old key is not retired")
		}
	}
	cancel()
	wg.Wait()
	for i, n := range logins {
		if n < 3 {
			t.Errorf("client %d logged in %d times", i, n)
		}
	}
}

// logsInUntil holds one connection and makes others, until then. What fails after
// that was begun before, and held up by a slow machine.
func (f *fixture) logsInUntil(c issuers.Credential, end time.Time, logins *int) bool {
	failed := func(what string, err error) bool {
		left := time.Until(end)
		if err != nil && left > 0 {
			f.t.Errorf("%s %s before its end: %v", what, left, err)
		}
		return err != nil && left > 0
	}
	held, err := f.dial(c)
	if err != nil {
		return !failed("a first login", err)
	}
	defer held.Close()
	for time.Now().Before(end) {
		if err := f.use(context.Background(), c); failed("a login", err) {
			return false
		}
		*logins++
		if err := held.FlushTimeout(10 * time.Second); failed("a connection was dropped", err) {
			return false
		}
	}
	return true
}

// Brokers revoke while others turn the key of the same account: nothing that any of
// them put there is lost, nor what somebody else did before.
func TestHazard8NoChangeIsLostBesideARotation(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	claims := f.claims()
	claims.Description, claims.Tags = "of somebody else", jwt.TagList{"theirs"}
	if err := f.server.Push(t.Context(), claims); err != nil {
		t.Fatal(err)
	}
	b := newBook(f)
	other := newFixture(t, f.server) // a target of its own in the same account
	seed, _ := other.listed()
	other.secrets[nats.SecretSigning] = secret.New(seed)
	second := newBook(other)
	var mu sync.Mutex
	var ended []issuers.Credential
	done := make(chan struct{})
	var brokers, turns sync.WaitGroup
	for i := range 2 {
		is := newFixture(t, f.server).open(uint64(i + 5))
		brokers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				l := lease(allow([]string{"publish"}, "orders.*"))
				c, err := is.Mint(t.Context(), l)
				if err != nil { // its key is the one that is turned
					return
				}
				if err := is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err; err != nil {
					t.Errorf("Withdraw: %v", err)
					return
				}
				mu.Lock()
				ended = append(ended, c)
				mu.Unlock()
			}
		})
	}
	for _, x := range []*book{b, second} {
		turns.Go(func() {
			for range 2 {
				for _, step := range []issuers.KeyTurn{issuers.KeyPublish, issuers.KeyUse, issuers.KeyRetire} {
					x.turn(step)
				}
			}
		})
	}
	turns.Wait()
	close(done)
	brokers.Wait()
	after := f.claims()
	for _, c := range ended {
		u, err := jwt.DecodeUserClaims(c.Secret["jwt"].Reveal())
		if err != nil {
			t.Fatal(err)
		}
		if !after.IsClaimRevoked(u) {
			t.Errorf("the revocation of %s was lost", u.Name)
		}
	}
	b.mustLogIn("after its turns")
	second.mustLogIn("after its turns")
	role := func(c *jwt.AccountClaims) (text string) {
		for _, s := range c.SigningKeys {
			if s != nil {
				raw, err := json.Marshal(s)
				if err != nil {
					t.Fatal(err)
				}
				text += string(raw)
			}
		}
		return text
	}
	if role(claims) == "" || role(after) != role(claims) {
		t.Errorf("the key with a role was %s and is %s", role(claims), role(after))
	}
	if len(ended) == 0 || after.Description != claims.Description || len(after.Tags) != 1 || len(after.SigningKeys) != 3 {
		t.Errorf("%d revocations beside it; the account: %s", len(ended), after)
	}
}

// A push of a copy from before the rotation would shut out everybody that the new
// key has signed: it is put back. Who takes all keys out meant it.
func TestKeyThatAPushLostIsRestored(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	b := newBook(f)
	before := f.claims()
	for _, step := range []issuers.KeyTurn{issuers.KeyPublish, issuers.KeyUse, issuers.KeyRetire} {
		b.turn(step)
		if step == issuers.KeyPublish {
			continue
		}
		for name, heal := range map[string]func() error{
			"a sweep": func() error { return b.leader().Sweep(t.Context()) },
			"a mint": func() error {
				_, err := b.leader().Mint(t.Context(), lease(allow([]string{"publish"}, "a")))
				return err
			},
		} {
			c := b.mustLogIn("before the push")
			if err := f.server.Push(t.Context(), before); err != nil {
				t.Fatal(err)
			}
			f.mustNotLogIn(c, "after the push")
			if err := heal(); err != nil {
				t.Fatal(err)
			}
			b.mustLogIn("after "+name, c)
		}
	}
	// and in the midst of a turn, by the step that comes next
	before = f.claims()
	b.turn(issuers.KeyPublish)
	b.turn(issuers.KeyUse)
	if err := f.server.Push(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	b.turn(issuers.KeyRetire)
	b.mustLogIn("after its retirement")
	if key := b.key(); before.SigningKeys.Contains(key) || len(f.claims().SigningKeys) != 2 {
		t.Errorf("the account lists %v", f.claims().SigningKeys.Keys())
	}
	none := f.claims()
	none.SigningKeys = nil
	if err := f.server.Push(t.Context(), none); err != nil {
		t.Fatal(err)
	}
	if err := b.leader().Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := b.leader().Mint(t.Context(), lease(allow([]string{"publish"}, "a")))
	wantKind(t, err, issuers.Refused)
	if len(f.claims().SigningKeys) != 0 {
		t.Error("a key that somebody took out is put back")
	}
}

// What stands in the target's document is not asked for once the key was rotated,
// and no turn leaves an earlier key in the account.
func TestRotatedKeyIsNeverPutBack(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	b := newBook(f)
	for _, step := range []issuers.KeyTurn{issuers.KeyPublish, issuers.KeyUse, issuers.KeyRetire} {
		b.turn(step)
	}
	key := b.key()
	b.secrets[nats.SecretSigning] = secret.New(f.server.SigningSeed)
	b.current = b.open(9)
	if b.key() != key {
		t.Error("the first key, which people know, signs again")
	}
	b.mustLogIn("with the first key in the document")
	claims := f.claims()
	kp, err := nkeys.FromSeed([]byte(f.server.SigningSeed))
	if err != nil {
		t.Fatal(err)
	}
	public, err := kp.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	claims.SigningKeys.Add(public) // as a leader that was deposed, and late, may do
	if err := f.server.Push(t.Context(), claims); err != nil {
		t.Fatal(err)
	}
	for _, step := range []issuers.KeyTurn{issuers.KeyPublish, issuers.KeyUse, issuers.KeyRetire} {
		b.turn(step)
	}
	if keys := f.claims().SigningKeys; keys.Contains(public) || len(keys) != 2 {
		t.Errorf("after the next turn the account lists %v", keys.Keys())
	}
}

// A turn that cannot be made changes nothing and says what is missing.
func TestRotationSaysWhatIsMissing(t *testing.T) {
	stranger, err := nkeys.CreateOperator()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := stranger.Seed()
	if err != nil {
		t.Fatal(err)
	}
	turns := func(f *fixture, steps ...issuers.KeyTurn) error {
		for _, step := range steps {
			changed, err := nats.Kind{}.TurnKeys(t.Context(), f.raw(), f.secrets, step)
			if err != nil {
				return err
			}
			maps.Copy(f.secrets, changed)
		}
		return nil
	}
	before := newFixture(t, shared).claims()
	for name, c := range map[string]struct {
		change func(f *fixture)
		says   []string
		warns  bool // the check knows it, too
	}{
		"no means":               {func(f *fixture) { f.offline() }, []string{"revocation: {system_account", "operator_key", "system_key"}, true},
		"the account's identity": {func(f *fixture) { f.secrets[nats.SecretSigning] = secret.New(shared.AccountSeed) }, []string{"identity", "nsc edit account"}, true},
		"no account": {func(f *fixture) {
			delete(f.spec, "account")
			f.secrets[nats.SecretSigning] = secret.New(shared.AccountSeed)
		}, []string{"account:", "nsc describe account"}, true},
		"another operator's key": {func(f *fixture) { f.secrets[nats.SecretOperator] = secret.New(string(seed)) }, []string{"operator_key", "nothing was pushed"}, false},
		"nobody there":           {func(f *fixture) { f.spec["address"] = "127.0.0.1:1" }, []string{"127.0.0.1:1"}, false},
	} {
		f := newFixture(t, shared)
		c.change(f)
		err := turns(f, issuers.KeyPublish, issuers.KeyUse)
		for _, s := range c.says {
			if err == nil || !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v; want %q", name, err, s)
			}
		}
		if !c.warns {
			continue
		}
		if x := f.finding("rotation"); x.OK || !x.Warning || !strings.Contains(err.Error(), x.Detail) {
			t.Errorf("%s: the check says %+v", name, x)
		}
	}
	f := newFixture(t, shared)
	if x := f.finding("rotation"); !x.OK {
		t.Errorf("%+v", x)
	}
	if after := f.claims(); after.ID != before.ID {
		t.Error("the account's JWT was pushed")
	}
}

// A turn waits for every server: one that lacks the new key would refuse users that
// it signed.
func TestRotationWaitsForEveryServer(t *testing.T) {
	servers := natstest.StartCluster(t, 3)
	b := newBook(newFixture(t, servers[0]))
	c := b.mustLogIn("before")
	b.turn(issuers.KeyPublish)
	b.turn(issuers.KeyUse)
	fresh := b.mustLogIn("used", c)
	for i, s := range servers {
		other := newFixture(t, s)
		for _, c := range []issuers.Credential{c, fresh} {
			if err := other.use(t.Context(), c); err != nil {
				t.Errorf("server %d: %v", i, err)
			}
		}
	}
	b.turn(issuers.KeyRetire)
	for _, s := range servers {
		other := newFixture(t, s)
		other.mustNotLogIn(c, "after its retirement")
		if err := other.use(t.Context(), fresh); err != nil {
			t.Error(err)
		}
	}
}

// A server that hangs holds a turn up for a bounded time, and what was given out goes
// on when it does.
func TestRotationOnAServerThatHangs(t *testing.T) {
	s := natstest.Start(t)
	b := newBook(newFixture(t, s))
	c := b.mustLogIn("before")
	b.turn(issuers.KeyPublish)
	freeze(t, s)
	start := time.Now()
	_, err := nats.Kind{}.TurnKeys(t.Context(), b.raw(), b.secrets, issuers.KeyUse)
	wantKind(t, err, issuers.Unreachable)
	if took := time.Since(start); took > 40*time.Second {
		t.Errorf("that took %s", took)
	}
	if err := s.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.mustLogIn("once the server goes on", c)
	b.turn(issuers.KeyUse)
	b.mustLogIn("used", c)
}

// One server that has not taken the new key is enough for the old one to go on.
func TestRotationRestsOnEveryServersMemory(t *testing.T) {
	servers := natstest.StartCluster(t, 3, natstest.LastIsDeaf())
	b := newBook(newFixture(t, servers[0]))
	other := newFixture(t, servers[2])
	b.turn(issuers.KeyPublish)
	// It has not loaded the account yet, and cannot say what it knows of it.
	b.spec["addresses"] = []string{servers[2].Address()}
	_, err := nats.Kind{}.TurnKeys(t.Context(), b.raw(), b.secrets, issuers.KeyUse)
	wantKind(t, err, issuers.Refused)
	delete(b.spec, "addresses")
	c := b.mustLogIn("told in vain")
	if err := other.use(t.Context(), c); err != nil {
		t.Errorf("the server that was not told: %v", err)
	}
	_, err = nats.Kind{}.TurnKeys(t.Context(), b.raw(), b.secrets, issuers.KeyUse)
	wantKind(t, err, issuers.Unknown)
	if err := other.use(t.Context(), b.mustLogIn("told in vain once more")); err != nil {
		t.Errorf("the server that was not told: %v", err)
	}
}

// A new key counts once a user that it signed was let in, whatever servers say of it.
func TestRotationRestsOnALogin(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	b := newBook(f)
	claims := f.claims()
	claims.Limits.Conn = 1
	if err := f.server.Push(t.Context(), claims); err != nil {
		t.Fatal(err)
	}
	only := f.as(b.mustLogIn("before"))
	b.turn(issuers.KeyPublish)
	if _, err := (nats.Kind{}).TurnKeys(t.Context(), b.raw(), b.secrets, issuers.KeyUse); err == nil || !strings.Contains(err.Error(), "cannot log in") {
		t.Fatalf("the key is used unproven: %v", err)
	}
	only.Close()
	eventually(t, "there is room for a login", func() bool {
		_, err := nats.Kind{}.TurnKeys(t.Context(), b.raw(), b.secrets, issuers.KeyUse)
		return err == nil
	})
}

// --now: what leaked is worth nothing at once, its live connections included.
func TestRotationEndsWhatTheOldKeySigned(t *testing.T) {
	f := newFixture(t, natstest.Start(t))
	b := newBook(f)
	c := b.mustLogIn("before")
	nc := f.as(c)
	kp, err := nkeys.FromSeed([]byte(f.server.SigningSeed))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []issuers.KeyTurn{issuers.KeyPublish, issuers.KeyUse, issuers.KeyRetire} {
		b.turn(step)
	}
	eventually(t, "the connection of a user of the old key ends", nc.IsClosed)
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := user.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	uc := jwt.NewUserClaims(public)
	uc.IssuerAccount = f.server.Account
	token, err := uc.Encode(kp)
	if err != nil {
		t.Fatal(err)
	}
	own, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if nc, err := f.server.Dial(natsgo.UserJWTAndSeed(token, string(own))); err == nil {
		nc.Close()
		t.Error("whoever has the old key makes users")
	}
	b.mustLogIn(fmt.Sprint("after ", issuers.KeyRetire))
}
