package scope

import (
	"fmt"
	"slices"
	"strings"
)

// Covers reports whether outer allows everything that inner allows. The error
// names the first detail that exceeds outer and how; it is safe to show.
//
// The check is sound and deliberately incomplete: every (action, table) pair of
// inner must be allowed by a single detail of outer. A scope that only a union
// of outer's details would allow is refused, and can be asked for as two
// details instead.
func Covers(outer, inner Scope) error {
	for _, d := range inner {
		for _, action := range d.Actions {
			for _, t := range tablesOrAll(d.Tables) {
				if !slices.ContainsFunc(outer, func(o Detail) bool { return o.allows(d, action, t) }) {
					return fmt.Errorf("%s exceeds what is allowed (%s)", describe(d, action, t), outer)
				}
			}
		}
	}
	return nil
}

// anyTable stands for "not restricted to tables".
var anyTable = Table{}

func tablesOrAll(ts []Table) []Table {
	if len(ts) == 0 {
		return []Table{anyTable}
	}
	return ts
}

// allows reports whether o alone allows action on t with d's other members.
func (o Detail) allows(d Detail, action string, t Table) bool {
	return o.Type == d.Type &&
		slices.Contains(o.Actions, action) &&
		(o.Identifier == "" || patternCovers(o.Identifier, d.Identifier)) &&
		listCovers(o.Locations, d.Locations, patternCovers) &&
		listCovers(o.Datatypes, d.Datatypes, equal) &&
		listCovers(o.Privileges, d.Privileges, equal) &&
		(len(o.Tables) == 0 || t.Name != "" && slices.ContainsFunc(o.Tables, func(ot Table) bool { return ot.covers(t) }))
}

func (o Table) covers(t Table) bool {
	return nameCovers(o.Name, t.Name) && listCovers(o.Columns, t.Columns, equal) && rowsCover(o.Rows, t.Rows)
}

// listCovers: an omitted outer list restricts nothing; an omitted inner list
// asks for everything, which only an omitted outer list gives.
func listCovers(outer, inner []string, covers func(o, i string) bool) bool {
	if len(outer) == 0 {
		return true
	}
	if len(inner) == 0 {
		return false
	}
	for _, i := range inner {
		if !slices.ContainsFunc(outer, func(o string) bool { return covers(o, i) }) {
			return false
		}
	}
	return true
}

func equal(a, b string) bool { return a == b }

// patternCovers compares names that may end in "*".
func patternCovers(o, i string) bool {
	if prefix, ok := strings.CutSuffix(o, "*"); ok {
		return strings.HasPrefix(i, prefix)
	}
	return o == i
}

// nameCovers compares schema.table names, either part of which may be "*".
func nameCovers(o, i string) bool {
	os, ot, _ := strings.Cut(o, ".")
	is, it, _ := strings.Cut(i, ".")
	return (os == "*" || os == is) && (ot == "*" || ot == it)
}

// Intersect returns the widest scope that both a and b allow, normalised. An
// empty result is an error: a credential that may do nothing is a mistake.
func Intersect(a, b Scope) (Scope, error) {
	var out Scope
	for _, x := range a {
		for _, y := range b {
			if d, ok := meet(x, y); ok {
				out = append(out, d)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("scope: %s and %s have nothing in common", a, b)
	}
	return out.dropCovered().Normalise()
}

// dropCovered removes details that another detail covers, so that intersecting
// overlapping scopes does not grow them.
func (s Scope) dropCovered() Scope {
	var out Scope
	for i, d := range s {
		redundant := false
		for j, o := range s {
			if i == j || Covers(Scope{o}, Scope{d}) != nil {
				continue
			}
			// of two that cover each other, keep the first
			if j < i || Covers(Scope{d}, Scope{o}) != nil {
				redundant = true
				break
			}
		}
		if !redundant {
			out = append(out, d)
		}
	}
	return out
}

func meet(x, y Detail) (Detail, bool) {
	if x.Type != y.Type {
		return Detail{}, false
	}
	d := Detail{Type: x.Type}
	ok := true
	d.Identifier, ok = meetIdentifier(x.Identifier, y.Identifier)
	if !ok {
		return d, false
	}
	if d.Actions = both(x.Actions, y.Actions); len(d.Actions) == 0 {
		return d, false
	}
	if d.Locations, ok = meetLists(x.Locations, y.Locations, meetPattern); !ok {
		return d, false
	}
	if d.Datatypes, ok = meetLists(x.Datatypes, y.Datatypes, meetEqual); !ok {
		return d, false
	}
	if d.Privileges, ok = meetLists(x.Privileges, y.Privileges, meetEqual); !ok {
		return d, false
	}
	d.Tables, ok = meetTables(x.Tables, y.Tables)
	return d, ok
}

func meetIdentifier(a, b string) (string, bool) {
	switch {
	case a == "":
		return b, true
	case b == "":
		return a, true
	default:
		return meetPattern(a, b)
	}
}

func meetPattern(a, b string) (string, bool) {
	switch {
	case patternCovers(a, b):
		return b, true
	case patternCovers(b, a):
		return a, true
	default:
		return "", false
	}
}

func meetEqual(a, b string) (string, bool) { return a, a == b }

func both(a, b []string) []string {
	var out []string
	for _, s := range a {
		if slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

// meetLists intersects two lists of which an omitted one restricts nothing.
func meetLists(a, b []string, meet func(a, b string) (string, bool)) ([]string, bool) {
	if len(a) == 0 {
		return b, true
	}
	if len(b) == 0 {
		return a, true
	}
	var out []string
	for _, x := range a {
		for _, y := range b {
			if m, ok := meet(x, y); ok && !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
	}
	return out, len(out) > 0
}

func meetTables(a, b []Table) ([]Table, bool) {
	if len(a) == 0 {
		return b, true
	}
	if len(b) == 0 {
		return a, true
	}
	var out []Table
	for _, x := range a {
		for _, y := range b {
			name, ok := meetName(x.Name, y.Name)
			if !ok {
				continue
			}
			cols, ok := meetLists(x.Columns, y.Columns, meetEqual)
			if !ok {
				continue
			}
			if rows, ok := meetRows(x.Rows, y.Rows, cols); ok {
				out = append(out, Table{Name: name, Columns: cols, Rows: rows})
			}
		}
	}
	return out, len(out) > 0
}

func meetName(a, b string) (string, bool) {
	as, at, _ := strings.Cut(a, ".")
	bs, bt, _ := strings.Cut(b, ".")
	schema, ok1 := meetPart(as, bs)
	table, ok2 := meetPart(at, bt)
	return schema + "." + table, ok1 && ok2
}

func meetPart(a, b string) (string, bool) {
	switch {
	case a == "*":
		return b, true
	case b == "*":
		return a, true
	default:
		return a, a == b
	}
}

func describe(d Detail, action string, t Table) string {
	s := d.Type
	if d.Identifier != "" {
		s += " " + d.Identifier
	}
	s += ": " + action
	if t.Name == "" {
		return s
	}
	s += " on " + t.Name
	if len(t.Columns) > 0 {
		s += " (" + strings.Join(t.Columns, ", ") + ")"
	}
	if len(t.Rows) > 0 {
		s += " where " + t.Filter()
	}
	return s
}
