package rabbitmq_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/rabbitmq"
	"github.com/mayfly-broker/mayfly/scope"
)

func TestConformance(t *testing.T) {
	issuertest.Run(t, newFixture(t).harness())
}

func TestConformanceWithTLS(t *testing.T) {
	f := secured(t)
	h := f.harness()
	h.Hostile = h.Hostile[:8]
	issuertest.Run(t, h)
}

func (f *fixture) harness() issuertest.Harness {
	f.t.Helper()
	return issuertest.Harness{
		Kind:     rabbitmq.Kind{},
		Target:   f.target(1),
		Scope:    allow([]string{"read", "write"}, "name:orders*"),
		Narrower: allow([]string{"read"}, "name:orders"),
		Invalid:  invalid(),
		Accepted: accepted(),
		Hostile:  hostile(),
		Intact:   f.intact,
		Use: func(ctx context.Context, c issuers.Credential) error {
			if err := f.known(ctx, c); err != nil {
				return err
			}
			conn, err := dial(c)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			return canRead(conn, "orders")
		},
		Gone: func(ctx context.Context, l issuers.Lease) error { return f.gone(ctx, l) },
		Hold: func(_ context.Context, c issuers.Credential) (issuertest.Session, error) {
			conn, err := dial(c)
			if err != nil {
				return nil, err
			}
			return held{conn}, canRead(conn, "orders")
		},
		RefusesOlder: true,
		Rotation:     f.rotation(),
		Unreachable:  f.at("127.0.0.1:1").target(1).Spec,
	}
}

// known asks whether the server knows user and password. AMQP lets who does not
// wait for three seconds; the management API says so at once, and says to others
// that they have no business there.
func (f *fixture) known(ctx context.Context, c issuers.Credential) error {
	_, answer, err := f.server.CallAs(ctx, c.Public["username"], c.Secret["password"].Reveal(), http.MethodGet, "/api/whoami", "")
	if err != nil {
		return err
	}
	if !strings.Contains(answer, "Not management user") {
		return fmt.Errorf("the login is refused: %s", answer)
	}
	return nil
}

// held is one connection that stays open.
type held struct{ conn *amqp.Connection }

func (h held) Alive(context.Context) error { return canRead(h.conn, "orders") }
func (h held) Close() error                { return h.conn.Close() }

// intact: queues, virtual hosts and the two administrators are there, and nobody
// else is one.
func (f *fixture) intact(ctx context.Context) error {
	for path, want := range map[string]string{"/api/queues/bus/orders": `"orders"`, "/api/queues/bus/secret": `"secret"`, "/api/vhosts/o%2Ft%20h%25r%3F": "vhost", "/api/users/admin": "administrator"} {
		status, answer, err := f.server.Call(ctx, http.MethodGet, path, "")
		if err != nil || status != http.StatusOK || want != "vhost" && !strings.Contains(answer, want) {
			return fmt.Errorf("%s: %d %s: %w", path, status, answer, err)
		}
	}
	_, answer, err := f.server.Call(ctx, http.MethodGet, "/api/users?columns=tags", "")
	if n := strings.Count(answer, `"administrator"`); err != nil || n != 2 {
		return fmt.Errorf("%d administrators: %w", n, err)
	}
	return nil
}

// gone asks the server itself for anything of a lease: the user, its permissions,
// its connections in the table and in the statistics.
func (f *fixture) gone(ctx context.Context, l issuers.Lease) error {
	for path, empty := range map[string]string{
		"/api/users?columns=name": "", "/api/permissions": "", "/api/topic-permissions": "", "/api/connections/username/" + l.Name: "[]",
	} {
		status, answer, err := f.server.Call(ctx, http.MethodGet, path, "")
		if err != nil {
			return err
		}
		if status != http.StatusOK || !json.Valid([]byte(answer)) {
			return fmt.Errorf("%s: %d %s", path, status, answer)
		}
		if strings.Contains(answer, l.Name) || empty != "" && answer != empty {
			return fmt.Errorf("%s shows %s", path, l.Name)
		}
	}
	return nil
}

func limited(word string) scope.Scope {
	s := allow([]string{"read"}, "name:orders")
	s[0].Privileges = []string{word}
	return s
}

