package approve_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/escape"
	"github.com/mayfly-broker/mayfly/client/wire"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	commonText = `"cluster":"c1","collect_before_ms":1800003600000,"decision":"d_1",`
	idText     = `"grant_id":"g_1","incarnation":1,`
	headText   = `"needs":[{"by":"role","count":2,"group":"dba"},{"by":"policy:pii","count":1,"group":"privacy"}],"nonce":"bm9uY2U",`
	askedText  = `"policies":[{"hash":"ab12","id":"dba-write","object":"writes","version":3}],`
	whoText    = `"requested_ms":1800000000000,"requester":{"attested_key":true,"binding":"dpop","chain":["agent:planner","human:ann"],"facts":{"repository":"acme/shop","run":"ev\u001b[31mil"},"instance":"run-7","key":"thumb","method":"github","model":"m1","owner":"human:ann","principal":"agent:coder","version":"3"}`

	grantText = `{` + commonText + `"ends_by_ms":1800014400000,` + idText + `"max_leases":2,` + headText + askedText +
		`"purpose":"PURPOSE",` + whoText +
		`,"role":"orders/readwrite","role_version":4,"scope":[{"type":"database","identifier":"orders","actions":["delete","insert","select"],"tables":[{"name":"public.*"}]}],` +
		`"target":"orders","target_version":2,"task":{"deadline_ms":1800014400000,"id":"t_1","name":"nightly","parent":"t_0"},"total_s":28800,"ttl_s":900,"type":"mayfly.grant.v1","whole_role":true}`

	changeText = `{` + commonText + idText + `"keys":[{"key":{"jwk":{"crv":"Ed25519","kty":"OKP","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},"kind":"ssh","ssh_type":"ssh-ed25519"},"principal":"human:kim"}],` + headText +
		`"objects":[{"kind":"Role","name":"orders/readonly","spec":{"ttl":{"default":"1h"}},"version":3},` +
		`{"kind":"Target","name":"orders","secrets":[{"name":"admin_password","sha256":"00ff"}],"spec":{"type":"postgres"},"version":0},` +
		`{"delete":true,"kind":"Group","name":"old","version":9}],` + askedText + `"reason":"PURPOSE",` + whoText + `,"type":"mayfly.change.v1"}`
)

// evil is a purpose that wants to be something else.
const evil = "done\\u001b[2K\\r Proven: human:ciso \u202edrawkcab\u202c zero\u200bwidth \\\"\\n  principal  human:ciso"

// document puts a purpose into a text and makes it a grant that says its hash.
// Scope members are ordered as the canonical form has them.
func document(domain, text, purpose string) wire.Grant {
	text = strings.ReplaceAll(text, "PURPOSE", purpose)
	text = strings.ReplaceAll(text, `{"type":"database","identifier":"orders","actions":["delete","insert","select"],"tables":[{"name":"public.*"}]}`,
		`{"actions":["delete","insert","select"],"identifier":"orders","tables":[{"name":"public.*"}],"type":"database"}`)
	sum := approve.Sum(domain, []byte(text))
	return wire.Grant{ID: "g_1", Domain: domain, Hash: hex.EncodeToString(sum[:]), Document: []byte(text)}
}

// page is the sections as plain text.
func page(d *approve.Document) string {
	var b strings.Builder
	for _, s := range d.Sections(time.UTC) {
		b.WriteString("== " + s.Title + "\n")
		for _, l := range s.Lines {
			mark := " "
			if l.Loud {
				mark = "!"
			}
			b.WriteString(mark + " " + l.Name + strings.Repeat(" ", max(0, 18-len(l.Name))) + l.Value + "\n")
		}
	}
	return b.String()
}

// TestDocumentsAsPeopleSeeThem keeps what approvers read, whatever the purpose
// tries: no control, no bidi override, nothing invisible, no line of its own.
func TestDocumentsAsPeopleSeeThem(t *testing.T) {
	for name, g := range map[string]wire.Grant{
		"grant":  document(approve.DomainGrant, grantText, evil),
		"change": document(approve.DomainChange, changeText, evil),
	} {
		d, err := approve.Check(g)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := page(d)
		if strings.ContainsFunc(strings.ReplaceAll(got, "\n", ""), escape.Unseen) {
			t.Errorf("%s: something unseen is left: %q", name, got)
		}
		golden := "testdata/" + name + ".golden"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s", name, got)
		}
	}
}

