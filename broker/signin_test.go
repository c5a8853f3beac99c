package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// lobby is an engine with a provider to sign in by.
type lobby struct {
	*rig
	*provider
}

func newLobby(t *testing.T) *lobby {
	t.Helper()
	l := &lobby{newRig(t), newProvider(t)}
	l.register("corp", l.provider)
	return l
}

// register writes an AuthMethod for a provider, its client's secret sealed.
func (l *lobby) register(name string, p *provider) {
	l.rig.t.Helper()
	spec := p.spec(map[string]any{"client_id": clientID, "scopes": []string{"openid", "email"}})
	if _, err := l.engine.Apply(l.rig.t.Context(), callerOf(operator, ""), wire.ApplyRequest{Objects: []wire.Object{{Kind: "AuthMethod", Name: name, Spec: spec, Secrets: map[string]string{"client_secret": clientSecret}}}}); err != nil {
		l.rig.t.Fatal(err)
	}
}

// leave begins a sign-in and visits the provider. What it returns is a good answer.
func (l *lobby) leave() broker.SignInAnswer {
	l.rig.t.Helper()
	start, err := l.engine.BeginSignIn(l.rig.t.Context(), broker.SignInRequest{Method: "corp", Origin: "https://mayfly.example", To: "/grants"})
	if err != nil {
		l.rig.t.Fatal(err)
	}
	return broker.SignInAnswer{Ticket: start.Ticket, State: l.visit(start.URL), Code: "the-code", Issuer: l.URL, Address: "192.0.2.1"}
}

func TestAPersonSignsInByAProvider(t *testing.T) {
	l := newLobby(t)
	if names, err := l.engine.SignInMethods(t.Context()); err != nil || len(names) != 1 || names[0] != "corp" {
		t.Errorf("methods %v, %v", names, err)
	}
	answer := l.leave()
	out, to, err := l.engine.FinishSignIn(t.Context(), answer)
	if err != nil || to != "/grants" || out.Principal != operator {
		t.Fatalf("%+v to %q, %v", out, to, err)
	}
	ses, err := l.engine.Session(t.Context(), out.SessionToken)
	if err != nil || ses.Method != "corp" || ses.Binding != "cookie" || ses.Thumbprint != "" || ses.AttestedKey || ses.Facts["claim.dept"] != "ops" || ses.Address != "192.0.2.1" {
		t.Errorf("session %+v, %v", ses, err)
	}
	if left := time.Until(time.UnixMilli(ses.ExpiresMS)); left > 40*time.Minute || left < 39*time.Minute {
		t.Errorf("the session lasts %s, want max_ttl", left)
	}
	asked := l.redeems.Load()
	_, _, err = l.engine.FinishSignIn(t.Context(), answer)
	l.fails(err, fault.Unauthenticated, "signin_late")
	if l.redeems.Load() != asked {
		t.Error("an answer that came back twice reached the provider twice")
	}
	if text := l.logged.String(); strings.Contains(text, clientSecret) || strings.Contains(text, out.SessionToken) {
		t.Error("a secret stands in the log")
	}
}

// A method may allow its tokens a day; a browser gets an hour.
func TestSessionsByAProviderLastAnHour(t *testing.T) {
	l := newLobby(t)
	var spec map[string]any
	if err := json.Unmarshal(l.spec(map[string]any{"client_id": clientID, "scopes": []string{"openid", "email"}}), &spec); err != nil {
		t.Fatal(err)
	}
	spec["max_ttl"] = "24h"
	l.put("AuthMethod", "corp", mustJSON(spec)) // the secret stays sealed beside it
	out, _, err := l.engine.FinishSignIn(t.Context(), l.leave())
	if left := time.Until(out.ExpiresAt); err != nil || left > time.Hour || left < 59*time.Minute {
		t.Errorf("the session lasts %s, %v", left, err)
	}
}

