package broker_test

import (
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// TestLaw2ARepeatThatFailsTakesBackWhatWasGivenOutBefore: a client asks again with
// its key while the secret is being replaced. What it was given the first time is
// not forgotten with the lease.
func TestLaw2ARepeatThatFailsTakesBackWhatWasGivenOutBefore(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(usedOnce)...)
		r.turns("Account/app", 1)
		who := appCaller
		who.Idem = &ledger.Idem{Key: "k", Hash: "h"}
		in := wire.AccessRequest{Role: "t1/app", Purpose: "p"}
		a := r.must(who, in)
		k.presents(&issuers.Error{Kind: issuers.Unreachable, Detail: "away"})
		if _, err := r.request(who, in); err == nil {
			t.Fatal("it was presented")
		}
		k.presents(nil)
		r.within(gone, "the lease has ended", r.ended(a.LeaseID))
		if l := r.lease(a.LeaseID); !strings.Contains(string(l.End.Receipt), `"rotated"`) {
			t.Errorf("receipt: %s", l.End.Receipt)
		}
		if k.has("app", a.Credential["password"]) {
			t.Error("what the lease gave out still logs in")
		}
	})
}

// TestLaw2AnEndedLeaseGivesOutNothing: the lease is revoked, and the secret replaced
// for that, between the commit of the lease and its answer.
func TestLaw2AnEndedLeaseGivesOutNothing(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		var lease string
		r.after(func(d ledger.Decoded, res ledger.Result) error {
			if d.Type != "open_lease" {
				return nil
			}
			lease = res.ID
			if _, err := r.engine.Revoke(context.Background(), opCaller, lease, wire.RevokeRequest{Reason: "leaked"}); err != nil {
				t.Error(err)
			}
			r.within(gone, "the lease has ended", r.ended(lease))
			return nil
		})
		a, err := r.request(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		r.after(nil)
		if err == nil && k.has("app", a.Credential["password"]) {
			t.Errorf("%s has ended, and gave out a secret that works: %s", lease, r.lease(lease).End.Receipt)
		}
	})
}

// presents sets what the target answers when it is to present an account; nil: well.
func (k *turning) presents(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.silent = err
}

// TestLaw2ATurnOfTheSameInstantIsNotTheLeases: where ledger time stands still, as
// after a clock that was ahead, a turn that began before the lease is not one that
// began after its end.
func TestLaw2ATurnOfTheSameInstantIsNotTheLeases(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		if x, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "account", Name: "app"}); err != nil || x.Turns != 2 {
			t.Fatalf("%+v %v", x, err)
		}
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		if _, err := r.engine.Revoke(t.Context(), opCaller, a.LeaseID, wire.RevokeRequest{Reason: "leaked"}); err != nil {
			t.Fatal(err)
		}
		r.within(gone, "the lease has ended", r.ended(a.LeaseID))
		if k.has("app", a.Credential["password"]) {
			t.Errorf("what the lease gave out still logs in: %s", r.lease(a.LeaseID).End.Receipt)
		}
	})
}

// TestTargetIsNotEnteredByAnAccount that is given out, whichever came first.
func TestTargetIsNotEnteredByAnAccount(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		k.enters = "app" // as the spec says that is written now
		_, err := r.engine.Apply(t.Context(), opCaller, wire.ApplyRequest{Objects: []wire.Object{{Kind: "Target", Name: "t1", Spec: []byte(`{"type":"memory","system":"t1"}`)}}})
		if err == nil || !strings.Contains(err.Error(), "app is account app") {
			t.Error(err)
		}
	})
}

// TestRotationCannotWaitForApprovals: a permit that asks for co-signatures is none
// for what nobody can co-sign.
func TestRotationCannotWaitForApprovals(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		r.put("Policy", "two", mustJSON(ledger.PolicySpec{Text: `@id("two") @approvals("2") @approvers("dba") permit (principal == Human::"op", action == Action::"rotate", resource);`}))
		_, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "account", Name: "app"})
		r.fails(err, fault.Denied, ledger.CodeApprovalRequired)
		if x := r.rotation("Account/app"); x.Turns != 1 || x.Wanted != "" {
			t.Errorf("%+v", x)
		}
	})
}

