package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// sessionWait is how long sessions get to end once they were told to. A healthy
// backend ends within milliseconds; a stopped one would hold everybody else up.
const sessionWait = 5 * time.Second

// backend_type is hidden from an admin account without pg_read_all_stats; its
// parallel workers are then counted as sessions.
const (
	activitySQL  = `SELECT usesysid, pid, coalesce(backend_type, 'client backend') = 'client backend' FROM pg_stat_activity WHERE usesysid = ANY($1::oid[])`
	terminateSQL = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = ANY($1::oid[])`
)

// endSessions ends the accounts' sessions and waits until pg_stat_activity lists
// none. Accounts whose sessions stay settle as Unknown, to be tried again.
func (b *withdrawal) endSessions(ctx context.Context, items []*ending) error {
	by := map[uint32][]*ending{}
	for _, e := range items {
		by[e.oid] = append(by[e.oid], e)
	}
	deadline := time.Now().Add(sessionWait)
	for n := 0; ; n++ {
		alive, err := b.sessions(ctx, items, by)
		if err != nil || len(alive) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			for oid := range alive {
				for _, e := range by[oid] {
					e.fail(issuers.Unknown, fmt.Sprintf("%d sessions of %s do not end; it can no longer log in", alive[oid], e.lease.Name), nil)
				}
			}
			return nil
		}
		if _, err := b.conn.Exec(ctx, terminateSQL, oids(items)); err != nil {
			return err
		}
		if err := pause(ctx, n); err != nil {
			return err
		}
	}
}

// sessions counts the live backends by account and remembers the clients' ones.
func (b *withdrawal) sessions(ctx context.Context, items []*ending, by map[uint32][]*ending) (map[uint32]int, error) {
	rows, err := b.conn.Query(ctx, activitySQL, oids(items))
	if err != nil {
		return nil, err
	}
	alive := map[uint32]int{}
	var oid uint32
	var pid int32
	var client bool
	_, err = pgx.ForEachRow(rows, []any{&oid, &pid, &client}, func() error {
		alive[oid]++
		for _, e := range by[oid] {
			if client {
				e.sessions[pid] = true
			}
		}
		return nil
	})
	return alive, err
}

func preparedDetail(name string) string {
	return "a prepared transaction of " + name + " is in doubt; it can no longer log in. Find it in pg_prepared_xacts, " +
		"end it with COMMIT PREPARED or ROLLBACK PREPARED, and withdraw again"
}

// refusePrepared parks accounts with prepared transactions: whether such a
// transaction commits is for whoever coordinates it to say, not for us.
func (b *withdrawal) refusePrepared(ctx context.Context, items []*ending) error {
	owners, err := list(ctx, b.conn, `SELECT DISTINCT owner::text FROM pg_prepared_xacts WHERE owner = ANY($1::text[])`, names(items))
	if err != nil {
		return err
	}
	for _, owner := range owners {
		for _, e := range items {
			if e.lease.Name == owner {
				e.fail(issuers.Poison, preparedDetail(owner), nil)
			}
		}
	}
	return nil
}
