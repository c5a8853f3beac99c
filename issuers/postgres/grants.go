package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// apply grants g to role on the connection's database, in one transaction. What
// a wildcard stands for is looked up now; tables made later are granted when the
// scope is applied again (Sweep). Missing rights are an error, also where
// PostgreSQL only warns.
func (g databaseGrants) apply(ctx context.Context, c *pgx.Conn, role string) error {
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		statements, err := g.statements(ctx, c, role)
		if err != nil || len(statements) == 0 {
			return err
		}
		f := factsOf(c)
		f.ungranted = ""
		for _, s := range statements {
			if _, err := run(ctx, c, s); err != nil {
				return fmt.Errorf("database %s: %s: %w", g.Database, s, err)
			}
			if f.ungranted != "" {
				return refused("database %s: %s: %s; the admin account needs these rights WITH GRANT OPTION", g.Database, s, f.ungranted)
			}
		}
		return nil
	})
}

// statements returns the GRANTs that g needs in a database as it is now. Rights
// that PUBLIC already holds on the database and its schemas are left out, since
// the admin account often cannot grant those.
func (g databaseGrants) statements(ctx context.Context, c *pgx.Conn, role string) ([]string, error) {
	to := " TO " + ident(role)
	var out []string
	for privilege, wanted := range map[string]bool{"CONNECT": true, "TEMPORARY": g.Temporary} {
		if !wanted {
			continue
		}
		var public bool
		if err := c.QueryRow(ctx, "SELECT has_database_privilege('public', current_database(), $1)", privilege).Scan(&public); err != nil {
			return nil, err
		}
		if !public {
			out = append(out, "GRANT "+privilege+" ON DATABASE "+ident(g.Database)+to)
		}
	}
	for _, gr := range g.Grants {
		on, err := gr.objects(ctx, c)
		if err != nil {
			return nil, err
		}
		for _, o := range on {
			out = append(out, "GRANT "+gr.privilegeList()+" ON "+o+to)
		}
	}
	return out, nil
}

func (gr grant) privilegeList() string {
	columns := ""
	if len(gr.Columns) > 0 {
		quoted := make([]string, len(gr.Columns))
		for i, c := range gr.Columns {
			quoted[i] = ident(c)
		}
		columns = " (" + strings.Join(quoted, ", ") + ")"
	}
	list := make([]string, len(gr.Privileges))
	for i, p := range gr.Privileges { // words of actionKind alone
		list[i] = strings.ToUpper(p) + columns
	}
	return strings.Join(list, ", ")
}

// objects returns the grant's objects as SQL.
func (gr grant) objects(ctx context.Context, c *pgx.Conn) ([]string, error) {
	schemas, err := gr.schemas(ctx, c)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, s := range schemas {
		switch {
		case gr.On == onSchema:
			out = append(out, "SCHEMA "+ident(s))
		case gr.On == onTables && gr.Name == "*":
			out = append(out, "ALL TABLES IN SCHEMA "+ident(s))
		case gr.On == onTables:
			out = append(out, "TABLE "+ident(s, gr.Name))
		case gr.On == onSequences && gr.Name == "*":
			out = append(out, "ALL SEQUENCES IN SCHEMA "+ident(s))
		case gr.On == onRoutines && gr.Name == "*":
			out = append(out, "ALL ROUTINES IN SCHEMA "+ident(s))
		case gr.On == onSequences:
			named, err := list(ctx, c, ownedSequences, s, gr.Name)
			if err != nil {
				return nil, err
			}
			out = append(out, named...)
		case gr.On == onRoutines:
			named, err := list(ctx, c, overloads, s, gr.Name)
			if err != nil {
				return nil, err
			}
			if len(named) == 0 {
				return nil, &issuers.Error{Kind: issuers.BadScope, Detail: "the database has no function " + ident(s, gr.Name)}
			}
			out = append(out, named...)
		}
	}
	return out, nil
}

const (
	// the sequences behind a table's serial columns; identity columns need no grant
	ownedSequences = `SELECT format('SEQUENCE %I.%I', sn.nspname, s.relname)
		FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace sn ON sn.oid = s.relnamespace
		JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace
		WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a'
		AND tn.nspname = $1 AND t.relname = $2 ORDER BY 1`
	// search_path is pg_catalog, so that regprocedure prints every other schema
	overloads = `SELECT 'ROUTINE ' || p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
		WHERE n.nspname = $1 AND p.proname = $2 ORDER BY 1`
	userSchemas  = `SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1`
	publicMayUse = `SELECT count(*) FILTER (WHERE has_schema_privilege('public', oid, 'USAGE')) FROM pg_namespace WHERE nspname = $1`
	usageWanted  = "usage"
)

// schemas returns the schemas a grant is about. For USAGE, schemas that PUBLIC
// may use anyway are left out.
func (gr grant) schemas(ctx context.Context, c *pgx.Conn) ([]string, error) {
	schemas := []string{gr.Schema}
	if gr.Schema == "*" {
		var err error
		if schemas, err = list(ctx, c, userSchemas); err != nil {
			return nil, err
		}
	}
	if gr.On != onSchema || gr.Privileges[0] != usageWanted {
		return schemas, nil
	}
	var out []string
	for _, s := range schemas {
		var public int
		if err := c.QueryRow(ctx, publicMayUse, s).Scan(&public); err != nil {
			return nil, err
		}
		if public == 0 {
			out = append(out, s)
		}
	}
	return out, nil
}

func list(ctx context.Context, c *pgx.Conn, sql string, args ...any) ([]string, error) {
	rows, err := c.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
