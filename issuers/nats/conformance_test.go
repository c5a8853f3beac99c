package nats_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	natsgo "github.com/nats-io/nats.go"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/nats"
	"github.com/mayfly-broker/mayfly/issuers/nats/natstest"
	"github.com/mayfly-broker/mayfly/scope"
)

func TestConformanceRevocable(t *testing.T) {
	f := newFixture(t, shared)
	h := f.harness()
	h.Hostile = few(h.Hostile, 20) // all of them are tried without a server below
	h.RefusesOlder, h.Unreachable = true, f.elsewhere("127.0.0.1:1")
	f.turning(&h)
	h.Hold = func(_ context.Context, c issuers.Credential) (issuertest.Session, error) {
		nc, err := f.dial(c)
		return held{nc}, err
	}
	issuertest.Run(t, h)
}

func TestConformanceExpiresOnly(t *testing.T) {
	h := newFixture(t, shared).offline().harness()
	h.Gone = func(context.Context, issuers.Lease) error { return nil } // nothing is taken back, and a client's own end is seen late
	issuertest.Run(t, h)
}

func TestConformanceInACluster(t *testing.T) {
	servers := natstest.StartCluster(t, 3)
	f := newFixture(t, servers[1])
	h := f.harness()
	h.Hostile = few(h.Hostile, 60)
	h.RefusesOlder = true
	f.turning(&h)
	// the credential is used on another server than the one that the issuer asks
	other := newFixture(t, servers[2])
	h.Use = other.use
	h.Gone = func(ctx context.Context, l issuers.Lease) error {
		for _, s := range servers {
			if err := gone(ctx, s, l); err != nil {
				return err
			}
		}
		return nil
	}
	h.Hold = func(_ context.Context, c issuers.Credential) (issuertest.Session, error) {
		nc, err := other.dial(c)
		return held{nc}, err
	}
	issuertest.Run(t, h)
}

// few takes one of every n.
func few(all []scope.Scope, n int) (out []scope.Scope) {
	for i := 0; i < len(all); i += n {
		out = append(out, all[i])
	}
	return out
}

func (f *fixture) harness() issuertest.Harness {
	f.t.Helper()
	system := f.server.SystemConn(f.t)
	return issuertest.Harness{
		Kind:     nats.Kind{},
		Target:   f.target(1),
		Scope:    allow([]string{"publish", "subscribe", "request"}, "orders.*"),
		Narrower: allow([]string{"publish", "request"}, "orders.eu.*", "orders.us"),
		Invalid:  invalid(),
		Accepted: accepted(),
		Hostile:  hostile(),
		Use:      f.use,
		Gone:     func(ctx context.Context, l issuers.Lease) error { return gone(ctx, f.server, l) },
		Expires: func(c issuers.Credential) (time.Time, error) {
			u, err := jwt.DecodeUserClaims(c.Secret["jwt"].Reveal())
			if err != nil {
				return time.Time{}, err
			}
			return time.Unix(u.Expires, 0), nil
		},
		Intact: func(ctx context.Context) error {
			m, err := system.RequestWithContext(ctx, "$SYS.REQ.ACCOUNT."+f.server.Account+".CLAIMS.LOOKUP", nil)
			if err != nil {
				return err
			}
			c, err := jwt.DecodeAccountClaims(string(m.Data))
			if err != nil {
				return err
			}
			if c.Name != "APP" || len(c.SigningKeys) < 2 || len(c.Exports)+len(c.Imports) != 0 {
				return fmt.Errorf("the account has changed: %s", c)
			}
			return nil
		},
	}
}

// use publishes and waits until the server has seen it.
func (f *fixture) use(_ context.Context, c issuers.Credential) error {
	failed := make(refusals, 1)
	nc, err := f.dial(c, failed.option())
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := errors.Join(nc.Publish("orders.eu.1", nil), nc.FlushTimeout(10*time.Second)); err != nil {
		return err
	}
	return nc.LastError()
}

type held struct{ nc *natsgo.Conn }

func (h held) Alive(context.Context) error { return h.nc.FlushTimeout(5 * time.Second) }
func (h held) Close() error                { h.nc.Close(); return nil }

