package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/redis"
	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
	"github.com/mayfly-broker/mayfly/secret"
)

// makeUser makes a user that is no lease's on the servers.
func makeUser(t *testing.T, servers []*redistest.Server, name string, rules ...string) secret.Text {
	t.Helper()
	first := issuertest.NewSecret()
	args := []any{"ACL", "SETUSER", name, "on", ">" + first.Reveal(), "~orders:*", "+get", "+ping"}
	for _, r := range rules {
		args = append(args, r)
	}
	for _, s := range servers {
		if err := s.Admin(t).Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c := s.Client()
			c.Do(context.Background(), "ACL", "DELUSER", name)
			_ = c.Close()
		})
	}
	return first
}

// rotation is for the servers of one deployment.
func (f *fixture) rotation(servers ...*redistest.Server) *issuertest.Rotation {
	r := &issuertest.Rotation{
		Several: len(servers) > 1,
		Account: func(t *testing.T, name string) secret.Text { return makeUser(t, servers, name) },
		Login: func(ctx context.Context, username string, s secret.Text) error {
			for _, server := range servers {
				c := server.As(username, s.Reveal())
				if err := errors.Join(c.Ping(ctx).Err(), c.Close()); err != nil {
					return fmt.Errorf("%s: %w", server.Address(), err)
				}
			}
			return nil
		},
		Hold: func(ctx context.Context, username string, s secret.Text) (issuertest.Session, error) {
			return holdOne(ctx, servers[0].As(username, s.Reveal()))
		},
		Names: []string{"a;b", "%s", "{x}y", "ключ", "$(id)", "a#b", "~x", ">y", strings.Repeat("x", 128)},
	}
	if len(servers) == 1 {
		r.Freeze = func(t *testing.T) func() {
			signal := func(s syscall.Signal) {
				if err := servers[0].Signal(s); err != nil {
					t.Error(err)
				}
			}
			signal(syscall.SIGSTOP)
			t.Cleanup(func() { signal(syscall.SIGCONT) })
			return func() { signal(syscall.SIGCONT) }
		}
	}
	return r
}

func (f *fixture) replaceIn(is *redis.Issuer, username string, next secret.Text, d time.Duration) error {
	f.t.Helper()
	return is.Replace(f.t.Context(), issuers.Replacement{Username: username, Next: next, Deadline: time.Now().Add(d)})
}

// rotating is a fixture whose users survive a restart.
func rotating(t *testing.T, opts ...redistest.Option) *fixture {
	t.Helper()
	f := newFixture(t, redistest.Start(t, opts...))
	f.spec["persist"] = "config"
	return f
}

func (f *fixture) mustHold(is *redis.Issuer, username string, one secret.Text, others ...secret.Text) {
	f.t.Helper()
	if err := is.TryLogin(f.t.Context(), username, one); err != nil {
		f.t.Fatalf("the secret that should hold: %v", err)
	}
	for _, o := range others {
		wantKind(f.t, is.TryLogin(f.t.Context(), username, o), issuers.Refused)
	}
}

