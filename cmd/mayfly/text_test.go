package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

func TestPick(t *testing.T) {
	doc, err := decodeAny([]byte(`{"a":{"b":[{"c":1,"d.e":"x"},{"c":2,"d.e":"y"}]},"n":18446744073709551615}`))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"a.b[0].c": "[1]", "a.b.1.c": "[2]", "a.b[-1].c": "[2]", "a.b.c": "[1 2]", "a.b.d.e": "[x y]", "n": "[18446744073709551615]", "a.b[0]": "[map[c:1 d.e:x]]",
	} {
		got, err := pick(doc, path)
		if err != nil || strings.ReplaceAll(strings.Trim(sprint(got), "\n"), "  ", " ") != want {
			t.Errorf("%s: %v, %v; want %s", path, got, err, want)
		}
	}
	for _, path := range []string{"", ".", "x", "a.x", "a.b[2]", "a.b[0].c.d", "n.x"} {
		if got, err := pick(doc, path); err == nil {
			t.Errorf("%s: %v", path, got)
		}
	}
}

func sprint(v []any) string {
	var parts []string
	for _, x := range v {
		b, _ := json.Marshal(x)
		parts = append(parts, strings.NewReplacer(`"`, "", "{", "map[", "}", "]", ",", " ").Replace(string(b)))
	}
	return "[" + strings.Join(parts, " ") + "]"
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 90 * time.Second: "1m30s", time.Hour: "1h", 61 * time.Minute: "1h01m", 72 * time.Hour: "3d"} {
		if got := span(d); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}

func TestTablesAlign(t *testing.T) {
	var b bytes.Buffer
	p := &page{w: &b, paint: func(c colour, s string) string { return "<" + string(c) + s + ">" }}
	p.table("nothing", []string{"A", "B"}, [][]cell{{plain("ä"), {"x", red}}, {plain("long\x1b"), plain("")}})
	want := "<2A>           <2B>\n<ä>           <31x>\n<long\\u001b>  <->\n"
	if got := b.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	b.Reset()
	p.table("nothing", []string{"A"}, nil)
	if b.String() != "nothing\n" {
		t.Errorf("%q", b.String())
	}
}

func TestColoursOnlyOnATerminal(t *testing.T) {
	s := testShell(map[string]string{"TERM": "xterm"})
	if got := s.painter(s.out)(red, "x"); got != "x" {
		t.Errorf("%q", got)
	}
}

func TestAddressesOfDatabases(t *testing.T) {
	for in, want := range map[string]place{
		"db":                                {host: "db", port: "5432"},
		"db:1":                              {host: "db", port: "1"},
		"db:1/shop":                         {host: "db", port: "1", database: "shop"},
		"[::1]:1":                           {host: "::1", port: "1"},
		"postgresql://u@db/shop":            {host: "db", port: "5432", user: "u", database: "shop"},
		"postgres://db?sslmode=verify-full": {host: "db", port: "5432", tls: "verify-full"},
	} {
		got, err := parseAddress("postgres", in, "5432")
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	at, err := parseAddress("postgres", "postgres://u:hunter2@db", "5432")
	if err != nil || at.password.Reveal() != "hunter2" {
		t.Errorf("%v %v", at, err)
	}
	for _, in := range []string{"", "mysql://db", "postgres://:1", "db?sslmode=prefer", "postgres://u:hunter2@%zz"} {
		_, err := parseAddress("postgres", in, "5432")
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// The shell itself says whether the quoting holds.
func TestQuoteShell(t *testing.T) {
	for _, text := range []string{"", "a b", `'`, `''`, `$(id)`, "`id`", `\`, `\'`, "a\nb", `"`, "!x", "*", "ü"} {
		out, err := exec.Command("sh", "-c", "printf %s "+quoteShell(text)).Output()
		if err != nil || string(out) != text {
			t.Errorf("%q became %q, %v", text, out, err)
		}
	}
}

func FuzzEscapes(f *testing.F) {
	for _, s := range []string{"a\x1b[31m", "\u202e", "\u009b", "\xff", "\U000e0001", "a\nb", "ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if got := clean(text); strings.ContainsFunc(got, hostile) {
			t.Fatalf("%q leaves %q", text, got)
		}
		raw, err := json.Marshal(map[string]string{"a": text, text: "b"})
		if err != nil {
			t.Fatal(err)
		}
		var want, got, fromYAML map[string]string
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		escaped := escapeJSON(raw)
		if err := json.Unmarshal(escaped, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("JSON %s became %s (%v)", raw, escaped, err)
		}
		if strings.ContainsFunc(string(escaped), hostile) {
			t.Fatalf("JSON %s leaves %q", raw, escaped)
		}
		var b bytes.Buffer
		if err := writeYAML(&b, raw); err != nil {
			t.Fatal(err)
		}
		out := strings.NewReplacer("\n", "", "\t", "").Replace(b.String())
		if strings.ContainsFunc(out, hostile) {
			t.Fatalf("YAML leaves %q", b.String())
		}
		if err := yaml.Unmarshal(b.Bytes(), &fromYAML); err != nil || !reflect.DeepEqual(fromYAML, want) {
			t.Fatalf("YAML of %s became %s (%v)", raw, b.String(), err)
		}
	})
}

func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		"kind: Zone\nname: eu\nspec: {a: [1, 2.5, true, null, 2026-01-01T00:00:00Z]}\n---\nkind: Zone\nname: us\n",
		`[{"kind":"Zone","name":"eu","spec":{}}]`,
		"kind: Target\nname: t\nspec: {admin: {initial_password: {from_env: X}}, tls: {ca_file: y}}",
		"a: &a [*a]", "kind: Zone\nname: x\nspec: &s {b: *s}", "kind: Zone\nname: x\nspec:\n  <<: {a: 1}\n", "- - -", "kind: !!binary x", "\x00",
		"kind: Zone\nname: x\nspec: {a: .inf}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l := &loader{shell: testShell(map[string]string{"X": "secret"})}
		nodes, err := parseDocuments("f.yaml", []byte(text))
		if err != nil {
			return
		}
		for _, n := range nodes {
			o, err := l.object("/nonexistent/f.yaml", n)
			if err != nil {
				if !strings.Contains(err.Error(), "f.yaml:") {
					t.Fatalf("the error does not say where: %v", err)
				}
				continue
			}
			if !json.Valid(o.Spec) || o.Kind == "" || o.Name == "" {
				t.Fatalf("%+v", o)
			}
			if strings.Contains(string(o.Spec), "secret") && !strings.Contains(text, "secret") {
				t.Fatalf("a secret stayed in the spec: %s", o.Spec)
			}
		}
	})
}
