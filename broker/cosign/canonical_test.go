package cosign_test

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// The examples of RFC 8785 (§3.2.2 and §3.2.3) and of its author's test data,
// without their numbers that are no integers.
func TestCanonicalFormOfRFC8785(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{ // §3.2.2
			`{"numbers": [333333333, 4, 2, 0],
			  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
			  "literals": [null, true, false]}`,
			`{"literals":[null,true,false],"numbers":[333333333,4,2,0],"string":"` + "\u20ac" + `$\u000f\nA'B\"\\\\\"/"}`,
		},
		{ // §3.2.3
			`{"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
			  "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis"}`,
			`{"\r":"Carriage Return","1":"One","` + "\u0080" + `":"Control","` + "\u00f6" + `":"Latin Small Letter O With Diaeresis","` +
				"\u20ac" + `":"Euro Sign","` + "\U0001f600" + `":"Emoji: Grinning Face","` + "\ufb33" + `":"Hebrew Letter Dalet With Dagesh"}`,
		},
		{ // structures.json
			`{"1": {"f": {"f": "hi","F": 5} ,"\n": 56}, "10": { }, "": "empty", "a": { }, "111": [ { } ], "A": { }}`,
			`{"":"empty","1":{"\n":56,"f":{"F":5,"f":"hi"}},"10":{},"111":[{}],"A":{},"a":{}}`,
		},
		{ // french.json
			`{"peach": "This sorting order", "péché": "is wrong according to French", "pêche": "but canonicalization MUST", "sin": "ignore locale"}`,
			`{"peach":"This sorting order","péché":"is wrong according to French","pêche":"but canonicalization MUST","sin":"ignore locale"}`,
		},
		{ // arrays.json
			`[56, {"d": true, "10": null, "1": [ ]}]`,
			`[56,{"1":[],"10":null,"d":true}]`,
		},
		{`{"Unnormalized Unicode":"A\u030a"}`, `{"Unnormalized Unicode":"A` + "\u030a" + `"}`}, // unicode.json
		{`"\u0000\u0008\u0009\u000a\u000b\u000c\u000d\u001f\u007f\u2028</>&"`, `"\u0000\b\t\n\u000b\f\r\u001f` + "\u007f\u2028" + `</>&"`},
		{"\t[ 9007199254740991 , -9007199254740991, 0, -0, -1 ]\r\n", `[9007199254740991,-9007199254740991,0,0,-1]`},
		{`"\ufffd\uFFFF\uDBFF\uDFFF"`, "\"\ufffd\uffff\U0010ffff\""},
		{`{"\ue000":1,"\ud800\udc00":2,"\uffff":3,"\udbff\udfff":4,"` + "\U00010000a" + `":5}`,
			"{\"\U00010000\":2,\"\U00010000a\":5,\"\U0010ffff\":4,\"\ue000\":1,\"\uffff\":3}"},
		{`{"\ud83d\ude01":1,"\ud83d\ude00":2,"\ud83d\ude00a":3}`, "{\"\U0001f600\":2,\"\U0001f600a\":3,\"\U0001f601\":1}"},
		{`null`, `null`},
		{strings.Repeat("[", 64) + strings.Repeat("]", 64), strings.Repeat("[", 64) + strings.Repeat("]", 64)},
	} {
		got, err := cosign.CanonicalJSON([]byte(c.in))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v\nwanted %s", c.in, got, err, c.want)
		}
	}
}