// The transaction arrives after the deadline: the server itself refuses it.
func TestHazard8RedisLateReplacementDoesNothing(t *testing.T) {
	f := rotating(t)
	first, next := makeUser(t, []*redistest.Server{f.server}, "app"), issuertest.NewSecret()
	slow, p := throughCutter(t, f, "MULTI")
	is, living := slow.open(1), f.open(1)
	ample := issuertest.Ample(func() {
		if err := f.replaceIn(f.open(1), "app", first, 20*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	deadline := time.Now().Add(ample)
	wantKind(t, is.Replace(t.Context(), issuers.Replacement{Username: "app", Next: next, Deadline: deadline}), issuers.Unknown)
	p.waitHeld(t)
	eventually(t, "the deadline passes", func() bool { return time.Now().After(deadline) })
	p.release()
	p.waitDelivered(t)
	f.mustHold(living, "app", first, next)
}

// A new leader's fence ends a deposed one's replacement; and the deposed one, when
// it connects again, finds itself followed.
func TestHazard8RedisFenceEndsOlderReplacements(t *testing.T) {
	f := rotating(t)
	first, next := makeUser(t, []*redistest.Server{f.server}, "app"), issuertest.NewSecret()
	slow, p := throughCutter(t, f, "MULTI")
	deposed, leader := slow.open(3), f.open(4)
	done := make(chan error, 1)
	go func() { done <- f.replaceIn(deposed, "app", next, 20*time.Second) }()
	p.waitHeld(t)
	if err := leader.Fence(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.release()
	wantKind(t, <-done, issuers.Unknown)
	f.mustHold(leader, "app", first, next)
	wantKind(t, f.replaceIn(f.open(3), "app", next, 20*time.Second), issuers.Superseded)
	f.mustHold(leader, "app", first, next)
}

// A user by a lease's name is left alone, marked or not.
func TestHazard16RedisReplaceLeavesLeasesAlone(t *testing.T) {
	f := rotating(t)
	is := f.open(1)
	name := "mayfly_" + issuertest.NewLeaseID()
	first := makeUser(t, []*redistest.Server{f.server}, name)
	wantKind(t, f.replaceIn(is, name, issuertest.NewSecret(), 20*time.Second), issuers.Foreign)
	f.mustHold(is, name, first)
}

// Every password goes, rules and flags stay, and it is on disk.
func TestReplaceTakesEveryPasswordAndSurvivesARestart(t *testing.T) {
	for persist, opts := range map[string][]redistest.Option{"config": nil, "aclfile": {redistest.ACLFile()}} {
		f := rotating(t, opts...)
		f.spec["persist"] = persist
		first := makeUser(t, []*redistest.Server{f.server}, "app", ">second-password", "%R~jobs:*", "(~x +set)", "resetchannels")
		is := f.open(1)
		rules := func() string {
			reply, err := f.admin.Do(t.Context(), "ACL", "GETUSER", "app").Slice()
			if err != nil {
				t.Fatal(err)
			}
			for i := range reply {
				if reply[i] == "passwords" {
					reply[i+1] = ""
				}
			}
			return fmt.Sprint(reply)
		}
		before, next := rules(), issuertest.NewSecret()
		if err := f.replaceIn(is, "app", next, 20*time.Second); err != nil {
			t.Fatal(err)
		}
		f.mustHold(is, "app", next, first, secret.New("second-password"))
		if after := rules(); before != after {
			t.Errorf("before: %s\nafter: %s", before, after)
		}
		if err := f.server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := f.server.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.mustHold(f.open(1), "app", next, first)
	}
}

func TestReplaceWithoutPersistenceIsRefused(t *testing.T) {
	f := newFixture(t, shared)
	first := makeUser(t, []*redistest.Server{f.server}, "app")
	is := f.open(1)
	err := f.replaceIn(is, "app", issuertest.NewSecret(), 20*time.Second)
	wantKind(t, err, issuers.Refused)
	if !strings.Contains(err.Error(), "persist") {
		t.Errorf("%v", err)
	}
	f.mustHold(is, "app", first)
}

// A server with requirepass, entered as the user default.
func TestRequirepassIsRotatedAsTheUserDefault(t *testing.T) {
	f := rotating(t)
	for _, args := range [][]any{
		{"CONFIG", "SET", "requirepass", "the-old-requirepass"}, {"ACL", "SETUSER", "default", "on", "~*", "&*", "+@all"}, {"CONFIG", "REWRITE"},
	} {
		if err := f.admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	f.spec["admin"] = map[string]any{"username": "default"}
	f.secrets[redis.SecretPassword] = secret.New("the-old-requirepass")
	is, next := f.open(1), issuertest.NewSecret()
	if err := f.replaceIn(is, "default", next, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	f.secrets[redis.SecretPassword] = next
	f.mustHold(f.open(1), "default", next, secret.New("the-old-requirepass"))
	if err := f.server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := f.server.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.mustHold(f.open(1), "default", next, secret.New("the-old-requirepass"))
}

// What the server says beside the secret is told apart from what it says of it.
func TestTryLoginTellsTheSecretFromAllElse(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	wrong := issuertest.NewSecret()
	for _, c := range []struct {
		name, rule   string
		right, wrong issuers.ErrorKind // -1: nil
	}{
		{"good", "+@all", -1, issuers.Refused},
		{"mute", "-@all", -1, issuers.Refused},
		{"locked", "off", issuers.Unknown, issuers.Unknown},
		{"open", "nopass", issuers.Unknown, issuers.Unknown},
	} {
		first := makeUser(t, []*redistest.Server{f.server}, c.name, c.rule)
		if err := is.TryLogin(t.Context(), c.name, first); (err == nil) != (c.right == -1) || err != nil && issuers.KindOf(err) != c.right {
			t.Errorf("%s with its secret: %v; want %s", c.name, err, c.right)
		}
		if err := is.TryLogin(t.Context(), c.name, wrong); err == nil || issuers.KindOf(err) != c.wrong {
			t.Errorf("%s with another secret: %v; want %s", c.name, err, c.wrong)
		}
	}
	wantKind(t, is.TryLogin(t.Context(), "nobody", wrong), issuers.Unknown)
}

// A crash between two nodes: neither secret is said to hold, and another Replace
// makes it whole, the admin's own included, by whichever of its two secrets the
// issuer was opened.
func TestReplaceMakesADividedDeploymentWhole(t *testing.T) {
	nodes := redistest.StartCluster(t, false)
	f := newFixture(t, nodes[0])
	f.spec["topology"], f.spec["persist"] = "cluster", "config"
	old, next := f.secrets[redis.SecretPassword], issuertest.NewSecret()
	appOld, appNext := makeUser(t, nodes, "app"), issuertest.NewSecret()
	divide := func(name string, next secret.Text) {
		c := nodes[1].As(redistest.AdminUser, old.Reveal())
		err := c.Do(t.Context(), "ACL", "SETUSER", name, "resetpass", ">"+next.Reveal()).Err()
		if err := errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
	}
	divide("app", appNext)
	is := f.open(1)
	wantKind(t, is.TryLogin(t.Context(), "app", appOld), issuers.Unknown)
	wantKind(t, is.TryLogin(t.Context(), "app", appNext), issuers.Unknown)
	if err := f.replaceIn(is, "app", appNext, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	f.mustHold(is, "app", appNext, appOld)

	divide(redistest.AdminUser, next)
	is = f.open(2)
	wantKind(t, is.TryLogin(t.Context(), redistest.AdminUser, old), issuers.Unknown)
	wantKind(t, is.TryLogin(t.Context(), redistest.AdminUser, next), issuers.Unknown)
	if err := f.replaceIn(is, redistest.AdminUser, next, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	f.mustHold(f.open(2), redistest.AdminUser, next, old) // opened by the old one, which no node takes
	f.secrets[redis.SecretPassword] = next
	again := f.open(3)
	f.mustHold(again, redistest.AdminUser, next, old)
	if err := f.replaceIn(again, redistest.AdminUser, old, 20*time.Second); err != nil {
		t.Fatal(err)
	}
}

// The right that is missing is named.
func TestReplaceNamesTheMissingRight(t *testing.T) {
	f := rotating(t)
	servers := []*redistest.Server{f.server}
	f.secrets[redis.SecretPassword] = makeUser(t, servers, "poor", "~mayfly:gate:*", "+set", "+get", "+watch", "+unwatch", "+pttl", "+multi", "+exec", "+del", "+client|list", "+client|setname", "+acl|getuser", "+config|rewrite")
	f.spec["admin"] = map[string]any{"username": "poor"}
	makeUser(t, servers, "app")
	err := f.replaceIn(f.open(1), "app", issuertest.NewSecret(), 20*time.Second)
	wantKind(t, err, issuers.Refused)
	if !strings.Contains(err.Error(), "ACL SETUSER poor +acl|setuser") {
		t.Errorf("%v", err)
	}
}
