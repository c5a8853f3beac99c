package postgres

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

// rowView is a table with a row filter. The pooled role has its rights on a view
// of the table's rows, and none on the table itself (HAZARDS 14).
type rowView struct {
	Schema  string   `json:"schema"`
	Name    string   `json:"name"`
	Columns []string `json:"columns,omitempty"` // none: all that the table has
	// Where are the filter's conditions without their values, once compiled: those
	// are each lease's own, and leases that differ in them alone share the view.
	Where  []scope.Condition `json:"where"`
	Rights []viewRight       `json:"rights"`
}

// viewRight is one of an account's rights on a view.
type viewRight struct {
	Privilege string   `json:"privilege"`
	Columns   []string `json:"columns,omitempty"` // none: all, or a right that is on whole rows
}

// Privileges on views.
const (
	mayRead   = "select"
	mayInsert = "insert"
	mayUpdate = "update"
	mayDelete = "delete"
)

var filterable = []string{mayRead, mayInsert, mayUpdate, mayDelete}

// operators of a condition, all of them pg_catalog's.
var operators = map[string]string{"eq": "=", "in": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

// checkRows refuses a filter that could not be kept.
func checkRows(actions []string, t scope.Table) error {
	if len(t.Rows) == 0 {
		return nil
	}
	if strings.Contains(t.Name, "*") {
		return fmt.Errorf("tables: rows need one table by its name, not %q", t.Name)
	}
	if _, name, _ := strings.Cut(t.Name, "."); strings.HasPrefix(name, valuesTable) {
		return fmt.Errorf("tables: %q cannot have a row filter: the views' schema has a table of the broker's by that name", t.Name)
	}
	for _, a := range actions {
		if !slices.Contains(filterable, a) {
			return fmt.Errorf("action %q cannot be limited to rows (of %q); the actions allowed with rows are %s", a, t.Name, strings.Join(filterable, ", "))
		}
	}
	for _, c := range t.Rows {
		if err := checkIdentifier("rows: column", c.Column); err != nil {
			return err
		}
	}
	return nil
}

// compileView is a detail's view of a table.
func compileView(actions []string, schema, name string, t scope.Table) rowView {
	v := rowView{Schema: schema, Name: name, Columns: t.Columns, Where: slices.Clone(t.Rows)}
	for _, a := range actions {
		v.Rights = append(v.Rights, viewRight{Privilege: a, Columns: t.Columns})
	}
	return v
}

func (v rowView) may(privilege string) bool {
	return slices.ContainsFunc(v.Rights, func(r viewRight) bool { return r.Privilege == privilege })
}

// writes reports whether rows may come to stand in the table through the view,
// which then must meet its filter.
func (v rowView) writes() bool { return v.may(mayInsert) || v.may(mayUpdate) }

// join adds another detail's rights on the same rows.
func (v *rowView) join(o rowView) {
	for _, r := range o.Rights {
		i := slices.IndexFunc(v.Rights, func(x viewRight) bool { return x.Privilege == r.Privilege })
		if i < 0 {
			v.Rights = append(v.Rights, r)
			continue
		}
		v.Rights[i].Columns = joinColumns(v.Rights[i].Columns, r.Columns)
	}
	slices.SortFunc(v.Rights, func(a, b viewRight) int { return strings.Compare(a.Privilege, b.Privilege) })
	// deleting needs no column, and so adds none to those that another detail gives
	first := true
	for _, r := range v.Rights {
		switch {
		case r.Privilege == mayDelete:
		case first:
			v.Columns, first = r.Columns, false
		default:
			v.Columns = joinColumns(v.Columns, r.Columns)
		}
	}
}

// joinColumns is what two lists allow together; an empty one allows all.
func joinColumns(a, b []string) []string {
	if len(a) == 0 || len(b) == 0 {
		return nil
	}
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
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
		last.join(v)
	}
	g.Views = out
	return g.checkWrites()
}

// checkWrites refuses the one pair of rights that would reach a hidden row: with
// both, INSERT … ON CONFLICT DO UPDATE changes the row that is in the way, which
// no view's condition is asked about, and may show what was in it.
func (g *databaseGrants) checkWrites() error {
	for _, v := range g.Views {
		if v.may(mayInsert) && v.may(mayUpdate) {
			return fmt.Errorf("tables: %s.%s: insert and update cannot both be limited to rows in one lease: INSERT … ON CONFLICT DO UPDATE would change rows that the filter hides; "+
				"ask for them in two leases (select and delete go with either)", v.Schema, v.Name)
		}
	}
	return nil
}

// part takes the filters' values out of the views, in the views' order: what is
// left has one pooled role, whatever the values are.
func (g *databaseGrants) part() {
	for i, v := range g.Views {
		for j, c := range v.Where {
			if len(c.Values) > 0 {
				g.values = append(g.values, c)
				g.Views[i].Where[j].Values = nil
			}
		}
	}
}

func equalConditions(a, b scope.Condition) bool {
	return a.Column == b.Column && a.Op == b.Op && slices.Equal(a.Values, b.Values)
}

// ownerGrants is what the views' owner needs of the tables, and no more. It reads
// what its views show and compare; a right of an account on a view is one of the
// owner's on the table.
func (g databaseGrants) ownerGrants() databaseGrants {
	out := databaseGrants{Database: g.Database}
	for _, v := range g.Views {
		out.Grants = append(out.Grants,
			grant{On: onTables, Schema: v.Schema, Name: v.Name, Privileges: []string{mayRead}, Columns: v.Columns},
			grant{On: onSchema, Schema: v.Schema, Name: "*", Privileges: []string{usageWanted}})
		for _, r := range v.Rights {
			if r.Privilege != mayRead {
				out.Grants = append(out.Grants, grant{On: onTables, Schema: v.Schema, Name: v.Name, Privileges: []string{r.Privilege}, Columns: r.Columns})
			}
		}
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
	// typeName is the type as SQL, without a length, which would round or cut a
	// filter's value.
	typeName string
}

var errValue = errors.New("a date or time must be written as 2006-01-02, or 2006-01-02 15:04:05 with Z or a numeric offset")

// checkTime accepts dates and times of the calendar alone. Words such as "now"
// would be read once, when the account is made, and stand for that moment since.
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