// What two readers could take for two things has no canonical form.
func TestHazard2AmbiguousDocumentsHaveNoForm(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"a":1,"a":1}`, "two members called 'a'"},
		{`{"a":1,"b":{"c":2,"\u0063":3}}`, "two members called 'c'"},
		{`{"":1,"":2}`, "two members"},
		{`1.0`, "only integers"},
		{`1.5`, "only integers"},
		{`1e2`, "only integers"},
		{`1E+2`, "only integers"},
		{`9007199254740992`, "only integers from"},
		{`-9007199254740992`, "only integers from"},
		{`99999999999999999999999999999999999999999999`, "only integers from"},
		{`18446744073709551616`, "only integers from"}, // 0 to who counts in 64 bits
		{`01`, "zero that means nothing"},
		{`-01`, "zero that means nothing"},
		{`-`, "lacks its digits"},
		{`1.`, "after its point"},
		{`1e`, "digits of its exponent"},
		{`1e+`, "digits of its exponent"},
		{`1.x`, "after its point"},
		{`+1`, "value is missing"},
		{`.5`, "value is missing"},
		{`NaN`, "value is missing"},
		{`Infinity`, "value is missing"},
		{`0x10`, "something follows"},
		{"\"\xff\"", "not UTF-8"},
		{"\"\xed\xa0\x80\"", "not UTF-8"}, // a surrogate
		{"\"\xc0\xaf\"", "not UTF-8"},     // overlong
		{"\"\xf4\x90\x80\x80\"", "not UTF-8"},
		{`"\ud800"`, "surrogate"},
		{`"\ude00\ud83d"`, "surrogate"},
		{`"\ud83d\u0041"`, "surrogate"},
		{`"\ud83dx"`, "surrogate"},
		{`"\ud83d\n"`, "surrogate"},
		{`"\ud83d\u"`, "ends within an escape"},
		{`"\u12G4"`, "hexadecimal"},
		{`"\x41"`, "none of JSON's"},
		{`"\`, "ends within an escape"},
		{`"\u12`, "ends within an escape"},
		{"\"\n\"", "control character"},
		{"\"a\x00b\"", "control character"},
		{`"a`, "does not end"},
		{`'a'`, "value is missing"},
		{``, "value is missing"},
		{` `, "value is missing"},
		{"\ufeff{}", "value is missing"}, // a byte order mark
		{"\u00a0{}", "value is missing"},
		{`{} {}`, "something follows"},
		{`{}x`, "something follows"},
		{`[1,]`, "comma"},
		{`[,1]`, "value is missing"},
		{`[1 2]`, "comma"},
		{`[1`, "comma"},
		{`[`, "value is missing"},
		{`{"a":1,}`, "name is missing"},
		{`{,}`, "name is missing"},
		{`{"a" 1}`, "colon"},
		{`{"a":}`, "value is missing"},
		{`{"a":1 "b":2}`, "comma"},
		{`{a:1}`, "name is missing"},
		{`{"a":1`, "comma"},
		{`{1:1}`, "name is missing"},
		{`nul`, "value is missing"},
		{`nulll`, "something follows"},
		{`True`, "value is missing"},
		{`/**/1`, "value is missing"},
		{strings.Repeat("[", 65) + strings.Repeat("]", 65), "too deep"},
		{strings.Repeat(`{"a":`, 65) + "1" + strings.Repeat("}", 65), "too deep"},
		{strings.Repeat("[", 1<<20), "too deep"},
		{strings.Repeat(" ", 1<<20) + "1", "at most 1048576"},
	} {
		out, err := cosign.CanonicalJSON([]byte(c.in))
		if out != nil {
			t.Errorf("%.80q has the form %q", c.in, out)
		}
		t.Run("", func(t *testing.T) { refused(t, err, c.want) })
	}
}

// A document as large as allowed has its form.
func TestLargestDocument(t *testing.T) {
	in := `"` + strings.Repeat("x", cosign.MaxDocument-2) + `"`
	out, err := cosign.CanonicalJSON([]byte(in))
	if err != nil || string(out) != in {
		t.Error(len(out), err)
	}
}

func TestCanonicalOfGoValues(t *testing.T) {
	for _, c := range []struct {
		in   any
		want string
	}{
		{cosign.KeyDocument{Type: cosign.DomainKey, Cluster: "c<1>&\u2028", Key: cosign.Key{Kind: "jws", JWK: json.RawMessage(` { "y" : 2, "x" : "\u0041" } `)}},
			`{"cluster":"c<1>&` + "\u2028" + `","key":{"jwk":{"x":"A","y":2},"kind":"jws"},"principal":"","type":"mayfly.key.v1"}`},
		{map[string]any{"b": []byte{255}, "a": uint64(1<<53 - 1), "c": nil, "d": 2.0}, `{"a":9007199254740991,"b":"/w==","c":null,"d":2}`},
		{"\ufffd", "\"\ufffd\""},
		{`\ufffd`, `"\\ufffd"`},
		{json.RawMessage(nil), `null`},
		{cosign.GrantDocument{}.Scope, `null`},
	} {
		got, err := cosign.Canonical(c.in)
		if err != nil || string(got) != c.want {
			t.Errorf("%v: %s, %v\nwanted %s", c.in, got, err, c.want)
		}
	}
	loop := map[string]any{}
	loop["loop"] = loop
	for _, c := range []struct {
		in   any
		want string
	}{
		{"a\xffb", "not UTF-8"}, // encoding/json alone would write U+FFFD
		{map[string]int{"\xff": 1}, "not UTF-8"},
		{json.RawMessage("\"\xff\""), "not UTF-8"},
		{json.RawMessage(`"\ud800"`), "surrogate"},
		{json.RawMessage(`{"a":1,"a":2}`), "two members"},
		{json.RawMessage(`{`), "cannot be written"},
		{uint64(1 << 53), "only integers from"},
		{int64(math.MinInt64), "only integers from"},
		{1.5, "only integers"},
		{1e21, "only integers"},
		{math.NaN(), "cannot be written"},
		{make(chan int), "cannot be written"},
		{loop, "cannot be written"},
		{strings.Repeat("x", 1<<20), "at most 1048576"},
	} {
		out, err := cosign.Canonical(c.in)
		if out != nil {
			t.Errorf("%.80v has the form %q", c.in, out)
		}
		t.Run("", func(t *testing.T) { refused(t, err, c.want) })
	}
}

