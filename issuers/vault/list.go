package vault

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Limits of a look through all of Vault's tokens.
const (
	maxAccessors = 100_000
	listLanes    = 8
)

// List implements [issuers.Lister]. Vault has no list of tokens by their role or
// metadata: every token's accessor is looked at. Tombstones are not listed: they
// are no credentials.
func (is *Issuer) List(ctx context.Context) ([]issuers.Found, error) {
	const what = "list Vault's tokens"
	ctx = upkeep(ctx)
	s, err := is.call(ctx, op{method: "LIST", path: "auth/token/accessors", timeout: slowTimeout})
	if err != nil {
		return nil, lookError(what, err)
	}
	var keys []any
	if s != nil {
		keys, _ = s.Data["keys"].([]any)
	}
	if len(keys) == 0 { // the broker's own token is one of them
		return nil, &issuers.Error{Kind: issuers.Unreachable, Detail: what + ": Vault's answer is empty"}
	}
	if len(keys) > maxAccessors {
		return nil, refused("%s: %d tokens; more than %d are not looked through", what, len(keys), maxAccessors)
	}
	var mu sync.Mutex
	var out []issuers.Found
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(listLanes)
	for _, k := range keys {
		accessor, _ := k.(string)
		group.Go(func() error {
			found, ok, err := is.atAccessor(gctx, accessor)
			if ok {
				mu.Lock()
				out = append(out, found)
				mu.Unlock()
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b issuers.Found) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// atAccessor looks at one token; one that ended meanwhile is not there.
func (is *Issuer) atAccessor(ctx context.Context, accessor string) (issuers.Found, bool, error) {
	own, err := is.own.get(ctx, secret.Text{})
	if err != nil {
		return issuers.Found{}, false, err
	}
	s, err := is.fleet.call(ctx, op{method: http.MethodPut, path: "auth/token/lookup-accessor", token: own, body: map[string]any{"accessor": accessor}})
	switch statusOf(err) {
	case http.StatusForbidden:
		return issuers.Found{}, false, is.mayLookAtAccessors(ctx, own)
	case http.StatusNotFound, http.StatusBadRequest:
		return issuers.Found{}, false, nil
	}
	if err != nil {
		return issuers.Found{}, false, lookError("look at a token by its accessor", err)
	}
	st, err := is.readState(s)
	if err != nil || !st.live() || !namePattern.MatchString(namePrefix+st.mark.lease) {
		return issuers.Found{}, false, err
	}
	return issuers.Found{Name: namePrefix + st.mark.lease, LeaseID: st.mark.lease, Generation: st.mark.generation}, true, nil
}

// mayLookAtAccessors asks for the accessor of the broker's own token: Vault answers
// 403 for a token that ended between two looks, and for a right that is missing.
func (is *Issuer) mayLookAtAccessors(ctx context.Context, own secret.Text) error {
	s, err := is.fleet.call(ctx, lookup(own, own))
	if err == nil && s != nil {
		_, err = is.fleet.call(ctx, op{method: http.MethodPut, path: "auth/token/lookup-accessor", token: own, body: map[string]any{"accessor": s.Data["accessor"]}})
	}
	if err != nil {
		return lookError("look at a token by its accessor (update on auth/token/lookup-accessor)", err)
	}
	return nil
}

// pathOf is the path that a lease of Vault's came from.
func pathOf(leaseID string) string {
	if i := strings.LastIndexByte(leaseID, '/'); i > 0 {
		return leaseID[:i]
	}
	return leaseID
}
