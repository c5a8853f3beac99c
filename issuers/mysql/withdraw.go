package mysql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-broker/mayfly/issuers"
)

const (
	// batchSize is how many leases are ended by one set of statements. Each holds
	// one of the connection's named locks for a moment.
	batchSize = 250
	// busyWait is how long leases are waited for that a mint, or another
	// withdrawal, has locked.
	busyWait = 3 * time.Second
	// objectWait is how many seconds an object that an account made is waited for
	// when another session uses it.
	objectWait = "2"
)

// ending is one lease on its way out.
type ending struct {
	lease    issuers.Lease
	out      *issuers.Outcome
	hosts    []string // of its account, as the catalogue lists them
	marked   bool     // its row stands
	definer  bool     // it could make things that run with its rights
	busy     bool     // a mint of it was running when we looked
	settled  bool     // out is final
	sessions map[string]bool
	owned    int
}

func (e *ending) fail(kind issuers.ErrorKind, detail string, err error) {
	e.out.Err, e.settled = &issuers.Error{Kind: kind, Detail: detail, Err: err}, true
}

// Withdraw implements [issuers.Issuer]. Leases are ended in batches; within one,
// each step is one or a few statements for all of them, and a step that fails is
// halved until the lease that spoils it stands alone (HAZARDS 12).
func (is *Issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	outcomes := make([]issuers.Outcome, len(leases))
	items := make([]*ending, len(leases))
	for i, l := range leases {
		items[i] = &ending{lease: l, out: &outcomes[i], sessions: map[string]bool{}}
		if err := checkLease(l); err != nil {
			outcomes[i].Err, items[i].settled = err, true
		}
	}
	items = slices.DeleteFunc(items, func(e *ending) bool { return e.settled })
	// the same lease twice in one call is never in two batches at once
	slices.SortStableFunc(items, func(a, b *ending) int { return strings.Compare(a.lease.Name, b.lease.Name) })
	var group errgroup.Group
	group.SetLimit(endLanes - 1) // one stays free for upkeep
	for len(items) > 0 {
		n := min(batchSize, len(items))
		for n < len(items) && items[n].lease.Name == items[n-1].lease.Name {
			n++
		}
		batch := items[:n]
		items = items[n:]
		group.Go(func() error {
			is.withdrawBatch(ctx, batch)
			return nil
		})
	}
	_ = group.Wait() // the outcomes hold the errors
	return outcomes
}

// withdrawBatch ends a batch on one connection. Leases whose mint is still
// running are looked at again when the others are done.
func (is *Issuer) withdrawBatch(ctx context.Context, batch []*ending) {
	conn, err := is.server.acquire(ctx, is.server.end)
	if err != nil {
		for _, e := range batch {
			e.fail(issuers.KindOf(err), "withdraw", err)
		}
		return
	}
	defer conn.release()
	b := &withdrawal{is: is, conn: conn}
	todo := batch
	started := time.Now()
	for n := 0; len(todo) > 0; n++ {
		b.end(ctx, todo)
		todo = slices.DeleteFunc(slices.Clone(todo), func(e *ending) bool { return e.settled })
		if len(todo) == 0 {
			return
		}
		// two overlapping batches must not each keep what the other waits for
		err := conn.run(ctx, "DO RELEASE_ALL_LOCKS()")
		if err != nil || time.Since(started) > busyWait || pause(ctx, n) != nil {
			for _, e := range todo {
				e.fail(issuers.Unknown, "a mint or another withdrawal of this lease is still running on the target", errors.Join(err, ctx.Err()))
			}
			return
		}
	}
}

// withdrawal is one batch's work.
type withdrawal struct {
	is   *Issuer
	conn *conn
}

// end takes the batch through the steps; each keeps those that go on.
func (b *withdrawal) end(ctx context.Context, items []*ending) {
	for _, e := range items {
		e.busy = false
	}
	b.each(ctx, items, b.lock)
	items = slices.DeleteFunc(slices.Clone(items), func(e *ending) bool { return e.settled || e.busy })
	b.each(ctx, items, b.look)
	b.each(ctx, marked(items), b.shut)
	b.each(ctx, marked(items), b.endSessions)
	b.each(ctx, definers(items), b.dropDefined)
	b.each(ctx, marked(items), b.drop)
	b.each(ctx, slices.DeleteFunc(slices.Clone(items), func(e *ending) bool { return e.settled }), b.prove)
}