// The hash covers the domain, the document, and where one ends.
func TestSumSeparatesDomainAndDocument(t *testing.T) {
	if cosign.Sum("ab", []byte("c")) == cosign.Sum("a", []byte("bc")) {
		t.Error("the domain's end can be moved")
	}
	const want = "220cac48c92b99826e04ac38f779a3df3b502d93cdb56997232c8913e1de96d1"
	if got := cosign.Sum(cosign.DomainGrant, []byte(`{"grant_id":"g1"}`)).String(); got != want {
		t.Errorf("the hash of a document is %s, wanted %s", got, want)
	}
}

// TestHazard2DocumentsAreGolden: the form of each document that was ever signed
// stays what it is, or old signatures are of nothing.
func TestHazard2DocumentsAreGolden(t *testing.T) {
	grant := usualGrant()
	change := grant.Common
	change.Type = cosign.DomainChange
	for name, doc := range map[string]any{
		"grant": grant,
		"change": cosign.ChangeDocument{Common: change, Reason: "why", Objects: []cosign.ObjectChange{{Kind: "Role", Name: "r", Version: 1, Delete: true,
			Spec: json.RawMessage(`{}`), Secrets: []cosign.SecretChange{{Name: "password", SHA256: "ab"}}}},
			Keys: []cosign.NewKey{{Principal: "human:o", Key: seeded(cosign.KindSSH).Key()}}},
		"key":    cosign.KeyDocument{Type: cosign.DomainKey, Cluster: "c1", Principal: "human:o", Key: seeded(cosign.KindPasskey).Key()},
		"review": cosign.ReviewDocument{Type: cosign.DomainReview, Cluster: "c1", GrantID: "g1", Grant: "ab", Verdict: "justified", Note: "n"},
	} {
		form, err := cosign.Canonical(doc)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".json", form)
		again, err := cosign.CanonicalJSON(form)
		if err != nil || !bytes.Equal(again, form) {
			t.Errorf("%s: the form of the form is %s, %v", name, again, err)
		}
	}
}

// usualGrant has every member that a grant may have.
func usualGrant() cosign.GrantDocument {
	common := cosign.Common{
		Type: cosign.DomainGrant, Cluster: "c1", Incarnation: 2, GrantID: "g1", Nonce: "bm9uY2U", RequestedMS: 1, CollectBeforeMS: 2,
		Requester: cosign.Requester{Principal: "agent:a", Instance: "i", Owner: "human:o", Model: "m", Version: "v", Chain: []string{"human:o"},
			Method: "oidc", Binding: "dpop", Key: "k", AttestedKey: true, Facts: map[string]string{"z": "1", "a": "2"}},
		Decision: "d1", Policies: []cosign.Policy{{ID: "p", Object: "o", Version: 3, Hash: "ab"}}, Needs: []cosign.Need{{Group: "dba", Count: 2, By: "role"}},
	}
	return cosign.GrantDocument{Common: common, Role: "r", RoleVersion: 4, Target: "t", TargetVersion: 5, Scope: json.RawMessage(`[{"type":"database"}]`),
		Task: cosign.Task{ID: "t1", Name: "n", Parent: "t0", DeadlineMS: 9}, Purpose: "why", TTLS: 60, TotalS: 120, EndsByMS: 10, MaxLeases: 1, StepUp: "passkey",
		Emergency: true, Reason: "fire"}
}
