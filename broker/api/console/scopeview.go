package console

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

// Branch is a scope as a tree that people read.
type Branch struct {
	Label string
	Text  string
	// Loud marks what reaches far: everything, or what destroys.
	Loud  bool
	Words []Word
	Kids  []Branch
}

// Word is one action.
type Word struct {
	Text string
	Tone string // read, write or harm
}

// Actions by what they can do to data. What is in neither list is no database's
// and has no tone.
var (
	readers = []string{"select", "read", "get", "list", "watch", "usage", "connect", "execute"}
	writers = []string{"insert", "update", "write", "create", "put", "post", "patch", "sign", "issue"}
	harmers = []string{"delete", "truncate", "drop", "alter", "all", "*", "ddl", "superuser", "admin", "owner", "grant", "references", "trigger", "maintain"}
)

func tone(action string) string {
	switch a := strings.ToLower(action); {
	case slices.Contains(harmers, a) || strings.Contains(a, "*"):
		return "harm"
	case slices.Contains(writers, a):
		return "write"
	case slices.Contains(readers, a):
		return "read"
	}
	return ""
}

// scopeTree draws a scope.
func scopeTree(s scope.Scope) []Branch {
	var out []Branch
	for _, d := range s {
		b := Branch{Label: d.Type, Text: d.Identifier, Loud: strings.HasSuffix(d.Identifier, "*")}
		if d.Identifier == "" && d.Type == "database" {
			b.Text, b.Loud = "ANY", true
		}
		for _, a := range d.Actions {
			b.Words = append(b.Words, Word{Text: a, Tone: tone(a)})
		}
		b.Kids = append(b.Kids, tableBranches(d)...)
		for _, l := range []struct {
			label string
			items []string
		}{{"locations", d.Locations}, {"data types", d.Datatypes}, {"privileges", d.Privileges}} {
			if len(l.items) > 0 {
				b.Kids = append(b.Kids, Branch{Label: l.label, Text: strings.Join(l.items, ", "), Loud: slices.ContainsFunc(l.items, func(i string) bool { return i == "*" })})
			}
		}
		out = append(out, b)
	}
	return out
}

func tableBranches(d scope.Detail) (out []Branch) {
	if d.Type != "database" {
		return nil
	}
	if len(d.Tables) == 0 {
		return []Branch{{Label: "tables", Text: "ALL tables", Loud: true}}
	}
	for _, t := range d.Tables {
		b := Branch{Label: "table", Text: t.Name}
		if all, wide := reach(t.Name); wide {
			b.Label, b.Text, b.Loud = "tables", all, true
		}
		if len(t.Columns) > 0 {
			b.Kids = append(b.Kids, Branch{Label: "columns", Text: strings.Join(t.Columns, ", ")})
		}
		for _, c := range t.Rows {
			b.Kids = append(b.Kids, Branch{Label: "only rows where", Text: c.String()})
		}
		out = append(out, b)
	}
	return out
}

// reach says in words what a table's pattern covers; wide is false for one table.
func reach(name string) (text string, wide bool) {
	schema, table, _ := strings.Cut(name, ".")
	switch {
	case schema == "*" && table == "*":
		return "ALL tables in ALL schemas", true
	case table == "*":
		return "ALL tables in " + schema, true
	case schema == "*":
		return table + " in ALL schemas", true
	}
	return name, false
}

// Alarm is what a scope's reader must not overlook, in one line.
type Alarm struct {
	Text string
	Harm bool // it can destroy
	Mild bool // it reaches far, but only to read
}

// alarms lists what is loud about a scope.
func alarms(s scope.Scope) (out []Alarm) {
	for _, d := range s {
		var where []string
		for _, b := range tableBranches(d) {
			if b.Loud {
				where = append(where, b.Text)
			}
		}
		var harm, write []string
		for _, a := range d.Actions {
			switch tone(a) {
			case "harm":
				if a == "all" || a == "*" {
					a = "every right"
				}
				harm = append(harm, strings.ToUpper(a))
			case "write":
				write = append(write, strings.ToUpper(a))
			}
		}
		thing := strings.TrimSpace(d.Type + " " + d.Identifier)
		switch {
		case len(where) > 0 && len(harm) > 0:
			out = append(out, Alarm{Text: fmt.Sprintf("%s of %s, incl. %s", strings.Join(where, " and "), thing, strings.Join(harm, ", ")), Harm: true})
		case len(harm) > 0:
			out = append(out, Alarm{Text: fmt.Sprintf("%s on %s", strings.Join(harm, ", "), thing), Harm: true})
		case len(where) > 0 && len(write) > 0:
			out = append(out, Alarm{Text: fmt.Sprintf("%s of %s, to write: %s", strings.Join(where, " and "), thing, strings.Join(write, ", "))})
		case len(where) > 0:
			out = append(out, Alarm{Text: fmt.Sprintf("%s of %s, to read", strings.Join(where, " and "), thing), Mild: true})
		}
	}
	return out
}

// single is one permission: one action in one place.
type single struct {
	text  string
	scope scope.Scope
}

// singles takes a scope apart, to compare it with another.
func singles(s scope.Scope) (out []single) {
	for _, d := range s {
		head := strings.TrimSpace(d.Type + " " + d.Identifier)
		tail := ""
		for _, l := range [][]string{d.Locations, d.Datatypes, d.Privileges} {
			if len(l) > 0 {
				tail += " · " + strings.Join(l, ", ")
			}
		}
		for _, a := range d.Actions {
			one := d
			one.Actions = []string{a}
			if len(d.Tables) == 0 {
				text := head + " · " + a + tail
				if d.Type == "database" {
					text += " · all tables"
				}
				out = append(out, single{text, scope.Scope{one}})
				continue
			}
			for _, t := range d.Tables {
				text := head + " · " + a + tail + " · " + t.Name
				if len(t.Columns) > 0 {
					text += " (" + strings.Join(t.Columns, ", ") + ")"
				}
				if len(t.Rows) > 0 {
					text += " where " + t.Filter()
				}
				one.Tables = []scope.Table{t}
				out = append(out, single{text, scope.Scope{one}})
			}
		}
	}
	slices.SortFunc(out, func(a, b single) int { return strings.Compare(a.text, b.text) })
	return out
}

// compared says what a scope allows that another did not, and the reverse.
// What a wider permission covers is neither lost nor new.
func compared(before, now scope.Scope) (lines []Line, sum string) {
	more, less := 0, 0
	for _, p := range singles(now) {
		if scope.Covers(before, p.scope) != nil {
			lines = append(lines, Line{"+", p.text})
			more++
		} else {
			lines = append(lines, Line{" ", p.text})
		}
	}
	for _, p := range singles(before) {
		if scope.Covers(now, p.scope) != nil {
			lines = append(lines, Line{"-", p.text})
			less++
		}
	}
	switch {
	case more > 0 && less > 0:
		return lines, "Wider in some ways, narrower in others."
	case more > 0:
		return lines, "Wider than then."
	case less > 0:
		return lines, "Narrower than then."
	}
	return lines, "The same scope as then."
}