// Whoever is led to the console with another person's answer is signed in as
// nobody, and the provider is not even asked.
func TestAnswersOfOtherBrowsersOpenNothing(t *testing.T) {
	l := newLobby(t)
	mine, other := l.leave(), l.leave()
	for name, in := range map[string]func(*broker.SignInAnswer){
		"no ticket":          func(a *broker.SignInAnswer) { a.Ticket = "" },
		"another's ticket":   func(a *broker.SignInAnswer) { a.Ticket = mine.Ticket },
		"another state":      func(a *broker.SignInAnswer) { a.State = mine.State },
		"no state":           func(a *broker.SignInAnswer) { a.State = "" },
		"a forged ticket":    func(a *broker.SignInAnswer) { a.Ticket = "e30." + strings.Split(a.Ticket, ".")[1] },
		"a huge ticket":      func(a *broker.SignInAnswer) { a.Ticket += strings.Repeat("x", 1<<20) },
		"an altered ticket":  func(a *broker.SignInAnswer) { a.Ticket = "A" + a.Ticket[1:] },
		"no base64 at all":   func(a *broker.SignInAnswer) { a.Ticket = "%.%" },
		"nothing whatsoever": func(a *broker.SignInAnswer) { *a = broker.SignInAnswer{} },
	} {
		a := other
		in(&a)
		if _, _, err := l.engine.FinishSignIn(t.Context(), a); fault.As(err).StableCode() != "signin_late" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l.redeems.Load() != 0 {
		t.Error("the provider was asked")
	}
	// A node that did not begin it, such as the next leader, knows nothing of it.
	next := broker.NewSignIns([]string{"https://mayfly.example"}, time.Now, http.DefaultClient)
	_, _, err := next.Finish(t.Context(), other, func(string) (ledger.Object, secret.Text, error) {
		t.Error("it looks for a method")
		return ledger.Object{}, secret.Text{}, nil
	})
	l.fails(err, fault.Unauthenticated, "signin_late")
	if _, _, err := l.engine.FinishSignIn(t.Context(), other); err != nil {
		t.Errorf("the attempts have spoilt the true one: %v", err)
	}
}

func TestSignInsEnd(t *testing.T) {
	p := newProvider(t)
	now := time.Now()
	s := broker.NewSignIns([]string{"https://127.0.0.1:8700", "https://mayfly.example:443/"}, func() time.Time { return now }, &http.Client{})
	o := ledger.Object{Name: "corp", Version: 7, Spec: p.spec(map[string]any{"client_id": clientID, "scopes": []string{"openid", "email"}})}
	begin := func() broker.SignInAnswer {
		start, err := s.Begin(t.Context(), o, secret.New(clientSecret), broker.SignInRequest{Method: "corp", Origin: "https://mayfly.example", To: "/" + strings.Repeat("x", 5000)})
		if err != nil {
			t.Fatal(err)
		}
		if len(start.Ticket) > 3<<10 || !start.Until.Equal(now.Add(5*time.Minute)) {
			t.Errorf("a ticket of %d bytes until %s", len(start.Ticket), start.Until)
		}
		return broker.SignInAnswer{Ticket: start.Ticket, State: p.visit(start.URL), Code: "the-code", Issuer: p.URL}
	}
	find := func(string) (ledger.Object, secret.Text, error) { return o, secret.New(clientSecret), nil }
	p.claims = map[string]any{"exp": now.Add(time.Hour).Unix()}
	late := begin()
	now = now.Add(5*time.Minute + time.Second)
	if _, _, err := s.Finish(t.Context(), late, find); fault.As(err).StableCode() != "signin_late" {
		t.Errorf("after five minutes: %v", err)
	}
	if who, to, err := s.Finish(t.Context(), begin(), find); err != nil || who.Principal != operator || to != "/" {
		t.Errorf("in time: %+v to %q, %v", who, to, err)
	}
	changed := begin()
	o.Version++
	if _, _, err := s.Finish(t.Context(), changed, find); fault.As(err).StableCode() != "signin_late" {
		t.Errorf("after the method changed: %v", err)
	}
	if _, err := s.Begin(t.Context(), o, secret.Text{}, broker.SignInRequest{Origin: "https://127.0.0.1:8700"}); fault.As(err).StableCode() != "signin_elsewhere" {
		t.Errorf("under an address: %v", err)
	}
	nameless := broker.NewSignIns([]string{"https://127.0.0.1:8700"}, time.Now, nil)
	if _, err := nameless.Begin(t.Context(), o, secret.Text{}, broker.SignInRequest{Origin: "https://127.0.0.1:8700"}); fault.As(err).StableCode() != "signin_needs_a_name" {
		t.Errorf("without a name: %v", err)
	}
}

// One provider's code never reaches another one's token endpoint (RFC 9207).
func TestProvidersAreNotMixedUp(t *testing.T) {
	l := newLobby(t)
	honest := newProvider(t)
	l.register("honest", honest)
	for name, iss := range map[string]string{"the honest one's": honest.URL, "none": "", "with a slash": l.URL + "/"} {
		a := l.leave()
		a.Issuer = iss
		if _, _, err := l.engine.FinishSignIn(t.Context(), a); fault.As(err).StableCode() != identity.CodeIssuer {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l.redeems.Load()+honest.redeems.Load() != 0 {
		t.Error("a token endpoint was asked")
	}
	l.document = map[string]any{"authorization_response_iss_parameter_supported": nil}
	l.register("corp", l.provider) // same text: nothing changes but the secret's version
	a := l.leave()
	a.Issuer = honest.URL
	if _, _, err := l.engine.FinishSignIn(t.Context(), a); fault.As(err).StableCode() != identity.CodeIssuer {
		t.Errorf("an iss that was not promised, and is wrong: %v", err)
	}
	a = l.leave()
	a.Issuer = ""
	if _, _, err := l.engine.FinishSignIn(t.Context(), a); err != nil {
		t.Errorf("an iss that was not promised, and is missing: %v", err)
	}
}

func TestTokensOfProvidersAreChecked(t *testing.T) {
	l := newLobby(t)
	thief, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(v any) string { return base64.RawURLEncoding.EncodeToString(mustJSON(v)) }
	good := l.sign
	type over = map[string]any
	for name, c := range map[string]struct {
		claims over
		sign   func(map[string]any) string
		code   string
	}{
		"alg none":            {sign: func(c map[string]any) string { return encode(over{"alg": "none"}) + "." + encode(c) + "." }, code: identity.CodeAlgorithm},
		"another key":         {sign: func(c map[string]any) string { return l.signed(thief, c) }, code: identity.CodeSignature},
		"another sign-in":     {claims: over{"nonce": "other"}, code: identity.CodeNonce},
		"no nonce":            {claims: over{"nonce": nil}, code: identity.CodeNonce},
		"nonce a list":        {claims: over{"nonce": []string{"x"}}, code: identity.CodeNonce},
		"another issuer":      {claims: over{"iss": "https://evil.example"}, code: identity.CodeIssuer},
		"another client":      {claims: over{"aud": "other"}, code: identity.CodeAudience},
		"the API's audience":  {claims: over{"aud": "https://mayfly.example/api"}, code: identity.CodeAudience},
		"two, azp missing":    {claims: over{"aud": []string{clientID, "other"}}, code: identity.CodeAudience},
		"two, azp another's":  {claims: over{"aud": []string{clientID, "other"}, "azp": "other"}, code: identity.CodeAudience},
		"two, azp ours":       {claims: over{"aud": []string{clientID, "other"}, "azp": clientID}},
		"expired":             {claims: over{"exp": time.Now().Add(-time.Hour).Unix()}, code: identity.CodeExpired},
		"require is not met":  {claims: over{"dept": "sales"}, code: identity.CodeClaimsRefused},
		"nobody's":            {claims: over{"sub": "u-2"}, code: identity.CodeNoBinding},
		"a workload":          {claims: over{"sub": "robot"}, code: "not_a_person"},
		"no principal":        {claims: over{"sub": "stranger"}, code: "principal_unknown"},
		"bound to some key":   {claims: over{"cnf": over{"jkt": "x"}}, code: identity.CodeKeyBinding},
		"as it should be":     {},
		"valid for days":      {claims: over{"exp": time.Now().Add(72 * time.Hour).Unix()}},
		"not a token at all":  {sign: func(map[string]any) string { return "x" }, code: identity.CodeTokenMalformed},
		"larger than a token": {claims: over{"pad": strings.Repeat("x", 20<<10)}, code: identity.CodeTokenMalformed},
	} {
		if l.claims, l.sign = c.claims, good; c.sign != nil {
			l.sign = c.sign
		}
		_, _, err := l.engine.FinishSignIn(t.Context(), l.leave())
		if got := fault.As(err); (err == nil) != (c.code == "") || err != nil && got.StableCode() != c.code {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
	}
}

func TestMisbehavingProvidersSignNobodyIn(t *testing.T) {
	l := newLobby(t)
	say := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); _, _ = w.Write([]byte(body)) }
	}
	for name, c := range map[string]struct {
		token  http.HandlerFunc
		change func(*broker.SignInAnswer)
		kind   fault.Kind
	}{
		"huge":             {token: say(200, strings.Repeat(" ", 65<<10)), kind: fault.Unavailable},
		"huge refusal":     {token: say(400, strings.Repeat(" ", 65<<10)), kind: fault.Unavailable},
		"not JSON":         {token: say(200, "<html>"), kind: fault.Unavailable},
		"no ID token":      {token: say(200, `{"access_token":"x"}`), kind: fault.Unavailable},
		"ID token a list":  {token: say(200, `{"id_token":[]}`), kind: fault.Unavailable},
		"given twice":      {token: say(200, `{"id_token":"a","id_token":"b"}`), kind: fault.Unavailable},
		"failing":          {token: say(500, ""), kind: fault.Unavailable},
		"created, not OK":  {token: say(201, `{"id_token":"a"}`), kind: fault.Unavailable},
		"refusing":         {token: say(401, `{"error":"invalid_client"}`), kind: fault.Unauthenticated},
		"refusing in HTML": {token: say(400, `<html>`), kind: fault.Unauthenticated},
		"redirecting": {token: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/keys", http.StatusTemporaryRedirect)
		}, kind: fault.Unavailable},
		"hanging up":   {token: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, kind: fault.Unavailable},
		"another code": {change: func(a *broker.SignInAnswer) { a.Code = "another" }, kind: fault.Unauthenticated},
		"no code":      {change: func(a *broker.SignInAnswer) { a.Code = "" }, kind: fault.Unauthenticated},
		"a huge code":  {change: func(a *broker.SignInAnswer) { a.Code = strings.Repeat("x", 5<<10) }, kind: fault.Unauthenticated},
		"an error":     {change: func(a *broker.SignInAnswer) { a.Error = "access_denied" }, kind: fault.Unauthenticated},
	} {
		l.token = c.token
		a := l.leave()
		if c.change != nil {
			c.change(&a)
		}
		_, _, err := l.engine.FinishSignIn(t.Context(), a)
		if err == nil || fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %s", name, err, c.kind)
		}
	}
	l.Close()
	l.register("corp", l.provider)
	_, err := l.engine.BeginSignIn(t.Context(), broker.SignInRequest{Method: "corp", Origin: "https://mayfly.example"})
	l.fails(err, fault.Unavailable, identity.CodeIssuerDown)
}

