package mysql

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

const scopeType = "database"

// action says what an action of a scope becomes.
type action struct {
	privilege string
	columns   bool // may be limited to columns
	whole     bool // only on a whole database
	routine   bool // on a routine, where one is named
	// definer: what is made with it runs with its maker's rights, and could be
	// made to run with those of a role the maker has joined (HAZARDS 10).
	definer bool
}

var actions = map[string]action{
	"select":         {privilege: "SELECT", columns: true},
	"insert":         {privilege: "INSERT", columns: true},
	"update":         {privilege: "UPDATE", columns: true},
	"references":     {privilege: "REFERENCES", columns: true},
	"delete":         {privilege: "DELETE"},
	"show_view":      {privilege: "SHOW VIEW"},
	"create":         {privilege: "CREATE"},
	"alter":          {privilege: "ALTER"},
	"drop":           {privilege: "DROP"},
	"index":          {privilege: "INDEX"},
	"temporary":      {privilege: "CREATE TEMPORARY TABLES", whole: true},
	"lock_tables":    {privilege: "LOCK TABLES", whole: true},
	"execute":        {privilege: "EXECUTE", routine: true},
	"trigger":        {privilege: "TRIGGER", definer: true},
	"create_view":    {privilege: "CREATE VIEW", definer: true},
	"create_routine": {privilege: "CREATE ROUTINE", whole: true, definer: true},
	"alter_routine":  {privilege: "ALTER ROUTINE", whole: true, definer: true},
	"event":          {privilege: "EVENT", whole: true, definer: true},
}

const allowedActions = "select, insert, update, references, delete, show_view, execute, temporary, lock_tables, create, alter, drop, index, " +
	"create_view, create_routine, alter_routine, trigger and event"

// grant is rights on one thing: a whole database (no name), a table, a routine.
type grant struct {
	Database   string   `json:"database"`
	Name       string   `json:"name,omitempty"`
	Routine    bool     `json:"routine,omitempty"`
	Columns    []string `json:"columns,omitempty"`
	Privileges []string `json:"privileges"`
}

// compiled is a scope as grants, in one order, so that scopes which mean the
// same are the same.
type compiled struct {
	grants []grant
	// definer: the account can make things that run with its rights. Such scopes
	// are never pooled.
	definer bool
}

// compile turns a scope into grants. It is pure. Its errors say what is allowed.
func compile(s spec, sc scope.Scope) (compiled, error) {
	if len(sc) == 0 {
		return compiled{}, fmt.Errorf("mysql: an empty scope allows nothing; at least one detail of type %q is needed", scopeType)
	}
	sc, err := sc.Normalise()
	if err != nil {
		return compiled{}, err
	}
	var c compiled
	for _, d := range sc {
		databases, err := checkDetail(s, d)
		if err == nil {
			err = c.add(d, databases)
		}
		if err != nil {
			return compiled{}, fmt.Errorf("mysql: %w", err)
		}
	}
	c.merge()
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
		if _, ok := actions[a]; !ok {
			return nil, fmt.Errorf("action %q; allowed are %s", a, allowedActions)
		}
	}
	for _, t := range d.Tables {
		if err := checkTable(d.Actions, t); err != nil {
			return nil, err
		}
	}
	prefix, wild := strings.CutSuffix(d.Identifier, "*")
	var out []string
	for _, name := range s.Databases {
		if d.Identifier == "" || name == d.Identifier || wild && strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("identifier %q is no database of this target; allowed are %s", d.Identifier, strings.Join(s.Databases, ", "))
	}
	return out, nil
}

func checkTable(names []string, t scope.Table) error {
	database, name, _ := strings.Cut(t.Name, ".")
	if err := checkIdentifier("tables", database); err != nil {
		return err
	}
	if err := checkIdentifier("tables", name); err != nil {
		return err
	}
	if len(t.Columns) > 0 && (database == "*" || name == "*") {
		return fmt.Errorf("tables: columns need one table by its name, not %q", t.Name)
	}
	for _, c := range t.Columns {
		if err := checkIdentifier("columns", c); err != nil {
			return err
		}
	}
	if len(t.Rows) > 0 {
		return fmt.Errorf("tables: %q has a row filter, and MySQL has nothing that would keep it; make a view of the rows and name that", t.Name)
	}
	if database == "*" && name != "*" {
		return fmt.Errorf("tables: %q names a table in every database; use database.%s or *.*", t.Name, name)
	}
	for _, n := range names {
		a := actions[n]
		switch {
		case len(t.Columns) > 0 && !a.columns:
			return fmt.Errorf("action %q cannot be limited to columns (of %q); allowed with columns are select, insert, update and references: "+
				"put %s into a detail of its own", n, t.Name, n)
		case a.whole && name != "*":
			return fmt.Errorf("action %q is on a whole database, so %q must be %s.*: put %s into a detail of its own", n, t.Name, database, n)
		case a.routine && name != "*" && len(names) > 1:
			return fmt.Errorf("%q names a routine for execute and a table for the other actions: put execute into a detail of its own", t.Name)
		}
	}
	return nil
}

