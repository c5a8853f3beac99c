package github

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// withdrawing bounds how many tokens are revoked at a time: GitHub asks for few
// requests at once, and each is two.
const withdrawing = 8

// ErrNotHeld is in the chain of a withdrawal's error where this process does not
// hold what it would have to revoke, and GitHub has not ended it yet.
var ErrNotHeld = errors.New("the token is not in this process's memory")

// Withdraw implements [issuers.Issuer].
func (is *Issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	slots := make(chan struct{}, withdrawing)
	var wg sync.WaitGroup
	for n, l := range leases {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out[n].Receipt, out[n].Err = is.withdraw(ctx, l)
		})
	}
	wg.Wait()
	return out
}

func (is *Issuer) withdraw(ctx context.Context, l issuers.Lease) (issuers.Receipt, error) {
	if is.closed.Load() {
		return issuers.Receipt{}, refused("the issuer is closed")
	}
	r, err := is.memory.enter(ctx, l, false)
	if err != nil {
		return issuers.Receipt{}, &issuers.Error{Kind: issuers.Unknown, Detail: "a mint of the lease is under way", Err: err}
	}
	if r == nil {
		return elsewhere(l, lastEnd(l))
	}
	defer r.leave()
	if _, err := is.revokeAll(ctx, r); err != nil {
		return issuers.Receipt{}, err
	}
	switch {
	case !r.whole(l.Generation):
		return elsewhere(l, lastEnd(l))
	case !r.lost.IsZero():
		return elsewhere(l, r.lost)
	case r.revoked:
		return issuers.Receipt{Proof: issuers.ProofRevoked, Detail: "DELETE /installation/token was answered with 204, and the token with 401 afterwards"}, nil
	case r.highest > 0:
		return issuers.Receipt{Proof: issuers.ProofAbsent, Detail: "GitHub answers the token with 401: it had ended already"}, nil
	}
	return issuers.Receipt{Proof: issuers.ProofAbsent, Detail: "GitHub made no token for this lease: every mint began here, and none was answered with one"}, nil
}

// elsewhere is the outcome for a token that this process cannot revoke: an error
// until GitHub has ended it, so that the lease does not end before.
func elsewhere(l issuers.Lease, end time.Time) (issuers.Receipt, error) {
	at := end.UTC().Format(time.RFC3339)
	if time.Now().Before(end) {
		return issuers.Receipt{}, &issuers.Error{Kind: issuers.Unknown, Err: ErrNotHeld,
			Detail: "what was delivered for this lease cannot be revoked from here; GitHub ends it by itself, at " + at + " at the latest, and so does the lease"}
	}
	return issuers.Receipt{Proof: issuers.ProofExpiresOnly,
		Detail: fmt.Sprintf("nothing was asked: the token was not in this process's memory; GitHub ends each after one hour, and none for this lease lived longer than %s", at)}, nil
}

// revokeOlder ends what re-mints have replaced. A failure is left to the withdrawal:
// the newest token is worth delivering.
func (is *Issuer) revokeOlder(ctx context.Context, r *record, generation uint64) {
	var keep, old []token
	for _, t := range r.held {
		if t.generation < generation {
			old = append(old, t)
		} else {
			keep = append(keep, t)
		}
	}
	r.held = old
	if left, err := is.revokeAll(ctx, r); err != nil {
		is.log.Warn("an older token of a lease is not revoked yet", "left", left, "error", err)
	}
	r.held = append(r.held, keep...)
}

// revokeAll revokes what the record holds, and returns how many are left.
func (is *Issuer) revokeAll(ctx context.Context, r *record) (int, error) {
	for len(r.held) > 0 {
		revoked, err := is.revoke(ctx, r.held[0].text)
		r.revoked = r.revoked || revoked
		if err != nil {
			return len(r.held), err
		}
		r.held = r.held[1:]
	}
	r.held = nil
	return 0, nil
}

// revoke ends one token, and has GitHub refuse it. revoked is false where GitHub did
// not know it from the beginning.
func (is *Issuer) revoke(ctx context.Context, t secret.Text) (revoked bool, err error) {
	reply, err := is.client.do(ctx, asToken, t, http.MethodDelete, "/installation/token", nil)
	switch {
	case err != nil:
		return false, err
	case reply.status == http.StatusUnauthorized:
		return false, nil
	case reply.status != http.StatusNoContent:
		return false, unsure(reply, "revoke an installation access token")
	}
	reply, err = is.client.do(ctx, asToken, t, http.MethodGet, "/installation/repositories?per_page=1", nil)
	if err == nil && reply.status != http.StatusUnauthorized {
		err = unsure(reply, "see a revoked token refused")
	}
	return true, err
}

// unsure is a withdrawal's error: the token may live, whatever was answered.
func unsure(r reply, what string) *issuers.Error {
	e := r.refusal(what)
	return &issuers.Error{Kind: issuers.Unknown, Detail: e.Detail}
}
