package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// row is a lease's row.
type row struct {
	lease      string
	generation uint64
	term       uint64
	state      string
	hosts      []string
	definer    bool
}

// row reads a lease's row; ok is false where there is none.
func (c *conn) row(ctx context.Context, name string) (r row, ok bool, err error) {
	var hosts string
	err = c.QueryRowContext(ctx, "SELECT lease, generation, term, state, hosts, definer FROM "+schemaName+".leases WHERE name = ?", name).
		Scan(&r.lease, &r.generation, &r.term, &r.state, &hosts, &r.definer)
	if errors.Is(err, sql.ErrNoRows) {
		return r, false, nil
	}
	r.hosts = strings.Split(hosts, ",")
	return r, err == nil, err
}

// takeOver finds out why a reservation failed and, where an earlier mint of this
// lease is the reason, claims its row. The lease's lock is held on return.
func (a *account) takeOver(ctx context.Context, c *conn) error {
	var late, locked int
	left := max(time.Until(a.deadline), time.Millisecond)
	err := c.QueryRowContext(ctx, "SELECT COALESCE(GET_LOCK("+quote(leaseLock(a.lease.ID))+", "+c.lockSeconds(left)+"), 0), NOT ("+a.inTime(c.dialect)+")").Scan(&locked, &late)
	switch {
	case err != nil:
		return err
	case locked != 1:
		return &issuers.Error{Kind: issuers.TooLate, Detail: "another mint or withdrawal of this lease held it until the deadline"}
	case late != 0:
		return &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed by the target's clock"}
	}
	r, ok, err := c.row(ctx, a.lease.Name)
	if err != nil {
		return err
	}
	if err := r.mayReplace(ok, a); err != nil {
		return err
	}
	if err := c.checkAttribute(ctx, a.lease); err != nil {
		return err
	}
	a.drop = r.hosts // the target may name others by now
	_, err = c.ExecContext(ctx, "UPDATE "+schemaName+".leases SET generation = ?, term = ?, state = ?, hosts = ?, scope = ?, definer = definer OR ?, deadline = ?, "+
		"expires = GREATEST(expires, ?) WHERE name = ?", a.lease.Generation, a.term, stateOpen, strings.Join(union(a.hosts, a.drop), ","), a.scopeRole, a.grants.definer,
		serverTime(a.deadline.Add(c.offset)), serverTime(a.lease.NotAfter), a.lease.Name)
	return err
}

func union(a, b []string) []string {
	out := append([]string{}, a...)
	for _, h := range b {
		found := false
		for _, o := range out {
			found = found || o == h
		}
		if !found {
			out = append(out, h)
		}
	}
	return out
}

// mayReplace is the rule of HAZARDS 9 and 16: adopt only what bears our mark,
// and never let an older generation or a deposed leader overwrite a newer one.
func (r row) mayReplace(ok bool, a *account) error {
	switch {
	case !ok || r.lease != a.lease.ID:
		return &issuers.Error{Kind: issuers.Foreign, Detail: "the account " + a.lease.Name + " exists without the broker's mark of this lease"}
	case r.generation > a.lease.Generation:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "the account has a newer generation of the secret"}
	case r.term > a.term:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "a newer leader has written the account"}
	case r.state == stateEnding:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "the account is being ended"}
	}
	return nil
}

// checkAttribute refuses a MySQL account that does not bear our attribute beside
// its row. MariaDB's accounts bear nothing; their rows are all there is.
func (c *conn) checkAttribute(ctx context.Context, l issuers.Lease) error {
	if !c.mysql {
		return nil
	}
	foreign, err := c.list(ctx, "SELECT Host FROM mysql.user WHERE User = ? AND COALESCE(JSON_UNQUOTE(JSON_EXTRACT(User_attributes, '$.metadata.mayfly.lease')), '') <> ?", l.Name, l.ID)
	if err == nil && len(foreign) > 0 {
		err = &issuers.Error{Kind: issuers.Foreign, Detail: fmt.Sprintf("the account %s exists without the broker's attribute of this lease", at(l.Name, foreign))}
	}
	return err
}