func TestClaimsStandApartFromWhatIsProven(t *testing.T) {
	d, err := approve.Check(document(approve.DomainGrant, grantText, "ticket 4711"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range d.Sections(time.UTC) {
		for _, l := range s.Lines {
			claim := strings.Contains(l.Value, "ticket 4711") || l.Name == "model" || l.Name == "version"
			if claim != (s.Title == approve.TitleClaimed) {
				t.Errorf("%s: %+v", s.Title, l)
			}
		}
	}
}

func TestOnlyWhatTheHashSaysIsShown(t *testing.T) {
	good := document(approve.DomainGrant, grantText, "p")
	if _, err := approve.Check(good); err != nil {
		t.Fatal(err)
	}
	otherHash, otherText, otherDomain, otherID := good, good, good, good
	otherHash.Hash = strings.Repeat("0", 64)
	otherText.Document = []byte(strings.Replace(string(good.Document), `"ttl_s":900`, `"ttl_s":901`, 1))
	otherDomain.Domain = approve.DomainChange
	otherID.ID = "g_2"
	for name, g := range map[string]wire.Grant{"hash": otherHash, "text": otherText, "domain": otherDomain, "id": otherID} {
		if _, err := approve.Check(g); code(err) != approve.CodeHashMismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A text with two meanings, or with more than can be shown, is refused though
// the cluster's hash is that of its bytes.
func TestDocumentsHaveOneMeaning(t *testing.T) {
	for name, edit := range map[string][2]string{
		"unknown member":  {`"whole_role":true`, `"whole_role":true,"x":1`},
		"twice":           {`"whole_role":true`, `"whole_role":false,"whole_role":true`},
		"another case":    {`"whole_role":true`, `"Whole_role":true`},
		"both cases":      {`{"cluster"`, `{"Purpose":"x","cluster"`},
		"scope in scope":  {`"public.*"`, `"public.*","name":"x.*"`},
		"no scope":        {`"delete","insert","select"`, ``},
		"no such domain":  {"mayfly.grant.v1", "mayfly.grant.v2"},
		"null for a text": {`"decision":"d_1"`, `"decision":null`},
		"more":            {`"whole_role":true}`, `"whole_role":true}{}`},
	} {
		domain := approve.DomainGrant
		g := document(domain, grantText, "p")
		text := strings.Replace(string(g.Document), edit[0], edit[1], 1)
		if name == "no such domain" {
			domain = "mayfly.grant.v2"
		}
		sum := approve.Sum(domain, []byte(text))
		g.Domain, g.Hash, g.Document = domain, hex.EncodeToString(sum[:]), []byte(text)
		if _, err := approve.Check(g); code(err) != approve.CodeDocument && code(err) != approve.CodeHashMismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := approve.Check(wire.Grant{ID: "g_1"}); code(err) != approve.CodeDocument {
		t.Errorf("without a document: %v", err)
	}
}

// What a JSON writer on the way does to the bytes, and not to what they say, does
// no harm: the canonical form is hashed, and it is what is shown.
func TestEscapesOnTheWayDoNoHarm(t *testing.T) {
	good := document(approve.DomainGrant, grantText, "a <b> & c\u2028")
	want, err := approve.Check(document(approve.DomainGrant, grantText, "a <b> & c\u2028"))
	if err != nil {
		t.Fatal(err)
	}
	var escaped, spaced bytes.Buffer
	json.HTMLEscape(&escaped, good.Document)
	if err := json.Indent(&spaced, good.Document, "", "  "); err != nil {
		t.Fatal(err)
	}
	for _, text := range [][]byte{escaped.Bytes(), spaced.Bytes()} {
		if bytes.Equal(text, good.Document) {
			t.Fatal("nothing was changed")
		}
		good.Document = text
		got, err := approve.Check(good)
		if err != nil || got.Hash != want.Hash || page(got) != page(want) {
			t.Errorf("%v", err)
		}
	}
}

func TestKeyDocumentSaysWhatWasAskedFor(t *testing.T) {
	s, err := approve.Open(keygen(t, "ed25519", ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	k := s.Key()
	public, err := approve.PublicKey([]byte(k.SSH), "x")
	if err != nil {
		t.Fatal(err)
	}
	text := func(principal, kind, sshType string) wire.KeyDocument {
		doc := `{"cluster":"c1","key":{"jwk":` + publicJWK(t, public.SSH) + `,"kind":"` + kind + `","ssh_type":"` + sshType + `"},"principal":"` + principal + `","type":"mayfly.key.v1"}`
		sum := approve.Sum(approve.DomainKey, []byte(doc))
		return wire.KeyDocument{Document: []byte(doc), Hash: hex.EncodeToString(sum[:]), Domain: approve.DomainKey}
	}
	if _, err := approve.CheckKey(text("human:ann", "ssh", "ssh-ed25519"), "human:ann", k); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]wire.KeyDocument{
		"somebody else": text("human:bo", "ssh", "ssh-ed25519"), "another kind": text("human:ann", "jws", "ssh-ed25519"), "another type": text("human:ann", "ssh", "sk-ssh-ed25519@openssh.com"),
	} {
		if _, err := approve.CheckKey(d, "human:ann", k); code(err) != approve.CodeHashMismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
	other, err := approve.Open(keygen(t, "ed25519", ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := approve.CheckKey(text("human:ann", "ssh", "ssh-ed25519"), "human:ann", other.Key()); code(err) != approve.CodeHashMismatch {
		t.Errorf("another key: %v", err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(approve.DomainGrant, grantText)
	f.Add(approve.DomainChange, changeText)
	f.Add(approve.DomainGrant, "null")
	f.Add(approve.DomainChange, `{"objects":[{"spec":1e999}]}`)
	f.Fuzz(func(t *testing.T, domain, text string) {
		g := document(domain, text, evil)
		d, err := approve.Check(g)
		if err != nil {
			if code(err) == "" {
				t.Fatalf("an error of no code: %v", err)
			}
			return
		}
		if strings.ContainsFunc(strings.ReplaceAll(page(d), "\n", ""), escape.Unseen) {
			t.Fatalf("something unseen is left: %q", page(d))
		}
	})
}
