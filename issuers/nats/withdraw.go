package nats

import (
	"context"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// looks bounds how often the servers are asked whether what was pushed is in
// force and the sessions are gone.
const looks = 40

// ending is one lease on its way out.
type ending struct {
	lease issuers.Lease
	keys  []string // of all its generations
	out   *issuers.Outcome
}

// withdraw ends leases: what still lives is revoked in the account's JWT, by one
// push for all of them; what every server's own clock says has expired is only
// looked at.
func (r *revoker) withdraw(ctx context.Context, leases []issuers.Lease, out []issuers.Outcome) {
	var items []*ending
	for i, l := range leases {
		e := &ending{lease: l, out: &out[i]}
		err := checkLease(l)
		if err == nil {
			e.keys, err = r.is.keys.users.all(l.ID, l.Generation)
		}
		if err != nil {
			out[i].Err = err
			continue
		}
		items = append(items, e)
	}
	if len(items) == 0 {
		return
	}
	if err := r.end(ctx, items); err != nil {
		for _, e := range items {
			if e.out.Receipt.Proof == "" {
				e.out.Err = err
			}
		}
	}
}

func (r *revoker) end(ctx context.Context, items []*ending) error {
	c, err := r.read(ctx)
	if err != nil {
		return err
	}
	ids, err := r.sys.servers(ctx, c)
	if err != nil {
		return beforeError("find the servers before a withdrawal", err)
	}
	sessions, err := r.sessions(ctx, c, ids)
	if err != nil {
		return err
	}
	add := map[string]int64{}
	var live []*ending
	for _, e := range items {
		if over(e.lease.NotAfter, ids) && e.count(sessions) == 0 {
			e.out.Receipt = issuers.Receipt{
				Proof:  issuers.ProofAbsent,
				Detail: fmt.Sprintf("the clocks of %s are past the end of %s; their CONNZ shows no session of it", count(len(ids)), e.lease.Name),
			}
			continue
		}
		live = append(live, e)
		for _, k := range e.keys {
			add[k] = moment(e.lease.NotAfter)
		}
	}
	if len(live) == 0 {
		return nil
	}
	if ids, err = r.update(ctx, change{revoke: add}); err != nil {
		return err
	}
	if err := r.prove(ctx, add, ids, sessions); err != nil {
		return err
	}
	for _, e := range live {
		e.out.Receipt = issuers.Receipt{
			Proof:         issuers.ProofRevoked,
			Detail:        fmt.Sprintf("INFO of %s lists the key of %s as revoked; their CONNZ shows no session of it", count(len(ids)), e.lease.Name),
			SessionsEnded: e.count(sessions),
		}
	}
	return nil
}

func count(servers int) string {
	if servers == 1 {
		return "1 server"
	}
	return fmt.Sprintf("%d servers", servers)
}

func (e *ending) count(sessions map[string]int) (n int) {
	for _, k := range e.keys {
		n += sessions[k]
	}
	return n
}

// over says whether a lease has ended by the clock of every server. Its JWT's exp
// lies a second before.
func over(notAfter time.Time, ids map[string]server) bool {
	for _, s := range ids {
		if s.time.Before(notAfter) {
			return false
		}
	}
	return true
}

// sessions counts the account's live connections by user key.
func (r *revoker) sessions(ctx context.Context, c *conn, ids map[string]server) (map[string]int, error) {
	list, err := r.sys.connections(ctx, c, r.sys.account, ids)
	if err != nil {
		return nil, beforeError("list the account's connections", err)
	}
	out := map[string]int{}
	for _, x := range list {
		out[x.User]++
	}
	return out, nil
}

// prove is the last look: each server's memory lists the keys as revoked, and no
// connection has one of them. Sessions that came since sessions was counted are
// added to it.
func (r *revoker) prove(ctx context.Context, keys map[string]int64, ids map[string]server, sessions map[string]int) error {
	for i := 0; ; i++ {
		c, err := r.read(ctx)
		if err != nil {
			return sentError("look after a revocation", err)
		}
		lacking, err := r.sys.lacking(ctx, c, keys, ids)
		if err != nil {
			return sentError("look after a revocation", err)
		}
		live, err := r.sessions(ctx, c, ids)
		if err != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "look after a revocation", Err: err}
		}
		left := 0
		for k := range keys {
			left += live[k]
			if sessions != nil {
				sessions[k] = max(sessions[k], live[k])
			}
		}
		if len(lacking) == 0 && left == 0 {
			return nil
		}
		if i == looks || pause(ctx, i) != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("%d keys are not yet revoked on every server, and %d of their sessions live", len(lacking), left)}
		}
	}
}
