package mysql

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Check implements [issuers.Checker]. It changes nothing on the target, so that
// `target add --dry-run` is true to its name; its connection is no registered one.
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	db, err := is.server.pool(1, false)
	if err != nil {
		return nil, connectError(err)
	}
	defer func() { _ = db.Close() }()
	conn, err := is.server.acquire(ctx, db)
	if err != nil {
		return nil, err
	}
	defer conn.release()
	c := &examination{is: is, conn: conn}
	c.add("connect", true, "as "+is.spec.Admin.Username+" to "+is.spec.Address, "")
	ok, need := conn.supported()
	c.add("version", ok, conn.text+"; "+need, "")
	for _, step := range []func(context.Context) error{c.learn, c.global, c.catalogue, c.schema, c.databases, c.hosts, c.strangers} {
		if err := step(ctx); err != nil {
			return nil, sentError("check the admin account's rights", err)
		}
	}
	return c.findings, nil
}

// examination collects findings.
type examination struct {
	is       *Issuer
	conn     *conn
	me       string // the admin account, quoted for GRANT
	held     []string
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

// learn reads the account's global privileges. Those that come by a role of the
// admin's own are not seen, and would not be there in every session.
func (c *examination) learn(ctx context.Context) error {
	var user string
	if err := c.conn.QueryRowContext(ctx, "SELECT CURRENT_USER()").Scan(&user); err != nil {
		return err
	}
	i := strings.LastIndexByte(user, '@')
	c.me = at(user[:max(i, 0)], []string{user[i+1:]})
	var err error
	c.held, err = c.conn.list(ctx, "SELECT privilege_type FROM information_schema.user_privileges WHERE grantee = "+meSQL)
	return err
}

// has says whether one of the privileges is held on everything.
func (c *examination) has(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(c.held, n) })
}

// global checks what is needed on *.*. Names differ between the servers.
func (c *examination) global(context.Context) error {
	grant := func(p string) string { return "GRANT " + p + " ON *.* TO " + c.me }
	c.add("create user", c.has("CREATE USER"), "to make and drop accounts", grant("CREATE USER"))
	c.add("process", c.has("PROCESS"), "to see the sessions of accounts", grant("PROCESS"))
	kill := "CONNECTION ADMIN"
	if c.conn.mysql {
		kill = "CONNECTION_ADMIN"
	}
	if !c.conn.mysql && c.conn.version < 100502 {
		kill = "SUPER"
	}
	c.add("kill", c.has(kill, "SUPER"), "to end the sessions of accounts", grant(kill))
	switch {
	case c.conn.mysql:
		c.add("role admin", c.is.spec.Grants == grantsDirect || c.has("ROLE_ADMIN", "SUPER"), "to let accounts join the roles that hold their scope's grants", grant("ROLE_ADMIN"))
	case c.is.spec.Grants == grantsPooled:
		c.add("default role", c.conn.defaultRoles, "to set the role that an account starts with", "GRANT UPDATE ON mysql.* TO "+c.me)
	case c.is.spec.Grants == grantsAuto:
		detail := "accounts join one role for each distinct scope"
		if !c.conn.defaultRoles {
			detail = "without UPDATE on mysql.* no default role can be set, so each account is granted its scope directly, which is slower with many tables in a scope"
		}
		c.warn("default role", c.conn.defaultRoles, detail, "GRANT UPDATE ON mysql.* TO "+c.me)
	}
	super := c.has("SUPER", "SYSTEM_USER") || c.has("SHUTDOWN") && c.has("FILE")
	detail := "the admin account is no superuser"
	if super {
		detail = "the admin account can do far more than minting needs; docs/issuers/mysql.md has the SQL for a smaller one"
	}
	c.warn("least privilege", !super, detail, "")
	return nil
}

// denied tells a missing right from a failure.
func denied(err error) bool {
	switch codeOf(err) {
	case codeTableDenied, codeDatabaseDenied, codeColumnDenied, codeGlobalDenied:
		return true
	}
	return false
}

// catalogue tries the tables that the last look reads.
func (c *examination) catalogue(ctx context.Context) error {
	table := c.conn.accounts()
	_, err := c.conn.list(ctx, "SELECT User FROM "+table+" LIMIT 1")
	if err != nil && !denied(err) {
		return err
	}
	c.add("read accounts", err == nil, "to see which accounts stand ("+table+")", "GRANT SELECT ON "+table+" TO "+c.me)
	return nil
}

// schema looks whether the broker's own schema can be made and written.
func (c *examination) schema(ctx context.Context) error {
	missing, err := c.missing(ctx, schemaName, []string{"SELECT", "INSERT", "UPDATE", "DELETE", "CREATE"}, false)
	if err != nil {
		return err
	}
	detail := "the broker's own schema, " + schemaName
	if len(missing) > 0 {
		detail += ", lacks " + strings.Join(missing, ", ")
	}
	c.add("schema "+schemaName, len(missing) == 0, detail, "GRANT ALL ON "+schemaName+".* TO "+c.me)
	return nil
}

