package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// module is the module path; imports that begin with it are the house's own.
const module = "github.com/mayfly-broker/mayfly"

// source is one Go file.
type source struct {
	name  string // slashed, from the repository's root
	room  string // its directory, likewise; "." is the root
	test  bool   // a _test.go file
	prop  bool   // in a package that exists for tests alone
	file  *ast.File
	lines int
}

// product says whether the file is part of what users run.
func (s source) product() bool { return !s.test && !s.prop && !strings.HasPrefix(s.room, "e2e") }

// tree is the repository as it stands on disk.
type tree struct {
	root    string
	fset    *token.FileSet
	sources []source
	texts   map[string]string // every committed file that is text
}

// at says where a node is.
func (t *tree) at(n ast.Node) string { return t.atPos(n.Pos()) }

func (t *tree) atPos(p token.Pos) string {
	at := t.fset.Position(p)
	rel, err := filepath.Rel(t.root, at.Filename)
	if err != nil {
		rel = at.Filename
	}
	return fmt.Sprintf("%s:%d", filepath.ToSlash(rel), at.Line)
}

// span is the number of lines that a node covers.
func (t *tree) span(n ast.Node) int {
	return t.fset.Position(n.End()).Line - t.fset.Position(n.Pos()).Line + 1
}

var readOnce = sync.OnceValues(func() (*tree, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return readTree(dir)
		}
		if dir == filepath.Dir(dir) {
			return nil, fmt.Errorf("no go.mod above the test's directory")
		}
		dir = filepath.Dir(dir)
	}
})

// read returns the repository, parsed once.
func read(t *testing.T) *tree {
	t.Helper()
	x, err := readOnce()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// notCommitted is what .gitignore keeps out, and git's own.
func notCommitted(name string) bool {
	return slices.Contains([]string{".git", "bin", ".cache", ".demo"}, name) ||
		slices.Contains([]string{".test", ".out", ".prof"}, path.Ext(name))
}

// forTests lists packages whose name ends in "test": they help tests alone.
func forTests(room string) bool { return strings.HasSuffix(path.Base(room), "test") }

func readTree(root string) (*tree, error) {
	x := &tree{root: root, fset: token.NewFileSet(), texts: map[string]string{}}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if file != root && notCommitted(d.Name()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return nil
		}
		return x.add(file)
	})
	return x, err
}

func (t *tree) add(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(t.root, file)
	if err != nil {
		return err
	}
	name := filepath.ToSlash(rel)
	if !strings.ContainsRune(string(b), 0) {
		t.texts[name] = string(b)
	}
	if path.Ext(name) != ".go" || strings.Contains(name, "/testdata/") {
		return nil
	}
	f, err := parser.ParseFile(t.fset, file, b, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	t.sources = append(t.sources, source{
		name: name, room: path.Dir(name), test: strings.HasSuffix(name, "_test.go"),
		prop: forTests(path.Dir(name)), file: f, lines: strings.Count(string(b), "\n"),
	})
	return nil
}

// rooms returns the files of each package directory.
func (t *tree) rooms() map[string][]source {
	out := map[string][]source{}
	for _, s := range t.sources {
		out[s.room] = append(out[s.room], s)
	}
	return out
}

// calls visits every call of a selector, as in x.Name(…).
func calls(f *ast.File, visit func(call *ast.CallExpr, x ast.Expr, name string)) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
			visit(call, sel.X, sel.Sel.Name)
		}
		return true
	})
}

// imported returns the name by which a file calls an import; "" if it does not
// import it.
func imported(f *ast.File, importPath string) string {
	for _, i := range f.Imports {
		if strings.Trim(i.Path.Value, `"`) != importPath {
			continue
		}
		if i.Name != nil {
			return i.Name.Name
		}
		return path.Base(importPath)
	}
	return ""
}

// isIdent says whether an expression is the bare name.
func isIdent(x ast.Expr, name string) bool {
	id, ok := x.(*ast.Ident)
	return ok && name != "" && id.Name == name
}
