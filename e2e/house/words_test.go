package house

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

// A client that does not check whom it talks to has no transport security.
func TestNoTLSWithoutVerification(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && id.Name == "InsecureSkipVerify" {
				t.Errorf("%s: the server's certificate is not checked", x.at(id))
			}
			return true
		})
	}
}

// A skipped test passes where it proves nothing; a test that sleeps is either
// slow or wrong. A test that lacks its server fails and says how to get it; one
// that waits polls with a deadline, or uses a channel or testing/synctest, in whose
// bubble a sleep moves a clock and costs nothing.
func TestTestsNeitherSkipNorSleep(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		if s.product() {
			continue
		}
		clock := imported(s.file, "time")
		calls(s.file, func(call *ast.CallExpr, on ast.Expr, name string) {
			switch {
			case slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, name):
				t.Errorf("%s: a test is skipped", x.at(call))
			case name == "Sleep" && isIdent(on, clock) && !inBubble(s.file, call):
				t.Errorf("%s: a test sleeps", x.at(call))
			}
		})
	}
	for name, text := range x.texts {
		if strings.HasSuffix(name, ".txtar") && regexp.MustCompile(`(?m)^(\[[^]]*\] )?skip\b`).MatchString(text) {
			t.Errorf("%s: a script is skipped", name)
		}
	}
}

// inBubble says whether a call stands inside the function handed to
// synctest.Test.
func inBubble(f *ast.File, inner *ast.CallExpr) bool {
	bubble, found := imported(f, "testing/synctest"), false
	calls(f, func(call *ast.CallExpr, on ast.Expr, name string) {
		if isIdent(on, bubble) && name == "Test" && call.Pos() < inner.Pos() && inner.End() < call.End() {
			found = true
		}
	})
	return found
}

// What is not done belongs in an issue; what a linter says belongs repaired.
func TestNothingIsLeftForLater(t *testing.T) {
	later := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|HA` + `CK|XX` + `X)\b`)
	quiet := regexp.MustCompile(`//\s*(no` + `lint|lint:` + `ignore|#no` + `sec)`)
	for name, text := range read(t).texts {
		number := 0
		for line := range strings.Lines(text) {
			number++
			if later.MatchString(line) {
				t.Errorf("%s:%d: left for later: %s", name, number, strings.TrimSpace(line))
			}
			if quiet.MatchString(line) {
				t.Errorf("%s:%d: a linter is silenced: %s", name, number, strings.TrimSpace(line))
			}
		}
	}
}

// A page that points nowhere is worse than none.
func TestLinksInPagesLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	x := read(t)
	for name, text := range x.texts {
		if !strings.HasSuffix(name, ".md") {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(x.root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s points to %s, which is not there", name, m[1])
			}
		}
	}
}

// The repository builds from any mirror and on any machine.
func TestNoRegistriesAndNoMachinePaths(t *testing.T) {
	// Written apart, so that this file does not break its own rule.
	hosts := regexp.MustCompile(`\b(` + strings.Join([]string{
		`(proxy|sum)\.go` + `lang\.org`, `registry\.n` + `pmjs\.org`, `registry\.yarn` + `pkg\.com`, `(files\.python` + `hosted|py` + `pi)\.org`,
		`(deb|security|ftp)\.deb` + `ian\.org`, `archive\.ub` + `untu\.com`, `(docker|gh` + `cr|quay|gcr)\.io`, `crates\.i` + `o`, `maven\.or` + `g`,
	}, "|") + `)\b`)
	paths := regexp.MustCompile(`(^|[\s"'=(:])/(ro` + `ot|Us` + `ers|ho` + `me/[a-z]{2,})[/\s]`)
	for name, text := range read(t).texts {
		number := 0
		for line := range strings.Lines(text) {
			number++
			if m := hosts.FindString(line); m != "" {
				t.Errorf("%s:%d: names a package registry: %s", name, number, m)
			}
			if m := paths.FindString(line); m != "" {
				t.Errorf("%s:%d: names a path of one machine: %s", name, number, m)
			}
		}
	}
}

