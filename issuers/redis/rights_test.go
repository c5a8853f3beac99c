package redis_test

import (
	"context"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/scope"
)

// refusals are what a lease for reading and writing orders:* and speaking on
// news.* must not do.
func refusals() [][]any {
	var out [][]any
	for _, line := range []string{
		"GET secret:1", "SET secret:1 x", "DEL secret:1", "GETDEL secret:1", "WATCH secret:1", "COPY orders:1 secret:2", "RENAME secret:1 orders:3",
		"SCAN 0", "RANDOMKEY", "DBSIZE", "KEYS *", "SORT orders:1 BY secret:*", "SORT_RO orders:1 GET secret:*", "MIGRATE 127.0.0.1 1 orders:1 0 10",
		"SUBSCRIBE other", "PSUBSCRIBE *", "PUBLISH other x", "PUBSUB CHANNELS",
		"ACL WHOAMI", "ACL LIST", "ACL SETUSER x on nopass ~* +@all", "ACL GETUSER admin", "CONFIG GET *", "CONFIG SET dir /tmp", "CLIENT LIST", "CLIENT KILL TYPE normal",
		"CLIENT TRACKING ON BCAST", "CLIENT PAUSE 10", "MODULE LIST", "MONITOR", "SHUTDOWN NOSAVE", "SAVE", "BGSAVE", "FLUSHALL", "FLUSHDB",
		"REPLICAOF NO ONE", "PSYNC ? -1", "INFO", "ROLE", "SLOWLOG GET", "LATENCY RESET", "SELECT 1", "SWAPDB 0 1", "FAILOVER", "EVAL return(1) 0",
		"SCRIPT FLUSH", "FUNCTION LIST", "FUNCTION FLUSH", "FCALL f 0", "RESTORE orders:5 0 x", "OBJECT FREQ secret:1",
	} {
		var args []any
		for _, w := range strings.Fields(line) {
			args = append(args, w)
		}
		out = append(out, args)
	}
	return out
}

func TestLaw3RedisUserDoesNoMoreThanItsScope(t *testing.T) {
	f := newFixture(t, shared)
	f.fill()
	is := f.open(1)
	l := lease(allow([]string{"read", "write", "subscribe", "publish"}, "key:orders:*", "channel:news.*"))
	r := f.as(f.mint(is, l))
	ctx := t.Context()
	for _, args := range [][]any{
		{"GET", "orders:1"}, {"SET", "orders:1", "value"}, {"PUBLISH", "news.a", "x"}, {"WATCH", "orders:1"}, {"MULTI"}, {"SET", "orders:2", "value"}, {"EXEC"},
		{"HSET", "orders:h", "a", "b"}, {"HGETALL", "orders:h"}, {"DEL", "orders:h"}, {"CLIENT", "SETNAME", "me"}, {"CLIENT", "ID"}, {"PING"}, {"ECHO", "x"},
	} {
		if err := r.Do(ctx, args...).Err(); err != nil {
			t.Errorf("%v is within the scope: %v", args, err)
		}
	}
	for _, args := range refusals() {
		err := r.Do(ctx, args...).Err()
		if err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
			t.Errorf("%v: %v; want NOPERM", args, err)
		}
	}
	f.withdraw(is, l)
}

// Each detail is a selector of its own: reading one thing and writing another
// does not add up to writing the first.
func TestLaw3RedisDetailsDoNotMix(t *testing.T) {
	f := newFixture(t, shared)
	f.fill()
	is := f.open(1)
	l := lease(scope.Scope{
		{Type: "redis", Actions: []string{"read"}, Locations: []string{"key:orders:*"}},
		{Type: "redis", Actions: []string{"read", "write"}, Locations: []string{"key:jobs:*"}},
		{Type: "redis", Actions: []string{"publish"}, Locations: []string{"channel:jobs"}},
	})
	r := f.as(f.mint(is, l))
	for _, x := range []struct {
		args []any
		ok   bool
	}{
		{[]any{"GET", "orders:1"}, true}, {[]any{"SET", "orders:1", "x"}, false}, {[]any{"SET", "jobs:1", "x"}, true}, {[]any{"COPY", "orders:1", "jobs:2"}, false},
		{[]any{"PUBLISH", "jobs", "x"}, true}, {[]any{"SUBSCRIBE", "jobs"}, false}, {[]any{"DEL", "jobs:1"}, true},
	} {
		if err := r.Do(t.Context(), x.args...).Err(); (err == nil) != x.ok {
			t.Errorf("%v: %v; allowed should be %t", x.args, err, x.ok)
		}
	}
	f.withdraw(is, l)
}

