package mysql

import (
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	driverpkg "github.com/go-sql-driver/mysql"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

func specJSON(t testing.TB, change map[string]any) json.RawMessage {
	t.Helper()
	m := map[string]any{"address": "db.internal:3306", "database": "orders", "databases": []string{"hr_eu"}, "admin": map[string]any{"username": "mayfly"}}
	for k, v := range change {
		m[k] = v
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func mustSpec(t testing.TB, change map[string]any) spec {
	t.Helper()
	s, err := parseSpec(specJSON(t, change))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSpecDefaultsAndRefusals(t *testing.T) {
	s := mustSpec(t, nil)
	if s.TLS.Mode != tlsVerifyFull || s.Require != requireSSL || len(s.Hosts) != 1 || s.Hosts[0] != "%" || s.Grants != grantsAuto || s.MaxConnections != defaultConns {
		t.Errorf("defaults: %+v", s)
	}
	for name, bad := range map[string]map[string]any{
		"no port":              {"address": "db.internal"},
		"port 0":               {"address": "db.internal:0"},
		"two hosts":            {"address": "a,b:3306"},
		"system schema":        {"database": "mysql"},
		"system schema's case": {"database": "MySQL"},
		"our schema":           {"databases": []string{"Mayfly"}},
		"dot in a database":    {"database": "a.b"},
		"space at the end":     {"database": "orders "},
		"65 characters":        {"database": strings.Repeat("x", 65)},
		"beyond plane 0":       {"database": "🦟"},
		"host with a quote":    {"hosts": []string{"%' OR '1"}},
		"host with a comma":    {"hosts": []string{"10.1.1.1,10.1.1.2"}},
		"host too long":        {"hosts": []string{strings.Repeat("h", 61)}},
		"nine hosts":           {"hosts": strings.Split("a b c d e f g h i", " ")},
		"plain far away":       {"tls": map[string]any{"mode": "disable"}},
		"no verify-ca":         {"tls": map[string]any{"mode": "verify-ca"}},
		"both CAs":             {"tls": map[string]any{"ca": "x", "ca_file": "y"}},
		"ssl without TLS":      {"address": "127.0.0.1:3306", "tls": map[string]any{"mode": "disable"}, "require": "ssl"},
		"unknown plugin":       {"auth": "mysql_old_password"},
		"unknown grants":       {"grants": "none"},
		"no admin":             {"admin": map[string]any{}},
		"admin of a lease":     {"admin": map[string]any{"username": "mayfly" + strings.Repeat("a", 26)}},
		"too many connections": {"max_connections": 201},
	} {
		if err := (Kind{}).CheckSpec(specJSON(t, bad)); err == nil {
			t.Errorf("accepted: %s", name)
		}
	}
}

func detail(identifier string, actions []string, tables ...scope.Table) scope.Scope {
	return scope.Scope{{Type: scopeType, Identifier: identifier, Actions: actions, Tables: tables}}
}

func TestCompiledSQL(t *testing.T) {
	s := mustSpec(t, nil)
	for _, c := range []struct {
		scope scope.Scope
		want  []string
	}{
		{detail("orders", []string{"select", "insert"}, scope.Table{Name: "orders.*"}), []string{"GRANT INSERT, SELECT ON `orders`.* TO x"}},
		{detail("hr_eu", []string{"select"}), []string{"GRANT SELECT ON `hr\\_eu`.* TO x"}},
		{detail("", []string{"select"}), []string{"GRANT SELECT ON `hr\\_eu`.* TO x", "GRANT SELECT ON `orders`.* TO x"}},
		{detail("hr_eu", []string{"select"}, scope.Table{Name: "hr_eu.a`b"}), []string{"GRANT SELECT ON TABLE `hr_eu`.`a``b` TO x"}},
		{detail("hr_eu", []string{"select", "update"}, scope.Table{Name: "hr_eu.t", Columns: []string{"b`", "a"}}), []string{"GRANT SELECT (`a`, `b```), UPDATE (`a`, `b```) ON TABLE `hr_eu`.`t` TO x"}},
		{detail("orders", []string{"execute"}, scope.Table{Name: "orders.f"}), []string{"GRANT EXECUTE ON FUNCTION `orders`.`f` TO x"}},
		{detail("orders", []string{"temporary", "lock_tables"}), []string{"GRANT CREATE TEMPORARY TABLES, LOCK TABLES ON `orders`.* TO x"}},
		{append(detail("orders", []string{"select"}, scope.Table{Name: "orders.t"}), detail("orders", []string{"delete"}, scope.Table{Name: "orders.t"})...), []string{"GRANT DELETE, SELECT ON TABLE `orders`.`t` TO x"}},
	} {
		got, err := compile(s, c.scope)
		if err != nil {
			t.Errorf("%s: %v", c.scope, err)
			continue
		}
		var texts []string
		for _, g := range got.grants {
			texts = append(texts, g.sql("x", "FUNCTION", false))
		}
		if strings.Join(texts, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%s:\n%q\nwant\n%q", c.scope, texts, c.want)
		}
	}
	g := grant{Database: "hr_eu", Privileges: []string{"SELECT"}}
	if got := g.sql("x", "", true); got != "GRANT SELECT ON `hr_eu`.* TO x" {
		t.Errorf("with partial_revokes: %s", got)
	}
}

// Roles that hold what can define things would let an account define in their
// name (MariaDB's DEFINER=CURRENT_ROLE).
func TestHazard10DefiningIsNeverPooled(t *testing.T) {
	s := mustSpec(t, nil)
	for name, a := range actions {
		got, err := compile(s, detail("orders", []string{name}))
		if err != nil {
			t.Fatal(err)
		}
		if defines := slices.Contains([]string{"trigger", "create_view", "create_routine", "alter_routine", "event"}, name); got.definer != defines || a.definer != defines {
			t.Errorf("%s: definer %t", name, got.definer)
		}
	}
}

func TestHazard15RoleNameIsTheGrants(t *testing.T) {
	s := mustSpec(t, nil)
	name := func(s spec, sc scope.Scope, role string, version uint64) string {
		c, err := compile(s, sc)
		if err != nil {
			t.Fatal(err)
		}
		return c.roleName(s, role, version)
	}
	one := detail("orders", []string{"select"}, scope.Table{Name: "orders.a"})
	base := name(s, one, "r", 1)
	twice := append(detail("orders", []string{"select"}, scope.Table{Name: "orders.a"}), one...)
	if name(s, twice, "r", 1) != base {
		t.Error("the same grants have two names")
	}
	other := mustSpec(t, map[string]any{"admin": map[string]any{"username": "next"}})
	for what, n := range map[string]string{
		"another table": name(s, detail("orders", []string{"select"}, scope.Table{Name: "orders.b"}), "r", 1), "another role": name(s, one, "q", 1),
		"another version": name(s, one, "r", 2), "another admin": name(other, one, "r", 1), "fewer columns": name(s, detail("orders", []string{"select"}, scope.Table{Name: "orders.a", Columns: []string{"x"}}), "r", 1),
	} {
		if n == base {
			t.Errorf("%s shares the role", what)
		}
		if len(n) > maxUserName || !strings.HasPrefix(n, scopePrefix) {
			t.Errorf("role name %q", n)
		}
	}
}

func TestHazard16NamesFitWhole(t *testing.T) {
	l := issuertest.NewLease(Kind{}, nil)
	if len(l.Name) != maxUserName || checkLease(l) != nil {
		t.Errorf("name %q has %d characters", l.Name, len(l.Name))
	}
	for _, bad := range []string{"", "root", l.Name + "x", strings.ToUpper(l.Name), l.Name[:31], "mayfly_" + l.ID[1:], "mayfly" + strings.Repeat("'", 26)} {
		if checkLease(issuers.Lease{ID: l.ID, Name: bad}) == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func TestVerifiers(t *testing.T) {
	if got := nativeHash(secret.New("password")); got != "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19" {
		t.Errorf("native: %s", got)
	}
	// an example that password crackers publish for this format
	salt, err := hex.DecodeString("F9CC98CE08892924F50A213B6BC571A2C11778C5")
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString("625479393559393965414D45316477456B484F41316E64484742577A2E3162785353526B7554584647562F")
	if err != nil {
		t.Fatal(err)
	}
	if got := cachingSHA2(secret.New("hashcat"), string(salt)); got != "$A$005$"+string(salt)+string(want) {
		t.Errorf("caching_sha2: %q, want the end %q", got, want)
	}
	// openssl passwd -5 -salt saltstring 'Hello world!'
	if got := shaCrypt([]byte("Hello world!"), []byte("saltstring"), 5000); got != "5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5" {
		t.Errorf("SHA-crypt: %s", got)
	}
	p := newPassword()
	if len(p.Reveal()) != 32 || p.Equal(newPassword()) {
		t.Error("passwords are not 160 fresh bits")
	}
	if _, err := newVerifier(dialect{}, authSHA2, p); err == nil {
		t.Error("MariaDB took a plugin that it lacks")
	}
	if _, err := newVerifier(dialect{mysql: true}, authEd25519, p); err == nil {
		t.Error("MySQL took a plugin that it lacks")
	}
}

// The dialect of MySQL 8, which the other tests here do not run against.
func TestMySQLDialect(t *testing.T) {
	d, err := parseVersion("8.0.36")
	if err != nil || !d.mysql || d.version != 80036 {
		t.Fatalf("%+v, %v", d, err)
	}
	s := mustSpec(t, map[string]any{"hosts": []string{"10.%", "10.1.0.0/255.255.0.0"}})
	v := verifier{authSHA2, `$A$005$sa'lt`}
	want := `CREATE USER 'mayflyx'@'10.%' IDENTIFIED WITH caching_sha2_password AS '$A$005$sa\'lt', 'mayflyx'@'10.1.0.0/255.255.0.0' IDENTIFIED WITH caching_sha2_password AS '$A$005$sa\'lt' REQUIRE SSL ATTRIBUTE '{"mayfly": 1}'`
	if got := d.createUser("mayflyx", s.Hosts, v, s, `{"mayfly": 1}`); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	join := d.joinRole("mayfly_s_a", "mayflyx", []string{"%", "::1"})
	if got := strings.Join(join, "; "); got != "GRANT 'mayfly_s_a'@'%' TO 'mayflyx'@'%', 'mayflyx'@'::1'; SET DEFAULT ROLE 'mayfly_s_a'@'%' TO 'mayflyx'@'%', 'mayflyx'@'::1'" {
		t.Errorf("join: %s", got)
	}
	if got := d.limitSQL(1700 * time.Millisecond); got != "SET SESSION lock_wait_timeout = 1, innodb_lock_wait_timeout = 1" {
		t.Errorf("limits: %s", got)
	}
	if strings.Contains(d.sessionSQL(), "max_statement_time") || d.lockSeconds(1700*time.Millisecond) != "1" || d.accounts() != "mysql.user" || d.processlist() != "performance_schema.processlist" {
		t.Error("MariaDB's words in MySQL's dialect")
	}
	for text, ok := range map[string]bool{"8.0.21": false, "8.4.3": true, "5.7.44-log": false, "10.11.19-MariaDB-0+deb12u1": true, "5.5.5-10.6.1-MariaDB": true, "10.3.39-MariaDB": false} {
		d, err := parseVersion(text)
		if got, _ := d.supported(); err != nil || got != ok {
			t.Errorf("%s: supported %t, %v", text, got, err)
		}
	}
}

func FuzzVersion(f *testing.F) {
	for _, s := range []string{"8.0.36", "10.11.19-MariaDB", "5.5.5-10.6.1-MariaDB", "", "x", "999.999.999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseVersion(s)
		if err == nil && (d.version < 0 || d.version > 9_999_999+999_999) {
			t.Errorf("%q is version %d", s, d.version)
		}
	})
}

// Whatever compiles has every name inside its quotes.
func FuzzCompile(f *testing.F) {
	f.Add("orders", "select", "orders.t", "c")
	f.Add("", "execute", "*.*", "")
	f.Add("hr_eu", "update", "hr_eu.a`; DROP TABLE x; -- ", "`")
	f.Add("orders", "select", `orders.\`, `'\`)
	s := mustSpec(f, nil)
	f.Fuzz(func(t *testing.T, identifier, act, table, column string) {
		d := scope.Detail{Type: scopeType, Identifier: identifier, Actions: []string{act}, Tables: []scope.Table{{Name: table}}}
		if column != "" {
			d.Tables[0].Columns = []string{column}
		}
		c, err := compile(s, scope.Scope{d})
		if err != nil {
			return
		}
		for _, g := range c.grants {
			rest := g.sql("x", "FUNCTION", false)
			for {
				before, quoted, found := strings.Cut(rest, "`")
				if strings.ContainsAny(before, ";'\"\\#") || strings.Contains(before, "--") {
					t.Fatalf("outside the quotes: %q in %q", before, g.sql("x", "FUNCTION", false))
				}
				if !found {
					break
				}
				for { // to the closing quote; two in a row are one of the name
					_, after, closed := strings.Cut(quoted, "`")
					if !closed {
						t.Fatalf("a quote is left open in %q", g.sql("x", "FUNCTION", false))
					}
					if !strings.HasPrefix(after, "`") {
						rest = after
						break
					}
					quoted = after[1:]
				}
			}
		}
	})
}

// TestShutOutHostIsToldWhatEndsIt: nothing was sent, and no retry of ours ends it.
func TestShutOutHostIsToldWhatEndsIt(t *testing.T) {
	err := connectError(&driverpkg.MySQLError{Number: 1129, Message: "Host 'broker' is blocked because of many connection errors"})
	if err.Kind != issuers.Unreachable || !strings.Contains(err.Detail, "FLUSH HOSTS") {
		t.Errorf("%v: %s", err.Kind, err.Detail)
	}
}
