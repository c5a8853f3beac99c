package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// oldestVersion is the oldest server with everything that is used here.
const oldestVersion = 120000

// Check implements [issuers.Checker].
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	conn, f, err := acquire(ctx, is.server.end)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	c := &examination{admin: is.spec.Admin.Username, facts: f}
	c.add("connect", true, "as "+is.spec.Admin.Username+" to "+is.spec.Address, "")
	c.add("version", f.version >= oldestVersion, fmt.Sprintf("server_version_num is %d; at least %d is needed", f.version, oldestVersion), "")
	if err := c.rights(ctx, conn.Conn()); err != nil {
		return nil, sentError("check the admin account's rights", err)
	}
	for _, d := range is.spec.Databases {
		if err := is.checkDatabase(ctx, c, conn.Conn(), d); err != nil {
			return nil, err
		}
	}
	return c.findings, nil
}

// examination collects findings.
type examination struct {
	admin    string
	facts    *facts
	findings []issuers.Finding
}

func (c *examination) add(name string, ok bool, detail, fix string) {
	if ok {
		fix = ""
	}
	c.findings = append(c.findings, issuers.Finding{Name: name, OK: ok, Detail: detail, Fix: fix})
}

func (c *examination) warn(name string, ok bool, detail, fix string) {
	c.add(name, ok, detail, fix)
	c.findings[len(c.findings)-1].Warning = !ok
}

func (c *examination) rights(ctx context.Context, conn *pgx.Conn) error {
	var createrole, signal bool
	var pooledOwn int
	err := conn.QueryRow(ctx, `SELECT rolsuper OR rolcreaterole, rolsuper OR pg_has_role(current_user, 'pg_signal_backend', 'USAGE'),
		(SELECT count(*) FROM pg_shdepend s JOIN pg_roles p ON p.oid = s.refobjid WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype = 'o' AND starts_with(p.rolname, $1))
		FROM pg_roles WHERE rolname = current_user`, scopePrefix).Scan(&createrole, &signal, &pooledOwn)
	if err != nil {
		return err
	}
	me := ident(c.admin)
	c.add("createrole", createrole, "to make and drop accounts", "ALTER ROLE "+me+" CREATEROLE")
	c.add("signal", signal, "to end the sessions of accounts", "GRANT pg_signal_backend TO "+me)
	least, own := "the admin account is no superuser", "as it must be"
	if c.facts.superuser {
		least = "a superuser can do far more than minting needs; docs/issuers/postgres.md has the SQL for a smaller one"
	}
	if pooledOwn > 0 {
		own = fmt.Sprintf("pooled roles own %d objects: an account has acted as one; the next sweep drops them", pooledOwn)
	}
	kept := statisticsKept(c.facts.version)
	statistics := "the server keeps those of hidden rows from accounts"
	if !kept {
		statistics = "before 13.22, 14.19, 15.14, 16.10 and 17.6 an account could read the server's " +
			"statistics of rows that a filter hides (CVE-2025-8713); scopes with a row filter need a newer server"
	}
	c.warn("row filter statistics", kept, statistics, "")
	c.warn("least privilege", !c.facts.superuser, least, "")
	c.warn("pooled roles own nothing", pooledOwn == 0, own, "")
	return nil
}

func (is *Issuer) checkDatabase(ctx context.Context, c *examination, main *pgx.Conn, database string) error {
	conn := main
	if database != is.server.main {
		pool, err := is.server.database(database)
		if err != nil {
			return err
		}
		side, _, err := acquire(ctx, pool)
		if err != nil {
			if issuers.KindOf(err) != issuers.Refused {
				return err
			}
			c.add("connect "+database, false, "the admin account cannot connect", "GRANT CONNECT ON DATABASE "+ident(database)+" TO "+ident(c.admin))
			return nil
		}
		defer side.Release()
		conn = side.Conn()
	}
	err := c.rowFilters(ctx, conn, database)
	if err == nil {
		err = c.schemas(ctx, conn, database)
	}
	if err != nil {
		return sentError("check database "+database, err)
	}
	return nil
}

