package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// errAbsent says that an account which stood a moment ago is gone.
var errAbsent = errors.New("postgres: the account is gone")

// standing is an account as the target's catalogue shows it.
type standing struct {
	mark    mark
	ours    bool // it bears our mark of this lease
	login   bool
	members []string
	// valued are those members with a table of values in the main database
	valued []string
}

const lookSQL = `SELECT coalesce(shobj_description(r.oid, 'pg_authid'), ''), r.rolcanlogin,
	ARRAY(SELECT p.rolname::text FROM pg_auth_members m JOIN pg_roles p ON p.oid = m.roleid WHERE m.member = r.oid),
	ARRAY(SELECT p.rolname::text FROM pg_auth_members m JOIN pg_roles p ON p.oid = m.roleid AND starts_with(p.rolname, $2)
		WHERE m.member = r.oid AND to_regclass(format('%I.%I', $3 || substr(p.rolname, length($2) + 1), $4::text)) IS NOT NULL)
	FROM pg_roles r WHERE r.rolname = $1`

func look(ctx context.Context, c *pgx.Conn, lease issuers.Lease) (standing, error) {
	var s standing
	var text string
	err := c.QueryRow(ctx, lookSQL, lease.Name, scopePrefix, rowsPrefix, valuesTable).Scan(&text, &s.login, &s.members, &s.valued)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, errAbsent
	}
	s.mark, s.ours = parseMark(text)
	s.ours = s.ours && s.mark.leaseID == lease.ID
	return s, err
}

// mayReplace is the rule of HAZARDS 9 and 16: adopt only what bears our mark,
// and never let an older generation or a deposed leader overwrite a newer one.
func (s standing) mayReplace(a *account) error {
	switch {
	case !s.ours:
		return &issuers.Error{Kind: issuers.Foreign, Detail: "the role " + a.lease.Name + " exists without the broker's mark of this lease"}
	case s.mark.generation > a.mark.generation:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "the account has a newer generation of the secret"}
	case s.mark.term > a.mark.term:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "a newer leader has written the account"}
	case !s.login:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "the account is being ended"}
	}
	return nil
}

// replace gives a standing account a new secret, mark and, if its role changed
// meanwhile, a new scope. It looks and writes under the lease's lock. Guard and
// COMMIT are one message, so that a broker that stops between two messages can
// commit nothing late.
func (is *Issuer) replace(ctx context.Context, a *account) (ready bool, err error) {
	conn, f, err := acquire(ctx, is.server.mint)
	if err != nil {
		return false, err
	}
	defer conn.Release()
	first, last, err := is.guards(conn.Conn(), a)
	if err != nil {
		return false, err
	}
	if _, err := run(ctx, conn.Conn(), "BEGIN; "+first); err != nil {
		return false, rollback(ctx, conn.Conn(), err)
	}
	s, err := look(ctx, conn.Conn(), a.lease)
	if err == nil {
		err = s.mayReplace(a)
	}
	if err != nil {
		return false, rollback(ctx, conn.Conn(), err)
	}
	statements, err := a.replaceSQL(conn.Conn(), f, s, is.server.main)
	if err != nil {
		return false, rollback(ctx, conn.Conn(), err)
	}
	results, err := run(ctx, conn.Conn(), strings.Join(append(statements, last, "COMMIT"), "; "))
	if err != nil {
		return false, rollback(ctx, conn.Conn(), err)
	}
	rows := results[len(results)-2].Rows
	return len(rows) == 1 && string(rows[0][1]) == "t", nil
}

func (a *account) replaceSQL(c *pgx.Conn, f *facts, s standing, main string) ([]string, error) {
	attributes, err := a.attributes(c, f)
	if err != nil {
		return nil, err
	}
	text, err := literal(c, a.mark.String())
	if err != nil {
		return nil, err
	}
	role := ident(a.lease.Name)
	out := []string{"ALTER ROLE " + role + " " + attributes, "COMMENT ON ROLE " + role + " IS " + text}
	if !slices.Contains(s.members, a.scopeRole) {
		out = append(out, joinSQL(f, role, ident(a.scopeRole)))
	}
	for _, m := range s.members {
		if m != a.scopeRole && strings.HasPrefix(m, scopePrefix) {
			out = append(out, "REVOKE "+ident(m)+" FROM "+role)
			if slices.Contains(s.valued, m) {
				out = append(out, "DELETE FROM "+ident(rowsName(m), valuesTable)+" WHERE account = '"+a.lease.Name+"'")
			}
		}
	}
	values, err := a.rowsSQL(c, main)
	return append(append(out, values...), a.pathSQL()...), err
}

// rollback ends a transaction that failed with err and returns err. A connection
// that cannot even do that is closed, which rolls back too.
func rollback(ctx context.Context, c *pgx.Conn, err error) error {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	if _, e := run(end, c, "ROLLBACK"); e != nil {
		_ = c.Close(end)
	}
	return err
}
