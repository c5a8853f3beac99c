package vault

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// endLanes is how many leases are ended at once.
const endLanes = 8

// leaseIDPattern is a lease id of Vault's: the path, and a random part, which may
// end in a namespace's id.
var leaseIDPattern = regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)+$`)

func checkLeaseID(id string) error {
	dots := slices.ContainsFunc(strings.Split(id, "/"), func(s string) bool { return strings.Trim(s, ".") == "" })
	if len(id) > 1024 || dots || !leaseIDPattern.MatchString(id) {
		return fmt.Errorf("%q is no lease id that can be named in a call", plain(id, 80))
	}
	return nil
}

// Withdraw implements [issuers.Issuer]. What was read is revoked first, at once and
// by name, so that Vault says itself whether the system behind it has let go; the
// token, which remembers the names, goes last.
func (is *Issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	ctx = upkeep(ctx)
	out := make([]issuers.Outcome, len(leases))
	var group errgroup.Group
	group.SetLimit(endLanes)
	same := map[string]*sync.Mutex{}
	for i, l := range leases {
		if err := checkLease(l); err != nil {
			out[i].Err = err
			continue
		}
		if same[l.ID] == nil {
			same[l.ID] = &sync.Mutex{}
		}
		turn := same[l.ID]
		group.Go(func() error {
			turn.Lock()
			defer turn.Unlock()
			out[i].Receipt, out[i].Err = is.withdraw(ctx, l)
			return nil
		})
	}
	_ = group.Wait() // the outcomes hold the errors
	return out
}

func (is *Issuer) withdraw(ctx context.Context, l issuers.Lease) (issuers.Receipt, error) {
	id := is.marks.token(l.ID)
	var none issuers.Receipt
	now, err := is.find(ctx, id)
	switch {
	case err != nil:
		return none, err
	case now.there && !now.ours:
		return none, foreign(l)
	case now.live() && now.mark.generation > l.Generation:
		return none, &issuers.Error{Kind: issuers.Superseded, Detail: fmt.Sprintf("the lease's token is of generation %d", now.mark.generation)}
	}
	detail := "auth/token/lookup knows no token of the lease"
	if now.live() {
		if detail, err = is.end(ctx, l, id, now); err != nil {
			return none, err
		}
	}
	if !now.there || now.live() {
		if err := is.bury(ctx, l, id); err != nil {
			return none, err
		}
	}
	return is.receipt(l, detail), nil
}

// end ends a live token and all that was read with it.
func (is *Issuer) end(ctx context.Context, l issuers.Lease, id secret.Text, now state) (detail string, err error) {
	upstream, finished, err := is.recall(ctx, id, now.mark.mint)
	if err != nil {
		if again, ferr := is.find(ctx, id); ferr != nil || again.there {
			return "", err
		}
		// it ended between two looks, by its own time
		return "the lease's token has ended by itself, and what was read with it", nil
	}
	if err := is.endUpstream(ctx, upstream); err != nil {
		return "", err
	}
	if err := is.revoke(ctx, id); err != nil {
		return "", err
	}
	if err := is.absent(ctx, id); err != nil {
		return "", err
	}
	detail = fmt.Sprintf("Vault's own leases revoked: %d; sys/leases/lookup knows none of them, auth/token/lookup no token of the lease", len(upstream))
	if !finished {
		detail += "; its mint had not come to its end, and what it read Vault revokes with the token"
	}
	return detail, nil
}

// endUpstream revokes leases of Vault's, one after the other, and asks for each
// whether it is gone.
func (is *Issuer) endUpstream(ctx context.Context, leases []string) error {
	for _, id := range leases {
		_, err := is.call(ctx, op{method: http.MethodPut, path: "sys/leases/revoke/" + id, namespace: is.fleet.secrets, body: map[string]any{"sync": true}, timeout: slowTimeout})
		if err != nil && statusOf(err) != http.StatusBadRequest { // 400 is also said of one that is gone: the look decides
			e := changeError("revoke "+id, err)
			if e.Kind == issuers.Unknown && statusOf(err) == http.StatusInternalServerError {
				e.Detail += ": Vault could not revoke it on the system behind"
			}
			return e
		}
		there, err := is.leaseThere(ctx, id)
		if err != nil {
			return err
		}
		if there {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "Vault still knows the lease " + id}
		}
	}
	return nil
}

// leaseThere asks whether Vault knows a lease of its own. It answers 400 for one
// that it does not know, and 403 for a question that may not be asked.
func (is *Issuer) leaseThere(ctx context.Context, id string) (bool, error) {
	_, there, err := is.leaseLeft(ctx, id)
	return there, err
}

// leaseLeft returns how long a lease of Vault's lasts from now.
func (is *Issuer) leaseLeft(ctx context.Context, id string) (left time.Duration, there bool, err error) {
	s, err := is.call(ctx, op{method: http.MethodPut, path: "sys/leases/lookup", namespace: is.fleet.secrets, body: map[string]any{"lease_id": id}})
	switch {
	case statusOf(err) == http.StatusBadRequest:
		return 0, false, nil
	case err != nil:
		return 0, false, lookError("look for the lease "+id, err)
	case s == nil || s.Data == nil:
		return 0, false, &issuers.Error{Kind: issuers.Unreachable, Detail: "look for the lease " + id + ": Vault's answer is empty"}
	}
	return time.Duration(number(s.Data["ttl"])) * time.Second, true, nil
}

// absent proves that a token is gone. Vault answers a revocation at once where
// another one of the same token is under way: that one is waited for.
func (is *Issuer) absent(ctx context.Context, id secret.Text) error {
	for i := 0; ; i++ {
		now, err := is.find(ctx, id)
		switch {
		case err != nil:
			return err
		case !now.live():
			return nil
		case i == looks || pause(ctx, i) != nil:
			return &issuers.Error{Kind: issuers.Unknown, Detail: "Vault still knows the lease's token"}
		}
	}
}

// looks bounds the wait for another's revocation: about ten seconds.
const looks = 45

// pause waits before the n-th look, from 0: 4 ms, doubled up to 256 ms.
func pause(ctx context.Context, n int) error {
	t := time.NewTimer(4 * time.Millisecond << min(n, 6))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// bury leaves a tombstone while a mint of the lease might still arrive, or still be
// read inside Vault: a token of the same id that opens nothing. A late mint finds
// the id taken; and when the tombstone ends by itself, Vault revokes with it
// whatever was registered under that id meanwhile.
func (is *Issuer) bury(ctx context.Context, l issuers.Lease, id secret.Text) error {
	if l.MintDeadline.IsZero() {
		return nil
	}
	left := time.Until(l.MintDeadline) + is.spec.maxRequest + slack
	if left <= 0 {
		return nil
	}
	k := mark{lease: l.ID, generation: l.Generation, term: is.term, ended: true}
	for i := 0; ; i++ {
		err := is.create(ctx, id, l, k, min(left, maxRequest))
		if err == nil {
			return nil
		}
		now, ferr := is.find(ctx, id)
		switch {
		case ferr == nil && now.ours && now.mark.ended:
			return nil // another withdrawal was quicker
		case ferr == nil && now.live():
			return &issuers.Error{Kind: issuers.Unknown, Detail: "a mint of the lease came between; withdraw it again"}
		}
		// While Vault takes away the token that was there, its id is taken and it is
		// not found any more, or not alive.
		if ferr != nil || statusOf(err) != http.StatusBadRequest || i == looks || pause(ctx, i) != nil {
			return err
		}
	}
}

// receipt says what the end is worth: of what Vault gave without a lease only its
// own end is one, and of what is stored there is none.
func (is *Issuer) receipt(l issuers.Lease, detail string) issuers.Receipt {
	r := issuers.Receipt{Proof: issuers.ProofAbsent, Detail: detail}
	static, issued := unleased(l.Scope)
	if issued {
		r.Proof = issuers.ProofExpiresOnly
		r.Detail += "; what it issued without a lease of Vault's ends by the ttl that it was issued with"
	}
	if static {
		r.Proof = issuers.ProofExpiresOnly
		r.Detail += "; what is stored (action static) does not end: whoever read it knows it until it is changed in Vault"
	}
	return r
}

// unleased says what of a scope Vault gives without a lease.
func unleased(s scope.Scope) (static, issued bool) {
	for _, d := range s {
		for _, a := range d.Actions {
			static = static || a == actionStatic
			issued = issued || a == actionIssue
		}
	}
	return static, issued
}
