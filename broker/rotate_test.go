package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

var errKilled = errors.New("killed")

var opCaller = callerOf(operator, "")

// turning is the kind of the rig with accounts that live on: what their secrets are
// by the target's own word, and an admin account whose secret opens the rest.
type turning struct {
	*brokertest.Kind
	mu       sync.Mutex
	secrets  map[string]string // by username; "admin" is the broker's own
	replaced []replaced        // in order
	refuses  error             // what Replace answers, where set
	silent   error             // what Present answers, where set
	enters   string            // the admin account, where it is another
	strict   bool              // it has no accounts but those in secrets
	hangs    string            // a target that takes no replacement before its context ends
	// left counts the points up to the one at which the node dies; 0: it lives on.
	left int
	dead bool
}

// point is an instant at which a node may die: all that it does from then on fails.
func (k *turning) point() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left > 0 {
		if k.left--; k.left == 0 {
			k.dead = true
		}
	}
	if k.dead {
		return errKilled
	}
	return nil
}

// replaced is that the target was told of another secret.
type replaced struct {
	username string
	at       time.Time
}

func (k *turning) has(username, password string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.secrets[username] == password
}

func (k *turning) Admin(json.RawMessage) (string, string, error) {
	if k.enters != "" {
		return k.enters, "admin_password", nil
	}
	return "admin", "admin_password", nil
}

func (k *turning) Open(t issuers.Target) (issuers.Issuer, error) {
	i, err := k.Kind.Open(t)
	return &turner{i, k, t.Name, t.Secrets["admin_password"].Reveal()}, err
}

type turner struct {
	issuers.Issuer
	kind   *turning
	target string
	admin  string
}

// Mint logs in by the admin's secret, as real issuers do when they connect.
func (i *turner) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	if !i.kind.has("admin", i.admin) {
		return issuers.Credential{}, &issuers.Error{Kind: issuers.Refused, Detail: "the admin's password is wrong"}
	}
	return i.Issuer.Mint(ctx, l)
}

func (i *turner) Replace(ctx context.Context, r issuers.Replacement) error {
	if i.kind.hangs == i.target {
		<-ctx.Done()
		return &issuers.Error{Kind: issuers.Unknown, Err: ctx.Err()}
	}
	if err := i.kind.point(); err != nil {
		return &issuers.Error{Kind: issuers.Unreachable, Err: err}
	}
	i.kind.mu.Lock()
	switch {
	case i.kind.refuses != nil:
		defer i.kind.mu.Unlock()
		return i.kind.refuses
	case i.kind.strict && i.kind.secrets[r.Username] == "":
		defer i.kind.mu.Unlock()
		return &issuers.Error{Kind: issuers.Refused, Detail: "no such account"}
	case i.kind.secrets["admin"] != i.admin:
		defer i.kind.mu.Unlock()
		return &issuers.Error{Kind: issuers.Refused, Detail: "the admin's password is wrong"}
	}
	i.kind.secrets[r.Username] = r.Next.Reveal()
	i.kind.replaced = append(i.kind.replaced, replaced{r.Username, time.Now()})
	i.kind.mu.Unlock()
	if err := i.kind.point(); err != nil {
		return &issuers.Error{Kind: issuers.Unknown, Err: err}
	}
	return nil
}

func (i *turner) TryLogin(_ context.Context, username string, s secret.Text) error {
	if err := i.kind.point(); err != nil {
		return &issuers.Error{Kind: issuers.Unreachable, Err: err}
	}
	if !i.kind.has(username, s.Reveal()) {
		return &issuers.Error{Kind: issuers.Refused, Detail: "wrong password"}
	}
	return i.kind.point()
}

func (i *turner) Present(_ context.Context, username string, s secret.Text) (issuers.Credential, error) {
	i.kind.mu.Lock()
	defer i.kind.mu.Unlock()
	if i.kind.silent != nil {
		return issuers.Credential{}, i.kind.silent
	}
	return issuers.Credential{Public: map[string]string{"username": username}, Secret: map[string]secret.Text{"password": s}}, nil
}

