package nats_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/nats"
	"github.com/mayfly-broker/mayfly/issuers/nats/natstest"
	"github.com/mayfly-broker/mayfly/secret"
)

func accountSeed(t *testing.T) (seed, public string) {
	t.Helper()
	kp, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	public, err = kp.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	b, err := kp.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return string(b), public
}

// finding returns the check's line of that name; there must be one.
func (f *fixture) finding(name string) issuers.Finding {
	f.t.Helper()
	all, err := f.open(1).Check(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, x := range all {
		if x.Name == name {
			return x
		}
	}
	f.t.Fatalf("the check says nothing of %s: %+v", name, all)
	return issuers.Finding{}
}

func TestCheckSaysWhatIsMissing(t *testing.T) {
	stranger, strangerKey := accountSeed(t)
	operator, err := nkeys.CreateOperator()
	if err != nil {
		t.Fatal(err)
	}
	operatorSeed, err := operator.Seed()
	if err != nil {
		t.Fatal(err)
	}
	memory := natstest.Start(t, natstest.Memory())
	for name, c := range map[string]struct {
		server  *natstest.Server
		change  func(f *fixture)
		finding string
		ok      bool
		warning bool
		says    string
	}{
		"all is well":                              {shared, func(*fixture) {}, "signing key", true, false, shared.Account},
		"the operator's identity is a key too":     {shared, func(f *fixture) { f.secrets[nats.SecretOperator] = secret.New(shared.OperatorSeed) }, "operator key", true, false, "yes"},
		"a key that the account does not list":     {shared, func(f *fixture) { f.secrets[nats.SecretSigning] = secret.New(stranger) }, "signing key", false, false, strangerKey},
		"an account that the server does not know": {shared, func(f *fixture) { f.spec["account"] = strangerKey }, "signing key", false, false, strangerKey},
		"a key with a role":                        {shared, func(f *fixture) { f.secrets[nats.SecretSigning] = secret.New(shared.ScopedSeed) }, "signing key scope", false, false, "role"},
		"a key of the broker's, not installed":     {shared, func(f *fixture) { delete(f.secrets, nats.SecretSigning) }, "signing key", false, true, "until the account lists it"},
		"another system account's key":             {shared, func(f *fixture) { f.secrets[nats.SecretSystem] = secret.New(stranger) }, "system account", false, false, shared.System},
		"another operator's key":                   {shared, func(f *fixture) { f.secrets[nats.SecretOperator] = secret.New(string(operatorSeed)) }, "operator key", false, false, "no"},
		"another operator": {shared, func(f *fixture) {
			public, err := operator.PublicKey()
			if err != nil {
				t.Fatal(err)
			}
			f.spec["revocation"] = map[string]any{"system_account": shared.System, "operator": public}
		}, "operator", false, false, shared.Operator},
		"no means to revoke":            {shared, func(f *fixture) { f.offline() }, "revocation", false, true, "until it expires"},
		"a resolver that keeps nothing": {memory, func(*fixture) {}, "resolver", false, false, "full"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, c.server)
			c.change(f)
			got := f.finding(c.finding)
			if got.OK != c.ok || got.Warning != c.warning || !strings.Contains(got.Detail, c.says) {
				t.Errorf("%+v; want ok %v, warning %v, and %q", got, c.ok, c.warning, c.says)
			}
		})
	}
}

// A key that the broker made works once an operator has added what it publishes.
func TestSigningKeyOfTheBrokersOwn(t *testing.T) {
	f := newFixture(t, natstest.Start(t)).offline()
	delete(f.secrets, nats.SecretSigning)
	is := f.open(1)
	l := lease(allow([]string{"publish"}, "a"))
	if nc, err := f.dial(f.mint(is, l)); err == nil {
		nc.Close()
		t.Fatal("a key that the account does not list signs users")
	}
	docs, err := is.Publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	public := strings.TrimSpace(string(docs["account-signing-key"]))
	if x := f.finding("signing key"); !strings.Contains(x.Fix, public) {
		t.Errorf("the check's fix does not name %s: %s", public, x.Fix)
	}
	claims := f.claims()
	claims.SigningKeys.Add(public)
	if err := f.server.Push(t.Context(), claims); err != nil {
		t.Fatal(err)
	}
	f.as(f.mint(is, l))
	if x := f.finding("signing key"); !x.OK {
		t.Errorf("%+v", x)
	}
}

// The identity's own seed says which account it is.
func TestIdentityNeedsNoAccount(t *testing.T) {
	f := newFixture(t, shared).offline()
	delete(f.spec, "account")
	f.secrets[nats.SecretSigning] = secret.New("-----BEGIN ACCOUNT NKEY SEED-----\n" + shared.AccountSeed + "\n------END ACCOUNT NKEY SEED------\n")
	f.as(f.mint(f.open(1), lease(allow([]string{"publish"}, "a"))))
}