func marked(items []*ending) []*ending {
	return slices.DeleteFunc(slices.Clone(items), func(e *ending) bool { return e.settled || !e.marked })
}

func definers(items []*ending) []*ending {
	return slices.DeleteFunc(marked(items), func(e *ending) bool { return !e.definer })
}

// each runs step for all items at once, again while it only lost against
// another statement, and in halves when it fails: one lease that cannot be ended
// never stops the others.
func (b *withdrawal) each(ctx context.Context, items []*ending, step func(context.Context, []*ending) error) {
	if len(items) == 0 {
		return
	}
	err := retry(ctx, func() error { return step(ctx, items) })
	switch {
	case err == nil:
	case !saidNo(err) || len(items) == 1:
		for _, e := range items {
			e.settle(err)
		}
	default:
		half := len(items) / 2
		b.each(ctx, items[:half], step)
		b.each(ctx, items[half:], step)
	}
}

// settle records why one lease could not be ended.
func (e *ending) settle(err error) {
	if e.settled {
		return
	}
	switch codeOf(err) {
	case codeLockWait:
		e.fail(issuers.Poison, "an object that "+e.lease.Name+" defines is in use by another session; it can no longer log in. End that session and withdraw again", err)
	case codeGlobalDenied, codeDatabaseDenied, codeTableDenied, codeColumnDenied, codeProcDenied:
		e.fail(issuers.Poison, "the admin account lacks a right that ending "+e.lease.Name+" needs; see the target's check", err)
	case codeStillDefiner, codeReferencedAsUser:
		e.fail(issuers.Poison, e.lease.Name+" is the definer of a view, routine, trigger or event that the admin account cannot see; it can no longer log in. Drop that, and withdraw again", err)
	default:
		f := sentError("withdraw "+e.lease.Name, err)
		if f.Kind == issuers.TooLate || f.Kind == issuers.BadScope || transient(err) { // a timeout here is no deadline, and a lost race no refusal
			f.Kind = issuers.Unknown
		}
		e.fail(f.Kind, f.Detail, f.Err)
	}
}

// lock takes the leases' locks, or marks those busy that a mint holds. Locks end
// with the batch.
func (b *withdrawal) lock(ctx context.Context, items []*ending) error {
	calls := make([]string, len(items))
	for i, e := range items {
		calls[i] = fmt.Sprintf("SELECT %d AS i, GET_LOCK(%s, 0) AS got", i, quote(leaseLock(e.lease.ID)))
	}
	rows, err := b.conn.QueryContext(ctx, strings.Join(calls, " UNION ALL "))
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var i int
		var got *int
		if err := rows.Scan(&i, &got); err != nil {
			return err
		}
		items[i].busy = got == nil || *got != 1
	}
	return rows.Err()
}

