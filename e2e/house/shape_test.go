package house

import (
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"
)

// What a reader can hold: a file in a sitting, a function on a screen, a struct
// in the head. A struct that wants more fields is two things.
const (
	maxFileLines     = 600
	maxFunctionLines = 70
	maxStructFields  = 20

	// A document of the public contract is flat because its readers are: scripts
	// that name a field. Its fields are the contract's, not the reader's to hold.
	maxDocumentFields = 30
)

func TestFilesAreReadInOneSitting(t *testing.T) {
	for _, s := range read(t).sources {
		if s.lines > maxFileLines {
			t.Errorf("%s has %d lines, more than %d: split it by topic", s.name, s.lines, maxFileLines)
		}
	}
}

func TestFunctionsFitOnAScreen(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		if s.test {
			continue
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && x.span(f) > maxFunctionLines {
				t.Errorf("%s: %s has %d lines, more than %d", x.at(f), f.Name.Name, x.span(f), maxFunctionLines)
			}
		}
	}
}

func TestStructsStaySmall(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		limit := maxStructFields
		if s.room == "client/wire" {
			limit = maxDocumentFields
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if body, ok := spec.Type.(*ast.StructType); ok && body.Fields.NumFields() > limit {
				t.Errorf("%s: %s has %d fields, more than %d", x.at(spec), spec.Name.Name, body.Fields.NumFields(), limit)
			}
			return true
		})
	}
}

// A package named for what it is not (for one thing) becomes the place for what
// nobody wanted to name.
func TestPackageNamesSayWhatTheyAreFor(t *testing.T) {
	vague := []string{"util", "utils", "helper", "helpers", "common", "types", "manager", "misc", "base", "shared", "core", "lib", "internal"}
	x := read(t)
	for _, s := range x.sources {
		for _, part := range append(strings.Split(s.room, "/"), s.file.Name.Name) {
			if slices.Contains(vague, part) {
				t.Errorf("%s: a package named %q says nothing", x.at(s.file.Name), part)
			}
		}
	}
}

// Whoever opens a room must find out what it is for.
func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	for room, files := range read(t).rooms() {
		said := slices.ContainsFunc(files, func(s source) bool {
			return !s.test && s.file.Doc != nil && len(strings.Fields(s.file.Doc.Text())) >= 10
		})
		if !said {
			t.Errorf("%s has no package comment that says what it is for", room)
		}
	}
}

// The comment is the contract: what a caller cannot read there, he must not
// rely on.
func TestExportedNamesAreDocumented(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		if s.test || s.file.Name.Name == "main" {
			continue
		}
		for _, d := range s.file.Decls {
			for _, name := range undocumented(d) {
				t.Errorf("%s: %s.%s has no comment", x.at(name), path.Base(s.room), name.Name)
			}
		}
	}
}

func undocumented(d ast.Decl) []*ast.Ident {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && (d.Recv == nil || ast.IsExported(receiver(d))) && !wellKnown(d) {
			return []*ast.Ident{d.Name}
		}
	case *ast.GenDecl:
		var out []*ast.Ident
		for _, spec := range d.Specs {
			out = append(out, bare(d, spec)...)
		}
		return out
	}
	return nil
}

// bare lists the exported names of a specification without a comment of its own
// or, in a block of constants or variables, of the block.
func bare(d *ast.GenDecl, spec ast.Spec) (out []*ast.Ident) {
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if spec.Name.IsExported() && spec.Doc == nil && (d.Doc == nil || len(d.Specs) > 1) {
			out = append(out, spec.Name)
		}
	case *ast.ValueSpec:
		if d.Doc != nil || spec.Doc != nil || spec.Comment != nil || d.Tok == token.IMPORT {
			return nil
		}
		for _, n := range spec.Names {
			if n.IsExported() {
				out = append(out, n)
			}
		}
	}
	return out
}

// receiver returns the name of a method's type.
func receiver(f *ast.FuncDecl) string {
	x := f.Recv.List[0].Type
	for {
		switch y := x.(type) {
		case *ast.StarExpr:
			x = y.X
		case *ast.IndexExpr:
			x = y.X
		case *ast.IndexListExpr:
			x = y.X
		case *ast.Ident:
			return y.Name
		default:
			return ""
		}
	}
}

// wellKnown methods say what they do by their name: the interfaces of the
// standard library that everybody knows by heart.
func wellKnown(f *ast.FuncDecl) bool {
	return f.Recv != nil && slices.Contains([]string{"Error", "Unwrap", "Is", "String", "Len", "Less", "Swap"}, f.Name.Name)
}
