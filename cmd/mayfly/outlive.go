package main

import (
	"fmt"
	"strings"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// A lease can be over and its credential not: nothing takes back a token that
// others verify, or a stored secret that somebody has read. Whoever ended it must
// not believe that it is gone.

// outlives says that an ended lease's credential was not withdrawn, and until when
// it may work; empty where it was.
func outlives(p *page, l wire.Lease) string {
	r, yes := l.Outlived()
	if !yes {
		return ""
	}
	said := "was not withdrawn"
	if r.Proof == wire.ProofForced {
		said += ", nor was the target asked"
	}
	switch {
	case strings.HasPrefix(l.Username, "account/"): // it lives on by its nature
		return said + "; it may work until the account's next rotation"
	case l.ExpiresAt.After(p.now):
		return said + "; it may work until " + p.both(l.ExpiresAt) + ", or longer where the receipt says so"
	default:
		return said + "; its own end was " + p.both(l.ExpiresAt) + ", unless the receipt says otherwise"
	}
}

// revokedLines says what has come of a revocation.
func revokedLines(p *page, l wire.Lease) {
	text := outlives(p, l)
	if text == "" {
		p.line(l.ID + " is " + l.State)
		return
	}
	r, _ := l.Outlived()
	p.line(l.ID + " is ended, but its credential " + text)
	p.line("  " + r.Proof + ": " + r.Detail)
}

// withdrawn says what the end of a task's leases is worth.
func withdrawn(a wire.EndTaskAnswer) string {
	only, forced := a.Proofs[wire.ProofExpiresOnly], a.Proofs[wire.ProofForced]
	proven := a.Leases - only - forced
	if proven == a.Leases {
		return count(a.Leases, "lease") + " withdrawn, confirmed by the targets"
	}
	var parts []string
	if proven > 0 {
		parts = append(parts, fmt.Sprintf("%d withdrawn, confirmed by the targets", proven))
	}
	if only > 0 {
		parts = append(parts, fmt.Sprintf("%d only by the ledger, with a credential that nothing can withdraw (expires-only)", only))
	}
	if forced > 0 {
		parts = append(parts, fmt.Sprintf("%d without the target's word (forced)", forced))
	}
	return count(a.Leases, "lease") + " ended: " + strings.Join(parts, "; ")
}
