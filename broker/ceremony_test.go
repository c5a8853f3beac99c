package broker_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

// Browsers make no passkeys for addresses; a name among the URLs serves.
func TestPasskeysNeedAName(t *testing.T) {
	for _, urls := range [][]string{nil, {"https://127.0.0.1:8700"}, {"https://[::1]"}, {"http://mayfly.example"}, {"::"}} {
		p := broker.NewPasskeys(urls, time.Now)
		if _, err := p.LoginOptions(); fault.As(err).StableCode() != "passkeys_need_a_name" {
			t.Errorf("%v: %v", urls, err)
		}
		if _, err := p.NewOptions("human:ann", nil); err == nil {
			t.Errorf("%v: a passkey is made", urls)
		}
		if _, _, err := p.Made("human:ann", nil); err == nil {
			t.Errorf("%v: a passkey is taken", urls)
		}
		if _, _, err := p.Login(nil, nil); err == nil {
			t.Errorf("%v: somebody signs in", urls)
		}
	}
	p := broker.NewPasskeys([]string{"https://127.0.0.1:8700", "https://Mayfly.example:8443", "https://eu.mayfly.example", "https://other.example"}, time.Now)
	raw, err := p.NewOptions("human:ann", []broker.Passkey{{CredentialID: []byte("have")}})
	if err != nil {
		t.Fatal(err)
	}
	var o struct {
		RP                     struct{ ID string }
		User                   struct{ ID, Name string }
		PubKeyCredParams       []struct{ Alg int }
		ExcludeCredentials     []struct{ ID string }
		Attestation            string
		AuthenticatorSelection struct{ ResidentKey, UserVerification string }
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		t.Fatal(err)
	}
	if o.RP.ID != "mayfly.example" || o.User.Name != "human:ann" || len(o.PubKeyCredParams) != 2 || o.PubKeyCredParams[0].Alg != -7 || o.PubKeyCredParams[1].Alg != -8 ||
		len(o.ExcludeCredentials) != 1 || o.AuthenticatorSelection.ResidentKey != "required" || o.AuthenticatorSelection.UserVerification != "required" || o.Attestation != "none" {
		t.Errorf("options %s", raw)
	}
}

func TestPasskeysAreForPeople(t *testing.T) {
	p := broker.NewPasskeys([]string{"https://mayfly.example"}, time.Now)
	for _, who := range []string{"agent:coder", "workload:x", "", "human:" + strings.Repeat("x", 64)} {
		if _, err := p.NewOptions(who, nil); err == nil {
			t.Errorf("%q gets a passkey", who)
		}
	}
}

// What a browser carries between two steps is this process's, for this person,
// for two minutes.
func TestTicketsOfNewKeys(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	p := broker.NewPasskeys([]string{"https://mayfly.example"}, func() time.Time { return now })
	key := cosign.Key{Kind: cosign.KindPasskey, JWK: json.RawMessage(`{"kty":"OKP"}`), RPID: "mayfly.example"}
	ticket, err := p.Ticket("human:ann", key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Redeem("human:ann", ticket); err != nil || string(got.JWK) != string(key.JWK) {
		t.Errorf("%v, %v", got, err)
	}
	body, mac, _ := strings.Cut(ticket, ".")
	for name, text := range map[string]string{"empty": "", "cut": ticket[:len(ticket)-2], "no mac": body + ".", "other body": body[:len(body)-4] + "AAAA." + mac, "long": strings.Repeat("a", 1<<20)} {
		if _, err := p.Redeem("human:ann", text); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := p.Redeem("human:bo", ticket); err == nil {
		t.Error("another's ticket is taken")
	}
	if _, err := broker.NewPasskeys([]string{"https://mayfly.example"}, func() time.Time { return now }).Redeem("human:ann", ticket); err == nil {
		t.Error("another process's ticket is taken")
	}
	now = now.Add(2*time.Minute + time.Millisecond)
	if _, err := p.Redeem("human:ann", ticket); err == nil {
		t.Error("a late ticket is taken")
	}
}

// FuzzPasskey feeds the readers of what a browser sends; none may take it, and
// none may fall over it.
func FuzzPasskey(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"id":"AA","rawId":"AA","type":"public-key","response":{"attestationObject":"o2NmbXRkbm9uZQ","clientDataJSON":"e30","authenticatorData":"AA","signature":"AA","userHandle":"aHVtYW46YW5u"}}`))
	f.Add([]byte(`{"id":"AA","rawId":"AA","type":"public-key","response":{"clientDataJSON":"eyJ0eXBlIjoid2ViYXV0aG4uZ2V0IiwiY2hhbGxlbmdlIjoiQUEiLCJvcmlnaW4iOiJodHRwczovL21heWZseS5leGFtcGxlIn0"}}`))
	p := broker.NewPasskeys([]string{"https://mayfly.example"}, time.Now)
	none := func(string) ([]broker.RegisteredKey, error) { return nil, nil }
	f.Fuzz(func(t *testing.T, response []byte) {
		if who, _, err := p.Login(response, none); err == nil {
			t.Errorf("signs in as %q", who)
		}
		if key, _, err := p.Made("human:ann", response); err == nil {
			t.Errorf("takes %v", key)
		}
		if _, err := p.Redeem("human:ann", string(response)); err == nil {
			t.Error("redeems it")
		}
	})
}
