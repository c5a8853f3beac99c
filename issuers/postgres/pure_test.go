package postgres

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// The example of RFC 7677 §3: user "pencil", 4096 iterations. The RFC gives
// proofs, not keys; the server's signature over its AuthMessage shows that our
// server key is the right one.
func TestVerifierMatchesRFC7677(t *testing.T) {
	salt, err := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	if err != nil {
		t.Fatal(err)
	}
	v, err := verifier(secret.New("pencil"), salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	prefix, keys, _ := strings.Cut(v, "$W22ZaJ0SNY7soEsUEjb6gQ==$")
	if prefix == v {
		prefix, keys, _ = strings.Cut(v, ":W22ZaJ0SNY7soEsUEjb6gQ==$")
	}
	if prefix != "SCRAM-SHA-256$4096" {
		t.Fatalf("verifier %s", v)
	}
	_, server, _ := strings.Cut(keys, ":")
	serverKey, err := base64.StdEncoding.DecodeString(server)
	if err != nil {
		t.Fatal(err)
	}
	auth := "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	if got := base64.StdEncoding.EncodeToString(mac(serverKey, auth)); got != "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" {
		t.Errorf("server signature %s", got)
	}
}

const goodSpec = `{"address":"127.0.0.1:5432","database":"orders","databases":["billing"],"tls":{"mode":"disable"},"admin":{"username":"mayfly"}}`

func TestSpecRefuses(t *testing.T) {
	for name, change := range map[string]string{
		"tls off elsewhere": `{"address":"db.internal:5432"}`,
		"tls that skips":    `{"tls":{"mode":"require"}}`,
		"tls prefer":        `{"tls":{"mode":"prefer"}}`,
		"verify-ca, no ca":  `{"tls":{"mode":"verify-ca"}}`,
		"two cas":           `{"tls":{"mode":"verify-full","ca":"x","ca_file":"y"}}`,
		"no port":           `{"address":"127.0.0.1"}`,
		"port 0":            `{"address":"127.0.0.1:0"}`,
		"socket":            `{"address":"/tmp:5432"}`,
		"two hosts":         `{"address":"127.0.0.1,127.0.0.2:5432"}`,
		"no database":       `{"database":""}`,
		"long database":     `{"database":"` + strings.Repeat("x", 64) + `"}`,
		"NUL":               `{"database":"a\u0000b"}`,
		"no admin":          `{"admin":{}}`,
		"password in spec":  `{"admin":{"username":"m","password":"x"}}`,
		"login":             `{"login":"trust"}`,
		"negative":          `{"scram_iterations":-1}`,
		"too many":          `{"scram_iterations":100001}`,
		"connections":       `{"max_connections":100000}`,
		"unknown":           `{"sslmode":"disable"}`,
	} {
		var spec, patch map[string]any
		if err := json.Unmarshal([]byte(goodSpec), &spec); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(change), &patch); err != nil {
			t.Fatal(err)
		}
		for k, v := range patch {
			spec[k] = v
		}
		raw, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := (Kind{}).CheckSpec(raw); err == nil {
			t.Errorf("%s: accepted %s", name, raw)
		}
	}
	if err := (Kind{}).CheckSpec(json.RawMessage(goodSpec)); err != nil {
		t.Error(err)
	}
}

func mustCompile(t *testing.T, s string) compiled {
	t.Helper()
	sp, err := parseSpec(json.RawMessage(goodSpec))
	if err != nil {
		t.Fatal(err)
	}
	sc, err := scope.Parse([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	c, err := compile(sp, sc)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return c
}

// HAZARDS 15: the pooled role's name is the compiled grants, and the role's
// version.
func TestHazard15PooledNameIsTheGrants(t *testing.T) {
	a := mustCompile(t, `[{"type":"database","identifier":"orders","actions":["select","delete"],"tables":[{"name":"public.*"}]}]`)
	same := mustCompile(t, `[{"type":"database","identifier":"ord*","actions":["delete","select"],"tables":[{"name":"public.*"}]}]`)
	if a.roleName("orders", "r", 1) != same.roleName("orders", "r", 1) {
		t.Error("two ways to say one thing have two pooled roles")
	}
	others := []string{a.roleName("orders", "r", 1), a.roleName("orders", "r", 2), a.roleName("orders", "q", 1)}
	for _, s := range []string{
		`[{"type":"database","identifier":"billing","actions":["select","delete"],"tables":[{"name":"public.*"}]}]`,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.*"}]}]`,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.a"}]}]`,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.a","columns":["x"]}]}]`,
		`[{"type":"database","actions":["select"]}]`,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.a","rows":[{"column":"x","op":"eq","values":["1"]}]}]}]`,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.a","rows":[{"column":"x","op":"ne","values":["1"]}]}]}]`,
		`[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.a","rows":[{"column":"x","op":"in","values":["1","2"]}]}]}]`,
		`[{"type":"database","identifier":"orders","actions":["select","update"],"tables":[{"name":"public.a","rows":[{"column":"x","op":"eq","values":["1"]}]}]}]`,
	} {
		others = append(others, mustCompile(t, s).roleName("orders", "r", 1))
	}
	for _, n := range others {
		if len(n) > maxIdentifier || len(rowsName(n)) > maxIdentifier || accountPattern.MatchString(rowsName(n)) || accountPattern.MatchString(n) {
			t.Errorf("%s could be cut off, or be an account's name", n)
		}
	}
	slices.Sort(others)
	if len(slices.Compact(others)) != 12 {
		t.Errorf("distinct grants share a name: %v", others)
	}
}

