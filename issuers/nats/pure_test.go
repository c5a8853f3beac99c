package nats_test

import (
	"encoding/base64"
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers/nats"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	anAccount = "ADTKGHQQBYLBXLQ4AGKO3RMLAPRHLOJXHZLE2JF3XGZ4NRQAMC7KWW3I"
	plainSpec = `{"address":"127.0.0.1:4222","tls":{"mode":"disable"}}`
	boundSpec = `{"address":"127.0.0.1:4222","tls":{"mode":"disable"},"subjects":["orders.*","$JS.API.*"],"inbox_prefix":"_MINE"}`
)

func TestSubjects(t *testing.T) {
	for location, want := range map[string]string{
		"orders": "orders", "orders.eu": "orders.eu", "orders.*": "orders.>", "*": ">", "a.+": "a.*", "a.+.b": "a.*.b", "a.+.*": "a.*.>", "a.c++": "a.c++", "$JS.API.*": "$JS.API.>", "$KV.b.+": "$KV.b.*",
		"a.$SYS": "a.$SYS", "Ünïcode.ключ": "Ünïcode.ключ",
	} {
		if got, err := nats.Subject(location); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", location, got, err, want)
		}
	}
	for location, says := range map[string]string{
		"": "words", "a..b": "words", ".": "words", ">": ".*", "a.>": ".*", "a*": "whole words", "*.a": "whole words", "a.*.b": "whole words", "+": "first word", "+.a": "first word", "a b": "spaces", "a\tb": "spaces",
		"a\u200bb": "formatting", "a>b": "may not hold >", "\xff": "UTF-8", "$SYS.x": "$JS", "$x": "$JS", "_INBOX.x": "inboxes", "_": "inboxes",
	} {
		if got, err := nats.Subject(location); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is %q, %v; want an error with %q", location, got, err, says)
		}
	}
}