// A replaced module is one that nobody else can build or audit by its version.
func TestModulesAreNotReplaced(t *testing.T) {
	m := goMod(t)
	for _, r := range m.Replace {
		t.Errorf("go.mod replaces %s", r.Old.Path)
	}
	if m.Module.Mod.Path != module {
		t.Errorf("the module is called %s, want %s", m.Module.Mod.Path, module)
	}
}

// Hazard 26: raft 1.8 and raft-boltdb do not build together, and the log is
// raft-wal's.
func TestHazard26OnlyOneLogStore(t *testing.T) {
	for _, r := range goMod(t).Require {
		if strings.HasPrefix(r.Mod.Path, "github.com/hashicorp/raft-boltdb") {
			t.Errorf("go.mod requires %s beside raft", r.Mod)
		}
	}
}

func goMod(t *testing.T) *modfile.File {
	t.Helper()
	name := filepath.Join(read(t).root, "go.mod")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := modfile.Parse(name, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A panic in product code takes every request with it; work before main cannot
// be configured, tested or refused. http.ErrAbortHandler is net/http's own word
// for cutting an answer short, and panicking with it the only way to say it.
func TestNoPanicAndNoInit(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		if !s.product() {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if isIdent(n.Fun, "panic") && (len(n.Args) != 1 || last(n.Args[0]) != "ErrAbortHandler") {
					t.Errorf("%s: product code panics", x.at(n))
				}
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: a package works before main", x.at(n))
				}
			}
			return true
		})
	}
}

// An error's text is for people and changes with every release of a library;
// a kept context outlives the call that it bounds. An adapter to an interface
// without contexts, such as io.Writer, may keep one where its comment says that
// it lives for one call.
func TestErrorsAreNotReadAndContextsNotKept(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		if !s.product() {
			continue
		}
		text := imported(s.file, "strings")
		deciding := []string{"Contains", "HasPrefix", "HasSuffix", "EqualFold", "Index"} // trimming for display is no decision
		calls(s.file, func(call *ast.CallExpr, on ast.Expr, name string) {
			if !isIdent(on, text) || len(call.Args) == 0 || !slices.Contains(deciding, name) {
				return
			}
			if inner, ok := call.Args[0].(*ast.CallExpr); ok {
				if sel, ok := inner.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Error" && len(inner.Args) == 0 {
					t.Errorf("%s: strings.%s reads an error's text", x.at(call), name)
				}
			}
		})
		keepsContext(t, x, s)
	}
}

func keepsContext(t *testing.T, x *tree, s source) {
	t.Helper()
	name := imported(s.file, "context")
	for _, d := range s.file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || strings.Contains(strings.Join(strings.Fields(g.Doc.Text()), " "), "lives for one call") {
			continue
		}
		ast.Inspect(g, func(n ast.Node) bool {
			body, ok := n.(*ast.StructType)
			if !ok {
				return true
			}
			for _, f := range body.Fields.List {
				if sel, ok := f.Type.(*ast.SelectorExpr); ok && isIdent(sel.X, name) && sel.Sel.Name == "Context" {
					t.Errorf("%s: a context is kept in a struct", x.at(f))
				}
			}
			return true
		})
	}
}

// A log message that is always the same can be searched, counted and alarmed
// on; what varies goes into fields, where redaction works.
func TestLogMessagesAreConstant(t *testing.T) {
	levels := []string{"Debug", "Info", "Warn", "Error"}
	logger := regexp.MustCompile(`(?i)^(slog|log|logger)$`)
	x := read(t)
	for _, s := range x.sources {
		if !s.product() {
			continue
		}
		calls(s.file, func(call *ast.CallExpr, on ast.Expr, name string) {
			level, withContext := strings.CutSuffix(name, "Context")
			if !slices.Contains(levels, level) || !logger.MatchString(last(on)) {
				return
			}
			args := call.Args
			if withContext && len(args) > 0 {
				args = args[1:]
			}
			if len(args) > 0 && !constant(args[0]) {
				t.Errorf("%s: a log message that varies", x.at(call))
			}
		})
	}
}

// last is the last name of a, a.b or a.b.c.
func last(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return x.Sel.Name
	}
	return ""
}

// constant says whether an expression is a literal or a sum of literals.
func constant(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.BasicLit:
		return x.Kind == token.STRING
	case *ast.BinaryExpr:
		return constant(x.X) && constant(x.Y)
	}
	return false
}