// Names with characters that patterns give a meaning stand for themselves.
func TestPatternsAreLiteral(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	for _, name := range []string{"a?b", "a[b]c", `a\b`, "a^b", "a%b", "x#y", "ключ", "{tag}x", "~x", ">x"} {
		l := lease(allow([]string{"read", "write"}, "key:"+name))
		r := f.as(f.mint(is, l))
		if err := r.Set(t.Context(), name, "x", time.Minute).Err(); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		for _, other := range []string{"axb", "abc", "a", "b", "ab", name + "x", "secret:1"} {
			if err := r.Get(t.Context(), other).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
				t.Errorf("%q opens %q: %v", name, other, err)
			}
		}
		f.withdraw(is, l)
	}
}

// What a script does is checked like what its caller does, and nobody leaves
// functions behind that others call.
func TestHazard10RedisScriptsStayWithinTheScope(t *testing.T) {
	f := newFixture(t, shared)
	f.fill()
	is := f.open(1)
	l := lease(allow([]string{"read", "write", "scripting"}, "key:orders:*"))
	r := f.as(f.mint(is, l))
	if err := r.Eval(t.Context(), "return redis.call('GET', KEYS[1])", []string{"orders:1"}).Err(); err != nil {
		t.Error(err)
	}
	for _, script := range []string{
		"return redis.call('GET', 'secret:1')", "return redis.call('CONFIG', 'GET', '*')", "return redis.call('ACL', 'LIST')", "return redis.call('FLUSHALL')",
	} {
		if err := r.Eval(t.Context(), script, nil).Err(); err == nil {
			t.Errorf("%s is allowed", script)
		}
	}
	for _, args := range [][]any{{"FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('f', function() return 1 end)"}, {"SCRIPT", "FLUSH"}, {"SCRIPT", "KILL"}} {
		if err := r.Do(t.Context(), args...).Err(); err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
			t.Errorf("%v: %v; want NOPERM", args, err)
		}
	}
	f.withdraw(is, l)
}

// The password reaches the server as its hash alone; the second hash is the mark.
func TestOnlyHashesOnTheServer(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(allow([]string{"read"}))
	c := f.mint(is, l)
	text, err := f.admin.Do(t.Context(), "ACL", "LIST").StringSlice()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range text {
		if strings.Contains(line, c.Secret["password"].Reveal()) {
			t.Error("the server lists a password in the clear")
		}
		if strings.Contains(line, l.Name) && (strings.Count(line, " #") != 2 || strings.Contains(line, "nopass")) {
			t.Errorf("want two hashes: %s", line)
		}
	}
	f.withdraw(is, l)
}

// ended waits for a blocked call to return with an error that is no timeout of
// its own.
func ended(t *testing.T, what string, errs <-chan error) {
	t.Helper()
	select {
	case err := <-errs:
		if err == nil || err == goredis.Nil {
			t.Errorf("%s: the call ended with %v; want a broken connection", what, err)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("law 2: %s outlives the withdrawal", what)
	}
}

func TestLaw2RedisSessionsEndWhateverTheyDo(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(allow([]string{"read", "write", "subscribe"}))
	c := f.mint(is, l)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	blocked, waiting, idle := make(chan error, 1), make(chan error, 1), f.as(c).Conn()
	popper := f.as(c)
	go func() { blocked <- popper.Do(ctx, "BLPOP", "never:"+l.ID, 0).Err() }()
	sub := f.as(c).PSubscribe(ctx, "news.*")
	if _, err := sub.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := sub.ReceiveMessage(ctx)
		waiting <- err
	}()
	if err := idle.Do(ctx, "MULTI").Err(); err != nil { // in the middle of a transaction
		t.Fatal(err)
	}
	eventually(t, "three sessions stand", func() bool {
		list, err := f.admin.ClientList(ctx).Result()
		return err == nil && strings.Count(list, "user="+l.Name+" ") == 3 && strings.Contains(list, "cmd=blpop user="+l.Name+" ")
	})
	out := f.withdraw(is, l)
	if n := out[0].Receipt.SessionsEnded; n != 3 {
		t.Errorf("the receipt says %d sessions ended; there were 3", n)
	}
	ended(t, "a blocked BLPOP", blocked)
	ended(t, "a subscriber", waiting)
	if err := idle.Do(ctx, "EXEC").Err(); err == nil {
		t.Error("law 2: a transaction goes on after the withdrawal")
	}
	_ = sub.Close()
}
