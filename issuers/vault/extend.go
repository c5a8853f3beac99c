package vault

import (
	"context"
	"fmt"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Extend implements [issuers.Extender]: what was read first, the token after it. An
// end that Vault does not grant is refused: the client keeps the one that it knows.
func (is *Issuer) Extend(ctx context.Context, lease issuers.Lease) error {
	if err := checkLease(lease); err != nil {
		return err
	}
	ctx = upkeep(ctx)
	release, err := is.minting.take(ctx, lease.ID)
	if err != nil {
		return &issuers.Error{Kind: issuers.Unreachable, Detail: "wait for a mint of the lease", Err: err}
	}
	defer release()
	id := is.marks.token(lease.ID)
	now, err := is.find(ctx, id)
	switch {
	case err != nil:
		return err
	case now.there && !now.ours:
		return foreign(lease)
	case !now.live():
		return &issuers.Error{Kind: issuers.Gone, Detail: "Vault has no token of the lease: it has ended, or was revoked there"}
	case now.mark.generation > lease.Generation:
		return &issuers.Error{Kind: issuers.Superseded, Detail: fmt.Sprintf("the lease's token is of generation %d", now.mark.generation)}
	}
	upstream, finished, err := is.recall(ctx, id, now.mark.mint)
	if err != nil {
		return err
	}
	if !finished {
		return &issuers.Error{Kind: issuers.Gone, Detail: "the lease's mint never came to its end"}
	}
	enough := time.Now().Add(now.left + slack).After(lease.NotAfter)
	if _, issued := unleased(lease.Scope); issued && !enough {
		return badScope(nil, "what was issued ends by the ttl that it was issued with; request it anew")
	}
	for _, u := range upstream {
		if err := is.extendUpstream(ctx, u, lease.NotAfter); err != nil {
			return err
		}
	}
	if enough {
		return nil
	}
	return is.prolong(ctx, id, time.Until(lease.NotAfter))
}

func (is *Issuer) extendUpstream(ctx context.Context, id string, end time.Time) error {
	left, there, err := is.leaseLeft(ctx, id)
	if err != nil {
		return err
	}
	if !there {
		return &issuers.Error{Kind: issuers.Gone, Detail: "Vault no longer knows the lease " + id}
	}
	// lastUntil renews only what ends too early, so that nothing moves backwards
	a := answer{item: item{path: pathOf(id)}, lease: id, called: time.Now()}
	return is.lastUntil(ctx, a, int64(left/time.Second), true, end)
}
