package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-broker/mayfly/issuers"
)

// batchSize is how many leases are ended by one set of statements. Each costs
// two entries of the server's lock table (64 × max_connections) for a moment.
const batchSize = 250

// ending is one lease on its way out.
type ending struct {
	lease    issuers.Lease
	out      *issuers.Outcome
	oid      uint32 // of its account; 0 when there is none
	busy     bool   // a mint of it was running when we looked
	settled  bool   // out is final
	sessions map[int32]bool
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
		items[i] = &ending{lease: l, out: &outcomes[i], sessions: map[int32]bool{}}
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
	conn, _, err := acquire(ctx, is.server.end)
	if err != nil {
		for _, e := range batch {
			e.fail(issuers.KindOf(err), "withdraw", err)
		}
		return
	}
	defer conn.Release()
	b := &withdrawal{is: is, conn: conn.Conn()}
	todo := batch
	for n := 0; len(todo) > 0; n++ {
		b.end(ctx, todo)
		todo = slices.DeleteFunc(slices.Clone(todo), func(e *ending) bool { return e.settled })
		if len(todo) > 0 && (n == 2*attempts || pause(ctx, n) != nil) {
			for _, e := range todo {
				e.fail(issuers.Unknown, "a mint of this lease is still running on the target", ctx.Err())
			}
			return
		}
	}
}

// withdrawal is one batch's work.
type withdrawal struct {
	is   *Issuer
	conn *pgx.Conn
	kept []string // owners of views whose tables of values, in the main database, have rows of the accounts
}

// end takes the batch through the steps; each keeps those that go on.
func (b *withdrawal) end(ctx context.Context, items []*ending) {
	for _, e := range items {
		e.busy = false
	}
	b.each(ctx, items, b.shut)
	items = slices.DeleteFunc(slices.Clone(items), func(e *ending) bool { return e.settled || e.busy })
	standing := present(items)
	b.each(ctx, standing, b.endSessions)
	b.each(ctx, present(standing), b.refusePrepared)
	b.dropOwned(ctx, present(standing))
	b.each(ctx, present(standing), b.forgetSides)
	b.each(ctx, present(standing), b.drop)
	b.each(ctx, slices.DeleteFunc(slices.Clone(items), func(e *ending) bool { return e.settled || e.oid != 0 }), b.forgetAll)
	b.each(ctx, slices.DeleteFunc(items, func(e *ending) bool { return e.settled }), b.prove)
}

func present(items []*ending) []*ending {
	return slices.DeleteFunc(slices.Clone(items), func(e *ending) bool { return e.settled || e.oid == 0 })
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
	switch code := codeOf(err); {
	case code == codeDependentObjects:
		e.fail(issuers.Poison, "others' objects depend on what "+e.lease.Name+" owns; it can no longer log in. Drop or change them, and withdraw again", err)
	case code == codeLockNotAvailable || code == codeObjectInUse:
		e.fail(issuers.Poison, "an object that "+e.lease.Name+" owns is in use by another session; it can no longer log in", err)
	case code == codePrivilege:
		e.fail(issuers.Poison, "the admin account lacks a right that ending "+e.lease.Name+" needs; see the target's check", err)
	default:
		f := sentError("withdraw "+e.lease.Name, err)
		if f.Kind == issuers.TooLate || transient(err) { // a timeout here is no deadline, and a lost race no refusal
			f.Kind = issuers.Unknown
		}
		e.fail(f.Kind, f.Detail, f.Err)
	}
}

const lookAllSQL = `SELECT l.i, coalesce(r.oid, 0), coalesce(d.description, '')
	FROM unnest($1::text[]) WITH ORDINALITY AS l(name, i)
	LEFT JOIN pg_roles r ON r.rolname = l.name
	LEFT JOIN pg_shdescription d ON d.objoid = r.oid AND d.classoid = 'pg_authid'::regclass`

