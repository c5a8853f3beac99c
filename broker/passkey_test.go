package broker_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
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
	in, err := r.engine.LoginEnrolled(t.Context(), handedIn(t, made.Token), "192.0.2.1")
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
	_, err = r.engine.LoginEnrolled(t.Context(), handedIn(t, made.Token), "192.0.2.1")
	if e := fault.As(err); err == nil || e.Kind != fault.Unauthenticated || e.Code != ledger.CodeTokenSpent {
		t.Errorf("a spent token: %v", err)
	}
	if strings.Contains(r.logged.String(), made.Token) || strings.Contains(r.logged.String(), in.SessionToken) {
		t.Error("a token stands in the log")
	}
}

// handedIn is a token as a client, or the sign-in page, hands it in.
func handedIn(t *testing.T, whole string) secret.Text {
	t.Helper()
	tok, err := identity.ParseEnrolToken(secret.New(whole))
	if err != nil {
		t.Fatal(err)
	}
	return tok.Presented().Encode()
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
	if _, err := r.engine.LoginEnrolled(t.Context(), handedIn(t, made.Token), ""); fault.As(err).StableCode() != "not_a_person" {
		t.Errorf("an agent's token: %v", err)
	}
}

// A person makes a passkey, signs in with it, adds a second one with the first
// one's word, and loses the session when the key goes.
func TestPasskeysFromEnrolmentToSession(t *testing.T) {
	r := newRig(t)
	made, err := r.engine.EnrolByQuorum(t.Context(), operator, "init")
	if err != nil {
		t.Fatal(err)
	}
	in, err := r.engine.LoginEnrolled(t.Context(), handedIn(t, made.Token), "")
	if err != nil {
		t.Fatal(err)
	}
	c := r.callerOf(in.SessionToken)
	first, second := newToken(t, "ES256"), newToken(t, "EdDSA")
	first.handle, second.handle, second.id = operator, operator, []byte("another device's credential")
	r.addPasskey(c, first, nil)
	if options, err := r.engine.NewPasskey(t.Context(), c); err != nil || !strings.Contains(string(options), b64(first.id)) {
		t.Errorf("the one that is there is not excluded: %s, %v", options, err)
	}
	r.addPasskey(c, second, first)
	for _, k := range []*token{first, second} {
		options, err := r.engine.PasskeyLogin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		in, err := r.engine.LoginPasskey(t.Context(), broker.PasskeyLogin{Response: k.sign(options), Address: "192.0.2.1"})
		if err != nil || in.Principal != operator || in.Method != "passkey" {
			t.Fatalf("%+v, %v", in, err)
		}
		if ses := r.callerOf(in.SessionToken).Session; ses.Binding != "cookie" || ses.KeyThumbprint == "" {
			t.Errorf("session %+v", ses)
		}
	}
	have, err := r.engine.Passkeys(t.Context(), c)
	if err != nil || len(have) != 2 {
		t.Fatalf("%v, %v", have, err)
	}
	if err := r.engine.RemoveKey(t.Context(), c, "", have[0].Thumbprint); err != nil {
		t.Fatal(err)
	}
	gone := first
	if string(have[0].CredentialID) == string(second.id) {
		gone = second
	}
	options, _ := r.engine.PasskeyLogin(t.Context())
	if _, err := r.engine.LoginPasskey(t.Context(), broker.PasskeyLogin{Response: gone.sign(options)}); fault.As(err).StableCode() != "passkey_refused" {
		t.Errorf("a removed passkey: %v", err)
	}
}

func (r *rig) callerOf(token string) broker.Caller {
	r.t.Helper()
	ses, err := r.engine.Session(r.t.Context(), token)
	if err != nil {
		r.t.Fatal(err)
	}
	return broker.Caller{Session: ses}
}

// addPasskey registers a token's passkey, with another one's word.
func (r *rig) addPasskey(c broker.Caller, k, by *token) {
	r.t.Helper()
	options, err := r.engine.NewPasskey(r.t.Context(), c)
	if err != nil {
		r.t.Fatal(err)
	}
	offer, err := r.engine.OfferPasskey(r.t.Context(), c, k.make(options))
	if err != nil {
		r.t.Fatal(err)
	}
	proof := k.over(offer.Hash, offer.Thumbprint)
	var vouch *wire.Signature
	if by != nil {
		if offer.Vouch != "key" || len(offer.Others) != 1 {
			r.t.Errorf("offer %+v", offer)
		}
		if _, err := r.engine.AddPasskey(r.t.Context(), c, offer.Ticket, proof, nil); err == nil {
			r.t.Error("a second passkey needs nobody's word")
		}
		vouch = by.over(offer.Hash, offer.Others[0].Thumbprint)
	}
	other := newToken(r.t, "ES256")
	if _, err := r.engine.AddPasskey(r.t.Context(), c, offer.Ticket, other.over(offer.Hash, offer.Thumbprint), vouch); err == nil {
		r.t.Error("a passkey is taken that has proven nothing")
	}
	if _, err := r.engine.AddPasskey(r.t.Context(), c, offer.Ticket, proof, vouch); err != nil {
		r.t.Fatal(err)
	}
}

// over is the token's signature over 32 bytes, as the console sends it.
func (k *token) over(hash []byte, thumbprint string) *wire.Signature {
	var a struct {
		Response struct{ AuthenticatorData, ClientDataJSON, Signature string }
	}
	_ = json.Unmarshal(k.sign([]byte(`{"challenge":"`+b64(hash)+`"}`)), &a)
	raw := func(s string) []byte { b, _ := base64.RawURLEncoding.DecodeString(s); return b }
	return &wire.Signature{Kind: "passkey", Key: thumbprint, AuthenticatorData: raw(a.Response.AuthenticatorData), ClientDataJSON: raw(a.Response.ClientDataJSON), Assertion: raw(a.Response.Signature)}
}
