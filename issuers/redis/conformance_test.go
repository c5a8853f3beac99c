package redis_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/redis"
	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

func TestConformance(t *testing.T) {
	f := newFixture(t, redistest.Start(t)) // one case makes it hang
	f.spec["persist"] = "config"
	conform(t, f)
}

func TestConformanceWithTLSAndACLFile(t *testing.T) {
	f := newFixture(t, redistest.Start(t, redistest.TLS(), redistest.ACLFile()))
	f.spec["persist"] = "aclfile"
	conform(t, f)
}

// The page's own rules for the admin user are enough for everything.
func TestConformanceWithLeastPrivilege(t *testing.T) {
	f := newFixture(t, redistest.Start(t))
	const password = "mayfly-admin-password"
	args := []any{"ACL", "SETUSER"}
	for _, word := range strings.Fields(leastPrivilege(t)) {
		args = append(args, strings.ReplaceAll(word, "PASSWORD", password))
	}
	if err := f.admin.Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
	f.spec["admin"], f.spec["persist"] = map[string]any{"username": "mayfly"}, "config"
	f.secrets[redis.SecretPassword] = secret.New(password)
	conform(t, f)
}

func conform(t *testing.T, f *fixture) {
	t.Helper()
	f.fill()
	issuertest.Run(t, f.harness())
}

func (f *fixture) harness() issuertest.Harness {
	f.t.Helper()
	return issuertest.Harness{
		Kind:     redis.Kind{},
		Target:   f.target(1),
		Scope:    allow([]string{"read", "write"}, "key:orders:*"),
		Narrower: allow([]string{"read"}, "key:orders:1"),
		Invalid:  invalid(),
		Accepted: accepted(),
		Hostile:  hostile(),
		Intact: func(ctx context.Context) error {
			if n, err := f.admin.Exists(ctx, "orders:1", "orders:2", "secret:1").Result(); err != nil || n != 3 {
				return fmt.Errorf("%d of 3 keys are there: %w", n, err)
			}
			return nil
		},
		Use: func(ctx context.Context, c issuers.Credential) error {
			r, err := f.dial(c)
			if err != nil {
				return err
			}
			return errors.Join(r.Get(ctx, "orders:1").Err(), r.Close())
		},
		Gone: func(ctx context.Context, l issuers.Lease) error { return gone(ctx, f.admin, l) },
		Hold: func(ctx context.Context, c issuers.Credential) (issuertest.Session, error) {
			r, err := f.dial(c)
			if err != nil {
				return nil, err
			}
			// one connection, taken out of its pool: a dead one is not replaced
			return holdOne(ctx, r)
		},
		RefusesOlder: true,
		Unreachable:  f.elsewhere("127.0.0.1:1"),
		Rotation:     f.rotation(f.server),
	}
}

// holdOne keeps one connection of a client.
func holdOne(ctx context.Context, r *goredis.Client) (issuertest.Session, error) {
	cn := r.Conn()
	return one{cn, r}, cn.Ping(ctx).Err()
}

type one struct {
	cn *goredis.Conn
	r  *goredis.Client
}

func (o one) Alive(ctx context.Context) error { return o.cn.Ping(ctx).Err() }
func (o one) Close() error                    { return errors.Join(o.cn.Close(), o.r.Close()) }

// gone asks the server itself for anything of a lease.
func gone(ctx context.Context, admin *goredis.Client, l issuers.Lease) error {
	users, err := admin.Do(ctx, "ACL", "USERS").StringSlice()
	if err != nil {
		return err
	}
	for _, u := range users {
		if u == l.Name {
			return fmt.Errorf("ACL USERS lists %s", l.Name)
		}
	}
	clients, err := admin.ClientList(ctx).Result()
	if err != nil {
		return err
	}
	if strings.Contains(clients, "user="+l.Name+" ") {
		return fmt.Errorf("CLIENT LIST shows a session of %s", l.Name)
	}
	return nil
}

func (f *fixture) elsewhere(address string) json.RawMessage {
	f.t.Helper()
	g := *f
	g.spec = map[string]any{}
	for k, v := range f.spec {
		g.spec[k] = v
	}
	g.spec["address"] = address
	delete(g.spec, "addresses")
	return g.target(1).Spec
}

func invalid() []scope.Scope {
	return []scope.Scope{
		{{Type: "redis", Identifier: "another", Actions: []string{"read"}}},
		{{Type: "redis", Actions: []string{"read"}, Privileges: []string{"get"}}},
		{{Type: "redis", Actions: []string{"read"}, Tables: []scope.Table{{Name: "a.b"}}}},
		{{Type: "redis", Actions: []string{"read"}, Datatypes: []string{"string"}}},
		allow([]string{"admin"}), allow([]string{"dangerous"}), allow([]string{"all"}), allow([]string{"fast"}), allow([]string{"get"}),
		allow([]string{"cmd:config"}), allow([]string{"cmd:config/set"}), allow([]string{"cmd:acl"}), allow([]string{"cmd:acl/setuser"}),
		allow([]string{"cmd:debug"}), allow([]string{"cmd:module"}), allow([]string{"cmd:shutdown"}), allow([]string{"cmd:monitor"}),
		allow([]string{"cmd:script/flush"}), allow([]string{"cmd:function/load"}), allow([]string{"cmd:client/kill"}), allow([]string{"cmd:keys"}),
		allow([]string{"cmd:select"}), allow([]string{"cmd:migrate"}), allow([]string{"cmd:"}), allow([]string{"cmd:a/b/c"}), allow([]string{"cmd:get:x"}),
		allow([]string{"read"}, "orders:*"), allow([]string{"read"}, "*"), allow([]string{"read"}, "key:"), allow([]string{"read"}, "channel:"),
		allow([]string{"read"}, "key:a b"), allow([]string{"read"}, `key:a"b`), allow([]string{"read"}, "key:a'b"), allow([]string{"read"}, "key:a)"),
		allow([]string{"read"}, "key:a*b"),
	}
}

func accepted() []scope.Scope {
	return []scope.Scope{
		allow([]string{"read"}),
		allow([]string{"read", "write", "keyspace", "string", "hash", "list", "set", "sortedset", "stream", "bitmap", "hyperloglog", "geo", "subscribe", "publish", "scripting"}),
		allow([]string{"subscribe", "publish"}, "channel:news.*", "channel:alerts"),
		allow([]string{"cmd:get", "cmd:xinfo/stream", "cmd:scan"}, "key:orders:*"),
		{
			{Type: "redis", Actions: []string{"read"}, Locations: []string{"key:orders:*"}},
			{Type: "redis", Actions: []string{"write"}, Locations: []string{"key:jobs:*", "channel:jobs"}},
		},
	}
}

// hostile are names that try to end a rule, begin another, or widen a pattern.
func hostile() []scope.Scope {
	var out []scope.Scope
	for _, name := range []string{
		"x ~*", "x +@all", "x) (~* +@all", "x\r\nACL SETUSER evil on nopass ~* +@all\r\n", "x\nflushall", "x\x00y", `x" "~*`, "x' '~*", `x\`, `x\*`, "[a-z]", "?", "^", "x%RW~",
		"#" + strings.Repeat("a", 64), ">password", "<", "nopass", "allkeys", "~*", "&*", "\u202ex", "ключ", strings.Repeat("x", 250), "{tag}x", "$1", "%s", "x;y", "x|y",
	} {
		out = append(out, allow([]string{"read", "write"}, "key:"+name), allow([]string{"read"}, "key:"+name+"*", "channel:"+name),
			allow([]string{"read", "cmd:" + name + " +@all"}), allow([]string{name}))
	}
	return out
}
