package mysql_test

import (
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/mysql"
	"github.com/mayfly-broker/mayfly/issuers/mysql/mysqltest"
	"github.com/mayfly-broker/mayfly/secret"
)

// An admin account without any right is told each one that it lacks, and what
// gives it; run to the letter, these make it work.
func TestCheckNamesEveryMissingRight(t *testing.T) {
	f := newFixture(t, mysqltest.Start(t, mysqltest.Flag("--skip-name-resolve")))
	f.server.Exec(t, "CREATE USER 'poor'@'127.0.0.%' IDENTIFIED BY 'poor-admin-password'")
	f.spec["admin"], f.secrets = map[string]any{"username": "poor"}, map[string]secret.Text{mysql.SecretPassword: secret.New("poor-admin-password")}
	f.spec["hosts"] = []string{"%", "app.internal"}
	is := f.open(1)
	_, err := is.Mint(t.Context(), f.lease(f.readonly()))
	wantKind(t, err, issuers.Refused)
	findings, err := is.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"create user": true, "process": true, "kill": true, "read accounts": true, "schema mayfly": true, "grant " + f.database + ".*": true}
	for _, x := range findings {
		if x.OK || x.Warning {
			if want[x.Name] {
				t.Errorf("%+v: should fail", x)
			}
			continue
		}
		if !want[x.Name] || x.Fix == "" {
			t.Errorf("unexpected, or without a remedy: %+v", x)
		}
		delete(want, x.Name)
	}
	if len(want) > 0 {
		t.Errorf("not reported: %v", want)
	}
	warned := func(name string) bool {
		for _, x := range findings {
			if x.Name == name {
				return !x.OK && x.Warning
			}
		}
		return false
	}
	for _, name := range []string{"default role", "host app.internal", "grants to everybody"} {
		if !warned(name) {
			t.Errorf("no warning %q", name)
		}
	}
	for _, x := range findings {
		if !x.OK && x.Fix != "" {
			f.server.Exec(t, x.Fix)
		}
	}
	is = f.open(1) // rights are read when a connection is made
	findings, err = is.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range findings {
		if !x.OK && x.Name != "host app.internal" {
			t.Errorf("after the remedies: %+v", x)
		}
	}
	l := f.lease(f.readonly())
	f.mustLogin(f.mint(is, l)).must(t, "SELECT * FROM orders")
	f.withdraw(is, l)
}

func TestCheckWarnsOfStrangers(t *testing.T) {
	f := newFixture(t, mysqltest.Start(t))
	f.server.Exec(t, "CREATE USER ''@'localhost'; CREATE DATABASE test; GRANT ALL ON test.* TO PUBLIC")
	findings, err := f.open(1).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, x := range findings {
		if x.Warning {
			seen[x.Name] = x.Detail
		}
	}
	for _, name := range []string{"anonymous accounts", "grants to everybody", "least privilege"} {
		if seen[name] == "" {
			t.Errorf("no warning %q among %v", name, seen)
		}
	}
	if !strings.Contains(seen["grants to everybody"], "test") {
		t.Errorf("the database is not named: %q", seen["grants to everybody"])
	}
}

// TestCheckWarnsOfAServerThatShutsItsClientsOut: it counts connections that broke
// off, which all do while it hangs, and then accepts none from their host.
func TestCheckWarnsOfAServerThatShutsItsClientsOut(t *testing.T) {
	f := newFixture(t, mysqltest.Start(t))
	warned := func(elsewhere bool) string {
		is := f.open(1)
		if elsewhere {
			is.Elsewhere()
		}
		findings, err := is.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range findings {
			if x.Name == "max_connect_errors" {
				return x.Fix
			}
		}
		return ""
	}
	if warned(false) != "" {
		t.Error("warned of what never happens on loopback")
	}
	fix := warned(true)
	if fix == "" {
		t.Fatal("no warning with the server's own default")
	}
	statement, _, _ := strings.Cut(fix, ";")
	f.server.Exec(t, statement)
	if warned(true) != "" {
		t.Errorf("%s: it is still warned of", statement)
	}
}
