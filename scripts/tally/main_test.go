package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// lines writes a stream of test2json: "action package test", an output after a
// colon.
func lines(events ...string) string {
	var b strings.Builder
	for _, e := range events {
		head, output, _ := strings.Cut(e, ": ")
		f := append(strings.Fields(head), "", "")
		fmt.Fprintf(&b, "{\"Action\":%q,\"Package\":%q,\"Test\":%q,\"Output\":%q}\n", f[0], f[1], f[2], output)
	}
	return b.String()
}

func TestCount(t *testing.T) {
	for _, c := range []struct {
		name           string
		in             string
		passed, failed int
		shows, hides   string
	}{
		{"leaves count, parents do not", lines("run p A", "run p A/x", "run p A/y", "pass p A/x", "pass p A/y", "pass p A", "pass p"), 2, 0, "", ""},
		{"a failing leaf is one failure", lines("run p A", "run p A/x", "output p A/x: why", "fail p A/x", "fail p A", "fail p"), 0, 1, "why", ""},
		{"a parent that fails by itself counts", lines("run p A", "run p A/x", "pass p A/x", "output p A: own", "fail p A", "fail p"), 1, 1, "own", ""},
		{"a package that fails without a test counts", lines("output p : no build", "fail p"), 0, 1, "no build", ""},
		{"packages are told apart", lines("run p A", "run q A", "fail p A", "pass q A", "fail p", "output q : TestMain", "fail q"), 1, 2, "TestMain", ""},
		{"a skipped test did not prove anything", lines("run p A", "output p A: no server", "skip p A", "pass p"), 0, 1, "no server", ""},
		{"a test that never ended failed", lines("run p A", "run p B", "pass p A", "output p : panic", "fail p"), 1, 1, "panic", ""},
		{"a name may hold slashes of its own", lines("run p A", "run p A/x/y", "pass p A/x/y", "run p A/x/z", "fail p A/x/z", "fail p A", "fail p"), 1, 1, "", ""},
		{"what passes is quiet", lines("run p A", "output p A: chatter", "pass p A", "output p : ok  \tp", "pass p"), 1, 0, "ok  \tp", "chatter"},
		{"what is not JSON is shown", "go: something\n", 0, 0, "go: something", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			x := newTally(&out)
			if err := x.read(strings.NewReader(c.in)); err != nil {
				t.Fatal(err)
			}
			if p, f := x.count(); p != c.passed || f != c.failed {
				t.Errorf("%d passed, %d failed; want %d and %d", p, f, c.passed, c.failed)
			}
			if !strings.Contains(out.String(), c.shows) {
				t.Errorf("%q is not shown in %q", c.shows, out.String())
			}
			if c.hides != "" && strings.Contains(out.String(), c.hides) {
				t.Errorf("%q is shown", c.hides)
			}
		})
	}
}

// TestRealRuns counts real runs of go test: the stream's form may change with
// the toolchain, and an exit code must never say less than the last line.
func TestRealRuns(t *testing.T) {
	for _, c := range []struct {
		name, body, last string
		code             int
	}{
		{"good", "func TestA(*testing.T) {}", "1 passed, 0 failed\n", 0},
		{"bad", "func TestA(*testing.T) {}\nfunc TestB(t *testing.T) { t.Fatal() }", "1 passed, 1 failed\n", 1},
		{"broken", "func TestA() int { }", "0 passed, 1 failed\n", 1},
		{"panics", "func TestA(*testing.T) { panic(1) }\nfunc TestB(*testing.T) {}", "0 passed, 1 failed\n", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "go.mod"), "module x\n")
			write(t, filepath.Join(dir, "x_test.go"), "package x\n\nimport \"testing\"\n\n"+c.body+"\n")
			var out, errs strings.Builder
			code := run(t.Context(), dir, []string{"-vet=off", "./..."}, &out, &errs)
			if code != c.code || !strings.HasSuffix(out.String(), c.last) {
				t.Errorf("exit code %d, want %d; output:\n%s%s", code, c.code, out.String(), errs.String())
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