// TestAccountThatTurnsAfterUseIsGivenToOneAtATime: who asks meanwhile is told who
// has it; the first is not locked out by the second, and the next one is served once
// the secret was replaced.
func TestAccountThatTurnsAfterUseIsGivenToOneAtATime(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(usedOnce)...)
		r.turns("Account/app", 1)
		in := wire.AccessRequest{Role: "t1/app", Purpose: "p", TTL: "1m"}
		a := r.must(appCaller, in)
		_, err := r.request(agentCaller, in)
		r.fails(err, fault.Conflict, ledger.CodeAccountHeld)
		for _, want := range []string{"workload:a holds it until " + a.ExpiresAt.UTC().Format("2006-01-02T15:04:05Z"), "--wait", "mayfly lease revoke " + a.LeaseID} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is missing: %v", want, err)
			}
		}
		if fe := fault.As(err); fe.RetryAfter <= 0 || fe.RetryAfter > time.Minute {
			t.Errorf("retry after %s", fe.RetryAfter)
		}
		for time.Now().Before(a.ExpiresAt) {
			if !k.has("app", a.Credential["password"]) {
				t.Fatalf("the holder's login is refused %s before its end", time.Until(a.ExpiresAt))
			}
			wait(time.Second)
		}
		r.within(gone, "the next one has it", func() bool { _, err = r.request(agentCaller, in); return err == nil })
		if !r.ended(a.LeaseID)() || k.has("app", a.Credential["password"]) {
			t.Errorf("the first lease is %s", r.lease(a.LeaseID).State)
		}
	})
}

// TestRenewAfterStandsWhereNothingCanBeRenewed: the contract names it for whatever is
// issued, and clients keep what cannot be renewed until then.
func TestRenewAfterStandsWhereNothingCanBeRenewed(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p"})
		if a.Renewable || a.RenewAfter.IsZero() || !a.RenewAfter.Before(a.ExpiresAt) {
			t.Errorf("renewable %v, renew after %s, expires %s", a.Renewable, a.RenewAfter, a.ExpiresAt)
		}
	})
}

// TestGrantOnAnAccountSaysWhatItOpens: its scope names the account alone, and who
// approves it may not be allowed to read the rest.
func TestGrantOnAnAccountSaysWhatItOpens(t *testing.T) {
	for spec, want := range map[string]wire.Opens{
		oneName:                               {Usernames: []string{"app"}, Secret: "Its secret is shared: all who are given the account get the same one, and it works until the next rotation, longer than the leases."},
		twoNames:                              {Usernames: []string{"app_a", "app_b"}, Secret: "Its secret is shared: all who are given the account get the same one, and it works until 2m0s after the next rotation, longer than the leases."},
		usedOnce:                              {Usernames: []string{"app"}, OneHolder: true, Secret: "One holder at a time has its secret, which is replaced when the lease has ended."},
		`{"target":"t1","usernames":["app"]}`: {Usernames: []string{"app"}, Secret: "Its secret is shared: all who are given the account get the same one, and it works until the next rotation, longer than the leases; none is scheduled."},
	} {
		want.Account, want.Target, want.System = "app", "t1", "memory"
		for _, approvals := range []string{"", `,"approvals":[{"group":"g","count":1}]`} {
			turnings(t, func(t *testing.T, r *rig, k *turning) {
				r.put("Principal", "human:bo", []byte(`{}`))
				r.put("Group", "g", []byte(`{"members":[{"name":"human:bo"}]}`))
				objects := account(spec)
				objects[1].Spec = []byte(`{"account":"app","ttl":{"default":"1m","max":"2h"}` + approvals + `}`)
				r.apply(objects...)
				r.turns("Account/app", 1)
				p := &people{rig: r, who: map[string]broker.Caller{}}
				p.login("workload:a")
				a := p.ask("workload:a", wire.AccessRequest{Role: "t1/app", Purpose: "p"})
				g, err := r.engine.Grant(t.Context(), appCaller, a.GrantID)
				if err != nil || g.Opens == nil || !reflect.DeepEqual(*g.Opens, want) || (len(g.Document) > 0) != (approvals != "") {
					t.Errorf("%s: %+v %v", spec, g.Opens, err)
				}
				r.apply(wire.Object{Kind: "Target", Name: "t2", Spec: []byte(`{"type":"memory","zone":"z1","system":"t2"}`), Secrets: map[string]string{"admin_password": "first"}})
				minted := r.must(appCaller, wire.AccessRequest{Role: "t2/ro", Purpose: "p"})
				if g, err := r.engine.Grant(t.Context(), appCaller, minted.GrantID); err != nil || g.Opens != nil {
					t.Errorf("a minted credential: %+v %v", g.Opens, err)
				}
			})
		}
	}
}

