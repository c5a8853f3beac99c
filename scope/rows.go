package scope

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxConditions of one table; more nobody reads before approving.
const maxConditions = 16

// Condition is one condition of a row filter: a column, an operator, values. It
// is data, never SQL. The conditions of a table hold together: a row is shown,
// and may be written, when it meets all of them.
type Condition struct {
	// Column is one of the table's columns, and one that the table's Columns list
	// where that is given: a filter on a column that may not be read would let its
	// values be guessed.
	Column string `json:"column"`
	// Op is "eq", "ne", "lt", "le", "gt", "ge" (one value), "in" (one or more),
	// "null" or "notnull" (none). As in SQL, a column without a value meets "null"
	// alone.
	Op string `json:"op"`
	// Values are texts that the target reads as values of the column's type.
	Values []string `json:"values,omitempty"`
}

// allowedOps are the operators, as people read them.
var allowedOps = map[string]string{
	"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "in": "in", "null": "is null", "notnull": "is not null",
}

// String is the condition for people, as in: region = "eu". Names that are no
// plain words are quoted, so that no column can pass for a condition.
func (c Condition) String() string {
	name := c.Column
	if strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_'
	}) {
		name = strconv.Quote(name)
	}
	text := name + " " + allowedOps[c.Op]
	for i, v := range c.Values {
		if i > 0 {
			text += ","
		}
		text += " " + strconv.Quote(v)
	}
	return text
}

// Filter is a table's conditions for people, joined with "and"; empty without
// any.
func (t Table) Filter() string {
	all := make([]string, len(t.Rows))
	for i, c := range t.Rows {
		all[i] = c.String()
	}
	return strings.Join(all, " and ")
}

func compareConditions(a, b Condition) int {
	return cmp.Or(strings.Compare(a.Column, b.Column), strings.Compare(a.Op, b.Op), slices.Compare(a.Values, b.Values))
}

func sameCondition(a, b Condition) bool { return compareConditions(a, b) == 0 }

// normaliseRows checks a table's row filter, and returns it sorted and without
// duplicates. The columns are normalised already.
func normaliseRows(in []Condition, columns []string) ([]Condition, error) {
	if in != nil && len(in) == 0 {
		return nil, fmt.Errorf("rows: an empty list of conditions; leave rows out for all rows")
	}
	if len(in) > maxConditions {
		return nil, fmt.Errorf("rows: %d conditions; at most %d are allowed", len(in), maxConditions)
	}
	var out []Condition
	for _, c := range in {
		n, err := c.normalise()
		if err != nil {
			return nil, fmt.Errorf("rows: %w", err)
		}
		if len(columns) > 0 && !slices.Contains(columns, n.Column) {
			return nil, fmt.Errorf("rows: %q is none of the columns that are given (%s), and a filter on it would let its values be guessed",
				n.Column, strings.Join(columns, ", "))
		}
		out = append(out, n)
	}
	slices.SortFunc(out, compareConditions)
	return slices.CompactFunc(out, sameCondition), nil
}

func (c Condition) normalise() (Condition, error) {
	if err := checkName("column", c.Column); err != nil {
		return c, err
	}
	if _, ok := allowedOps[c.Op]; !ok {
		return c, fmt.Errorf("op: %q; allowed are eq, ne, lt, le, gt, ge, in, null and notnull", c.Op)
	}
	var err error
	if c.Values, err = sortedSet("values", c.Values, checkValue); err != nil {
		return c, err
	}
	if len(c.Values) == 0 {
		c.Values = nil
	}
	switch n := len(c.Values); {
	case (c.Op == "null" || c.Op == "notnull") && n > 0:
		return c, fmt.Errorf("op %q takes no values", c.Op)
	case c.Op == "null" || c.Op == "notnull":
	case c.Op == "in" && n > 0:
		if n == 1 {
			c.Op = "eq" // one way to say one thing
		}
	case n != 1:
		return c, fmt.Errorf("op %q takes one value, not %d; in takes several", c.Op, n)
	}
	return c, nil
}

// checkValue is checkName for what may also be empty.
func checkValue(field, s string) error {
	if s == "" {
		return nil
	}
	return checkName(field, s)
}

// rowsCover: every condition of the outer table stands in the inner one, word
// for word. Conditions are never compared by their meaning, which is the
// target's (its types, its collations) and not ours.
func rowsCover(outer, inner []Condition) bool {
	for _, o := range outer {
		if !slices.ContainsFunc(inner, func(i Condition) bool { return sameCondition(o, i) }) {
			return false
		}
	}
	return true
}

// meetRows is the conjunction of two filters. There is none where a condition
// is on a column outside the columns that both sides allow, or where there are
// too many for one table.
func meetRows(a, b []Condition, columns []string) ([]Condition, bool) {
	out := slices.Concat(a, b)
	slices.SortFunc(out, compareConditions)
	out = slices.CompactFunc(out, sameCondition)
	for _, c := range out {
		if len(columns) > 0 && !slices.Contains(columns, c.Column) {
			return nil, false
		}
	}
	return out, len(out) <= maxConditions
}
