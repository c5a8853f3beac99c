package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/issuers"
)

// What anybody may fetch, with no session: keys to verify with, and lists of
// what was withdrawn before its time.

// Publish returns a public document: "jwks" is the union of the verification
// keys of every target that publishes some.
func (e *Engine) Publish(ctx context.Context, document string) ([]byte, error) {
	if document != "jwks" {
		return nil, fault.New(fault.NotFound, "not_found", "There is no public document %q.", document)
	}
	var opened []*target
	err := e.view(func(q ledger.Query) error {
		for _, o := range q.Objects(ledger.KindTarget) {
			if t, err := e.targets.acquire(q, o.Name); err == nil {
				opened = append(opened, t)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	set := struct {
		Keys []json.RawMessage `json:"keys"`
	}{Keys: []json.RawMessage{}}
	for _, t := range opened {
		defer e.targets.release(t)
		p, ok := t.issuer.(issuers.Publisher)
		if !ok {
			continue
		}
		docs, err := p.Publish(ctx)
		if _, builtIn := e.kinds[t.kind.Name()]; err != nil && !builtIn {
			e.log.Warn("a plugin's keys are left out", "target", t.name, "error", err)
			continue // it keeps nobody else's from being published (law 8)
		}
		if err != nil {
			return nil, err
		}
		var one struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if json.Unmarshal(docs["jwks"], &one) == nil {
			set.Keys = append(set.Keys, one.Keys...)
		}
	}
	return json.Marshal(set)
}

// PublishTarget returns one public document of one target: "ca.pub", "krl".
// Nobody has signed in who asks: which targets there are is none of their
// business, nor is what ails one.
func (e *Engine) PublishTarget(ctx context.Context, name, document string) ([]byte, error) {
	if err := e.cfg.Log.Fresh(); err != nil { // an old list lacks entries
		return nil, err
	}
	none := fault.New(fault.NotFound, "not_found", "Target %s, if there is one, publishes no document %q.", name, document)
	var t *target
	err := e.view(func(q ledger.Query) (err error) { t, err = e.targets.acquire(q, name); return err })
	if err != nil && fault.KindOf(err) == fault.Unavailable {
		return nil, err
	}
	if err != nil {
		e.log.Debug("a public document was asked for", "target", name, "document", document, "error", err)
		return nil, none
	}
	defer e.targets.release(t)
	docs := map[string][]byte{}
	if p, ok := t.issuer.(issuers.Publisher); ok {
		if docs, err = p.Publish(ctx); err != nil {
			return nil, err
		}
	}
	if p, ok := t.issuer.(issuers.RevocationPublisher); ok && docs[document] == nil {
		if docs, err = e.revocations(ctx, t, p); err != nil {
			return nil, err
		}
	}
	if docs[document] == nil {
		return nil, none
	}
	return docs[document], nil
}

const (
	// revokedFor is how far back the leases are looked at that may stand in a
	// revocation list: the longest max_ttl of any kind that has one, and an hour for
	// verifiers' clocks.
	revokedFor = 30*24*time.Hour + revokedGrace
	// revokedGrace is how long past its end a lease is still handed to its issuer.
	revokedGrace = time.Hour
	// lateLease is how much older than its place in the ledger a lease's id may look:
	// ids are made by a leader's clock before they are committed.
	lateLease = time.Hour
	// maxRecent is how many leases of one target are remembered; where there are more,
	// reading all costs no more than looking each up.
	maxRecent = 100_000
	// revokedRest is how many times as long as it took to make the lists nobody
	// makes them again: strangers take a fifth of one processor, at most.
	revokedRest = 4
	// revokedQueue is how many may wait for one target's lists: so many that few
	// addresses cannot keep servers out, so few that the node goes on serving.
	revokedQueue = 1024
)

// revocations are the newest revocation lists of one target. To make the first is
// to read a month of leases, and anybody may ask: so what is still of interest is
// remembered, lists are kept for as long as the ledger stays as it was, and are
// made for all that wait at once.
type revocations struct {
	waiting atomic.Int32
	turn    *semaphore.Weighted // of one; it guards what follows
	docs    map[string][]byte   // nil until made
	size    uint64              // of the ledger they were made from
	rest    time.Time           // they are not made again before
	recent  map[string]bool     // ids of the leases that were open or unexpired; nil: look at all
	looked  time.Time           // ledger time of that look
}

// revocations returns lists that name all that the ledger knew as withdrawn when
// they were asked for (HAZARDS 5).
func (e *Engine) revocations(ctx context.Context, t *target, p issuers.RevocationPublisher) (map[string][]byte, error) {
	r := &t.revoked
	if r.waiting.Add(1) > revokedQueue {
		r.waiting.Add(-1)
		return nil, &fault.Error{Kind: fault.Unavailable, Code: "busy", RetryAfter: time.Second,
			Detail: "Too many ask for this list. Keep the one you have and ask again."}
	}
	defer r.waiting.Add(-1)
	var asked uint64
	if err := e.view(func(q ledger.Query) error { asked = q.Size(); return nil }); err != nil {
		return nil, err
	}
	if err := r.turn.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer r.turn.Release(1)
	if r.docs != nil && r.size >= asked {
		return r.docs, nil
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(time.Until(r.rest)):
	}
	began := time.Now()
	defer func() { r.rest = time.Now().Add(revokedRest * time.Since(began)) }()
	withdrawn, size, err := e.withdrawn(t.name, r)
	if err != nil {
		return nil, err
	}
	// Others wait for this list: whoever goes away does not take it with them.
	docs, err := p.PublishRevoked(context.WithoutCancel(ctx), slices.Values(withdrawn))
	if err != nil {
		return nil, err
	}
	r.docs, r.size = docs, size
	return docs, nil
}

// withdrawn returns the target's leases that a revocation list may have to name,
// and the size of the ledger that says so. It reads leases that were opened since it
// last looked, and those that were then open or unexpired: a lease that was neither
// never is again. The caller holds r.turn.
func (e *Engine) withdrawn(name string, r *revocations) (out []issuers.Lease, size uint64, err error) {
	err = e.view(func(q ledger.Query) error {
		size = q.Size()
		now := time.UnixMilli(q.Clock()) // the same on every node, and never ahead of all of them
		since := now.Add(-revokedFor)
		if r.recent != nil {
			since = r.looked.Add(-lateLease)
		} else {
			r.recent = map[string]bool{}
		}
		oldest, err := ledger.NewID(ledger.PrefixLease, since, bytes.NewReader(make([]byte, 16)))
		if err != nil {
			return err
		}
		expired := now.Add(-revokedGrace).UnixMilli()
		q.Unexpired(name, oldest, expired, func(id string) { r.recent[id] = true })
		for id := range r.recent {
			l, ok := q.Lease(id)
			switch {
			case !ok || l.State != ledger.LeaseOpen && l.ExpiresMS <= expired:
				delete(r.recent, id)
			case l.State != ledger.LeaseOpen:
				out = append(out, issuerLease(l, ledger.RoleSpec{}))
			}
		}
		r.looked = now
		return q.Err()
	})
	if err != nil || len(r.recent) > maxRecent {
		r.recent = nil
	}
	slices.SortFunc(out, func(a, b issuers.Lease) int { return strings.Compare(a.ID, b.ID) })
	return out, size, err
}