// TestCrashLoopIsNotLockedOutOfAnAccount: its earlier run's lease is given back, and
// it is served as soon as the secret was replaced.
func TestCrashLoopIsNotLockedOutOfAnAccount(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(usedOnce)...)
		r.turns("Account/app", 1)
		in := wire.AccessRequest{Role: "t1/app", Purpose: "p", TTL: "1m"}
		who := callerOf("workload:a", "pod-1")
		first := r.must(who, in)
		k.refusing(&issuers.Error{Kind: issuers.Refused, Detail: "away"}) // or the secret may be replaced before the other instance asks
		_, err := r.request(who, in)
		r.fails(err, fault.Unavailable, "account_turning")
		_, err = r.request(callerOf("workload:a", "pod-2"), in)
		r.fails(err, fault.Unavailable, "account_turning")
		if !k.has("app", first.Credential["password"]) {
			t.Fatal("the secret was replaced by a target that refuses")
		}
		k.refusing(nil)
		var next wire.AccessAnswer
		r.within(30*time.Second, "it is served", func() bool { next, err = r.request(who, in); return err == nil })
		if !k.has("app", next.Credential["password"]) || k.has("app", first.Credential["password"]) {
			t.Error("the wrong one logs in")
		}
		wait(20 * time.Second)
		if !k.has("app", next.Credential["password"]) {
			t.Error("the end of the first took the secret of the second")
		}
	})
}

// TestHoldersFromBeforeLoseNothingToEachOther: the spec asks for one holder at a
// time while several hold the account.
func TestHoldersFromBeforeLoseNothingToEachOther(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(`{"target":"t1","usernames":["app"]}`)...)
		r.turns("Account/app", 1)
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p", TTL: "1m"})
		b := r.must(agentCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p", TTL: "10m"})
		r.apply(account(usedOnce)...)
		wait(9 * time.Minute)
		if !k.has("app", b.Credential["password"]) {
			t.Fatal("the end of one lease took the secret of the other")
		}
		wait(2 * time.Minute)
		for _, id := range []string{a.LeaseID, b.LeaseID} {
			if l := r.lease(id); l.State != ledger.LeaseEnded || !strings.Contains(string(l.End.Receipt), `"rotated"`) {
				t.Errorf("%s: %+v", id, l.End)
			}
		}
		if k.has("app", b.Credential["password"]) {
			t.Error("what they held still logs in")
		}
	})
}

// TestLeaseEndsWithTheTurnItWaitsFor: however often it was looked at in vain before,
// while the target was away.
func TestLeaseEndsWithTheTurnItWaitsFor(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.apply(account(usedOnce)...)
		r.turns("Account/app", 1)
		k.refusing(&issuers.Error{Kind: issuers.Refused, Detail: "away"})
		a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p", TTL: "1m"})
		wait(90 * time.Minute)
		if l := r.lease(a.LeaseID); l.State != ledger.LeaseEnding {
			t.Fatalf("%s", l.State)
		}
		k.refusing(nil)
		for r.rotation("Account/app").Turns < 2 {
			wait(10 * time.Millisecond)
		}
		r.within(3*time.Second, "the lease has ended", r.ended(a.LeaseID))
	})
}

