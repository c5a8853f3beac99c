package mysql

import (
	"context"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// sessionWait is how long sessions get to end once they were told to. One that
// rolls back a long transaction is listed until it has.
const sessionWait = 5 * time.Second

// endSessions ends the accounts' sessions and waits until the process list shows
// none. Accounts whose sessions stay settle as Unknown, to be tried again.
func (b *withdrawal) endSessions(ctx context.Context, items []*ending) error {
	by := map[string][]*ending{}
	for _, e := range items {
		by[e.lease.Name] = append(by[e.lease.Name], e)
	}
	deadline := time.Now().Add(sessionWait)
	for n := 0; ; n++ {
		alive, err := b.sessions(ctx, items, by)
		if err != nil || len(alive) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			for name, ids := range alive {
				for _, e := range by[name] {
					e.fail(issuers.Unknown, fmt.Sprintf("%d sessions of %s do not end; it can no longer log in", len(ids), name), nil)
				}
			}
			return nil
		}
		for _, ids := range alive {
			for _, id := range ids {
				if err := b.conn.kill(ctx, id); err != nil {
					return err
				}
			}
		}
		if err := pause(ctx, n); err != nil {
			return err
		}
	}
}

// kill ends a connection. Ids are digits of the server's; one that ended
// meanwhile is what was wanted, and ids are not given twice.
func (c *conn) kill(ctx context.Context, id string) error {
	err := c.run(ctx, "KILL CONNECTION "+id)
	if codeOf(err) == codeUnknownThread {
		return nil
	}
	return err
}

// sessions returns the live connections by account and remembers them.
func (b *withdrawal) sessions(ctx context.Context, items []*ending, by map[string][]*ending) (map[string][]string, error) {
	rows, err := b.conn.QueryContext(ctx, "SELECT CAST(id AS CHAR), user FROM "+b.conn.processlist()+" WHERE user IN ("+quoteAll(names(items))+")")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	alive := map[string][]string{}
	for rows.Next() {
		var id, name string
		if err := rows.Scan(&id, &name); err != nil {
			return nil, err
		}
		alive[name] = append(alive[name], id)
		for _, e := range by[name] {
			e.sessions[id] = true
		}
	}
	return alive, rows.Err()
}
