package ledger_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// sink writes a Sink with its secrets, by field.
func (b *book) sink(name, spec string, secrets map[string]string) ledger.Result {
	b.t.Helper()
	o := ledger.ObjectChange{Kind: "Sink", Name: name, Spec: rawJSON(spec), AnyVersion: true}
	var travel []ledger.Secret
	for _, field := range []string{"secret", "url"} {
		if v, ok := secrets[field]; ok {
			full := "Sink/" + name + "/" + field
			o.Secrets = append(o.Secrets, full)
			travel = append(travel, ledger.Secret{Name: full, Salt: []byte("0123456789abcdef"), Value: []byte(v)})
		}
	}
	return b.apply(b.header(admin), &ledger.ChangeObjects{Changes: []ledger.ObjectChange{o}}, travel...)
}

var signed = map[string]string{"secret": "0123456789abcdef0123456789abcdef"}

func TestSinkSpecs(t *testing.T) {
	hook := func(more string) string { return `{"type":"webhook","url":"https://hooks.example/x"` + more + `}` }
	at := func(url string) string { return fmt.Sprintf(`{"type":"webhook","url":%q}`, url) }
	for spec, code := range map[string]string{
		`{"type":"file","path":"/a"}`:                        ledger.CodeOK,
		`{"type":"file"}`:                                    ledger.CodeInvalid,
		`{"type":"file","path":"/a","url":"https://x"}`:      ledger.CodeInvalid,
		`{"type":"file","path":"/a","events":["contained"]}`: ledger.CodeInvalid,
		`{"type":"syslog"}`:                                  ledger.CodeInvalid,
		hook(""):                                             ledger.CodeOK,
		hook(`,"format":"slack","events":["grant.waiting","contained"],"groups":["dba"]`): ledger.CodeOK,
		hook(`,"path":"/a"`):                        ledger.CodeInvalid,
		hook(`,"format":"teams"`):                   ledger.CodeInvalid,
		hook(`,"events":["grant.opened"]`):          ledger.CodeInvalid,
		hook(`,"events":["contained","contained"]`): ledger.CodeInvalid,
		hook(`,"groups":["a b"]`):                   ledger.CodeInvalid,
		hook(`,"tls":{"verify":false}`):             ledger.CodeInvalid,
		hook(`,"secret":"in the clear"`):            ledger.CodeInvalid,
		`{"type":"webhook"}`:                        ledger.CodeInvalid,
		at("http://hooks.example/x"):                ledger.CodeInvalid,
		at("http://localhost.evil.example/x"):       ledger.CodeInvalid,
		at("http://127.0.0.1@evil.example/x"):       ledger.CodeInvalid,
		at("http://127.0.0.1:8080/x"):               ledger.CodeOK,
		at("http://[::1]:8080/x"):                   ledger.CodeOK,
		at("http://[::1]"):                          ledger.CodeOK,
		at("http://localhost"):                      ledger.CodeOK,
		at("https://user:pw@hooks.example/x"):       ledger.CodeInvalid,
		at("https://hooks.example/x#y"):             ledger.CodeInvalid,
		at("https://hooks.example#@x"):              ledger.CodeInvalid,
		at("https://"):                              ledger.CodeInvalid,
		at("https:///x"):                            ledger.CodeInvalid,
		at("https://:443/x"):                        ledger.CodeInvalid,
		at("https://a b/x"):                         ledger.CodeInvalid,
		at("https://hööks.example/x"):               ledger.CodeInvalid,
		at(`https://a\b/x`):                         ledger.CodeInvalid,
		at("ftp://hooks.example/x"):                 ledger.CodeInvalid,
		at("https://h.example/" + strings.Repeat("x", ledger.MaxSinkURLBytes)): ledger.CodeInvalid,
	} {
		b := newBook(t)
		if res := b.sink("chat", spec, signed); res.Code != code {
			t.Errorf("%s: %s (%s), wanted %s", spec, res.Code, res.Detail, code)
		}
	}
}

// TestWebhookNeedsItsSecrets: what is sealed already need not travel again, and
// no refusal quotes what travels.
func TestWebhookNeedsItsSecrets(t *testing.T) {
	const hidden = "https://hooks.example/services/T0/B0/hidden"
	plain, slack := `{"type":"webhook","url":"https://hooks.example/x"}`, `{"type":"webhook","format":"slack","url":"https://hooks.example/x"}`
	for _, c := range []struct {
		name, spec string
		secrets    map[string]string
		code       string
	}{
		{"plain without a secret", plain, nil, ledger.CodeInvalid},
		{"slack without a secret", slack, nil, ledger.CodeOK},
		{"a short secret", slack, map[string]string{"secret": "hidden-short"}, ledger.CodeInvalid},
		{"a sealed url", `{"type":"webhook","format":"slack"}`, map[string]string{"url": hidden}, ledger.CodeOK},
		{"a sealed url in the clear", `{"type":"webhook","format":"slack"}`, map[string]string{"url": "http://h.example/hidden"}, ledger.CodeInvalid},
		{"two urls", slack, map[string]string{"url": hidden}, ledger.CodeInvalid},
		{"no url at all", `{"type":"webhook","format":"slack"}`, nil, ledger.CodeInvalid},
	} {
		b := newBook(t)
		res := b.sink("chat", c.spec, c.secrets)
		if res.Code != c.code || strings.Contains(res.Detail, "hidden") {
			t.Errorf("%s: %s (%s), wanted %s", c.name, res.Code, res.Detail, c.code)
		}
	}
	b := newBook(t)
	both := map[string]string{"secret": signed["secret"], "url": hidden}
	if res := b.sink("chat", `{"type":"webhook"}`, both); !res.OK() {
		t.Fatal(res)
	}
	if res := b.sink("chat", `{"type":"webhook","events":["contained"]}`, nil); !res.OK() {
		t.Errorf("sealed secrets were asked for again: %+v", res)
	}
}

