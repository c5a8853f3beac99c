package rabbitmq

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-broker/mayfly/issuers"
)

const (
	// batchSize is how many users one request deletes.
	batchSize = 100
	// settle is how long after its user's deletion a connection may still appear:
	// one that was let in just before is in the server's table a moment later.
	settle = 50 * time.Millisecond
	// looks bounds how often the server is asked whether the connections are gone:
	// about five seconds.
	looks = 24
)

// ending is one lease on its way out.
type ending struct {
	lease    issuers.Lease
	out      *issuers.Outcome
	there    bool
	sessions map[string]bool // every connection that was seen
}

func (e *ending) fail(err *issuers.Error) {
	if e.out.Err == nil {
		e.out.Err = err
	}
}

func (e *ending) saw(sessions []string) {
	for _, s := range sessions {
		e.sessions[s] = true
	}
}

// Withdraw implements [issuers.Issuer].
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
	for batch := range slices.Chunk(items, batchSize) {
		is.withdrawBatch(ctx, is.api.end, batch)
	}
	return outcomes
}

// endBatch ends a batch: look, delete, close what still lives, look until nothing
// is left. The outcomes hold receipts and errors, as one node sees it.
func (is *Issuer) endBatch(ctx context.Context, c *http.Client, batch []*ending) {
	each(batch, func(e *ending) { is.before(ctx, c, e) })
	var there []*ending
	var names []string
	for _, e := range batch {
		if e.out.Err == nil && e.there && !slices.Contains(names, e.lease.Name) {
			there, names = append(there, e), append(names, e.lease.Name)
		}
	}
	is.remove(ctx, c, there, names)
	deleted := time.Now()
	each(batch, func(e *ending) { is.prove(ctx, c, e, deleted) })
}

// withdrawBatch is endBatch, and asks for the other nodes afterwards: what one says
// goes for all if they are together now.
func (is *Issuer) withdrawBatch(ctx context.Context, c *http.Client, batch []*ending) {
	is.endBatch(ctx, c, batch)
	if !slices.ContainsFunc(batch, func(e *ending) bool { return e.out.Err == nil }) {
		return
	}
	if err := is.whole(ctx, c); err != nil {
		for _, e := range batch {
			if e.out.Err == nil {
				e.out.Receipt = issuers.Receipt{}
				e.fail(&issuers.Error{Kind: issuers.Unknown, Detail: "look whether the cluster is whole", Err: err})
			}
		}
	}
}

// each runs f for all, a few at a time: as many as there are connections.
func each(batch []*ending, f func(*ending)) {
	var group errgroup.Group
	group.SetLimit(endLanes)
	for _, e := range batch {
		group.Go(func() error {
			f(e)
			return nil
		})
	}
	_ = group.Wait() // the outcomes hold the errors
}

// before looks whether the user stands and who is logged in.
func (is *Issuer) before(ctx context.Context, c *http.Client, e *ending) {
	e.sessions = map[string]bool{}
	f, err := is.look(ctx, c, e.lease.Name)
	if err != nil {
		e.fail(beforeError("look before a withdrawal", err))
		return
	}
	if f.there && !f.ours {
		e.fail(foreign(e.lease.Name))
		return
	}
	if e.there = f.there; !e.there {
		return
	}
	sessions, err := is.sessions(ctx, c, e.lease.Name)
	if err != nil {
		e.fail(beforeError("list the connections of "+e.lease.Name, err))
		return
	}
	e.saw(sessions)
}

// remove deletes the users in one request. Servers refuse the whole of it where
// another withdrawal was quicker with one name, or stop there; then each is
// deleted by itself.
func (is *Issuer) remove(ctx context.Context, c *http.Client, there []*ending, names []string) {
	if len(there) > 1 {
		r, err := is.api.do(ctx, c, call{method: http.MethodPost, path: at("users", "bulk-delete"), body: map[string]any{"users": names}})
		if err == nil && r.status == http.StatusNoContent {
			return
		}
		if err != nil {
			for _, e := range there {
				e.fail(sentError("delete users", err))
			}
			return
		}
	}
	each(there, func(e *ending) {
		if err := is.delete(ctx, c, at("users", e.lease.Name)); err != nil {
			e.fail(sentError("delete "+e.lease.Name, err))
		}
	})
}

// delete deletes something. RabbitMQ answers 500 where it went away while the
// request ran, as when two withdrawals overlap: the look afterwards tells.
func (is *Issuer) delete(ctx context.Context, c *http.Client, path string) error {
	r, err := is.api.do(ctx, c, call{method: http.MethodDelete, path: path})
	if err == nil && r.status != http.StatusNoContent && r.status != http.StatusNotFound && r.status != http.StatusInternalServerError {
		err = said(r)
	}
	return err
}

// prove closes the connections that still live and looks until the server lists
// neither user nor connection. The server closes them by itself when their user is
// deleted; it is told again, for whoever came in just before, and for what an
// earlier withdrawal left half done.
func (is *Issuer) prove(ctx context.Context, c *http.Client, e *ending, deleted time.Time) {
	if e.out.Err != nil {
		return
	}
	for i := 0; ; i++ {
		began := time.Now()
		live, err := is.lookAfter(ctx, c, e)
		switch {
		case err != nil:
			e.fail(err)
			return
		case live == 0 && (!e.there || began.Sub(deleted) >= settle):
			e.out.Receipt = issuers.Receipt{
				Proof:         issuers.ProofAbsent,
				Detail:        "the management API lists neither the user " + e.lease.Name + " nor a connection of it, and every node of the cluster runs",
				SessionsEnded: len(e.sessions),
			}
			return
		case i == looks || pause(ctx, i) != nil:
			e.fail(&issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("%d connections of %s do not end", live, e.lease.Name)})
			return
		}
	}
}

// lookAfter is one look, which also closes what it sees.
func (is *Issuer) lookAfter(ctx context.Context, c *http.Client, e *ending) (live int, _ *issuers.Error) {
	f, err := is.look(ctx, c, e.lease.Name)
	if err != nil {
		return 0, afterError(e, err)
	}
	if f.there {
		return 0, &issuers.Error{Kind: issuers.Unknown, Detail: "the server still lists " + e.lease.Name}
	}
	sessions, err := is.sessions(ctx, c, e.lease.Name)
	if err != nil {
		return 0, afterError(e, err)
	}
	if len(sessions) == 0 {
		return 0, nil
	}
	e.saw(sessions)
	if err := is.delete(ctx, c, at("connections", "username", e.lease.Name)); err != nil {
		return 0, afterError(e, err)
	}
	return len(sessions), nil
}

// afterError: of a user that was there, the end is not proven; of one that was
// not, nothing was changed.
func afterError(e *ending, err error) *issuers.Error {
	if e.there {
		return &issuers.Error{Kind: issuers.Unknown, Detail: "look after the withdrawal of " + e.lease.Name, Err: err}
	}
	return beforeError("look for "+e.lease.Name, err)
}
