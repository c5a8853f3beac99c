package kubernetes

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Withdraw implements [issuers.Issuer]. A lease has ended when the API server
// itself, asked by name, has none of its objects, and the time has passed for which
// API servers remember a token that they have accepted before.
func (is *Issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	outcomes := make([]issuers.Outcome, len(leases))
	plans, refs, proven := make([]plan, len(leases)), make([][]ref, len(leases)), make([]int, len(leases))
	var group errgroup.Group
	group.SetLimit(endConnections - 1) // one stays free for upkeep
	for i, l := range leases {
		group.Go(func() error {
			plans[i], refs[i], outcomes[i].Err = is.refs(ctx, l)
			if outcomes[i].Err == nil {
				proven[i], outcomes[i].Err = is.endLease(ctx, l, refs[i])
			}
			return nil
		})
	}
	_ = group.Wait() // the outcomes hold the errors
	var wait time.Duration
	for i := range leases {
		if outcomes[i].Err == nil {
			wait = max(wait, is.settles(plans[i]))
		}
	}
	waited := is.settle(ctx, wait)
	for i, l := range leases {
		switch {
		case outcomes[i].Err != nil:
		case !waited:
			outcomes[i].Err = &issuers.Error{Kind: issuers.Unknown, Detail: "the objects of " + l.Name + " are gone, but an API server may still remember its token"}
		default:
			outcomes[i].Receipt = is.receipt(l, plans[i], refs[i][len(refs[i])-1], proven[i])
		}
	}
	return outcomes
}

// refs are the objects that a lease has or had. A scope that does not read was
// never minted by this build; what another has made is found by its label.
func (is *Issuer) refs(ctx context.Context, l issuers.Lease) (plan, []ref, error) {
	if err := checkLease(l); err != nil {
		return plan{}, nil, err
	}
	p, err := compile(l.Scope)
	if err == nil {
		return p, p.ending(is.spec, l.Name), nil
	}
	var out []ref
	for _, c := range is.spec.collections() {
		err := is.end.list(ctx, c.res, c.namespace, is.marks.selector()+","+labelLease+"="+l.ID, func(m metadata) {
			out = append(out, ref{c.res, m.Namespace, m.Name})
		})
		if err != nil {
			return plan{}, nil, lookError("look for objects of "+l.Name, err)
		}
	}
	slices.Reverse(out) // bindings first
	return p, append(out, ref{secrets, is.spec.Namespace, l.Name}), nil
}

// settles is how long after its deletion a lease may still be good for something.
// An account that was made for the lease has no rights from the moment on that its
// bindings are gone, whoever remembers its token.
func (is *Issuer) settles(p plan) time.Duration {
	if p.account == "" {
		return min(is.spec.settle, watchLag)
	}
	return is.spec.settle
}

// settle waits until what this issuer has deleted so far is long enough ago; also
// what the leader before may have deleted, just before this issuer was opened.
func (is *Issuer) settle(ctx context.Context, wait time.Duration) bool {
	left := wait - time.Since(is.opened.Add(time.Duration(is.deleted.Load())))
	if left <= 0 {
		return true
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (is *Issuer) receipt(l issuers.Lease, p plan, anchor ref, proven int) issuers.Receipt {
	r := issuers.Receipt{Proof: issuers.ProofAbsent, Detail: fmt.Sprintf("the API server answers NotFound for %s", anchor)}
	if proven > 1 {
		r.Detail += fmt.Sprintf(" and the lease's other objects, %d", proven-1)
	}
	wait := is.settles(p)
	r.Detail += fmt.Sprintf("; at least %s have passed since their deletion", wait)
	if left := cacheTime - wait; left > 0 {
		r.Detail += fmt.Sprintf(", and an API server that remembers the token may accept it for %s more", left)
		if p.account == "" {
			r.Detail += ", without rights"
		}
	}
	if len(p.audiences) > 0 && time.Now().Before(l.NotAfter) {
		r.Proof = issuers.ProofExpiresOnly
		r.Detail += "; whoever verifies the token offline accepts it until " + l.NotAfter.UTC().Format(time.RFC3339)
	}
	return r
}

// endLease deletes a lease's objects until the API server has none of them, and
// says for how many that is proven. One that cannot be deleted does not save the
// others. The anchor is the last of refs.
func (is *Issuer) endLease(ctx context.Context, l issuers.Lease, refs []ref) (proven int, err error) {
	anchored := true
	if len(refs) > 1 {
		if _, anchored, err = is.end.look(ctx, refs[len(refs)-1]); err != nil {
			return 0, lookError("withdraw "+l.Name, err)
		}
	}
	var worst *issuers.Error
	for _, at := range refs {
		e := is.endObject(ctx, l, at)
		switch {
		case e == nil:
			proven++
			continue
		case !anchored && isStatus(e, http.StatusForbidden) && !is.spec.reaches(at):
			// A place that the target does not give rights in, and may not look into.
			// Without an anchor there is nothing there: it is made first and goes last.
			continue
		}
		if worst == nil || worst.Kind == issuers.Foreign || e.Kind == issuers.Poison {
			worst = e
		}
		if ctx.Err() != nil {
			break
		}
	}
	if worst == nil {
		return proven, nil
	}
	return proven, worst
}

// reaches says whether the spec lets leases have such an object.
func (s spec) reaches(at ref) bool {
	return slices.ContainsFunc(s.collections(), func(c collection) bool {
		return c.res == at.res && (c.namespace == at.namespace || s.wholeCluster() && c.namespace == "")
	})
}

func (is *Issuer) endObject(ctx context.Context, l issuers.Lease, at ref) *issuers.Error {
	what := "withdraw " + at.String()
	for i := range attempts {
		seen, there, err := is.end.look(ctx, at)
		switch {
		case err != nil:
			return lookError(what, err)
		case !there:
			return nil
		}
		k, ours := is.marks.read(at, seen)
		switch {
		case !ours || k.lease != l.ID:
			return foreign(at)
		case k.generation > l.Generation:
			return &issuers.Error{Kind: issuers.Superseded, Detail: fmt.Sprintf("%s is of generation %d", at, k.generation)}
		case seen.DeletionTimestamp != nil && len(seen.Finalizers) > 0:
			return held(at, seen)
		case seen.DeletionTimestamp == nil:
			err := is.end.remove(ctx, at, seen)
			is.deleted.Store(int64(time.Since(is.opened)))
			if err != nil && !isStatus(err, http.StatusNotFound) && !isStatus(err, http.StatusConflict) {
				return sentError(what, err)
			}
		}
		if i > 0 && pause(ctx, i) != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: what, Err: ctx.Err()}
		}
	}
	return &issuers.Error{Kind: issuers.Unknown, Detail: at.String() + " does not go away"}
}

// held: somebody has put a finalizer on an object of ours. Who did that must take
// it away; nobody else knows what it is for.
func held(at ref, seen metadata) *issuers.Error {
	in := ""
	if at.namespace != "" {
		in = "-n " + at.namespace + " "
	}
	return &issuers.Error{Kind: issuers.Poison, Detail: plain(fmt.Sprintf(
		"%s is held by the finalizers %s; its token is refused a minute after its deletion all the same. Once it is clear what they are for: kubectl %spatch %s %s --type=merge -p '{\"metadata\":{\"finalizers\":null}}'",
		at, strings.Join(seen.Finalizers, ", "), in, at.res.plural, at.name))}
}