func invalid() []scope.Scope {
	both := limited("connections:1")
	both[0].Privileges = append(both[0].Privileges, "channels:1")
	out := []scope.Scope{
		{{Type: "rabbitmq", Actions: []string{"read"}}}, // no virtual host
		{{Type: "rabbitmq", Identifier: "bu*", Actions: []string{"read"}}},
		{{Type: "rabbitmq", Identifier: "..", Actions: []string{"read"}}},
		{{Type: "rabbitmq", Identifier: bus, Actions: []string{"read"}, Tables: []scope.Table{{Name: "a.b"}}}},
		{{Type: "rabbitmq", Identifier: bus, Actions: []string{"read"}, Datatypes: []string{"x"}}},
		both,
		allow([]string{"administrator"}), allow([]string{"read", "management"}), allow([]string{"all"}),
		allow([]string{"read"}, "orders"), allow([]string{"read"}, "name:"), allow([]string{"read"}, "topic:events"), allow([]string{"read"}, "topic:events/"),
		allow([]string{"read"}, "topic:/eu"), allow([]string{"read"}, "topic:ev*/eu"), allow([]string{"read"}, "topic:*"), allow([]string{"read"}, "topic:../eu"),
		allow([]string{"read"}, "topic:events/eu.#"), allow([]string{"configure"}, "topic:events/eu.*"),
		allow([]string{"write"}, "topic:events/eu.*"), allow([]string{"read", "write"}, "topic:events/eu.*"),
		// whoever may make the exchange anew
		append(allow([]string{"configure"}, "name:ev*"), allow([]string{"read"}, "topic:events/eu.*")...),
		append(allow([]string{"configure"}), allow([]string{"read"}, "topic:events/eu.*")...),
	}
	for _, w := range []string{"connections", "connections:0", "connections:", "connections:9999999", "channels:1/connections:1", "connections:1/", "/channels:1", "connections:-1", "connections:1/channels", "unlimited"} {
		out = append(out, limited(w))
	}
	return out
}

func accepted() []scope.Scope {
	var long, dotted []string // as long as an expression may be, and RabbitMQ must take it
	for i := range 60 {
		long = append(long, fmt.Sprintf("name:%02d", i)+strings.Repeat("x", 240))
		dotted = append(dotted, fmt.Sprintf("name:%02d", i)+strings.Repeat(".", 190))
	}
	return []scope.Scope{
		allow([]string{"read"}),
		allow([]string{"configure", "read", "write"}),
		allow([]string{"write"}, "name:amq.default"),
		{{Type: "rabbitmq", Identifier: "/", Actions: []string{"read"}}, {Type: "rabbitmq", Identifier: other, Actions: []string{"write"}, Locations: []string{"name:orders"}}},
		allow([]string{"read"}, long...), allow([]string{"configure", "read", "write"}, dotted...),
		limited("connections:2"), limited("channels:3"), limited("connections:2/channels:3"),
		allow([]string{"read"}, "topic:events/eu.*", "topic:events/us", "name:orders"),
		append(allow([]string{"configure"}, "name:mine.*"), allow([]string{"read"}, "topic:events/eu.*")...),
	}
}

// hostile are names that try to end an expression, begin another, or widen one.
func hostile() []scope.Scope {
	var out []scope.Scope
	for _, name := range []string{
		".*", "a|.*", "a)|(.*", "x\\E.*", `x\`, `\Q`, "(?s).", "(?#", "[", "]", "x{username}", "{vhost}", "^", "$", "x\\z|", "x\n.*", "x\x00y", "\u202ex", "a b", "a/b", "a%2Fb", "?x", "#x", "..", ".", "+", "x'y", `x"y`,
		"ключ", strings.Repeat("x", 240), "amq.default", "x;y", "x,y", "-x", "~",
	} {
		out = append(out, allow([]string{"configure", "read", "write"}, "name:"+name), allow([]string{"read"}, "name:"+name+"*"),
			allow([]string{"read"}, "topic:events/"+name), allow([]string{"read"}, "topic:events/"+name+"*"))
	}
	return out
}

// hostileVHosts are names of virtual hosts that a path could turn into something
// else. None of them exists.
func hostileVHosts() []string {
	return []string{"..", ".", "a/../..", "bus/../../users", "bus?x", "bus#x", "%2e%2e", "x\r\nX-Evil: 1", "nosuch", "ключ", strings.Repeat("x", 256), "*", "bus/", "/bus", "bus%00"}
}

func TestHostileVirtualHostsReachNothing(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	for _, name := range hostileVHosts() {
		s := scope.Scope{{Type: "rabbitmq", Identifier: name, Actions: []string{"read"}}}
		l := lease(s)
		want := issuers.BadScope
		if (rabbitmq.Kind{}).CheckScope(f.target(1).Spec, s) != nil {
			want = issuers.Refused
		}
		if _, err := is.Mint(t.Context(), l); issuers.KindOf(err) != want {
			t.Errorf("%.40q: %v; want kind %s", name, err, want)
		}
		if err := f.gone(t.Context(), l); err != nil {
			t.Errorf("%.40q left something: %v", name, err)
		}
	}
	if err := f.intact(t.Context()); err != nil {
		t.Fatal(err)
	}
}