// Without the account listing the key nothing is minted where the issuer can see it.
func TestMintSaysWhatIsMissing(t *testing.T) {
	stranger, _ := accountSeed(t)
	for name, seed := range map[string]string{"a key that the account does not list": stranger, "a key with a role": shared.ScopedSeed} {
		f := newFixture(t, shared)
		f.secrets[nats.SecretSigning] = secret.New(seed)
		_, err := f.open(1).Mint(t.Context(), lease(allow([]string{"publish"}, "a")))
		if issuers.KindOf(err) != issuers.Refused {
			t.Errorf("%s: %v; want refused", name, err)
		}
	}
}

// Opening refuses keys that are not what they should be, and never shows them.
func TestOpenRefusesKeys(t *testing.T) {
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	userSeed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(f *fixture){
		"no users' key":                   func(f *fixture) { delete(f.secrets, nats.SecretUsers) },
		"an operator's for the account's": func(f *fixture) { f.secrets[nats.SecretSigning] = secret.New(shared.OperatorSeed) },
		"a user's":                        func(f *fixture) { f.secrets[nats.SecretSigning] = secret.New(string(userSeed)) },
		"a public key":                    func(f *fixture) { f.secrets[nats.SecretSigning] = secret.New(shared.Account) },
		"rubbish":                         func(f *fixture) { f.secrets[nats.SecretSigning] = secret.New("SAAAAA") },
		"an account's for the operator's": func(f *fixture) { f.secrets[nats.SecretOperator] = secret.New(shared.AccountSeed) },
		"no operator's":                   func(f *fixture) { delete(f.secrets, nats.SecretOperator) },
		"no system account's":             func(f *fixture) { delete(f.secrets, nats.SecretSystem) },
		"the system account's leases": func(f *fixture) {
			delete(f.spec, "account")
			f.secrets[nats.SecretSigning] = secret.New(shared.SystemSeed)
		},
		"no account": func(f *fixture) { delete(f.spec, "account"); delete(f.secrets, nats.SecretSigning) },
	} {
		f := newFixture(t, shared)
		change(f)
		_, err := nats.Kind{}.Open(f.target(1))
		if err == nil {
			t.Errorf("%s: it opens", name)
			continue
		}
		for _, s := range []string{shared.OperatorSeed, shared.SystemSeed, shared.AccountSeed, string(userSeed)} {
			if strings.Contains(err.Error(), s) {
				t.Errorf("%s: the error shows a seed", name)
			}
		}
	}
}

// A server that hangs holds up its own callers, for a bounded time.
func TestLaw8HangingNATSDelaysNoLongerThanItsTimeouts(t *testing.T) {
	s := natstest.Start(t)
	f := newFixture(t, s)
	is := f.open(1)
	l := lease(allow([]string{"publish"}, "a"))
	f.mint(is, l)
	freeze(t, s)
	start := time.Now()
	slow := lease(allow([]string{"publish"}, "a"))
	slow.MintDeadline = start.Add(2 * time.Second)
	if _, err := is.Mint(t.Context(), slow); issuers.KindOf(err) != issuers.Unreachable && issuers.KindOf(err) != issuers.TooLate {
		t.Errorf("a mint on a server that hangs: %v", err)
	}
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Unreachable)
	if took := time.Since(start); took > 25*time.Second {
		t.Errorf("that took %s", took)
	}
	if err := s.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the withdrawal goes through once the server goes on", func() bool { return is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err == nil })
}

// What was revoked stays so when the server starts again.
func TestRevocationSurvivesARestart(t *testing.T) {
	s := natstest.Start(t)
	f := newFixture(t, s)
	is := f.open(1)
	l, live := lease(allow([]string{"publish"}, "a")), lease(allow([]string{"publish"}, "a"))
	c, kept := f.mint(is, l), f.mint(is, live)
	f.withdraw(is, l)
	if err := errors.Join(s.Kill(), s.StartAgain(t.Context())); err != nil {
		t.Fatal(err)
	}
	if nc, err := f.dial(c); err == nil {
		nc.Close()
		t.Error("after a restart what was withdrawn logs in")
	}
	f.as(kept)
	f.withdraw(is, live) // over a new connection
}

func TestTLSIsVerified(t *testing.T) {
	s := natstest.Start(t, natstest.TLS())
	f := newFixture(t, s)
	is := f.open(1)
	l := lease(allow([]string{"publish"}, "a"))
	c := f.mint(is, l)
	if !strings.HasPrefix(c.Public["url"], "tls://") || c.Public["ca"] != s.CAPEM {
		t.Errorf("the credential does not say how: %v", c.Public)
	}
	f.as(c)
	f.withdraw(is, l)
	for name, tls := range map[string]map[string]any{
		"another CA":        {"mode": "verify-full"},
		"another name":      {"mode": "verify-full", "ca": s.CAPEM, "server_name": "nats.example"},
		"TLS is not spoken": {"mode": "disable"},
	} {
		f.spec["tls"] = tls
		if _, err := f.open(1).Mint(t.Context(), lease(allow([]string{"publish"}, "a"))); err == nil {
			t.Errorf("%s: the mint went through", name)
		}
	}
	plain := newFixture(t, shared)
	plain.spec["tls"] = map[string]any{"mode": "verify-full", "ca": s.CAPEM}
	_, err := plain.open(1).Mint(t.Context(), lease(allow([]string{"publish"}, "a")))
	wantKind(t, err, issuers.Unreachable)
}
