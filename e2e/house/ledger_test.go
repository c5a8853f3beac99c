package house

import (
	"go/ast"
	"go/types"
	"slices"
	"strings"
	"testing"
)

// pureRooms compute the replicated state: two replicas that ran the same
// commands must hold the same bytes.
var pureRooms = []string{"broker/cosign", "broker/ledger", "broker/audit/tree", "scope"}

// pureMay are the standard library's packages that those rooms may import. They
// hold no clock, no randomness, no environment, no network and no goroutines.
var pureMay = []string{
	"bytes", "cmp", "crypto/hmac", "crypto/sha256", "crypto/subtle", "encoding/base32", "encoding/base64", "encoding/binary",
	"encoding/hex", "encoding/json", "errors", "fmt", "io", "iter", "maps", "math", "math/bits", "net/netip", "regexp", "slices",
	"sort", "strconv", "strings", "time", "unicode", "unicode/utf8",
}

// pureAlso are those that one pure room alone may import: what checks signatures
// could make them too, and would then draw numbers.
var pureAlso = map[string][]string{
	"broker/cosign": {"crypto/ecdsa", "crypto/ed25519", "crypto/elliptic", "crypto/sha512", "math/big", "unicode/utf16"},
}

// clockMay are the names of package time that only compute.
var clockMay = []string{"Time", "Duration", "UnixMilli", "Unix", "Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour", "UTC", "RFC3339", "RFC3339Nano", "ParseDuration", "Parse"}

// Replicas that read a clock, draw a number or ask a machine differ.
func TestLedgerIsPure(t *testing.T) {
	x := read(t)
	for _, s := range x.sources {
		if s.test || !slices.Contains(pureRooms, s.room) {
			continue
		}
		for _, i := range s.file.Imports {
			name := strings.Trim(i.Path.Value, `"`)
			if !strings.Contains(strings.Split(name, "/")[0], ".") && !slices.Contains(pureMay, name) && !slices.Contains(pureAlso[s.room], name) {
				t.Errorf("%s: %s imports %s, which a pure room has no use for", x.at(i), s.room, name)
			}
		}
		clock := imported(s.file, "time")
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				if isIdent(n.X, clock) && !slices.Contains(clockMay, n.Sel.Name) {
					t.Errorf("%s: %s uses time.%s; time comes with the command", x.at(n), s.room, n.Sel.Name)
				}
			case *ast.GoStmt, *ast.SelectStmt:
				t.Errorf("%s: %s runs things at once, so their order varies", x.at(n), s.room)
			}
			return true
		})
	}
}

// Go visits a map in a different order each time, and floating point rounds
// differently from one processor to the next.
func TestLedgerHasOneOrderAndNoFloats(t *testing.T) {
	x := read(t)
	checked := newHouseImporter(x)
	for _, room := range pureRooms {
		info, err := checked.check(room)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range x.rooms()[room] {
			if s.test {
				continue
			}
			ast.Inspect(s.file, func(n ast.Node) bool {
				if r, ok := n.(*ast.RangeStmt); ok && unordered(info, r.X) {
					t.Errorf("%s: ranges over a map; range over slices.Sorted(maps.Keys(m))", x.at(r))
				}
				if e, ok := n.(ast.Expr); ok && isFloat(info.TypeOf(e)) {
					t.Errorf("%s: computes with floating point", x.at(e))
				}
				return true
			})
		}
	}
}

// The checks above must see a map and a float, or they guard nothing.
func TestLedgerChecksSeeMapsAndFloats(t *testing.T) {
	x := read(t)
	seen := 0
	for _, room := range pureRooms {
		info, err := newHouseImporter(x).check(room)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range info.Types {
			if _, ok := v.Type.Underlying().(*types.Map); ok {
				seen++
			}
		}
	}
	if seen == 0 {
		t.Error("no expression of the pure rooms is a map: types are not being resolved")
	}
	if !isFloat(types.Typ[types.Float64]) || !isFloat(types.Typ[types.UntypedFloat]) || isFloat(types.Typ[types.Int64]) {
		t.Error("isFloat does not know a float")
	}
}

func isFloat(t types.Type) bool {
	if t == nil {
		return false
	}
	b, ok := t.Underlying().(*types.Basic)
	return ok && b.Info()&(types.IsFloat|types.IsComplex) != 0
}

// unordered says whether an expression is a map, or maps.Keys, Values or All.
func unordered(info *types.Info, e ast.Expr) bool {
	if t := info.TypeOf(e); t != nil {
		if _, ok := t.Underlying().(*types.Map); ok {
			return true
		}
	}
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	return ok && isIdent(sel.X, "maps") && slices.Contains([]string{"Keys", "Values", "All"}, sel.Sel.Name)
}

// houseImporter checks the types of the house's own packages from the parsed
// sources. Packages of others are empty to it, so what they return has no known
// type; everything declared here has.
type houseImporter struct {
	tree *tree
	done map[string]*types.Package
	info *types.Info
}

func newHouseImporter(x *tree) *houseImporter {
	return &houseImporter{tree: x, done: map[string]*types.Package{}, info: &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}}
}

// check returns what is known of a room's expressions.
func (h *houseImporter) check(room string) (*types.Info, error) {
	_, err := h.Import(module + "/" + room)
	return h.info, err
}

// Import is types.Importer.
func (h *houseImporter) Import(path string) (*types.Package, error) {
	if p := h.done[path]; p != nil {
		return p, nil
	}
	room, ours := strings.CutPrefix(path, module+"/")
	if !ours {
		p := types.NewPackage(path, path[strings.LastIndexByte(path, '/')+1:])
		p.MarkComplete()
		h.done[path] = p
		return p, nil
	}
	var files []*ast.File
	for _, s := range h.tree.rooms()[room] {
		if !s.test {
			files = append(files, s.file)
		}
	}
	conf := types.Config{Importer: h, Error: func(error) {}} // what others declare is not known here
	p, err := conf.Check(path, h.tree.fset, files, h.info)
	if p == nil {
		return nil, err
	}
	h.done[path] = p
	return p, nil
}
