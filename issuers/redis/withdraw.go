package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-broker/mayfly/issuers"
)

// batchSize is how many leases are ended by one pipeline. Ending a user makes
// the server look through all its clients, twice.
const batchSize = 100

// lookSize is how many users are spelled out by one pipeline. Redis 7.0 takes
// milliseconds for each, and serves nobody else until a pipeline is through.
const lookSize = 8

// looks bounds how often a node is asked whether the sessions are gone.
const looks = 12

// ending is one lease on its way out.
type ending struct {
	lease issuers.Lease
	out   *issuers.Outcome
}

// onNode is what became of one lease on one node.
type onNode struct {
	there    bool
	sessions int
	err      error
}

// Withdraw implements [issuers.Issuer]. A lease has ended when every node that
// the deployment knows has shown that it has neither user nor session. A node
// that cannot be asked holds the receipt up: it may come back with the user.
func (is *Issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	outcomes := make([]issuers.Outcome, len(leases))
	var items []*ending
	for i, l := range leases {
		if err := checkLease(l); err != nil {
			outcomes[i].Err = err
			continue
		}
		items = append(items, &ending{lease: l, out: &outcomes[i]})
	}
	if len(items) == 0 {
		return outcomes
	}
	nodes, err := is.fleet.topology(ctx)
	if err != nil {
		for _, e := range items {
			e.out.Err = beforeError("withdraw", err)
		}
		return outcomes
	}
	// the same lease twice in one call stands side by side, in one batch
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
			is.withdrawBatch(ctx, nodes, batch)
			return nil
		})
	}
	_ = group.Wait() // the outcomes hold the errors
	return outcomes
}

func (is *Issuer) withdrawBatch(ctx context.Context, nodes []node, batch []*ending) {
	results := make([][]onNode, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			r := make([]onNode, len(batch))
			if err := is.endOn(ctx, n, batch, r); err != nil {
				for j := range r {
					if r[j].err == nil {
						r[j].err = err
					}
				}
			}
			results[i] = r
		})
	}
	wg.Wait()
	for j, e := range batch {
		e.conclude(nodes, results, j, is.spec.Persist)
	}
}

// conclude sums up what the nodes said of one lease.
func (e *ending) conclude(nodes []node, results [][]onNode, j int, persist string) {
	n := 0
	for i := range nodes {
		r := results[i][j]
		n += r.sessions
		if r.err != nil && (e.out.Err == nil || issuers.KindOf(r.err) == issuers.Unknown) {
			e.out.Err = r.err
		}
	}
	if e.out.Err != nil {
		return
	}
	where := nodes[0].addr
	if len(nodes) > 1 {
		where = fmt.Sprintf("%d nodes", len(nodes))
	}
	saved := ""
	if persist != persistNone {
		saved = "; their files were written after it"
	}
	e.out.Receipt = issuers.Receipt{
		Proof:         issuers.ProofAbsent,
		Detail:        "ACL GETUSER and CLIENT LIST of " + where + " show nothing of " + e.lease.Name + saved,
		SessionsEnded: n,
	}
}

// endOn ends a batch on one node. The error is for all that have none of their
// own yet.
func (is *Issuer) endOn(ctx context.Context, n node, batch []*ending, r []onNode) error {
	l, err := is.fleet.to(n.addr)
	if err != nil {
		return err
	}
	cn, done := conn(l.end)
	defer done()
	if err := is.look(ctx, n, cn, batch, r); err != nil {
		e := beforeError(n.addr+": look before a withdrawal", err)
		if n.down {
			e.Detail += "; the deployment takes this node for dead. If it never comes back, have it forgotten (SENTINEL RESET, CLUSTER FORGET)"
		}
		return e
	}
	if err := remove(ctx, cn, batch, r); err != nil {
		return sentError(n.addr+": withdraw", err)
	}
	// even where nothing was there: an earlier withdrawal may have failed to save
	if err := is.save(ctx, n.addr, cn); err != nil {
		e := sentError(n.addr+": write the users to disk after a withdrawal (persist: "+is.spec.Persist+")", err)
		e.Kind = issuers.Unknown
		return e
	}
	return is.prove(ctx, n, cn, batch, r)
}