// rowFilters reports whether views of rows can be made. Most targets need none,
// so that it is a warning.
func (c *examination) rowFilters(ctx context.Context, conn *pgx.Conn, database string) error {
	var creates bool
	if err := conn.QueryRow(ctx, "SELECT has_database_privilege(current_database(), 'CREATE')").Scan(&creates); err != nil {
		return err
	}
	detail := "the admin account may make schemas for views of rows"
	if !creates {
		detail = "scopes with a row filter are refused: their views need a schema, which the admin account may not make"
	}
	c.warn("row filters "+database, creates, detail, "GRANT CREATE ON DATABASE "+ident(database)+" TO "+ident(c.admin))
	return nil
}

// statisticsKept reports whether a server keeps the planner's statistics from
// those who may read a view alone.
func statisticsKept(version int) bool {
	fixed := map[int]int{13: 130022, 14: 140019, 15: 150014, 16: 160010, 17: 170006}
	least, known := fixed[version/10000]
	return version >= 180000 || known && version >= least
}

// schemasSQL shows, per schema: may the admin account grant its USAGE (or has
// PUBLIC it anyway), how many tables it cannot grant SELECT, INSERT, UPDATE and
// DELETE on, how many sequences (SELECT is needed too, or DROP OWNED cannot take
// the grant back), and whether PUBLIC may create in it.
const schemasSQL = `SELECT n.nspname::text,
	has_schema_privilege('public', n.oid, 'USAGE') OR has_schema_privilege(n.oid, 'USAGE WITH GRANT OPTION'),
	(SELECT count(*) FROM pg_class t WHERE t.relnamespace = n.oid AND t.relkind IN ('r', 'v', 'm', 'f', 'p') AND NOT (
		has_table_privilege(t.oid, 'SELECT WITH GRANT OPTION') AND has_table_privilege(t.oid, 'INSERT WITH GRANT OPTION')
		AND has_table_privilege(t.oid, 'UPDATE WITH GRANT OPTION') AND has_table_privilege(t.oid, 'DELETE WITH GRANT OPTION'))),
	(SELECT count(*) FROM pg_class s WHERE s.relnamespace = n.oid AND CASE WHEN s.relkind = 'S' THEN NOT (has_sequence_privilege(s.oid, 'USAGE WITH GRANT OPTION')
		AND has_sequence_privilege(s.oid, 'SELECT WITH GRANT OPTION')) END),
	has_schema_privilege('public', n.oid, 'CREATE')
	FROM pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1`

// schemas reports every schema of the connection's database. A schema that
// cannot be granted is a warning: scopes may never name it. The one that roles
// start from, public, must be grantable.
func (c *examination) schemas(ctx context.Context, conn *pgx.Conn, database string) error {
	rows, err := conn.Query(ctx, schemasSQL)
	if err != nil {
		return err
	}
	me := ident(c.admin)
	var schema string
	var usage, publicCreates bool
	var tables, sequences int
	_, err = pgx.ForEachRow(rows, []any{&schema, &usage, &tables, &sequences, &publicCreates}, func() error {
		where, q := database+"."+schema, ident(schema)
		var fixes []string
		if !usage {
			fixes = append(fixes, "GRANT USAGE ON SCHEMA "+q+" TO "+me+" WITH GRANT OPTION")
		}
		if tables > 0 {
			fixes = append(fixes, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "+q+" TO "+me+" WITH GRANT OPTION")
		}
		if sequences > 0 {
			fixes = append(fixes, "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA "+q+" TO "+me+" WITH GRANT OPTION")
		}
		detail := "tables and sequences can be granted"
		if len(fixes) > 0 {
			detail = fmt.Sprintf("usage grantable: %t; tables that cannot be granted: %d; sequences: %d; run the fix in database %s", usage, tables, sequences, database)
		}
		report := c.warn
		if schema == "public" {
			report = c.add
		}
		report("grant "+where+".*", len(fixes) == 0, detail, strings.Join(fixes, "; "))
		detail = "an account can leave a function behind that outlives it"
		if c.facts.version >= versionSetFalse {
			detail = "an account can leave objects in it for others to trip over"
		}
		c.warn("public create "+where, !publicCreates, "PUBLIC may create in it: "+detail, "REVOKE CREATE ON SCHEMA "+q+" FROM PUBLIC")
		if !publicCreates {
			c.findings[len(c.findings)-1].Detail = "PUBLIC may not create in it"
		}
		return nil
	})
	return err
}
