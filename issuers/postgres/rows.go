package postgres

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

// rowView is a table with a row filter. The pooled role may read a view of its
// rows, and has no right on the table itself (HAZARDS 14).
type rowView struct {
	Schema  string            `json:"schema"`
	Name    string            `json:"name"`
	Columns []string          `json:"columns,omitempty"` // none: all that the table has
	Where   []scope.Condition `json:"where"`
}

// operators of a condition, all of them pg_catalog's.
var operators = map[string]string{"eq": "=", "in": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

// checkRows refuses a filter that could not be kept. Writing through one is
// refused as a whole: a unique index or a foreign key would say what the hidden
// rows hold.
func checkRows(actions []string, t scope.Table) error {
	if len(t.Rows) == 0 {
		return nil
	}
	if strings.Contains(t.Name, "*") {
		return fmt.Errorf("tables: rows need one table by its name, not %q", t.Name)
	}
	for _, a := range actions {
		if a != "select" {
			return fmt.Errorf("action %q cannot be limited to rows (of %q); the only action allowed with rows is select", a, t.Name)
		}
	}
	for _, c := range t.Rows {
		if err := checkIdentifier("rows: column", c.Column); err != nil {
			return err
		}
	}
	return nil
}

// mergeViews joins the views of one table, and refuses what would make a filter
// mean nothing: the same table without it, or with another one.
func (g *databaseGrants) mergeViews() error {
	slices.SortFunc(g.Views, func(a, b rowView) int {
		if d := strings.Compare(a.Name, b.Name); d != 0 {
			return d
		}
		return strings.Compare(a.Schema, b.Schema)
	})
	var out []rowView
	for _, v := range g.Views {
		for _, gr := range g.Grants {
			if gr.On == onTables && (gr.Schema == "*" || gr.Schema == v.Schema) && (gr.Name == "*" || gr.Name == v.Name) {
				return fmt.Errorf("tables: %s.%s has a row filter, and %s.%s allows it without one: the filter would mean nothing", v.Schema, v.Name, gr.Schema, gr.Name)
			}
		}
		if len(out) == 0 || out[len(out)-1].Name != v.Name {
			out = append(out, v)
			continue
		}
		last := &out[len(out)-1]
		if last.Schema != v.Schema {
			return fmt.Errorf("tables: %s.%s and %s.%[4]s both have a row filter, and the views of their rows would have one name; ask for them in two leases",
				last.Schema, last.Name, v.Schema, v.Name)
		}
		if !slices.EqualFunc(last.Where, v.Where, equalConditions) {
			return fmt.Errorf("tables: %s.%s stands twice, with different row filters; ask for them in two leases", v.Schema, v.Name)
		}
		if len(last.Columns) == 0 || len(v.Columns) == 0 {
			last.Columns = nil
			continue
		}
		last.Columns = slices.Concat(last.Columns, v.Columns)
		slices.Sort(last.Columns)
		last.Columns = slices.Compact(last.Columns)
	}
	g.Views = out
	return nil
}

func equalConditions(a, b scope.Condition) bool {
	return a.Column == b.Column && a.Op == b.Op && slices.Equal(a.Values, b.Values)
}

// ownerGrants is what the views' owner needs of the tables, and no more.
func (g databaseGrants) ownerGrants() databaseGrants {
	out := databaseGrants{Database: g.Database}
	for _, v := range g.Views {
		out.Grants = append(out.Grants,
			grant{On: onTables, Schema: v.Schema, Name: v.Name, Privileges: []string{"select"}, Columns: v.Columns},
			grant{On: onSchema, Schema: v.Schema, Name: "*", Privileges: []string{usageWanted}})
	}
	return out
}

// pathSQL lets the account find its views under the tables' own names. It is a
// convenience: an account that changes its path has no more rights.
func (a *account) pathSQL() []string {
	var out []string
	for _, g := range a.grants.pooled {
		if len(g.Views) > 0 {
			out = append(out, "ALTER ROLE "+ident(a.lease.Name)+" IN DATABASE "+ident(g.Database)+
				" SET search_path = "+ident(rowsName(a.scopeRole))+`, "$user", public`)
		}
	}
	return out
}

// column is one of a table's columns, as far as filters care.
type column struct {
	name string
	// kind is "plain" or "time" for the types that a filter can be on, else "".
	kind string
	// typeName is the type as SQL, without a length.
	typeName string
}

var errValue = errors.New("a date or time must be written as 2006-01-02, or 2006-01-02 15:04:05 with Z or a numeric offset")

// checkTime accepts dates and times of the calendar alone. Words such as "now"
// would be read once, when the view is made, and stand for that moment since.
func checkTime(value string) error {
	date, clock := value, ""
	if i := strings.IndexAny(value, " T"); i >= 0 {
		date, clock = value[:i], value[i+1:]
		if clock == "" {
			return errValue
		}
	}
	parts := strings.Split(date, "-")
	if len(parts) != 3 || len(parts[0]) < 4 || len(parts[1]) != 2 || len(parts[2]) != 2 || strings.Trim(strings.Join(parts, ""), "0123456789") != "" {
		return errValue
	}
	if clock != "" && strings.Trim(strings.TrimSuffix(clock, "Z"), "0123456789:.+-") != "" {
		return errValue
	}
	return nil
}