// HAZARDS 15: what filters compare with is the lease's own, and no reason for
// another pooled role.
func TestHazard15ValuesAreNotInThePooledName(t *testing.T) {
	name := func(op, values string) string {
		return mustCompile(t, `[{"type":"database","identifier":"orders","actions":["select"],"tables":[{"name":"public.a","rows":[{"column":"x","op":"`+op+`","values":[`+values+`]}]}]}]`).roleName("orders", "r", 1)
	}
	if name("eq", `"1"`) != name("eq", `"2"`) || name("in", `"1","2"`) != name("in", `"3","4","5"`) {
		t.Error("values make a pooled role of their own")
	}
	// the scope itself, which several databases share, keeps its values
	sc, err := scope.Parse([]byte(`[{"type":"database","actions":["select"],"tables":[{"name":"public.a","rows":[{"column":"x","op":"eq","values":["1"]}]}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	before := sc.String()
	c := mustCompile(t, before)
	if len(c.pooled) != 2 || len(c.pooled[0].values) != 1 || c.pooled[1].values[0].Values[0] != "1" || sc.String() != before {
		t.Errorf("compiled to %+v; the scope is now %s", c.pooled, sc)
	}
}

// HAZARDS 10: what lets an account make things is never pooled.
func TestHazard10CreateIsNeverPooled(t *testing.T) {
	c := mustCompile(t, `[{"type":"database","actions":["select","create","usage","temporary","execute"]}]`)
	for _, d := range c.pooled {
		for _, g := range d.Grants {
			if slices.Contains(g.Privileges, "create") {
				t.Errorf("pooled: %+v", g)
			}
		}
	}
	if len(c.direct) != 2 {
		t.Errorf("direct grants %+v; want one for each database", c.direct)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(goodSpec, `[{"type":"database","identifier":"orders","actions":["select","create"],"tables":[{"name":"public.*"}]}]`)
	f.Add(goodSpec, `[{"type":"database","actions":["select"],"tables":[{"name":"a.b","rows":[{"column":"c","op":"in","values":["1","'"]}]},{"name":"a.c"}]}]`)
	f.Add(goodSpec, `[{"type":"database","actions":["execute"],"tables":[{"name":"a\".b'"}]}]`)
	f.Fuzz(func(t *testing.T, specText, scopeText string) {
		sp, err := parseSpec(json.RawMessage(specText))
		if err != nil {
			return
		}
		sc, err := scope.Parse([]byte(scopeText))
		if err != nil {
			return
		}
		c, err := compile(sp, sc)
		if err != nil {
			return
		}
		for _, d := range append(slices.Clone(c.pooled), c.direct...) {
			if !slices.Contains(sp.Databases, d.Database) {
				t.Fatalf("compiled for database %q, which the spec does not name", d.Database)
			}
			for _, g := range d.Grants {
				for _, v := range d.Views {
					if g.On == onTables && (g.Schema == "*" || g.Schema == v.Schema) && (g.Name == "*" || g.Name == v.Name) {
						t.Fatalf("%+v undoes the row filter %+v", g, v)
					}
				}
				if strings.HasPrefix(g.Schema, "pg_") {
					t.Fatalf("grant in a system schema: %+v", g)
				}
				for _, p := range g.Privileges {
					if _, ok := actionKind[p]; !ok {
						t.Fatalf("privilege %q", p)
					}
				}
			}
		}
	})
}

func FuzzMark(f *testing.F) {
	f.Add(mark{strings.Repeat("a", 26), 3, 4}.String())
	f.Add("mayfly lease=")
	f.Fuzz(func(t *testing.T, text string) {
		m, ok := parseMark(text)
		if !ok {
			return
		}
		if again, ok := parseMark(m.String()); !ok || again != m {
			t.Fatalf("%q reads as %+v, then as %+v", text, m, again)
		}
		if !accountPattern.MatchString(accountPrefix + m.leaseID) {
			t.Fatalf("%q has the lease id %q", text, m.leaseID)
		}
	})
}

func TestAppName(t *testing.T) {
	for _, term := range []uint64{0, 7, 1<<64 - 1} {
		if got, ok := parseAppName(appName(term)); !ok || got != term {
			t.Errorf("term %d reads as %d, %t", term, got, ok)
		}
	}
	for _, s := range []string{"", "mayfly/", "mayfly/-1", "mayfly/1 ", "psql", fmt.Sprintf("mayfly/%d0", uint64(1<<63))} {
		if _, ok := parseAppName(s); ok {
			t.Errorf("%q is read as a term", s)
		}
	}
}