// add appends a detail's grants.
func (c *compiled) add(d scope.Detail, databases []string) error {
	tables := d.Tables
	if len(tables) == 0 {
		tables = []scope.Table{{Name: "*.*"}}
	}
	for _, t := range tables {
		database, name, _ := strings.Cut(t.Name, ".")
		meant := databases
		if database != "*" {
			if !slices.Contains(databases, database) {
				return fmt.Errorf("tables: %q is in no database that the identifier names; allowed are %s", t.Name, strings.Join(databases, ", "))
			}
			meant = []string{database}
		}
		for _, db := range meant {
			g := grant{Database: db, Columns: t.Columns}
			if name != "*" {
				g.Name = name
			}
			for _, n := range d.Actions {
				a := actions[n]
				g.Privileges = append(g.Privileges, a.privilege)
				g.Routine = g.Routine || a.routine && name != "*"
				c.definer = c.definer || a.definer
			}
			c.grants = append(c.grants, g)
		}
	}
	return nil
}

// merge joins grants on the same thing and puts all in one order.
func (c *compiled) merge() {
	var out []grant
	for _, g := range c.grants {
		i := slices.IndexFunc(out, func(o grant) bool { return o.sameThing(g) })
		if i < 0 {
			out = append(out, g)
			continue
		}
		out[i].Privileges = append(out[i].Privileges, g.Privileges...)
	}
	for i := range out {
		slices.Sort(out[i].Privileges)
		out[i].Privileges = slices.Compact(out[i].Privileges)
	}
	slices.SortFunc(out, func(a, b grant) int { return strings.Compare(a.key(), b.key()) })
	c.grants = out
}

func (g grant) sameThing(o grant) bool {
	return g.Database == o.Database && g.Name == o.Name && g.Routine == o.Routine && slices.Equal(g.Columns, o.Columns)
}

func (g grant) key() string {
	return strings.Join(append([]string{g.Database, g.Name, strconv.FormatBool(g.Routine)}, g.Columns...), "\x00")
}

// sql returns the GRANT for an account list. routine is PROCEDURE or FUNCTION for
// grants on a routine.
func (g grant) sql(to, routine string, literalDatabase bool) string {
	columns := ""
	if len(g.Columns) > 0 {
		quoted := make([]string, len(g.Columns))
		for i, c := range g.Columns {
			quoted[i] = ident(c)
		}
		columns = " (" + strings.Join(quoted, ", ") + ")"
	}
	list := make([]string, len(g.Privileges))
	for i, p := range g.Privileges { // words of actions alone
		list[i] = p + columns
	}
	on := "TABLE " + ident(g.Database, g.Name)
	switch {
	case g.Name == "":
		on = databaseLevel(g.Database, literalDatabase)
	case g.Routine:
		on = routine + " " + ident(g.Database, g.Name)
	}
	return "GRANT " + strings.Join(list, ", ") + " ON " + on + " TO " + to
}

// roleName names the pooled role of these grants: role and version are part of
// the name, so that a role that is narrowed never shares with what it was
// (HAZARDS 15). So are the target's main database, since roles belong to the
// whole server, and the admin account, since only a role's maker may grant it.
func (c compiled) roleName(s spec, role string, version uint64) string {
	b, err := json.Marshal(c.grants)
	if err != nil { // strings and booleans alone
		b = nil
	}
	h := sha256.New()
	for _, part := range []string{"mayfly mysql scope v1", s.Database, s.Admin.Username, role, strconv.FormatUint(version, 10), string(b)} {
		h.Write([]byte(strconv.Itoa(len(part)) + ":" + part))
	}
	return scopePrefix + strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)))[:22]
}
