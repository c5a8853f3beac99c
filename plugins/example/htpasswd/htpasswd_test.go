package htpasswd

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
)

func open(t *testing.T, text string) (path string, i issuers.Issuer) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "realm")
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(map[string]any{"realms": map[string]string{"r": path}})
	if err != nil {
		t.Fatal(err)
	}
	if i, err = (Kind{}).Open(issuers.Target{Spec: spec}); err != nil {
		t.Fatal(err)
	}
	return path, i
}

func newLease() issuers.Lease {
	return issuertest.NewLease(Kind{}, scope.Scope{{Type: scopeType, Actions: []string{action}}})
}

// TestHazard16UnmarkedUserIsLeftAlone: a line of our name without our mark is
// somebody's who must be asked.
func TestHazard16UnmarkedUserIsLeftAlone(t *testing.T) {
	l := newLease()
	before := "ann:x\n" + l.Name + ":theirs\n"
	path, i := open(t, before)
	if _, err := i.Mint(t.Context(), l); issuers.KindOf(err) != issuers.Foreign {
		t.Errorf("Mint: %v; want kind foreign", err)
	}
	if o := i.Withdraw(t.Context(), []issuers.Lease{l}); issuers.KindOf(o[0].Err) != issuers.Poison {
		t.Errorf("Withdraw: %+v; want kind poison", o)
	}
	if text, _ := os.ReadFile(path); string(text) != before {
		t.Errorf("the file became %q", text)
	}
}

// TestFileKeepsItsModeAndOthersLines: a web server must go on reading it.
func TestFileKeepsItsModeAndOthersLines(t *testing.T) {
	before := "# mayfly account broken mark\n# a note: with a colon\nann:x\n\nbo:y:more\n"
	path, i := open(t, before)
	l := newLease()
	if _, err := i.Mint(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(path)
	if !strings.HasPrefix(string(text), before) || !strings.Contains(string(text), l.Name+":$2y$") {
		t.Errorf("the file became %q", text)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("its mode became %v, %v", info.Mode(), err)
	}
	if o := i.Withdraw(t.Context(), []issuers.Lease{l}); o[0].Err != nil {
		t.Error(o[0].Err)
	}
	if text, _ := os.ReadFile(path); string(text) != before {
		t.Errorf("in the end the file is %q", text)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".realm.*")); len(left) > 0 {
		t.Errorf("there are left: %v", left)
	}
}

// FuzzFile: whatever stands in a file, what is not ours comes out as it went in.
func FuzzFile(f *testing.F) {
	f.Add("ann:x\n# c\n")
	f.Add("# mayfly account mf-a lease=a generation=1 until=2026-11-22T10:00:00Z\nmf-a:h\nmf-a:again\n")
	f.Fuzz(func(t *testing.T, text string) {
		first := &file{users: map[string]bool{}, ours: map[string]*account{}}
		first.parse([]byte(text))
		again := &file{users: map[string]bool{}, ours: map[string]*account{}}
		again.parse(first.text())
		if strings.Join(first.lines, "\n") != strings.Join(again.lines, "\n") || len(first.ours) != len(again.ours) {
			t.Errorf("%q is read as %q and then as %q", text, first.lines, again.lines)
		}
	})
}