// look takes down the leases' gates, so that no mint that is under way can end
// well any more, and then looks which users stand.
func (is *Issuer) look(ctx context.Context, n node, cn *goredis.Conn, batch []*ending, r []onNode) error {
	pipe := cn.Pipeline()
	if !n.replica && (is.spec.Topology != topologyCluster || n.slot >= 0) {
		gates := []any{"DEL"}
		for _, e := range batch {
			gates = append(gates, n.gate(e.lease.ID))
		}
		// a server that refuses writes refuses the mint's transaction as well
		pipe.Do(ctx, gates...)
	}
	cmds := make([]*goredis.Cmd, len(batch))
	for i, e := range batch {
		cmds[i] = pipe.Do(ctx, "ACL", "GETUSER", e.lease.Name)
		if (i+1)%lookSize != 0 && i != len(batch)-1 {
			continue
		}
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, goredis.Nil) {
			if _, said := answered(err); !said {
				return err
			}
		}
		pipe = cn.Pipeline()
	}
	for i, e := range batch {
		f, err := is.marks.readUser(e.lease.Name, cmds[i])
		switch {
		case err != nil:
			return err
		case !f.there:
		case !f.ours:
			r[i].err = &issuers.Error{Kind: issuers.Foreign, Detail: "the user " + e.lease.Name + " exists without the broker's mark of this lease; it is left alone"}
		case f.mark.generation > e.lease.Generation:
			r[i].err = &issuers.Error{Kind: issuers.Superseded, Detail: fmt.Sprintf("the user is of generation %d", f.mark.generation)}
		default:
			r[i].there = true
		}
	}
	return nil
}

// remove ends the users' sessions, to count them, and deletes the users, which
// ends whatever logged in since.
func remove(ctx context.Context, cn *goredis.Conn, batch []*ending, r []onNode) error {
	pipe := cn.Pipeline()
	kills := make([]*goredis.Cmd, len(batch))
	deletes := make([]*goredis.Cmd, len(batch))
	for i, e := range batch {
		if r[i].there {
			kills[i] = pipe.Do(ctx, "CLIENT", "KILL", "USER", e.lease.Name)
			deletes[i] = pipe.Do(ctx, "ACL", "DELUSER", e.lease.Name)
		}
	}
	if pipe.Len() == 0 {
		return nil
	}
	if _, err := pipe.Exec(ctx); err != nil {
		if _, said := answered(err); !said {
			return err
		}
	}
	for i := range batch {
		if !r[i].there {
			continue
		}
		if err := deletes[i].Err(); err != nil {
			r[i].err = sentError("delete "+batch[i].lease.Name, err)
		}
		if n, err := kills[i].Int(); err == nil { // else another withdrawal was quicker
			r[i].sessions = n
		}
	}
	return nil
}

// prove is the last look: what the server itself lists.
func (is *Issuer) prove(ctx context.Context, n node, cn *goredis.Conn, batch []*ending, r []onNode) error {
	for i := 0; ; i++ {
		pipe := cn.Pipeline()
		cmds := make([]*goredis.Cmd, len(batch))
		for j, e := range batch {
			cmds[j] = pipe.Do(ctx, "ACL", "GETUSER", e.lease.Name)
		}
		list := pipe.Do(ctx, "CLIENT", "LIST")
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, goredis.Nil) {
			return sentError(n.addr+": look after a withdrawal", err)
		}
		text, err := list.Text()
		if err != nil {
			return sentError(n.addr+": list the clients", err)
		}
		live := map[string]int{}
		for _, s := range sessions(text) {
			live[s.user]++
		}
		left := 0
		for j, e := range batch {
			f, err := is.marks.readUser(e.lease.Name, cmds[j])
			switch {
			case r[j].err != nil:
			case err != nil:
				return sentError(n.addr+": look after a withdrawal", err)
			case f.there:
				r[j].err = &issuers.Error{Kind: issuers.Unknown, Detail: n.addr + " still lists " + e.lease.Name}
			default:
				left += live[e.lease.Name]
			}
		}
		if left == 0 {
			return nil
		}
		if i == looks || pause(ctx, i) != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("%s: %d sessions of withdrawn users do not end", n.addr, left)}
		}
	}
}