func TestTargetsSubjectsAreTheWidest(t *testing.T) {
	k := nats.Kind{}
	raw := json.RawMessage(boundSpec)
	for _, good := range []scope.Scope{allow([]string{"publish"}, "orders.*", "orders.eu.1"), allow([]string{"jetstream"}, "$JS.API.STREAM.INFO.X")} {
		if err := k.CheckScope(raw, good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []scope.Scope{allow([]string{"publish"}, "jobs.1"), allow([]string{"publish"}), allow([]string{"publish"}, "orders"), allow([]string{"publish"}, "*"), allow([]string{"jetstream"}, "$KV.x.y"), allow([]string{"publish"}, "_MINE.x")} {
		if k.CheckScope(raw, bad) == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	roles, err := k.Roles(raw)
	if err != nil || len(roles) != 2 || !slices.Equal(roles[1].Scope[0].Locations, []string{"orders.*"}) || !slices.Contains(roles[1].Scope[0].Actions, "request") {
		t.Errorf("the roles: %+v, %v", roles, err)
	}
	roles, err = k.Roles(json.RawMessage(plainSpec))
	if err != nil || len(roles) != 2 || slices.Contains(roles[1].Scope[0].Actions, "request") || roles[0].MaxTTL > time.Hour {
		t.Errorf("the roles of a target that names no subjects: %+v, %v", roles, err)
	}
}

func TestSpec(t *testing.T) {
	with := func(members string) string { return strings.TrimSuffix(plainSpec, "}") + "," + members + "}" }
	for _, good := range []string{
		plainSpec, boundSpec, `{"address":"nats.internal:4222"}`, with(`"addresses":["127.0.0.1:4223"]`), with(`"max_ttl":"24h"`), with(`"account":"` + shared.Account + `"`), with(`"requester_keys":true`),
		with(`"users":{"source_networks":["10.0.0.1/8","::1/128"],"connection_types":["WEBSOCKET","MQTT"],"responses":{"max":10,"ttl":"1m"}}`),
		with(`"max_ttl":"168h","revocation":{"system_account":"` + shared.System + `","operator":"` + shared.Operator + `"}`),
	} {
		if err := (nats.Kind{}).CheckSpec(json.RawMessage(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	revocation := `"revocation":{"system_account":"` + shared.System + `","operator":"` + shared.Operator + `"}`
	for spec, says := range map[string]string{
		`{}`: "host:port", `{"address":"nats"}`: "host:port", `{"address":"nats:0"}`: "port", `{"address":"na ts:1"}`: "host name", `{"address":"a@b:1"}`: "host name",
		`{"address":"10.0.0.1:4222","tls":{"mode":"disable"}}`: "loopback", `{"address":"a:1","tls":{"mode":"skip"}}`: "verify-full", `{"address":"a:1","tls":{"ca":"x","ca_file":"y"}}`: "not both",
		with(`"account":"` + anAccount[:55] + `"`): "public key", with(`"account":"` + shared.Operator + `"`): "public key", with(`"account":"` + shared.SigningSeed + `"`): "public key",
		with(`"max_ttl":"25h"`): "24h", with(`"max_ttl":"1s"`): "1m", with(`"max_ttl":"x"`): "duration", with(`"max_ttl":"200h",` + revocation): "168h",
		with(`"subjects":["orders.>"]`): ".*", with(`"subjects":["_INBOX.x"]`): "inboxes", with(`"inbox_prefix":"INBOX"`): "begins with _", with(`"inbox_prefix":"_I.x"`): "one word",
		with(`"requester_keys":true,` + revocation): "no place", with(`"account":"` + shared.System + `",` + revocation): "system account",
		with(`"revocation":{"operator":"` + shared.Operator + `"}`): "system account", with(`"revocation":{"system_account":"` + shared.System + `"}`): "operator",
		with(`"users":{"source_networks":["10.0.0.1"]}`): "network", with(`"users":{"connection_types":["LEAFNODE"]}`): "STANDARD", with(`"users":{"max_payload":-1}`): "or more",
		with(`"users":{"responses":{"max":-1}}`): "responses", with(`"users":{"responses":{"ttl":"1000h"}}`): "responses", with(`"signing_key":"SA"`): "unknown field",
	} {
		err := (nats.Kind{}).CheckSpec(json.RawMessage(spec))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want %q", spec, err, says)
		}
	}
}

// A member that no library of ours knows survives the signing anew, and so do
// numbers that no float holds; the moment of issue grows and the id changes.
func TestUnknownMembersOfTheAccountSurvive(t *testing.T) {
	op, err := nkeys.CreateOperator()
	if err != nil {
		t.Fatal(err)
	}
	operator, err := op.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ac := jwt.NewAccountClaims(shared.Account)
	token, err := ac.Encode(op)
	if err != nil {
		t.Fatal(err)
	}
	token = edited(t, op, token, func(claims map[string]any) {
		claims["of_the_future"] = map[string]any{"n": json.Number("9007199254740993")}
		claims["nats"].(map[string]any)["also_new"] = []any{"x"}
		claims["iat"] = json.Number("4102444800") // in the year 2100
	})
	trusted := map[string]bool{operator: true}
	user := strings.Repeat("U", 56)
	first, err := nats.Resign(token, shared.Account, trusted, map[string]int64{user: nats.Moment(now)}, op, now)
	if err != nil {
		t.Fatal(err)
	}
	second, err := nats.Resign(first, shared.Account, trusted, map[string]int64{user + "2": nats.Moment(now)}, op, now)
	if err != nil {
		t.Fatal(err)
	}
	one, two := payload(t, first), payload(t, second)
	for _, want := range []string{`"of_the_future":{"n":9007199254740993}`, `"also_new":["x"]`, `"iat":4102444801`, `"` + user + `":`} {
		if !strings.Contains(one, want) {
			t.Errorf("the claims lack %s: %s", want, one)
		}
	}
	a, err := jwt.DecodeAccountClaims(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := jwt.DecodeAccountClaims(second)
	if err != nil || a.ID == b.ID || b.IssuedAt <= a.IssuedAt || len(b.Revocations) != 2 {
		t.Errorf("the second copy: %s %v", two, err)
	}
	for name, bad := range map[string]struct {
		token, account string
		trusted        map[string]bool
	}{
		"another account":     {first, shared.System, trusted},
		"an unknown operator": {first, shared.Account, map[string]bool{shared.Operator: true}},
		"changed":             {first[:len(first)-4] + "AAAA", shared.Account, trusted},
		"rubbish":             {"x.y.z", shared.Account, trusted},
		"no claims":           {edited(t, op, token, func(c map[string]any) { delete(c, "nats") }), shared.Account, trusted},
		"an older version":    {edited(t, op, token, func(c map[string]any) { c["nats"].(map[string]any)["version"] = 1 }), shared.Account, trusted},
	} {
		if _, err := nats.Resign(bad.token, bad.account, bad.trusted, nil, op, now); err == nil {
			t.Errorf("%s: it is signed", name)
		}
	}
}

func payload(t *testing.T, token string) string {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// edited changes a JWT and signs it again.
func edited(t *testing.T, op nkeys.KeyPair, token string, change func(map[string]any)) string {
	t.Helper()
	claims := map[string]any{}
	dec := json.NewDecoder(strings.NewReader(payload(t, token)))
	dec.UseNumber()
	if err := dec.Decode(&claims); err != nil {
		t.Fatal(err)
	}
	change(claims)
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed := strings.Split(token, ".")[0] + "." + base64.RawURLEncoding.EncodeToString(text)
	signature, err := op.Sign([]byte(signed))
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestMoments(t *testing.T) {
	for _, end := range []time.Time{time.Unix(0, 0), time.Now().Truncate(time.Second), time.Unix(1<<32, 0)} {
		m := nats.Moment(end)
		if got, ours := nats.OurEnd(m); !ours || !got.Equal(end) {
			t.Errorf("%s is %d and back %s", end, m, got)
		}
		if y := time.Unix(m, 0).UTC().Year(); y > 9999 {
			t.Errorf("the year %d is none that servers can print", y)
		}
	}
	for _, m := range []int64{0, time.Now().Unix(), time.Now().UnixMilli(), time.Now().UnixNano(), -1, 1<<63 - 1} {
		if _, ours := nats.OurEnd(m); ours {
			t.Errorf("%d, which others write, is taken for ours", m)
		}
	}
}

// covered says whether everything that matches pattern matches one of the others.
func covered(pattern string, by []string) bool {
	return slices.ContainsFunc(by, func(o string) bool {
		if o == ">" {
			return !strings.HasPrefix(pattern, "$") && !strings.HasPrefix(pattern, "_") || pattern == ">"
		}
		outer, inner := strings.Split(o, "."), strings.Split(pattern, ".")
		for i, w := range outer {
			if w == ">" {
				return len(inner) > i
			}
			if i >= len(inner) || inner[i] == ">" || w != "*" && w != inner[i] {
				return false
			}
		}
		return len(inner) == len(outer)
	})
}

// FuzzCompile: whatever is accepted is within the wider scope that covers it, and
// reaches neither the server's own subjects nor anybody's inbox.
func FuzzCompile(f *testing.F) {
	for _, s := range []string{"orders.*", "*", "a.+.b", "$JS.API.*", "_INBOX.x", "a b", "a.>", ">", "a\x00", "+.*", "a..b", "ключ.+.*"} {
		f.Add(s, "orders.eu.1", "publish", "subscribe")
		f.Add("orders.*", s, "request", "reply")
		f.Add(s, s, "jetstream", "jetstream")
	}
	f.Fuzz(func(t *testing.T, a, b, first, second string) {
		raw := json.RawMessage(plainSpec)
		outer, inner := allow([]string{first, second}, a), allow([]string{second}, b)
		pub, sub, err := nats.Compiled(raw, outer)
		if err != nil {
			return
		}
		stream := first == "jetstream"
		for _, s := range append(slices.Clone(pub), sub...) {
			for _, w := range strings.Split(s, ".") {
				if w == "" || strings.ContainsAny(w, "*>") && w != "*" && w != ">" || strings.ContainsAny(w, " \t\r\n\x00") {
					t.Fatalf("%q became %q", a, s)
				}
			}
			root, _, _ := strings.Cut(s, ".")
			if strings.HasPrefix(root, "_") || strings.HasPrefix(root, "$") != stream || root == "*" || strings.Contains(s, ">") && !strings.HasSuffix(s, ".>") && s != ">" {
				t.Fatalf("%q became %q", a, s)
			}
		}
		if scope.Covers(outer, inner) != nil {
			return
		}
		pub2, sub2, err := nats.Compiled(raw, inner)
		if err != nil {
			return
		}
		for _, s := range pub2 {
			if !covered(s, pub) {
				t.Fatalf("law 3: %v covers %v, and %q is not within %q", outer, inner, s, pub)
			}
		}
		for _, s := range sub2 {
			if !covered(s, sub) {
				t.Fatalf("law 3: %v covers %v, and %q is not within %q", outer, inner, s, sub)
			}
		}
	})
}

// FuzzServer: whatever a server sends, reading it ends.
func FuzzServer(f *testing.F) {
	for _, s := range []string{"INFO {}\r\n", "MSG _INBOX.x.1 1 2\r\nhi\r\n", "HMSG _INBOX.x.1 1 16 18\r\nNATS/1.0 503\r\n\r\nhi\r\n", "MSG a 1 99999999999\r\n", "MSG a 1 -1\r\n", "-ERR 'x'\r\n", "HMSG a 1 5 2\r\nab\r\n", strings.Repeat("x", 70000)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Write(sent)
			_ = theirs.Close()
		}()
		if err := ours.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if nats.ReadAll(ours) == nil {
			t.Fatal("it ends without a reason")
		}
		_ = ours.Close()
	})
}

// FuzzAccount: whatever a look-up brings is refused or signed, without a panic.
func FuzzAccount(f *testing.F) {
	op, err := nkeys.CreateOperator()
	if err != nil {
		f.Fatal(err)
	}
	operator, err := op.PublicKey()
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{`{}`, `{"nats":null}`, `{"sub":"` + anAccount + `","nats":{"type":"account","version":2,"revocations":{"U":1}}}`, `{"sub":"` + anAccount + `","nats":{"type":"account","version":2,"signing_keys":[{}]}}`, `[]`} {
		f.Add(s)
	}
	head := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`))
	f.Fuzz(func(t *testing.T, claims string) {
		claims = strings.Replace(claims, `{"sub"`, `{"iss":"`+operator+`","sub"`, 1)
		signed := head + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
		signature, err := op.Sign([]byte(signed))
		if err != nil {
			t.Fatal(err)
		}
		token := signed + "." + base64.RawURLEncoding.EncodeToString(signature)
		out, err := nats.Resign(token, anAccount, map[string]bool{operator: true}, map[string]int64{"U": nats.Moment(time.Now())}, op, time.Now())
		if err != nil {
			return
		}
		if again, err := jwt.DecodeAccountClaims(out); err != nil || again.Subject != anAccount {
			t.Fatalf("what was signed cannot be read: %v", err)
		}
	})
}

// Two targets with one key break each other; whose key it is shows in a word that
// holds nothing of the seed, whoever made it and wherever its turn stands.
func TestSigningKeysAreNamed(t *testing.T) {
	seed := func() (text, public string) {
		pair, err := nkeys.CreateAccount()
		if err != nil {
			t.Fatal(err)
		}
		public, _ = pair.PublicKey()
		raw, _ := pair.Seed()
		return string(raw), public
	}
	s1, p1 := seed()
	s2, p2 := seed()
	_, account := seed()
	bound := strings.TrimSuffix(plainSpec, "}") + `,"account":"` + account + `"}`
	ring := func(keys, turn string) string { return `{"keys":[` + keys + `]` + turn + `}` }
	named := func(key, of string) string { return "signing key " + key + " of account " + of }
	for _, c := range []struct {
		spec    string
		secrets map[string]string
		want    []string
	}{
		{bound, map[string]string{nats.SecretSigning: s1, nats.SecretMadeSigning: s2}, []string{named(p1, account)}},
		{bound, map[string]string{nats.SecretSigning: "-----BEGIN ACCOUNT NKEY SEED-----\n" + s1 + "\n------END ACCOUNT NKEY SEED------\n"}, []string{named(p1, account)}},
		{plainSpec, map[string]string{nats.SecretSigning: s1}, []string{named(p1, p1)}},
		{bound, map[string]string{nats.SecretMadeSigning: s2}, []string{named(p2, account)}},
		{bound, map[string]string{nats.SecretSigning: s1, nats.SecretMadeSigning: ring(`"`+s2+`"`, "")}, []string{named(p2, account)}},
		{bound, map[string]string{nats.SecretMadeSigning: ring(`"`+s2+`","`+s1+`"`, `,"turn":"used"`)}, []string{named(p2, account), named(p1, account)}},
		{bound, map[string]string{nats.SecretSigning: "nonsense"}, nil},
		{`{}`, map[string]string{nats.SecretSigning: s1}, nil},
	} {
		secrets := map[string]secret.Text{}
		for k, v := range c.secrets {
			secrets[k] = secret.New(v)
		}
		if got := (nats.Kind{}).SigningKeys(json.RawMessage(c.spec), secrets); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.spec, got, c.want)
		}
	}
}