// turnings is a bubble whose target t1 has accounts and an admin account.
func turnings(t *testing.T, test func(t *testing.T, r *rig, k *turning)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		k := &turning{Kind: r.kind, secrets: map[string]string{"admin": "first", "app": "old", "app_a": "old", "app_b": "old"}}
		r.before(func(ledger.Decoded) error { return k.point() })
		r.after(func(ledger.Decoded, ledger.Result) error { return k.point() })
		r.become(k)
		defer func() { r.engine.Close() }()
		defer func() { r.stop() }()
		r.apply(wire.Object{Kind: "Target", Name: "t1", Spec: json.RawMessage(`{"type":"memory","zone":"z1","system":"t1"}`), Secrets: map[string]string{"admin_password": "first"}})
		r.lead()
		test(t, r, k)
	})
}

// become has another engine take over from the ledger alone.
func (r *rig) become(k *turning) {
	r.t.Helper()
	r.becomeOf(k)
}

func (r *rig) becomeOf(k issuers.Kind) {
	r.t.Helper()
	e, err := broker.New(broker.Config{Log: r.log, Node: "n1", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{k},
		Logger: slog.New(slog.NewJSONHandler(r.logged, nil))})
	if err != nil {
		r.t.Fatal(err)
	}
	r.engine = e
}

// restart ends a dead node and begins another in a new term.
func (r *rig) restart(k *turning) {
	r.t.Helper()
	r.stop()
	r.engine.Close()
	k.mu.Lock()
	k.left, k.dead = 0, false
	k.mu.Unlock()
	r.log.SetTerm(r.log.Term() + 1)
	r.become(k)
	r.lead()
}

func (r *rig) apply(objects ...wire.Object) {
	r.t.Helper()
	if _, err := r.engine.Apply(context.Background(), opCaller, wire.ApplyRequest{Objects: objects}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) rotation(subject string) (x ledger.Rotation) {
	r.log.Query(func(q ledger.Query) { x, _ = q.Rotation(subject) })
	return x
}

// turns waits until a subject has turned n times and rests.
func (r *rig) turns(subject string, n uint64) {
	r.t.Helper()
	for end := time.Now().Add(2 * time.Hour); ; wait(time.Second) {
		x := r.rotation(subject)
		if x.Turns >= n && x.State == ledger.RotationIdle {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("%s has not turned %d times: %+v", subject, n, x)
		}
	}
}

const (
	oneName  = `{"target":"t1","usernames":["app"],"rotation":{"cron":"0 * * * *"}}`
	twoNames = `{"target":"t1","usernames":["app_a","app_b"],"grace":"2m","rotation":{"cron":"*/15 * * * *","time_zone":"Europe/Berlin","jitter":"1m"}}`
	usedOnce = `{"target":"t1","usernames":["app"],"rotate_after_use":true}`
)

func account(spec string) []wire.Object {
	return []wire.Object{{Kind: "Account", Name: "app", Spec: json.RawMessage(spec)},
		{Kind: "Role", Name: "t1/app", Spec: json.RawMessage(`{"account":"app","ttl":{"default":"1m","max":"2h"}}`)}}
}

// TestAccountIsGivenOutAndTurnsOnSchedule: nobody told the broker a secret, so the
// first turn comes at once; from then on the schedule's, each verified.
func TestAccountIsGivenOutAndTurnsOnSchedule(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		if a.Credential["username"] != "app" || !k.has("app", a.Credential["password"]) || a.Credential["password"] == "old" || a.Renewable {
			t.Fatalf("given out: %+v", a)
		}
		first := r.rotation("Account/app")
		if first.Reason != ledger.RotateFirst || time.UnixMilli(first.DueMS).Minute() != 0 {
			t.Errorf("first turn: %+v", first)
		}
		r.within(90*time.Second, "the lease ends by itself", r.ended(a.LeaseID))
		if l := r.lease(a.LeaseID); !strings.Contains(string(l.End.Receipt), issuers.ProofExpiresOnly) {
			t.Errorf("receipt: %s", l.End.Receipt)
		}
		r.turns("Account/app", 2)
		x := r.rotation("Account/app")
		if x.Reason != ledger.RotateScheduled || k.has("app", a.Credential["password"]) || x.BegunMS < first.DueMS || x.BegunMS > first.DueMS+2000 {
			t.Errorf("second turn: %+v", x)
		}
		if got := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"}); !k.has("app", got.Credential["password"]) {
			t.Error("what is given out after the turn does not log in")
		}
	})
}