// gone asks the server for a session of a lease. Users have no other place there.
func gone(ctx context.Context, s *natstest.Server, l issuers.Lease) error {
	names, _, err := s.Connections(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(names, l.Name) {
		return fmt.Errorf("CONNZ shows a session of %s", l.Name)
	}
	return nil
}

func (f *fixture) elsewhere(address string) json.RawMessage {
	f.t.Helper()
	was := f.spec["address"]
	defer func() { f.spec["address"] = was }()
	f.spec["address"] = address
	return f.raw()
}

func invalid() []scope.Scope {
	both := []string{"publish", "subscribe"}
	return []scope.Scope{
		{{Type: "nats", Identifier: "another", Actions: both}},
		{{Type: "nats", Actions: both, Privileges: []string{"x"}}},
		{{Type: "nats", Actions: both, Tables: []scope.Table{{Name: "a.b"}}}},
		{{Type: "nats", Actions: both, Datatypes: []string{"string"}}},
		allow([]string{"jetstream"}), allow([]string{"jetstream"}, "orders.*"), allow([]string{"jetstream", "publish"}, "$JS.API.INFO"), allow([]string{"admin"}, "a"),
		allow(both, ">"), allow(both, "orders.>"), allow(both, "orders*"), allow(both, "orders.*.eu"), allow(both, "or>ders"), allow(both, "+"), allow(both, "+.*"),
		allow(both, "orders."), allow(both, ".orders"), allow(both, "orders..eu"), allow(both, "or ders"), allow(both, "orders queue"), allow(both, "a\u00a0b"), allow(both, "."),
		allow(both, "$SYS.*"), allow(both, "$SYS.REQ.SERVER.PING"), allow(both, "$JS.API.*"), allow(both, "$*"), allow(both, "_INBOX.*"), allow(both, "_INBOX.x"), allow(both, "_*"), allow(both, "_R_.x"),
		allow([]string{"jetstream"}, "$JS*"), allow([]string{"jetstream"}, "$SYS.*"), allow([]string{"jetstream"}, "$MQTT.*"),
		allow([]string{"subscribe", "request"}, "*"), allow([]string{"subscribe", "request"}),
		append(allow([]string{"publish"}), allow([]string{"jetstream"}, "$JS.API.INFO")...),
		append(allow([]string{"subscribe"}, "*"), allow([]string{"request"}, "a")...),
		allow(both, long(20)...),
	}
}

// long are subjects that no login's line has room for.
func long(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("s%d.%s", i, strings.Repeat("x", 100)))
	}
	return out
}

func accepted() []scope.Scope {
	return []scope.Scope{
		allow([]string{"subscribe"}), allow([]string{"publish", "subscribe"}), allow([]string{"publish", "subscribe"}, "*", "orders.eu"),
		allow([]string{"publish", "subscribe", "request", "reply"}, "orders.*", "a.+.b", "a.+.+.*", "c++", "ключ.1"),
		allow([]string{"jetstream"}, "$JS.API.CONSUMER.MSG.NEXT.ORDERS.*", "$JS.ACK.ORDERS.*", "$KV.config.*"),
		append(allow([]string{"reply"}, "svc.*"), allow([]string{"jetstream"}, "$JS.API.INFO")...),
		append(allow([]string{"request"}, "*"), allow([]string{"subscribe"}, "news.*")...),
	}
}

// hostile are names that try to end a word, begin another, or widen a pattern.
func hostile() []scope.Scope {
	var out []scope.Scope
	for _, name := range []string{
		"x >", "x\t>", "x\r\nPUB $SYS.REQ.SERVER.PING 0\r\n\r\n", "x\nSUB > 1", "x\x00y", `x","allow":[">"`, "x>", ">x", "x.>", "*x", "x*y", "**", "x.**", "+", "++", "x.+.>", "$SYS", "$SYS.x",
		"$JS.API.x", "_INBOX", "_INBOX.x", "_INBOX_x.y", "\u202ex", "ключ", strings.Repeat("x", 250), "{{name()}}", "{{account-name()}}", "$1", "%s", "x;y", "x|y", "\ufeffx", "a\u2028b", "$G.x", "x.$SYS.y", "x._INBOX.y",
	} {
		for _, actions := range [][]string{{"publish", "subscribe"}, {"request"}, {"reply"}, {"jetstream"}} {
			out = append(out, allow(actions, name), allow(actions, name+".*"), allow(actions, "a."+name))
		}
		out = append(out, allow([]string{name}, "orders.*"))
	}
	return out
}
