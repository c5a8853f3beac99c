package broker

import (
	"bytes"
	"context"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// lookBack is how far before a grant its like is looked for: what was granted
// longer ago tells an approver little.
const lookBack = 90 * 24 * time.Hour

// Previous returns what the requester of a grant was granted last on the same
// role, with approvals. not_found where there is nothing that the caller may see.
func (e *Engine) Previous(_ context.Context, c Caller, id string) (wire.Grant, error) {
	this, err := e.visible(c, id)
	if err != nil {
		return wire.Grant{}, err
	}
	none := make([]byte, 32)
	from, err := ledger.NewID(ledger.PrefixGrant, time.UnixMilli(this.RequestedMS).Add(-lookBack), bytes.NewReader(none))
	if err != nil {
		return wire.Grant{}, err
	}
	var last ledger.Cosigned
	var out wire.Grant
	err = e.view(func(q ledger.Query) error {
		q.CosignedGrants(from, func(g ledger.Cosigned) bool {
			used := len(g.Leases) > 0
			if g.ID < id && used && g.Principal == this.Principal && g.Role == this.Role && g.Kind != ledger.GrantChange && e.sees(q, c, g) {
				last = g
			}
			return g.ID < id
		})
		if last.ID == "" {
			return fault.New(fault.NotFound, "no_previous_grant", "%s was granted nothing on %s before.", this.Principal, this.Role)
		}
		out = e.wireGrant(q, c, last)
		return nil
	})
	return out, err
}

// ReviewHash returns, in hex, what a reviewer of an emergency signs.
func (e *Engine) ReviewHash(_ context.Context, c Caller, id, verdict, note string) (string, error) {
	g, err := e.visible(c, id)
	if err != nil {
		return "", err
	}
	var hash string
	err = e.view(func(q ledger.Query) (err error) {
		hash, err = q.ReviewHash(g, verdict, note)
		return err
	})
	if err != nil {
		return "", fault.Wrap(err, fault.Invalid, "review_malformed", "The review cannot be signed: %v.", err)
	}
	return hash, nil
}
