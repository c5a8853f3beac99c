package postgres

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

const scopeType = "database"

// objects a grant can be on; the zero value is invalid.
const (
	onTables    = "table" // tables, views, materialised views, foreign tables
	onSequences = "sequence"
	onRoutines  = "routine"
	onSchema    = "schema"
)

// actionKind says what an action of a scope becomes.
var actionKind = map[string]struct {
	on      string // "" for the database itself
	columns bool   // may be limited to columns
}{
	"select":     {onTables, true},
	"insert":     {onTables, true},
	"update":     {onTables, true},
	"references": {onTables, true},
	"delete":     {onTables, false},
	"truncate":   {onTables, false},
	"trigger":    {onTables, false},
	"usage":      {onSchema, false},
	"create":     {onSchema, false},
	"execute":    {onRoutines, false},
	"temporary":  {"", false},
}

const allowedActions = "select, insert, update, references, delete, truncate, trigger, execute, usage, create and temporary"

// grant is one kind of right on one thing, "*" standing for all of a part.
type grant struct {
	On         string   `json:"on"`
	Schema     string   `json:"schema"`
	Name       string   `json:"name"`
	Privileges []string `json:"privileges"`
	Columns    []string `json:"columns,omitempty"`
}

// databaseGrants is what a scope means in one database.
type databaseGrants struct {
	Database  string  `json:"database"`
	Temporary bool    `json:"temporary,omitempty"`
	Grants    []grant `json:"grants,omitempty"`
	// Views stand in for tables with a row filter; nothing is granted on those.
	Views []rowView `json:"views,omitempty"`
	// values are the conditions of the views that have values, in their order. They
	// are the lease's, not the pooled role's.
	values []scope.Condition
}

// compiled is a scope as grants. Pooled grants go to the scope's no-login role;
// direct ones (CREATE) to each account itself, because on servers before 16 an
// account can act as the pooled role and so leave things behind that outlive it
// (HAZARDS 10).
type compiled struct {
	pooled []databaseGrants
	direct []databaseGrants
}

// compile turns a scope into grants. It is pure. Its errors say what is allowed.
func compile(s spec, sc scope.Scope) (compiled, error) {
	if len(sc) == 0 {
		return compiled{}, fmt.Errorf("postgres: an empty scope allows nothing; at least one detail of type %q is needed", scopeType)
	}
	sc, err := sc.Normalise()
	if err != nil {
		return compiled{}, err
	}
	var c compiled
	for _, d := range sc {
		databases, err := checkDetail(s, d)
		if err != nil {
			return compiled{}, fmt.Errorf("postgres: %w", err)
		}
		for _, name := range databases {
			p, q := compileDetail(d)
			p.Database, q.Database = name, name
			c.pooled = append(c.pooled, p)
			if len(q.Grants) > 0 {
				c.direct = append(c.direct, q)
			}
		}
	}
	c.pooled, c.direct = merge(c.pooled), merge(c.direct)
	for i := range c.pooled {
		if err := c.pooled[i].mergeViews(); err != nil {
			return compiled{}, fmt.Errorf("postgres: %w", err)
		}
		c.pooled[i].part()
	}
	return c, nil
}

// checkDetail refuses what has no meaning here and returns the databases meant.
func checkDetail(s spec, d scope.Detail) ([]string, error) {
	if d.Type != scopeType {
		return nil, fmt.Errorf("type %q; the only type allowed is %q", d.Type, scopeType)
	}
	if len(d.Locations)+len(d.Datatypes)+len(d.Privileges) > 0 {
		return nil, fmt.Errorf("locations, datatypes and privileges have no meaning for a database; use identifier, actions and tables")
	}
	for _, a := range d.Actions {
		if _, ok := actionKind[a]; !ok {
			return nil, fmt.Errorf("action %q; allowed are %s", a, allowedActions)
		}
	}
	for _, t := range d.Tables {
		if err := checkTable(d.Actions, t); err != nil {
			return nil, err
		}
	}
	return matchDatabases(s, d.Identifier)
}

func matchDatabases(s spec, identifier string) ([]string, error) {
	prefix, wild := strings.CutSuffix(identifier, "*")
	var out []string
	for _, name := range s.Databases {
		if identifier == "" || name == identifier || wild && strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("identifier %q is no database of this target; allowed are %s", identifier, strings.Join(s.Databases, ", "))
	}
	return out, nil
}

