package mysql

import (
	"context"
	"fmt"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
)

// definedSQL lists what runs with the rights of the accounts whose names follow.
// Tables have no owner on these servers and stay.
const definedSQL = `SELECT what, place, name, SUBSTRING_INDEX(definer, '@', 1) FROM (
	SELECT 'VIEW' AS what, table_schema AS place, table_name AS name, definer FROM information_schema.views WHERE SUBSTRING_INDEX(definer, '@', 1) IN (%[1]s)
	UNION ALL SELECT routine_type, routine_schema, routine_name, definer FROM information_schema.routines WHERE SUBSTRING_INDEX(definer, '@', 1) IN (%[1]s)
	UNION ALL SELECT 'TRIGGER', trigger_schema, trigger_name, definer FROM information_schema.triggers WHERE SUBSTRING_INDEX(definer, '@', 1) IN (%[1]s)
	UNION ALL SELECT 'EVENT', event_schema, event_name, definer FROM information_schema.events WHERE SUBSTRING_INDEX(definer, '@', 1) IN (%[1]s)) AS d`

type defined struct{ what, place, name, definer string }

func (d defined) String() string { return d.what + " " + ident(d.place, d.name) }

// dropDefined drops what the accounts made that runs with their rights. Giving it
// to somebody else would give that somebody's rights to it (HAZARDS 11), so a
// role that asks for that is told no: the lease is parked.
func (b *withdrawal) dropDefined(ctx context.Context, items []*ending) error {
	all, err := b.defined(ctx, items)
	if err != nil || len(all) == 0 {
		return err
	}
	if err := b.conn.run(ctx, "SET SESSION lock_wait_timeout = "+objectWait); err != nil {
		return err
	}
	for _, e := range items {
		var theirs []string
		for _, d := range all {
			if d.definer != e.lease.Name {
				continue
			}
			theirs = append(theirs, d.String())
			if e.lease.RoleSpec.OwnedOnEnd == "reassign" || e.settled {
				continue
			}
			if err := b.conn.run(ctx, "DROP "+d.what+" IF EXISTS "+ident(d.place, d.name)); err != nil {
				e.settle(fmt.Errorf("drop %s: %w", d, err))
				continue
			}
			e.owned++
		}
		if len(theirs) > 0 && e.lease.RoleSpec.OwnedOnEnd == "reassign" {
			e.fail(issuers.Poison, e.lease.Name+" is the definer of "+strings.Join(theirs[:min(len(theirs), 5)], ", ")+
				"; it can no longer log in. What runs with its definer's rights is never given to another: drop it, or make it anew under another definer, and withdraw again", nil)
		}
	}
	return b.conn.run(ctx, b.conn.sessionSQL())
}

func (b *withdrawal) defined(ctx context.Context, items []*ending) ([]defined, error) {
	rows, err := b.conn.QueryContext(ctx, fmt.Sprintf(definedSQL, quoteAll(names(items))))
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []defined
	for rows.Next() {
		var d defined
		if err := rows.Scan(&d.what, &d.place, &d.name, &d.definer); err != nil {
			return nil, err
		}
		switch d.what {
		case "VIEW", "PROCEDURE", "FUNCTION", "TRIGGER", "EVENT":
			out = append(out, d)
		}
	}
	return out, rows.Err()
}