func TestWebhooksAreBounded(t *testing.T) {
	b := newBook(t)
	hook := `{"type":"webhook","format":"slack","url":"https://hooks.example/x"}`
	for i := range ledger.MaxWebhooks {
		if res := b.sink(fmt.Sprintf("s%d", i), hook, nil); !res.OK() {
			t.Fatal(res)
		}
	}
	if res := b.sink("more", hook, nil); res.Code != ledger.CodeCapCount {
		t.Errorf("one more webhook: %+v", res)
	}
	if res := b.sink("s0", hook, nil); !res.OK() {
		t.Errorf("a change of one that is there: %+v", res)
	}
	if res := b.sink("s0", `{"type":"file","path":"/a"}`, nil); !res.OK() {
		t.Errorf("one fewer: %+v", res)
	}
	if res := b.sink("more", hook, nil); !res.OK() {
		t.Errorf("its place is free: %+v", res)
	}
}

// TestDeliveryGoesOnWhereItStopped: the place of a webhook is the present when it
// is made, never goes back, and ends with it.
func TestDeliveryGoesOnWhereItStopped(t *testing.T) {
	b := newBook(t)
	place := func() ledger.Delivery {
		t.Helper()
		d, ok := b.q().Delivery("chat")
		if !ok {
			t.Fatal("the webhook has no place")
		}
		return d
	}
	hook := `{"type":"webhook","format":"slack","url":"https://hooks.example/x"}`
	b.ok("", &ledger.Sweep{})
	b.now += 1000
	made := b.sink("chat", hook, nil)
	if d := place(); d.Seq != made.Seq+1 || d.DueMS != b.now {
		t.Errorf("it begins at %+v; it was made by entry %d", d, made.Seq)
	}
	b.now += 1000
	b.ok("", &ledger.Sweep{})
	b.ok("", &ledger.RecordDelivery{Items: []ledger.Delivery{{Sink: "gone", Seq: 1}, {Sink: "chat", Seq: made.Seq + 2, DueMS: b.now - 1}}})
	want := ledger.Delivery{Sink: "chat", Seq: made.Seq + 2, DueMS: b.now - 1}
	if d := place(); d != want {
		t.Errorf("the place is %+v, wanted %+v", d, want)
	}
	b.ok("", &ledger.RecordDelivery{Items: []ledger.Delivery{{Sink: "chat", Seq: 1, DueMS: 1}}}) // a deposed leader's
	b.sink("chat", `{"type":"webhook","format":"slack","url":"https://hooks.example/y"}`, nil)
	if d := place(); d != want {
		t.Errorf("the place went to %+v from %+v", d, want)
	}
	b.ok("", &ledger.RecordDelivery{Items: []ledger.Delivery{{Sink: "chat", DueMS: b.now + 1e9}}})
	if d := place(); d.DueMS != b.now {
		t.Errorf("reminders of the future are told: %+v", d)
	}
	b.refused(ledger.CodeInvalid, "", &ledger.RecordDelivery{Items: []ledger.Delivery{{Sink: "chat", Seq: b.q().Size() + 1}}})
	b.refused(ledger.CodeInvalid, "", &ledger.RecordDelivery{})
	b.refused(ledger.CodeInvalid, "", &ledger.RecordDelivery{Items: make([]ledger.Delivery, ledger.MaxWebhooks+1)})

	if _, ok := b.q().Delivery("gone"); ok {
		t.Error("a sink that does not exist has a place")
	}
	b.sink("chat", `{"type":"file","path":"/a"}`, nil)
	if d, ok := b.q().Delivery("chat"); ok {
		t.Errorf("a file has the place %+v in the ledger", d)
	}
	again := b.sink("chat", hook, nil)
	if d := place(); d.Seq != again.Seq+1 {
		t.Errorf("made anew it begins at %d, not %d", d.Seq, again.Seq+1)
	}
	b.ok(admin, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Sink", Name: "chat", Delete: true, AnyVersion: true}}})
	if _, ok := b.q().Delivery("chat"); ok {
		t.Error("a deleted webhook has a place")
	}
}
