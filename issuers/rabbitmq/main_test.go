package rabbitmq_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/rabbitmq"
	"github.com/mayfly-broker/mayfly/issuers/rabbitmq/rabbitmqtest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// started is the server of all tests: a start takes half a minute. Tests that stop
// it start it again. What needs none, a fuzz worker among it, starts none.
var started = sync.OnceValues(func() (*rabbitmqtest.Server, error) {
	s, err := rabbitmqtest.Run(context.Background())
	if err != nil {
		return nil, err
	}
	running = s
	return s, fill(s)
})

// running is the server once it was started; TestMain ends it.
var running *rabbitmqtest.Server

func server(t testing.TB) *rabbitmqtest.Server {
	t.Helper()
	s, err := started()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Things that every test finds on the server.
const (
	bus   = "bus"      // a virtual host
	other = "o/t h%r?" // another, with characters that a path must escape

	// a user as docs/issuers/rabbitmq.md makes one: the tag, and no permission
	leastUser, leastPassword = "mayfly", "a-password-of-the-broker"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if running != nil {
		if err := running.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "rabbitmq tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// fill makes virtual hosts, queues and exchanges.
func fill(s *rabbitmqtest.Server) error {
	v, o := "/"+url.PathEscape(bus), "/"+url.PathEscape(other)
	admin := "/" + rabbitmqtest.AdminUser
	all := `{"configure":".*","write":".*","read":".*"}`
	for _, x := range []struct{ path, body string }{
		{"/api/vhosts" + v, ""}, {"/api/vhosts" + o, ""},
		{"/api/permissions" + v + admin, all}, {"/api/permissions" + o + admin, all},
		{"/api/queues" + v + "/orders", `{"durable":true}`}, {"/api/queues" + v + "/orders.eu", `{"durable":true}`}, {"/api/queues" + v + "/secret", `{"durable":true}`},
		{"/api/queues" + o + "/orders", `{"durable":true}`},
		{"/api/users/" + leastUser, `{"password":"` + leastPassword + `","tags":"administrator"}`},
		{"/api/exchanges" + v + "/events", `{"type":"topic","durable":true}`}, {"/api/exchanges" + v + "/plain", `{"type":"direct","durable":true}`},
	} {
		if status, answer, err := s.Call(context.Background(), http.MethodPut, x.path, x.body); err != nil || status >= 300 {
			return fmt.Errorf("%s: %d %s: %w", x.path, status, answer, err)
		}
	}
	return nil
}

// fixture is the server and what is needed to open it as a target.
type fixture struct {
	t       testing.TB
	server  *rabbitmqtest.Server
	spec    map[string]any
	secrets map[string]secret.Text
	log     *slog.Logger
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	shared := server(t)
	secrets, err := rabbitmq.Kind{}.MakeSecrets(nil)
	if err != nil {
		t.Fatal(err)
	}
	secrets[rabbitmq.SecretPassword] = secret.New(shared.Password)
	return &fixture{
		t: t, server: shared, secrets: secrets, log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		spec: map[string]any{
			"address": shared.API, "tls": map[string]any{"mode": "disable"}, "admin": map[string]any{"username": rabbitmqtest.AdminUser},
			"amqp": map[string]any{"address": shared.AMQP}, "vhost": bus,
		},
	}
}

// secured is the fixture with TLS for the API and for AMQP, and the user that the
// page makes.
func secured(t testing.TB) *fixture {
	t.Helper()
	f, shared := newFixture(t), server(t)
	f.spec["address"], f.spec["amqp"] = shared.APITLS, map[string]any{"address": shared.AMQPTLS}
	f.spec["tls"] = map[string]any{"mode": "verify-full", "ca": shared.CAPEM}
	f.spec["admin"] = map[string]any{"username": leastUser}
	f.secrets[rabbitmq.SecretPassword] = secret.New(leastPassword)
	return f
}

func (f *fixture) target(term uint64) issuers.Target {
	f.t.Helper()
	raw, err := json.Marshal(f.spec)
	if err != nil {
		f.t.Fatal(err)
	}
	return issuers.Target{Name: "bus", Spec: raw, Secrets: f.secrets, Term: term, Log: f.log}
}

func (f *fixture) open(term uint64) *rabbitmq.Issuer {
	f.t.Helper()
	i, err := rabbitmq.Kind{}.Open(f.target(term))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = i.Close() })
	return i.(*rabbitmq.Issuer)
}

// at returns the fixture with another address of the management API.
func (f *fixture) at(address string) *fixture {
	g := *f
	g.spec = map[string]any{}
	for k, v := range f.spec {
		g.spec[k] = v
	}
	g.spec["address"] = address
	return &g
}

// allow is a scope of one detail in the virtual host bus.
func allow(actions []string, locations ...string) scope.Scope {
	return scope.Scope{{Type: "rabbitmq", Identifier: bus, Actions: actions, Locations: locations}}
}

func lease(s scope.Scope) issuers.Lease { return issuertest.NewLease(rabbitmq.Kind{}, s) }

func (f *fixture) mint(is issuers.Issuer, l issuers.Lease) issuers.Credential {
	f.t.Helper()
	c, err := is.Mint(f.t.Context(), l)
	if err != nil {
		f.t.Fatalf("Mint: %v", err)
	}
	return c
}

func (f *fixture) withdraw(is issuers.Issuer, leases ...issuers.Lease) []issuers.Outcome {
	f.t.Helper()
	out := is.Withdraw(f.t.Context(), leases)
	for i, o := range out {
		if o.Err != nil {
			f.t.Fatalf("Withdraw %s: %v", leases[i].Name, o.Err)
		}
		if o.Receipt.Proof != issuers.ProofAbsent {
			f.t.Fatalf("Withdraw %s: proof %q", leases[i].Name, o.Receipt.Proof)
		}
	}
	return out
}

// dial logs in with a credential as delivered.
func dial(c issuers.Credential) (*amqp.Connection, error) {
	config := amqp.Config{Heartbeat: 10 * time.Second, Locale: "en_US", Dial: amqp.DefaultDial(10 * time.Second)}
	if ca := c.Public["ca"]; ca != "" {
		config.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
		config.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(ca))
	}
	return amqp.DialConfig(c.Secret["url"].Reveal(), config)
}

