package broker_test

import (
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/secret"
)

// A person's enrolment token opens one session in a browser, and leaves no key
// behind.
func TestEnrolmentOpensTheConsoleOnce(t *testing.T) {
	r := newRig(t)
	made, err := r.engine.EnrolByQuorum(t.Context(), "human:op", "init")
	if err != nil {
		t.Fatal(err)
	}
	in, err := r.engine.LoginEnrolled(t.Context(), secret.New(made.Token), "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	ses, err := r.engine.Session(t.Context(), in.SessionToken)
	if err != nil || ses.Binding != "cookie" || ses.Thumbprint != "" || ses.Principal != "human:op" || ses.Method != "enroll" || ses.AttestedKey {
		t.Errorf("session %+v, error %v", ses, err)
	}
	keys, err := r.engine.Keys(t.Context(), broker.Caller{Session: ses}, "")
	if err != nil || len(keys) != 0 {
		t.Errorf("keys %v, error %v", keys, err)
	}
	_, err = r.engine.LoginEnrolled(t.Context(), secret.New(made.Token), "192.0.2.1")
	if e := fault.As(err); err == nil || e.Kind != fault.Unauthenticated || e.Code != ledger.CodeTokenSpent {
		t.Errorf("a spent token: %v", err)
	}
	if strings.Contains(r.logged.String(), made.Token) || strings.Contains(r.logged.String(), in.SessionToken) {
		t.Error("a token stands in the log")
	}
}

// What is not a person's, or no token at all, opens nothing.
func TestEnrolmentOfOthersOpensNoConsole(t *testing.T) {
	r := newRig(t)
	for _, text := range []string{"", "mfe_", strings.Repeat("x", 1<<20)} {
		if _, err := r.engine.LoginEnrolled(t.Context(), secret.New(text), ""); err == nil {
			t.Errorf("%.20q opens a session", text)
		}
	}
	made, err := r.engine.EnrolByQuorum(t.Context(), "agent:c", "init")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine.LoginEnrolled(t.Context(), secret.New(made.Token), ""); fault.As(err).StableCode() != "not_a_person" {
		t.Errorf("an agent's token: %v", err)
	}
}

// Nobody signs in by a passkey that is not registered.
func TestPasskeysNeedARegisteredOne(t *testing.T) {
	r := newRig(t)
	if options, err := r.engine.PasskeyLogin(t.Context()); err != nil || !strings.Contains(string(options), "mayfly.example") {
		t.Errorf("options %s, error %v", options, err)
	}
	if _, err := r.engine.LoginPasskey(t.Context(), broker.PasskeyLogin{Response: []byte(`{}`)}); err == nil {
		t.Error("a session without a passkey")
	}
}