// TestRotationIsNotRepeatedByARestart: what turned stays turned, whoever leads.
func TestRotationIsNotRepeatedByARestart(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		for range 3 {
			r.restart(k)
			wait(time.Minute)
		}
		if x := r.rotation("Account/app"); x.Turns != 1 || len(k.replaced) != 1 {
			t.Errorf("turned %d times, the target was told %d times", x.Turns, len(k.replaced))
		}
	})
}

// crashing kills the node at the n-th point after ready, for each n until a whole
// cycle passes, and checks that the next node heals what it finds.
func crashing(t *testing.T, objects []wire.Object, subject string, check func(t *testing.T, r *rig, k *turning)) {
	t.Helper()
	for n := 1; ; n++ {
		over := false
		t.Run(fmt.Sprintf("point %d", n), func(t *testing.T) {
			turnings(t, func(t *testing.T, r *rig, k *turning) {
				r.apply(objects...)
				r.turns(subject, 1)
				if _, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: strings.ToLower(strings.Split(subject, "/")[0]), Name: strings.Split(subject, "/")[1]}); err != nil {
					t.Fatal(err)
				}
				r.turns(subject, 2)
				stop := r.uses(k)
				k.mu.Lock()
				k.left = n
				k.mu.Unlock()
				deadline := time.Now().Add(40 * time.Minute)
				for time.Now().Before(deadline) {
					k.mu.Lock()
					died := k.dead
					k.mu.Unlock()
					if died {
						break
					}
					wait(time.Second)
				}
				if over = r.rotation(subject).Turns >= 4; over { // two whole cycles lay before the point
					stop()
					return
				}
				r.restart(k)
				turned := r.rotation(subject).Turns
				r.turns(subject, turned+1)
				check(t, r, k)
				stop()
			})
		})
		if over || t.Failed() {
			if n < 8 {
				t.Fatalf("only %d points in a rotation", n)
			}
			return
		}
	}
}

// uses requests and uses the account all the time: no login within a lease's life
// may be refused. Only what the broker answers while it is dead is no answer.
func (r *rig) uses(k *turning) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			a, err := r.engine.Request(context.Background(), appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "loop", TTL: "90s"})
			for err == nil && time.Now().Before(a.ExpiresAt) {
				if !k.has(a.Credential["username"], a.Credential["password"]) {
					r.t.Errorf("a login as %s was refused %s before the lease's end", a.Credential["username"], time.Until(a.ExpiresAt))
					err = errKilled
				}
				select {
				case <-quit:
					return
				case <-time.After(5 * time.Second):
				}
			}
			select {
			case <-quit:
				return
			case <-time.After(time.Second):
			}
		}
	}()
	return func() { close(quit); <-done }
}

// TestRotationOfTwoNamesSurvivesAKillAtEveryStep: and no client that uses what it
// was given, for as long as it was given, ever sees a refused login.
func TestRotationOfTwoNamesSurvivesAKillAtEveryStep(t *testing.T) {
	crashing(t, account(twoNames), "Account/app", func(t *testing.T, r *rig, k *turning) {
		x := r.rotation("Account/app")
		r.log.Query(func(q ledger.Query) {
			for slot, name := range []string{"app_a", "app_b"} {
				if !k.has(name, string(q.SlotSecret("app", slot))) {
					t.Errorf("nobody knows the secret of %s: %+v", name, x)
				}
			}
		})
		k.slotsTakeTurns(t, 2*time.Minute)
	})
}

// slotsTakeTurns fails the test if one slot was replaced sooner than a whole grace
// after the other: who was given that one could find both refused.
func (k *turning) slotsTakeTurns(t *testing.T, grace time.Duration) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	others := 0
	for i := 1; i < len(k.replaced); i++ {
		a, b := k.replaced[i-1], k.replaced[i]
		if a.username == b.username {
			continue
		}
		if others++; b.at.Sub(a.at) < grace {
			t.Errorf("%s was replaced %s after %s: %v", b.username, b.at.Sub(a.at), a.username, k.replaced)
		}
	}
	if others == 0 {
		t.Errorf("only one slot was ever replaced: %v", k.replaced)
	}
}