// refusing sets what the target answers when it is to replace a secret; nil: well.
func (k *turning) refusing(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refuses = err
}

// TestShorterGraceCutsNoLease: what was given out under a longer grace works as long
// as was said, unless somebody takes it away.
func TestShorterGraceCutsNoLease(t *testing.T) {
	const long, short = `{"target":"t1","usernames":["app_a","app_b"],"grace":"30m"}`, `{"target":"t1","usernames":["app_a","app_b"],"grace":"10s"}`
	for _, now := range []bool{false, true} {
		turnings(t, func(t *testing.T, r *rig, k *turning) {
			r.apply(account(long)...)
			r.turns("Account/app", 1)
			a := r.must(appCaller, wire.AccessRequest{Role: "t1/app", Purpose: "p", TTL: "20m"})
			r.apply(account(short)...)
			if _, err := r.engine.Rotate(t.Context(), opCaller, wire.RotateRequest{Kind: "account", Name: "app", Now: now}); err != nil {
				t.Fatal(err)
			}
			wait(19 * time.Minute)
			if works := k.has(a.Credential["username"], a.Credential["password"]); works == now {
				t.Errorf("cut short on purpose: %v; a login a minute before the lease's end succeeds: %v", now, works)
			}
			r.turns("Account/app", 2)
			if k.has(a.Credential["username"], a.Credential["password"]) || time.Now().After(a.ExpiresAt.Add(2*time.Minute)) {
				t.Errorf("what the lease gave out works %s after its end", time.Since(a.ExpiresAt))
			}
		})
	}
}

// TestAccountsAreCheckedAtTheDoor: what could not rotate, or must not be given out,
// is refused with what is allowed.
func TestAccountsAreCheckedAtTheDoor(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		for spec, want := range map[string]string{
			`{"target":"t1","usernames":["admin"]}`:                                                 "mayfly rotate target t1",
			`{"target":"nowhere","usernames":["app"]}`:                                              "does not exist",
			`{"target":"t1","usernames":[]}`:                                                        "one name, or two",
			`{"target":"t1","usernames":["a","a"],"grace":"5m"}`:                                    "different names",
			`{"target":"t1","usernames":["a","b"]}`:                                                 "grace says how long",
			`{"target":"t1","usernames":["a"],"grace":"5m"}`:                                        "two usernames",
			`{"target":"t1","usernames":["a"],"rotation":{"cron":"* * * * * *"}}`:                   "five fields",
			`{"target":"t1","usernames":["a"],"rotation":{"cron":"0 0 31 2 *"}}`:                    "never comes",
			`{"target":"t1","usernames":["a"],"rotation":{"cron":"@daily"}}`:                        "five fields",
			`{"target":"t1","usernames":["a"],"rotation":{"cron":"0 3 * * *","time_zone":"Local"}}`: "IANA",
			`{"target":"t1","usernames":["a\u0007"]}`:                                               "control character",
		} {
			_, err := r.engine.Apply(t.Context(), opCaller, wire.ApplyRequest{Objects: []wire.Object{{Kind: "Account", Name: "x", Spec: json.RawMessage(spec)}}})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %q", spec, err, want)
			}
		}
		r.apply(account(oneName)...)
		r.turns("Account/app", 1)
		other := wire.Object{Kind: "Account", Name: "app", Spec: json.RawMessage(`{"target":"t1","usernames":["app_a"]}`)}
		if _, err := r.engine.Apply(t.Context(), opCaller, wire.ApplyRequest{Objects: []wire.Object{other}}); err == nil || !strings.Contains(err.Error(), "make a new account") {
			t.Error(err)
		}
		_, err := r.engine.Apply(t.Context(), opCaller, wire.ApplyRequest{Delete: []wire.Ref{{Kind: "Account", Name: "app"}}})
		r.fails(err, fault.Conflict, ledger.CodeInUse)
	})
}
