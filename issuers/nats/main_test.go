package nats_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	natsgo "github.com/nats-io/nats.go"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/nats"
	"github.com/mayfly-broker/mayfly/issuers/nats/natstest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// shared is the server of all tests that do not stop it.
var shared *natstest.Server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		s, err := natstest.Run(context.Background())
		if err != nil {
			fmt.Fprintln(os.Stderr, "nats tests:", err)
			return 1
		}
		shared = s
		code := m.Run()
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "nats tests:", err)
			return 1
		}
		return code
	}())
}

// fixture is a server and what is needed to open it as a target.
type fixture struct {
	t       testing.TB
	server  *natstest.Server
	spec    map[string]any
	secrets map[string]secret.Text
	log     *slog.Logger
}

// newFixture is a target that can revoke; see offline.
func newFixture(t testing.TB, s *natstest.Server) *fixture {
	t.Helper()
	secrets, err := nats.Kind{}.MakeSecrets(nil)
	if err != nil {
		t.Fatal(err)
	}
	secrets[nats.SecretSigning] = secret.New(s.SigningSeed)
	secrets[nats.SecretOperator] = secret.New(s.SigningOperatorSeed)
	secrets[nats.SecretSystem] = secret.New(s.SystemSeed)
	f := &fixture{
		t: t, server: s, secrets: secrets, log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		spec: map[string]any{
			"address": s.Address(), "account": s.Account, "tls": map[string]any{"mode": "disable"},
			"revocation": map[string]any{"system_account": s.System, "operator": s.Operator},
		},
	}
	if s.CAPEM != "" {
		f.spec["tls"] = map[string]any{"mode": "verify-full", "ca": s.CAPEM}
	}
	return f
}

// offline takes the means to revoke away.
func (f *fixture) offline() *fixture {
	delete(f.spec, "revocation")
	delete(f.secrets, nats.SecretOperator)
	delete(f.secrets, nats.SecretSystem)
	return f
}

func (f *fixture) raw() json.RawMessage {
	f.t.Helper()
	raw, err := json.Marshal(f.spec)
	if err != nil {
		f.t.Fatal(err)
	}
	return raw
}

func (f *fixture) target(term uint64) issuers.Target {
	f.t.Helper()
	return issuers.Target{Name: "bus", Spec: f.raw(), Secrets: f.secrets, Term: term, Log: f.log}
}

func (f *fixture) open(term uint64) *nats.Issuer {
	f.t.Helper()
	i, err := nats.Kind{}.Open(f.target(term))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = i.Close() })
	return i.(*nats.Issuer)
}

// allow is a scope of one detail.
func allow(actions []string, locations ...string) scope.Scope {
	return scope.Scope{{Type: "nats", Actions: actions, Locations: locations}}
}

func lease(s scope.Scope) issuers.Lease { return issuertest.NewLease(nats.Kind{}, s) }

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
	}
	return out
}

// dial logs in with a credential as delivered: by its .creds.
func (f *fixture) dial(c issuers.Credential, opts ...natsgo.Option) (*natsgo.Conn, error) {
	opts = append(opts, natsgo.UserCredentialBytes([]byte(c.Secret["creds"].Reveal())), natsgo.CustomInboxPrefix(c.Public["inbox_prefix"]))
	return f.server.Dial(opts...)
}

// as is a connection with a credential that ends with the test.
func (f *fixture) as(c issuers.Credential, opts ...natsgo.Option) *natsgo.Conn {
	f.t.Helper()
	nc, err := f.dial(c, opts...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(nc.Close)
	return nc
}

func (f *fixture) claims() *jwt.AccountClaims {
	f.t.Helper()
	c, err := f.server.Claims(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// refusals collects what the server refuses on a connection.
type refusals chan error

func (r refusals) option() natsgo.Option {
	return natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) {
		select {
		case r <- err:
		default:
		}
	})
}

// refused says whether the server refuses what do does. The connection has read
// the refusal once the answer to a later ping is here; handlers are told some time
// after that.
func refused(t testing.TB, nc *natsgo.Conn, do func() error) bool {
	t.Helper()
	before := nc.LastError()
	if err := do(); err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(time.Minute); err != nil {
		t.Fatal(err)
	}
	err := nc.LastError()
	if err == before { // each refusal is an error of its own
		return false
	}
	if !errors.Is(err, natsgo.ErrPermissionViolation) {
		t.Fatal(err)
	}
	return true
}

func wantKind(t testing.TB, err error, kind issuers.ErrorKind) {
	t.Helper()
	if err == nil || issuers.KindOf(err) != kind {
		t.Fatalf("error %v; want one of kind %s", err, kind)
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

// freeze stops a server, and waits until it answers nobody.
func freeze(t testing.TB, s *natstest.Server) {
	t.Helper()
	probe := s.SystemConn(t)
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server hangs", func() bool { return probe.FlushTimeout(300*time.Millisecond) != nil })
}