// TestRotationOfAnAdminSurvivesAKillAtEveryStep: the broker never loses its own way in.
func TestRotationOfAnAdminSurvivesAKillAtEveryStep(t *testing.T) {
	objects := append(account(twoNames), wire.Object{Kind: "Target", Name: "t1",
		Spec: json.RawMessage(`{"type":"memory","zone":"z1","system":"t1","rotation":{"cron":"*/10 * * * *"}}`)})
	crashing(t, objects, "Target/t1", func(t *testing.T, r *rig, k *turning) {
		r.log.Query(func(q ledger.Query) {
			if !k.has("admin", string(q.Secret("Target", "t1", "admin_password"))) {
				t.Error("the broker is locked out of its target")
			}
		})
		if k.has("admin", "first") {
			t.Error("the first secret, which people know, still works")
		}
	})
}

// TestRotatedSecretIsNeverPutBack: the document in somebody's repository holds the
// secret of the first day.
func TestRotatedSecretIsNeverPutBack(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		if x, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "target", Name: "t1"}); err != nil || x.Turns != 1 || x.State != "idle" {
			t.Fatalf("%+v %v", x, err)
		}
		again := wire.Object{Kind: "Target", Name: "t1", Spec: json.RawMessage(`{"type":"memory","zone":"z1","system":"t1"}`), Secrets: map[string]string{"admin_password": "first"}}
		a, err := r.engine.Apply(t.Context(), opCaller, wire.ApplyRequest{Objects: []wire.Object{again}})
		if err != nil || a.Changes[0].Action != "unchanged" {
			t.Errorf("%+v %v", a, err)
		}
		// A leader that proposes it all the same changes nothing either.
		raw, err := ledger.Encode(ledger.Header{AtMS: time.Now().UnixMilli()}, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{
			Kind: "Target", Name: "t1", Spec: again.Spec, AnyVersion: true, Secrets: []string{"Target/t1/admin_password"}}}},
			ledger.Secret{Name: "Target/t1/admin_password", Salt: make([]byte, 16), Value: []byte("first")})
		if err != nil {
			t.Fatal(err)
		}
		if res, err := r.log.Propose(t.Context(), raw, false); err != nil || !res.OK() {
			t.Fatal(res, err)
		}
		r.log.Query(func(q ledger.Query) {
			if !k.has("admin", string(q.Secret("Target", "t1", "admin_password"))) {
				t.Error("the rotated secret was put back")
			}
		})
	})
}

// TestFailedRotationIsTriedAgainAndSaysSo: with backoff, with what was wrong, and
// with the old secret still given out.
func TestFailedRotationIsTriedAgainAndSaysSo(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		k.mu.Lock()
		k.refuses = &issuers.Error{Kind: issuers.Refused, Detail: "may not alter app"}
		k.mu.Unlock()
		x, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "account", Name: "app"})
		if err != nil || x.Tries != 1 || !strings.Contains(x.Problem, "may not alter app") || x.NextAt == nil {
			t.Fatalf("%+v %v", x, err)
		}
		present := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		if !k.has("app", present.Credential["password"]) {
			t.Error("what is given out meanwhile does not log in")
		}
		wait(4 * time.Minute)
		if x := r.rotation("Account/app"); x.Tries < 4 || x.Tries > 8 {
			t.Errorf("tried %d times in four minutes", x.Tries)
		}
		o, err := r.engine.Object(t.Context(), opCaller, "account", "app")
		if err != nil || o.Rotation == nil || o.Rotation.Problem == "" {
			t.Errorf("get account says nothing of it: %+v %v", o.Rotation, err)
		}
		k.mu.Lock()
		k.refuses = nil
		k.mu.Unlock()
		r.turns("Account/app", 2)
		if x := r.rotation("Account/app"); x.Tries != 0 || x.Problem != "" {
			t.Errorf("after success: %+v", x)
		}
	})
}

