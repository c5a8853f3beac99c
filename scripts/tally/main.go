// Command tally runs `go test -json` with its arguments, shows the packages'
// lines and the output of what failed, and ends with one line, `N passed,
// N failed`.
//
// It counts the tests and subtests that have no subtests of their own. A parent
// that fails by itself, a package that fails without a failing test (it does not
// build, its TestMain fails, it hangs) and a test that was skipped count as
// failed: a test that did not run proves nothing. It exits with 1 when anything
// failed. It must know nothing of Mayfly.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, "", os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run runs go test in dir, or here when dir is empty.
func run(ctx context.Context, dir string, args []string, out, errs io.Writer) int {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Dir = dir
	// An interrupt lets the tests end the servers they started.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = errs
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		fmt.Fprintln(errs, "tally:", err)
		return 1
	}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(errs, "tally:", err)
		return 1
	}
	t := newTally(out)
	readErr := t.read(pipe)
	passed, failed := t.count()
	if err := cmd.Wait(); (err != nil || readErr != nil) && failed == 0 {
		fmt.Fprintln(out, "go test:", err, readErr)
		failed = 1
	}
	fmt.Fprintf(out, "%d passed, %d failed\n", passed, failed)
	if failed > 0 {
		return 1
	}
	return 0
}

// event is a line of `go test -json` (go doc test2json). ImportPath stands in
// for Package in the lines of the build.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

// test is what became of one test, subtest or, with an empty name, package.
type test struct {
	verdict string // the last of run, pass, fail, skip
	parent  bool
	output  strings.Builder
}

type tally struct {
	out   io.Writer
	tests map[[2]string]*test
	order [][2]string
}

func newTally(out io.Writer) *tally { return &tally{out: out, tests: map[[2]string]*test{}} }

// maxLine bounds one line of go test's JSON, in bytes.
const maxLine = 64 << 20

func (t *tally) read(r io.Reader) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), maxLine)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Fprintln(t.out, in.Text()) // not test2json's: show it as it is
			continue
		}
		t.add(e)
	}
	return in.Err()
}

func (t *tally) at(key [2]string) *test {
	if t.tests[key] == nil {
		t.tests[key] = &test{}
		t.order = append(t.order, key)
	}
	return t.tests[key]
}

func (t *tally) add(e event) {
	if strings.HasPrefix(e.Action, "build-") {
		fmt.Fprint(t.out, e.Output)
		return
	}
	x := t.at([2]string{e.Package, e.Test})
	switch e.Action {
	case "run":
		x.verdict = e.Action
		for _, name := range above(e.Test) {
			// A name may hold slashes of its own: not all of this are tests.
			if p := t.tests[[2]string{e.Package, name}]; p != nil {
				p.parent = true
			}
		}
	case "output":
		x.output.WriteString(e.Output)
	case "pass", "fail", "skip":
		x.verdict = e.Action
		t.show(e, x)
	}
}

// above lists what stands before each slash of a test's name.
func above(name string) (out []string) {
	for i := range len(name) {
		if name[i] == '/' {
			out = append(out, name[:i])
		}
	}
	return out
}

// show prints the output of what did not pass, and each package's own line.
func (t *tally) show(e event, x *test) {
	text := x.output.String()
	if e.Test == "" && e.Action != "fail" {
		text = packageLine(text)
	}
	if e.Test == "" || e.Action != "pass" {
		fmt.Fprint(t.out, text)
	}
	x.output.Reset()
}

// packageLine keeps `ok …` and `? … [no test files]` of a package's output.
func packageLine(text string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "ok ") {
			return line
		}
	}
	return ""
}

// count says how many leaves passed and how much failed.
func (t *tally) count() (passed, failed int) {
	broken := map[[2]string]bool{} // parents and packages whose failure is counted already
	for i := len(t.order) - 1; i >= 0; i-- {
		key := t.order[i]
		x := t.tests[key]
		switch {
		case key[1] == "":
			continue
		case x.verdict == "pass":
			if !x.parent {
				passed++
			}
			continue
		case !broken[key]:
			failed++
		}
		broken[[2]string{key[0], ""}] = true
		for _, name := range above(key[1]) {
			broken[[2]string{key[0], name}] = true
		}
	}
	for key, x := range t.tests {
		if key[1] == "" && x.verdict == "fail" && !broken[key] {
			failed++
		}
	}
	return passed, failed
}
