// Package scope is the algebra of what a credential may touch: RFC 9396
// authorization_details that can be parsed strictly, compared and intersected.
//
// Scopes only ever narrow (law 3). The three operations are [Parse], [Covers]
// and [Intersect]; all are pure and deterministic, because every replica runs
// them when it applies a command. What an action or a table *means* on a target
// is its issuer's business: this package must know nothing of targets.
package scope

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Limits of a scope. A request that passes them costs at most
// MaxDetails² × MaxMembers² comparisons when it is intersected.
const (
	MaxBytes   = 16 << 10 // a scope that people approve must stay readable
	MaxDetails = 16
	MaxMembers = 64  // actions, tables, columns, locations … of one detail
	MaxName    = 256 // bytes of one string; URLs are the longest
)

// Scope is a union: a credential may do whatever one of its details allows.
// The nil Scope allows nothing; "no restriction" is said by leaving a scope out
// where a document allows that, never by an empty one.
type Scope []Detail

// Detail is one authorization detail (RFC 9396 §2). Members unknown here are
// refused. An omitted list (other than Actions) does not restrict.
type Detail struct {
	// Type names the kind of access: "database", "jwt", "x509".
	Type string `json:"type"`
	// Identifier is the thing itself: a database name. May end in "*".
	Identifier string `json:"identifier,omitempty"`
	// Locations are places: audiences, host names, URIs. Each may end in "*".
	Locations []string `json:"locations,omitempty"`
	// Actions is what may be done; at least one.
	Actions []string `json:"actions"`
	// Datatypes are kinds of data, compared as plain words.
	Datatypes []string `json:"datatypes,omitempty"`
	// Privileges are named privilege levels, compared as plain words.
	Privileges []string `json:"privileges,omitempty"`
	// Tables restrict a database detail.
	Tables []Table `json:"tables,omitempty"`
}

// Table names a table as "schema.table"; either part may be "*". Columns, where
// given, are the only columns that may be touched; Rows, where given, choose the
// only rows. Both narrow.
type Table struct {
	Name    string      `json:"name"`
	Columns []string    `json:"columns,omitempty"`
	Rows    []Condition `json:"rows,omitempty"`
}

// Parse reads a scope from JSON: an array of details. It refuses unknown and
// duplicate members, trailing data, control characters and anything over the
// limits, and returns the scope normalised.
func Parse(raw []byte) (Scope, error) {
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("scope: %d bytes; at most %d are allowed", len(raw), MaxBytes)
	}
	if err := refuseDuplicates(raw); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var s Scope
	if err := dec.Decode(&s); err != nil {
		return nil, fmt.Errorf("scope: %w; allowed members are type, identifier, locations, actions, datatypes, privileges, tables (name, columns, rows (column, op, values))", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("scope: more follows after the array of details")
	}
	return s.Normalise()
}

// Normalise checks a scope's limits and shape and returns it with every list
// sorted and free of duplicates, so that equal scopes have equal encodings.
func (s Scope) Normalise() (Scope, error) {
	if len(s) == 0 {
		return nil, fmt.Errorf("scope: at least one authorization detail is needed")
	}
	if len(s) > MaxDetails {
		return nil, fmt.Errorf("scope: %d details; at most %d are allowed", len(s), MaxDetails)
	}
	out := make(Scope, 0, len(s))
	for i, d := range s {
		n, err := d.normalise()
		if err != nil {
			return nil, fmt.Errorf("scope: detail %d: %w", i, err)
		}
		out = append(out, n)
	}
	slices.SortFunc(out, compareDetails)
	return slices.CompactFunc(out, func(a, b Detail) bool { return compareDetails(a, b) == 0 }), nil
}

func (d Detail) normalise() (Detail, error) {
	if err := checkWord("type", d.Type); err != nil {
		return d, err
	}
	if len(d.Actions) == 0 {
		return d, fmt.Errorf("actions: at least one is needed")
	}
	if d.Identifier != "" {
		if err := checkPattern("identifier", d.Identifier); err != nil {
			return d, err
		}
	}
	var err error
	for _, list := range []struct {
		name  string
		items *[]string
		check func(string, string) error
	}{
		{"locations", &d.Locations, checkPattern},
		{"actions", &d.Actions, checkWord},
		{"datatypes", &d.Datatypes, checkWord},
		{"privileges", &d.Privileges, checkWord},
	} {
		if *list.items, err = sortedSet(list.name, *list.items, list.check); err != nil {
			return d, err
		}
	}
	d.Tables, err = normaliseTables(d.Tables)
	return d, err
}

func normaliseTables(in []Table) ([]Table, error) {
	if len(in) > MaxMembers {
		return nil, fmt.Errorf("tables: %d; at most %d are allowed", len(in), MaxMembers)
	}
	var out []Table
	for _, t := range in {
		schema, table, ok := strings.Cut(t.Name, ".")
		if !ok || schema == "" || table == "" || strings.Contains(table, ".") {
			return nil, fmt.Errorf("tables: %q must be schema.table; either part may be *", t.Name)
		}
		for _, part := range []string{schema, table} {
			if part != "*" && strings.Contains(part, "*") {
				return nil, fmt.Errorf("tables: in %q a * may only stand for a whole part", t.Name)
			}
			if err := checkName("tables", part); err != nil {
				return nil, err
			}
		}
		cols, err := sortedSet("columns", t.Columns, checkName)
		if err != nil {
			return nil, fmt.Errorf("tables: %q: %w", t.Name, err)
		}
		if t.Columns != nil && len(cols) == 0 {
			return nil, fmt.Errorf("tables: %q: an empty list of columns allows nothing; leave columns out for all", t.Name)
		}
		rows, err := normaliseRows(t.Rows, cols)
		if err != nil {
			return nil, fmt.Errorf("tables: %q: %w", t.Name, err)
		}
		out = append(out, Table{Name: t.Name, Columns: cols, Rows: rows})
	}
	slices.SortFunc(out, compareTables)
	return slices.CompactFunc(out, func(a, b Table) bool { return compareTables(a, b) == 0 }), nil
}

// String returns the canonical JSON of a normalised scope.
func (s Scope) String() string {
	b, err := json.Marshal(s)
	if err != nil { // a Scope holds only strings
		return "[]"
	}
	return string(b)
}