// login is a connection with a credential that ends with the test.
func (f *fixture) login(c issuers.Credential) *amqp.Connection {
	f.t.Helper()
	conn, err := dial(c)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// on runs f on a channel of its own: a refusal ends the channel.
func on(conn *amqp.Connection, f func(*amqp.Channel) error) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	defer func() { _ = ch.Close() }()
	return f(ch)
}

// canRead says whether a connection may read from a queue.
func canRead(conn *amqp.Connection, queue string) error {
	return on(conn, func(ch *amqp.Channel) error {
		_, _, err := ch.Get(queue, true)
		return err
	})
}

// publish sends a message and waits until the server has taken it.
func publish(conn *amqp.Connection, exchange, key string, headers amqp.Table) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return on(conn, func(ch *amqp.Channel) error {
		closed := ch.NotifyClose(make(chan *amqp.Error, 1))
		if err := ch.Confirm(false); err != nil {
			return err
		}
		d, err := ch.PublishWithDeferredConfirmWithContext(ctx, exchange, key, false, false, amqp.Publishing{Body: []byte("x"), Headers: headers})
		if err != nil {
			return err
		}
		select {
		case <-d.Done():
			if !d.Acked() {
				select {
				case err := <-closed:
					return err
				case <-ctx.Done():
				}
				return fmt.Errorf("not taken")
			}
			return nil
		case err := <-closed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// isRefusal says whether an error is the server's ACCESS_REFUSED (403).
func isRefusal(err error) bool {
	e, ok := err.(*amqp.Error)
	return ok && e != nil && e.Code == amqp.AccessRefused
}

// user asks the server for a user, as text; empty if there is none.
func (f *fixture) user(name string) string {
	f.t.Helper()
	status, answer, err := f.server.Call(f.t.Context(), http.MethodGet, "/api/users/"+name, "")
	switch {
	case err != nil:
		f.t.Fatal(err)
	case status == http.StatusNotFound:
		return ""
	case status != http.StatusOK:
		f.t.Fatalf("%d %s", status, answer)
	}
	return answer
}

// put writes something as the administrator.
func (f *fixture) put(path, body string) {
	f.t.Helper()
	if status, answer, err := f.server.Call(context.Background(), http.MethodPut, path, body); err != nil || status >= 300 {
		f.t.Fatalf("PUT %s: %d %s, %v", path, status, answer, err)
	}
}

func (f *fixture) remove(path string) {
	f.t.Helper()
	if status, answer, err := f.server.Call(context.Background(), http.MethodDelete, path, ""); err != nil || status >= 300 && status != http.StatusNotFound {
		f.t.Fatalf("DELETE %s: %d %s, %v", path, status, answer, err)
	}
}

// eventually polls until ok, and fails after a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not happen within a minute: %s", what)
		}
	}
}

func wantKind(t testing.TB, err error, kind issuers.ErrorKind) {
	t.Helper()
	if err == nil || issuers.KindOf(err) != kind {
		t.Fatalf("error %v; want one of kind %s", err, kind)
	}
}

func wantText(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %v; want one that says %q", err, text)
	}
}