func checkTable(actions []string, t scope.Table) error {
	schema, name, _ := strings.Cut(t.Name, ".")
	for _, part := range []string{schema, name} {
		if err := checkIdentifier("tables", part); err != nil {
			return err
		}
	}
	if strings.HasPrefix(schema, "pg_") || schema == "information_schema" {
		return fmt.Errorf("tables: %q is in a system schema, which no scope may name", t.Name)
	}
	if len(t.Columns) > 0 && (schema == "*" || name == "*") {
		return fmt.Errorf("tables: columns need one table by its name, not %q", t.Name)
	}
	for _, c := range t.Columns {
		if err := checkIdentifier("columns", c); err != nil {
			return err
		}
	}
	if err := checkRows(actions, t); err != nil {
		return err
	}
	if schema == "*" && name != "*" {
		return fmt.Errorf("tables: %q names a table in every schema; use schema.%s or *.*", t.Name, name)
	}
	for _, a := range actions {
		kind := actionKind[a]
		switch {
		case len(t.Columns) > 0 && !kind.columns:
			return fmt.Errorf("action %q cannot be limited to columns (of %q); allowed with columns are select, insert, update and references: "+
				"put %s into a detail of its own", a, t.Name, a)
		case kind.on == onSchema && name != "*":
			return fmt.Errorf("action %q is on a whole schema, so %q must be %s.*: put %s into a detail of its own", a, t.Name, schema, a)
		case kind.on == onRoutines && name != "*" && len(actions) > 1:
			return fmt.Errorf("%q names a function for execute and a table for the other actions: put execute into a detail of its own", t.Name)
		}
	}
	return nil
}

// compileDetail returns a detail's pooled and direct grants.
func compileDetail(d scope.Detail) (pooled, direct databaseGrants) {
	tables := d.Tables
	if len(tables) == 0 {
		tables = []scope.Table{{Name: "*.*"}}
	}
	for _, t := range tables {
		schema, name, _ := strings.Cut(t.Name, ".")
		if len(t.Rows) > 0 {
			pooled.Views = append(pooled.Views, compileView(d.Actions, schema, name, t))
			if slices.Contains(d.Actions, mayInsert) { // a default's nextval is the account's own
				pooled.Grants = append(pooled.Grants, grant{On: onSequences, Schema: schema, Name: name, Privileges: []string{usageWanted}})
			}
			continue
		}
		by := map[string][]string{}
		for _, a := range d.Actions {
			switch {
			case a == "temporary":
				pooled.Temporary = true
			case a == "create":
				direct.Grants = append(direct.Grants, grant{On: onSchema, Schema: schema, Name: "*", Privileges: []string{"create"}})
			default:
				by[actionKind[a].on] = append(by[actionKind[a].on], a)
			}
		}
		if p := by[onTables]; p != nil {
			pooled.Grants = append(pooled.Grants, grant{On: onTables, Schema: schema, Name: name, Privileges: p, Columns: t.Columns})
		}
		if slices.Contains(by[onTables], "insert") || by[onSchema] != nil { // nextval of serial columns
			pooled.Grants = append(pooled.Grants, grant{On: onSequences, Schema: schema, Name: name, Privileges: []string{"usage"}})
		}
		if p := by[onRoutines]; p != nil {
			pooled.Grants = append(pooled.Grants, grant{On: onRoutines, Schema: schema, Name: name, Privileges: p})
		}
		if len(by) > 0 || len(direct.Grants) > 0 { // nothing in a schema can be reached without its USAGE
			pooled.Grants = append(pooled.Grants, grant{On: onSchema, Schema: schema, Name: "*", Privileges: []string{"usage"}})
		}
	}
	return pooled, direct
}

// merge joins the grants of one database and puts everything in one order, so
// that scopes which mean the same have one pooled role.
func merge(in []databaseGrants) []databaseGrants {
	var out []databaseGrants
	for _, g := range in {
		i := slices.IndexFunc(out, func(o databaseGrants) bool { return o.Database == g.Database })
		if i < 0 {
			out = append(out, g)
			continue
		}
		out[i].Temporary = out[i].Temporary || g.Temporary
		out[i].Grants = append(out[i].Grants, g.Grants...)
		out[i].Views = append(out[i].Views, g.Views...)
	}
	slices.SortFunc(out, func(a, b databaseGrants) int { return strings.Compare(a.Database, b.Database) })
	for i := range out {
		slices.SortFunc(out[i].Grants, compareGrants)
		out[i].Grants = slices.CompactFunc(out[i].Grants, func(a, b grant) bool { return compareGrants(a, b) == 0 })
	}
	return out
}

func compareGrants(a, b grant) int {
	for _, d := range []int{
		strings.Compare(a.On, b.On), strings.Compare(a.Schema, b.Schema), strings.Compare(a.Name, b.Name),
		slices.Compare(a.Privileges, b.Privileges),
	} {
		if d != 0 {
			return d
		}
	}
	return slices.Compare(a.Columns, b.Columns)
}

// roleName names the pooled role of these grants: role and version are part of
// the name, so that a role that is narrowed never shares with what it was
// (HAZARDS 15). So is the target's main database, since roles belong to the whole
// server, and locks to a database.
func (c compiled) roleName(mainDatabase, role string, version uint64) string {
	b, err := json.Marshal(c.pooled)
	if err != nil { // strings and booleans alone
		b = nil
	}
	h := sha256.New()
	for _, part := range []string{"mayfly scope v1", mainDatabase, role, strconv.FormatUint(version, 10)} {
		h.Write([]byte(strconv.Itoa(len(part)) + ":" + part))
	}
	h.Write(b)
	return scopePrefix + hex.EncodeToString(h.Sum(nil))[:32]
}