// shut looks which accounts stand and commits that they cannot log in. It looks
// under the leases' locks, so that no mint is half done meanwhile.
func (b *withdrawal) shut(ctx context.Context, items []*ending) error {
	return pgx.BeginFunc(ctx, b.conn, func(tx pgx.Tx) error {
		if err := b.lock(ctx, tx, items); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, lookAllSQL, names(items))
		if err != nil {
			return err
		}
		var ddl strings.Builder
		var i int64
		var oid uint32
		var text string
		_, err = pgx.ForEachRow(rows, []any{&i, &oid, &text}, func() error {
			e := items[i-1]
			if e.busy || oid == 0 {
				return nil
			}
			m, ours := parseMark(text)
			switch {
			case !ours || m.leaseID != e.lease.ID:
				e.fail(issuers.Foreign, "the role "+e.lease.Name+" exists without the broker's mark of this lease; it is left alone", nil)
			case m.generation > e.lease.Generation:
				e.fail(issuers.Superseded, fmt.Sprintf("the account is of generation %d", m.generation), nil)
			default:
				e.oid = oid
				ddl.WriteString("ALTER ROLE " + ident(e.lease.Name) + " NOLOGIN PASSWORD NULL VALID UNTIL '-infinity';")
			}
			return nil
		})
		if err != nil || ddl.Len() == 0 {
			return err
		}
		_, err = run(ctx, b.conn, ddl.String())
		return err
	})
}

// lock takes the leases' locks, or marks those busy that a mint holds.
func (b *withdrawal) lock(ctx context.Context, tx pgx.Tx, items []*ending) error {
	keys := make([]int64, len(items))
	for i, e := range items {
		keys[i] = leaseKey(e.lease.ID)
	}
	rows, err := tx.Query(ctx, `SELECT i FROM unnest($1::bigint[]) WITH ORDINALITY AS l(key, i) WHERE NOT pg_try_advisory_xact_lock(key)`, keys)
	if err != nil {
		return err
	}
	var i int64
	_, err = pgx.ForEachRow(rows, []any{&i}, func() error {
		items[i-1].busy = true
		return nil
	})
	return err
}

// drop removes the accounts, and the values of their filters with them. Their
// sessions are gone and they own nothing.
func (b *withdrawal) drop(ctx context.Context, items []*ending) error {
	quoted := make([]string, len(items))
	for i, e := range items {
		quoted[i] = ident(e.lease.Name)
	}
	forget := ""
	if len(b.kept) > 0 {
		var err error
		if forget, err = deleteSQL(ctx, b.conn, b.kept, names(items), ""); err != nil {
			return err
		}
	}
	_, err := run(ctx, b.conn, forget+"DROP ROLE IF EXISTS "+strings.Join(quoted, ", "))
	return err
}

const proveSQL = `SELECT l.i, EXISTS (SELECT FROM pg_roles WHERE rolname = l.name OR oid = l.oid),
	EXISTS (SELECT FROM pg_stat_activity WHERE usesysid = l.oid),
	EXISTS (SELECT FROM pg_prepared_xacts WHERE owner = l.name)
	FROM unnest($1::text[], $2::oid[]) WITH ORDINALITY AS l(name, oid, i)`

// prove is the last look: what the target's own catalogue says. A session that
// was logging in while its account was shut shows only now, and is ended.
func (b *withdrawal) prove(ctx context.Context, items []*ending) error {
	rows, err := b.conn.Query(ctx, proveSQL, names(items), oids(items))
	if err != nil {
		return err
	}
	var i int64
	var role, session, prepared bool
	var late []*ending
	_, err = pgx.ForEachRow(rows, []any{&i, &role, &session, &prepared}, func() error {
		e := items[i-1]
		switch {
		case role:
			e.fail(issuers.Unknown, "pg_roles still lists "+e.lease.Name, nil)
		case prepared:
			e.fail(issuers.Poison, preparedDetail(e.lease.Name), nil)
		case session:
			late = append(late, e)
		default:
			e.prove()
		}
		return nil
	})
	if err != nil || len(late) == 0 {
		return err
	}
	if err := b.endSessions(ctx, late); err != nil {
		return err
	}
	for _, e := range late {
		if !e.settled {
			e.prove()
		}
	}
	return nil
}

func (e *ending) prove() {
	e.out.Receipt = issuers.Receipt{
		Proof:         issuers.ProofAbsent,
		Detail:        "pg_roles, pg_stat_activity and pg_prepared_xacts list nothing of " + e.lease.Name,
		SessionsEnded: len(e.sessions),
		OwnedDropped:  e.owned,
	}
	e.settled = true
}

func names(items []*ending) []string {
	out := make([]string, len(items))
	for i, e := range items {
		out[i] = e.lease.Name
	}
	return out
}

func oids(items []*ending) []uint32 {
	out := make([]uint32, len(items))
	for i, e := range items {
		out[i] = e.oid
	}
	return out
}