func TestDiscoveryThatSignsNobodyIn(t *testing.T) {
	for name, document := range map[string]map[string]any{
		"no page":            {"authorization_endpoint": nil},
		"a page over http":   {"authorization_endpoint": "http://corp.example/authorize"},
		"a script":           {"authorization_endpoint": "javascript:alert(1)"},
		"PKCE in plain only": {"code_challenge_methods_supported": []string{"plain"}},
		"another issuer":     {"issuer": "https://evil.example"},
		"larger than any":    {"pad": strings.Repeat("x", 70<<10)},
	} {
		l := newLobby(t)
		l.document = document
		_, err := l.engine.BeginSignIn(t.Context(), broker.SignInRequest{Method: "corp", Origin: "https://mayfly.example"})
		if fault.As(err).StableCode() != identity.CodeIssuerDown {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What says how to sign in is read strictly, and never shows a secret.
func TestConsolePartOfAMethod(t *testing.T) {
	p := newProvider(t)
	for name, c := range map[string]struct {
		console map[string]any
		over    map[string]any
		says    string
	}{
		"as it should be":       {console: map[string]any{"client_id": "c"}},
		"no client":             {console: map[string]any{}, says: "console.client_id"},
		"no openid":             {console: map[string]any{"client_id": "c", "scopes": []string{"email"}}, says: "openid is missing"},
		"scopes in one":         {console: map[string]any{"client_id": "c", "scopes": "openid email"}, says: "entry of its own"},
		"unknown":               {console: map[string]any{"client_id": "c", "tenant": "x"}, says: "console.tenant: unknown key"},
		"a secret in the clear": {console: map[string]any{"client_id": "c", "client_secret": "hush"}, says: "in the clear"},
		"outside, in the clear": {console: map[string]any{"client_id": "c"}, over: map[string]any{"client_secret": "hush"}, says: "client_secret: unknown key"},
		"key in audience":       {console: map[string]any{"client_id": "c"}, over: map[string]any{"key_in_audience": true}, says: "does not go with key_in_audience"},
		"another type":          {console: map[string]any{"client_id": "c"}, over: map[string]any{"type": "jwt", "ca": nil, "jwks_file": "x"}, says: "console: does not go with type jwt"},
	} {
		var spec map[string]any
		if err := json.Unmarshal(p.spec(c.console), &spec); err != nil {
			t.Fatal(err)
		}
		_, err := identity.ParseMethod("corp", mustJSON(lay(spec, c.over)))
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hush")) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	r := newRig(t)
	_, err := r.engine.Apply(t.Context(), callerOf(operator, ""), wire.ApplyRequest{Objects: []wire.Object{{Kind: "AuthMethod", Name: "passkey", Spec: p.spec(map[string]any{"client_id": "c"})}}})
	r.fails(err, fault.Invalid, "name_reserved")
}