// TestLaw2LeaseOnAnAccountEndsWithItsSecret: where the spec asks for it, and
// whenever a lease is withdrawn before its time.
func TestLaw2LeaseOnAnAccountEndsWithItsSecret(t *testing.T) {
	for name, x := range map[string]struct {
		spec string
		end  func(r *rig, lease string) error
	}{
		"after use": {usedOnce, func(r *rig, id string) error {
			wait(61 * time.Second)
			return nil
		}},
		"revoked": {oneName, func(r *rig, id string) error {
			_, err := r.engine.Revoke(context.Background(), opCaller, id, wire.RevokeRequest{Reason: "leaked"})
			return err
		}},
		"contained, two names": {twoNames, func(r *rig, id string) error {
			_, err := r.engine.Contain(context.Background(), opCaller, wire.ContainRequest{What: "workload:a", Reason: "odd"})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			turnings(t, func(t *testing.T, r *rig, k *turning) {
				r.apply(account(x.spec)...)
				r.turns("Account/app", 1)
				a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p", TTL: "1m"})
				if !k.has(a.Credential["username"], a.Credential["password"]) {
					t.Fatal("it does not log in")
				}
				if err := x.end(r, a.LeaseID); err != nil {
					t.Fatal(err)
				}
				r.within(gone, "the lease has ended", r.ended(a.LeaseID))
				if l := r.lease(a.LeaseID); !strings.Contains(string(l.End.Receipt), `"rotated"`) {
					t.Errorf("receipt: %s", l.End.Receipt)
				}
				if k.has(a.Credential["username"], a.Credential["password"]) {
					t.Error("what the lease gave out still logs in")
				}
			})
		})
	}
}

// TestMintWaitsForTheTargetsOwnSecret: requests that meet the instant at which the
// broker's own secret turns are served by the next one.
func TestMintWaitsForTheTargetsOwnSecret(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "opens the target by its first secret"})
		var once sync.Once
		got := make(chan error, 1)
		r.before(func(d ledger.Decoded) error {
			if d.Type == "finish_rotation" {
				// The target has the new secret, and the ledger does not know it yet.
				once.Do(func() {
					go func() {
						_, err := r.request(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "in between"})
						got <- err
					}()
					wait(2 * time.Second)
				})
			}
			return nil
		})
		if x, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "target", Name: "t1"}); err != nil || x.Turns != 1 {
			t.Fatalf("%+v %v", x, err)
		}
		if err := <-got; err != nil {
			t.Errorf("the request in between: %v", err)
		}
	})
}

// TestRotatingNowEndsWhatWasGivenOut: from whatever state, a grace that runs for an
// earlier turn included.
func TestRotatingNowEndsWhatWasGivenOut(t *testing.T) {
	for _, rests := range []bool{true, false} {
		turnings(t, func(t *testing.T, r *rig, k *turning) {
			r.apply(account(twoNames)...)
			r.turns("Account/app", 1)
			if !rests {
				if _, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "account", Name: "app"}); err != nil {
					t.Fatal(err)
				}
				if x := r.rotation("Account/app"); x.State != ledger.RotationGrace {
					t.Fatalf("%+v", x)
				}
			}
			leaked := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
			x, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "account", Name: "app", Now: true})
			if err != nil || x.State != ledger.RotationIdle || x.Problem != "" {
				t.Fatalf("%+v %v", x, err)
			}
			if k.has(leaked.Credential["username"], leaked.Credential["password"]) {
				t.Errorf("rested before: %v; what leaked still logs in: %+v", rests, r.rotation("Account/app"))
			}
		})
	}
}

// TestGivingAnAccountBackTakesItFromNobody: whoever may ask for a shared account
// may end a lease of their own at any time.
func TestGivingAnAccountBackTakesItFromNobody(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		if _, err := r.engine.Revoke(t.Context(), appCaller, a.LeaseID, wire.RevokeRequest{}); err != nil {
			t.Fatal(err)
		}
		r.within(gone, "the lease has ended", r.ended(a.LeaseID))
		if l := r.lease(a.LeaseID); !strings.Contains(string(l.End.Receipt), issuers.ProofExpiresOnly) || !k.has("app", a.Credential["password"]) {
			t.Errorf("receipt: %s", l.End.Receipt)
		}
	})
}