// missing returns which privileges the admin account lacks on a database.
func (c *examination) missing(ctx context.Context, database string, wanted []string, grantable bool) ([]string, error) {
	also := ""
	if grantable {
		also = " AND is_grantable = 'YES'"
	}
	pattern := "? LIKE table_schema"
	if c.conn.literalDatabases {
		pattern = "? = table_schema"
	}
	held, err := c.conn.list(ctx, "SELECT privilege_type FROM information_schema.user_privileges WHERE grantee = "+meSQL+also+
		" UNION SELECT privilege_type FROM information_schema.schema_privileges WHERE grantee = "+meSQL+" AND "+pattern+also, database)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(wanted), func(w string) bool { return slices.Contains(held, w) }), nil
}

// databases reports each database of the target. Only the main one, on which
// roles start, must be grantable.
func (c *examination) databases(ctx context.Context) error {
	for _, d := range c.is.spec.Databases {
		wanted := []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
		missing, err := c.missing(ctx, d, wanted, true)
		if err != nil {
			return err
		}
		detail := "tables can be granted"
		if len(missing) > 0 {
			detail = "cannot be granted: " + strings.Join(missing, ", ")
		}
		report := c.warn
		if d == c.is.spec.Database {
			report = c.add
		}
		report("grant "+d+".*", len(missing) == 0, detail, "GRANT "+strings.Join(wanted, ", ")+" ON "+databaseLevel(d, c.conn.literalDatabases)+" TO "+c.me+" WITH GRANT OPTION")
		stands, err := c.conn.list(ctx, "SELECT schema_name FROM information_schema.schemata WHERE schema_name = ?", d)
		if err != nil {
			return err
		}
		detail = "it stands"
		if len(stands) == 0 {
			detail = "there is no such database, or the admin account cannot see it"
		}
		c.warn("database "+d, len(stands) > 0, detail, "")
	}
	return nil
}

// fewConnectErrors is a limit that one long hang of the server may reach: its
// backlog holds as many connections that have broken off when it goes on.
const fewConnectErrors = 10_000

// hosts warns of host names that a server which resolves none will never match,
// and of one that, once it hung, may accept nothing from the broker any more.
func (c *examination) hosts(ctx context.Context) error {
	var skip bool
	var limit, cache uint64
	if err := c.conn.QueryRowContext(ctx, "SELECT @@skip_name_resolve, @@max_connect_errors, @@host_cache_size").Scan(&skip, &limit, &cache); err != nil {
		return err
	}
	if blocksHosts(c.is.spec.host, skip, limit, cache) {
		c.warn("max_connect_errors", false, fmt.Sprintf("after %d connections that broke off, as they do while it hangs, the server accepts none from their host until somebody runs FLUSH HOSTS: "+
			"leases could then neither begin nor end", limit), "SET GLOBAL max_connect_errors = 1000000; and in the server's configuration")
	}
	for _, h := range c.is.spec.Hosts {
		byName := strings.ContainsAny(h, "abcdefghijklmnopqrstuvwxyz") && net.ParseIP(h) == nil && !strings.Contains(h, ":")
		if skip && byName {
			c.warn("host "+h, false, "skip_name_resolve is on, so no client's address ever becomes this name", "")
		}
	}
	return nil
}

// blocksHosts reports whether the server counts what breaks off: it does by what
// it knows of hosts' names, which it never asks for on loopback.
func blocksHosts(host string, skip bool, limit, cache uint64) bool {
	return !skip && cache > 0 && limit < fewConnectErrors && !isLoopback(host)
}

// strangers warns of what lets more in than was granted, or less.
func (c *examination) strangers(ctx context.Context) error {
	anonymous, err := c.conn.list(ctx, "SELECT Host FROM "+c.conn.accounts()+" WHERE User = '' AND Host <> ''")
	switch {
	case denied(err): // already a finding
	case err != nil:
		return err
	default:
		detail, fix := "there are none", ""
		if len(anonymous) > 0 {
			detail = fmt.Sprintf("%d accounts without a name stand before ours for clients from their hosts (%s), who then cannot log in", len(anonymous), strings.Join(anonymous[:min(len(anonymous), 5)], ", "))
			fix = "DROP USER " + at("", anonymous)
		}
		c.warn("anonymous accounts", len(anonymous) == 0, detail, fix)
	}
	return c.everybody(ctx)
}

// everybody warns of what any account may do besides its scope.
func (c *examination) everybody(ctx context.Context) error {
	public, err := c.conn.list(ctx, "SELECT Db FROM mysql.db WHERE User IN ('', 'PUBLIC')")
	switch {
	case denied(err):
		c.warn("grants to everybody", false, "cannot be read, so it is not known what any account may do besides its scope", "GRANT SELECT ON mysql.db TO "+c.me)
		return nil
	case err != nil:
		return err
	}
	detail := "there are none"
	if len(public) > 0 {
		detail = "every account may use " + strings.Join(public[:min(len(public), 5)], ", ") + " besides its scope, and may leave views and routines there"
	}
	c.warn("grants to everybody", len(public) == 0, detail, "")
	return c.galera(ctx)
}

// galera warns of a cluster whose nodes share accounts, but neither locks nor
// sessions.
func (c *examination) galera(ctx context.Context) error {
	if c.conn.mysql {
		return nil
	}
	on, err := c.conn.list(ctx, "SELECT variable_value FROM information_schema.global_variables WHERE variable_name = 'WSREP_ON' AND variable_value = 'ON'")
	if err != nil {
		return err
	}
	if len(on) > 0 {
		c.warn("galera", false, "named locks and process lists belong to one node of the cluster: the address must be one node's, or a proxy that sends this account to one node at a time", "")
	}
	return nil
}
