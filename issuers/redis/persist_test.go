package redis_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
)

// restart ends a server without warning and starts it again.
func restart(t *testing.T, s *redistest.Server) {
	t.Helper()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRestartWithEveryPersistMode(t *testing.T) {
	for _, x := range []struct {
		persist  string
		options  []redistest.Option
		survives bool
	}{
		{"none", nil, false},
		{"aclfile", []redistest.Option{redistest.ACLFile()}, true},
		{"config", nil, true},
	} {
		t.Run(x.persist, func(t *testing.T) {
			f := newFixture(t, redistest.Start(t, x.options...))
			f.spec["persist"] = x.persist
			is := f.open(1)
			// patterns of every kind that a file must hold
			kept, ended := lease(allow([]string{"read", "write", "scripting"}, "key:a?[b]\\c^*", "key:#x", "channel:>y~*")), lease(allow([]string{"read"}))
			c := f.mint(is, kept)
			f.mint(is, ended)
			f.withdraw(is, ended)
			restart(t, f.server)
			if f.exists(ended.Name) {
				t.Error("a withdrawn user came back with the server")
			}
			if got := f.exists(kept.Name); got != x.survives {
				t.Errorf("a live user is there after a restart: %t", got)
			}
			if x.survives {
				r := f.as(c)
				if err := r.Set(t.Context(), `a?[b]\c^1`, "x", 0).Err(); err != nil {
					t.Errorf("the live lease after a restart: %v", err)
				}
				if err := r.Get(t.Context(), "axb").Err(); err == nil || !strings.HasPrefix(err.Error(), "NOPERM") {
					t.Errorf("a pattern has widened over the restart: %v", err)
				}
			} else {
				wantKind(t, is.Extend(t.Context(), kept), issuers.Gone)
			}
			f.withdraw(is, kept)
			restart(t, f.server)
			if f.exists(kept.Name) {
				t.Error("a withdrawn user came back with the server")
			}
		})
	}
}

// Where the file cannot be written there is no receipt, and there is one as soon
// as it can: although the user is gone from memory by then.
func TestNoReceiptUntilTheDeletionIsOnDisk(t *testing.T) {
	f := newFixture(t, redistest.Start(t, redistest.ACLFile()))
	f.spec["persist"] = "aclfile"
	is := f.open(1)
	l := lease(allow([]string{"read"}))
	f.mint(is, l)
	// the server writes a new file beside the old one and renames it
	away := f.server.Dir + ".away"
	if err := os.Rename(f.server.Dir, away); err != nil {
		t.Fatal(err)
	}
	out := is.Withdraw(t.Context(), []issuers.Lease{l})
	if err := os.Rename(away, f.server.Dir); err != nil {
		t.Fatal(err)
	}
	wantKind(t, out[0].Err, issuers.Unknown)
	if f.exists(l.Name) {
		t.Error("the user lives on because the file cannot be written")
	}
	text, err := os.ReadFile(filepath.Join(f.server.Dir, "users.acl"))
	if err != nil || !strings.Contains(string(text), l.Name) {
		t.Fatalf("the file does not hold the user any more: this test proves nothing (%v)", err)
	}
	f.withdraw(is, l)
	restart(t, f.server)
	if f.exists(l.Name) {
		t.Error("a withdrawn user came back with the server")
	}
}

// A withdrawn user that somebody's ACL SAVE kept is found by List, and ends again.
func TestUserThatComesBackIsFound(t *testing.T) {
	f := newFixture(t, redistest.Start(t, redistest.ACLFile()))
	is := f.open(1)
	l := lease(allow([]string{"read"}))
	f.mint(is, l)
	if err := f.admin.Do(t.Context(), "ACL", "SAVE").Err(); err != nil {
		t.Fatal(err)
	}
	f.withdraw(is, l)
	restart(t, f.server)
	found, err := is.List(t.Context())
	if err != nil || len(found) != 1 || found[0] != (issuers.Found{Name: l.Name, LeaseID: l.ID, Generation: 1}) {
		t.Fatalf("List: %+v, %v", found, err)
	}
	f.withdraw(is, l)
}

// The check says what is wrong before it hurts.
func TestCheckFindsWhatIsMissing(t *testing.T) {
	s := redistest.Start(t, redistest.ACLFile())
	f := newFixture(t, s)
	find := func(name string) issuers.Finding {
		t.Helper()
		list, err := f.open(1).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range list {
			if x.Name == name {
				return x
			}
		}
		t.Fatalf("no finding %q in %+v", name, list)
		return issuers.Finding{}
	}
	if x := find("persist"); x.OK || !x.Warning || !strings.Contains(x.Detail, "aclfile") {
		t.Errorf("a server with an aclfile and persist: none: %+v", x)
	}
	f.spec["persist"] = "aclfile"
	if x := find("persist"); !x.OK {
		t.Errorf("%+v", x)
	}
	if x := find("default user"); !x.OK {
		t.Errorf("%+v", x)
	}
	if err := f.admin.Do(t.Context(), "ACL", "SETUSER", "default", "on", "nopass").Err(); err != nil {
		t.Fatal(err)
	}
	if x := find("default user"); x.OK || !x.Warning || x.Fix == "" {
		t.Errorf("an open default user: %+v", x)
	}
	words := strings.Fields(strings.ReplaceAll(leastPrivilege(t), "PASSWORD", issuertest.NewLeaseID()))
	args := []any{"ACL", "SETUSER"}
	for _, w := range words {
		args = append(args, w)
	}
	args = append(args, "resetpass", ">"+s.Password, "-client|kill")
	if err := f.admin.Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
	f.spec["admin"] = map[string]any{"username": "mayfly"}
	if x := find("end sessions"); x.OK || x.Warning || x.Fix != "ACL SETUSER mayfly +client|kill" {
		t.Errorf("an admin without CLIENT KILL: %+v", x)
	}
}