// look finds out which rows and accounts stand.
func (b *withdrawal) look(ctx context.Context, items []*ending) error {
	hosts, err := b.accounts(ctx, items)
	if err != nil {
		return err
	}
	rows, err := b.rows(ctx, items)
	if err != nil {
		return err
	}
	for _, e := range items {
		e.hosts = hosts[e.lease.Name]
		r, ok := rows[e.lease.Name]
		switch {
		case ok && r.lease != e.lease.ID, !ok && len(e.hosts) > 0:
			e.fail(issuers.Foreign, "the account "+e.lease.Name+" exists without the broker's mark of this lease; it is left alone", nil)
			continue
		case ok && r.generation > e.lease.Generation:
			e.fail(issuers.Superseded, fmt.Sprintf("the account is of generation %d", r.generation), nil)
			continue
		case !ok:
			continue
		}
		e.marked, e.definer = true, r.definer
		if strange := slices.DeleteFunc(slices.Clone(e.hosts), func(h string) bool { return slices.Contains(r.hosts, h) }); len(strange) > 0 {
			e.fail(issuers.Foreign, "the account "+at(e.lease.Name, strange)+" was not made by the broker; it is left alone. Drop it, and withdraw again", nil)
		}
	}
	if !b.conn.mysql {
		return nil
	}
	for _, e := range marked(items) {
		if len(e.hosts) == 0 {
			continue
		}
		if err := b.conn.checkAttribute(ctx, e.lease); isOurs(err) {
			e.settle(err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// accounts returns the hosts of the leases' accounts by name.
func (b *withdrawal) accounts(ctx context.Context, items []*ending) (map[string][]string, error) {
	rows, err := b.conn.QueryContext(ctx, "SELECT User, Host FROM "+b.conn.accounts()+" WHERE User IN ("+quoteAll(names(items))+")")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[string][]string{}
	for rows.Next() {
		var name, host string
		if err := rows.Scan(&name, &host); err != nil {
			return nil, err
		}
		out[name] = append(out[name], host)
	}
	return out, rows.Err()
}

func (b *withdrawal) rows(ctx context.Context, items []*ending) (map[string]row, error) {
	rows, err := b.conn.QueryContext(ctx, "SELECT name, lease, generation, hosts, definer FROM "+schemaName+".leases WHERE name IN ("+quoteAll(names(items))+")")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[string]row{}
	for rows.Next() {
		var name, hosts string
		var r row
		if err := rows.Scan(&name, &r.lease, &r.generation, &hosts, &r.definer); err != nil {
			return nil, err
		}
		r.hosts = strings.Split(hosts, ",")
		out[name] = r
	}
	return out, rows.Err()
}

// shut commits that nothing is minted under the names any more, and that nobody
// logs in.
func (b *withdrawal) shut(ctx context.Context, items []*ending) error {
	if err := b.conn.run(ctx, "UPDATE "+schemaName+".leases SET state = "+quote(stateEnding)+" WHERE name IN ("+quoteAll(names(items))+")"); err != nil {
		return err
	}
	if who := everyone(items); who != "" {
		return b.conn.run(ctx, "ALTER USER IF EXISTS "+who+" ACCOUNT LOCK")
	}
	return nil
}

// everyone writes the accounts that stand, as a list.
func everyone(items []*ending) string {
	var out []string
	for _, e := range items {
		if len(e.hosts) > 0 {
			out = append(out, at(e.lease.Name, e.hosts))
		}
	}
	return strings.Join(out, ", ")
}

// drop removes the accounts, and their rows after them. Their sessions are gone.
func (b *withdrawal) drop(ctx context.Context, items []*ending) error {
	if who := everyone(items); who != "" {
		if err := b.conn.run(ctx, "DROP USER IF EXISTS "+who); err != nil {
			return err
		}
	}
	return b.conn.run(ctx, "DELETE FROM "+schemaName+".leases WHERE name IN ("+quoteAll(names(items))+")")
}

// prove is the last look: what the target's own catalogue says. A session that
// was logging in while its account was shut shows only now, and is ended.
func (b *withdrawal) prove(ctx context.Context, items []*ending) error {
	hosts, err := b.accounts(ctx, items)
	if err != nil {
		return err
	}
	rows, err := b.rows(ctx, items)
	if err != nil {
		return err
	}
	if err := b.endSessions(ctx, items); err != nil {
		return err
	}
	for _, e := range items {
		_, row := rows[e.lease.Name]
		switch {
		case e.settled:
		case len(hosts[e.lease.Name]) > 0:
			e.fail(issuers.Unknown, b.conn.accounts()+" still lists "+e.lease.Name, nil)
		case row:
			e.fail(issuers.Unknown, schemaName+".leases still lists "+e.lease.Name, nil)
		default:
			e.out.Receipt = issuers.Receipt{
				Proof:         issuers.ProofAbsent,
				Detail:        b.conn.accounts() + ", " + b.conn.processlist() + " and " + schemaName + ".leases list nothing of " + e.lease.Name,
				SessionsEnded: len(e.sessions),
				OwnedDropped:  e.owned,
			}
			e.settled = true
		}
	}
	return nil
}

func names(items []*ending) []string {
	out := make([]string, len(items))
	for i, e := range items {
		out[i] = e.lease.Name
	}
	return out
}
