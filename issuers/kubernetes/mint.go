package kubernetes

import (
	"context"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Issuer mints and withdraws tokens on one cluster. It is safe for concurrent
// use; [Kind.Open] makes one.
type Issuer struct {
	spec    spec
	term    uint64
	ca      string // PEM, or empty
	mint    *client
	end     *client // withdrawal and upkeep have connections of their own
	marks   marker
	log     *slog.Logger
	minting *locks
	opened  time.Time
	deleted atomic.Int64 // when an object was last deleted: ns after opened
}

// Close implements [issuers.Issuer].
func (is *Issuer) Close() error {
	is.mint.close()
	is.end.close()
	return nil
}

// minting is one mint under way.
type minting struct {
	lease    issuers.Lease
	plan     plan
	mark     mark
	deadline time.Time // wall clock: a suspended machine's other clock stands still
	anchor   metadata
	named    map[string][]rule // what the ClusterRoles of the scope allow, where that is known
	replaced bool              // an older generation of the lease was there
	made     bool              // something of the lease may stand
}

// Mint implements [issuers.Issuer].
func (is *Issuer) Mint(ctx context.Context, lease issuers.Lease) (issuers.Credential, error) {
	m, err := is.prepare(lease)
	if err != nil {
		return issuers.Credential{}, err
	}
	ctx, cancel := context.WithDeadline(ctx, m.deadline)
	defer cancel()
	release, err := is.minting.take(ctx, lease.ID)
	if err != nil {
		return issuers.Credential{}, lookError("wait for another mint of the lease", err)
	}
	defer release()
	if err := is.make(ctx, m); err != nil {
		return issuers.Credential{}, is.orUndo(ctx, m, err)
	}
	t, err := is.tokens(ctx, m)
	if err != nil {
		return issuers.Credential{}, is.orUndo(ctx, m, err)
	}
	return is.credential(m, t), nil
}

func (is *Issuer) prepare(l issuers.Lease) (*minting, error) {
	if err := checkLease(l); err != nil {
		return nil, err
	}
	p, err := compile(l.Scope)
	if err == nil {
		err = p.within(is.spec)
	}
	if err != nil {
		return nil, &issuers.Error{Kind: issuers.Refused, Detail: "the scope is not one for this target", Err: err}
	}
	now := time.Now()
	m := &minting{lease: l, plan: p, mark: mark{l.ID, l.Generation, is.term}, deadline: l.MintDeadline}
	if m.deadline.IsZero() {
		m.deadline = now.Add(defaultDeadline)
	}
	if l.NotAfter.Before(m.deadline) {
		m.deadline = l.NotAfter
	}
	m.deadline = m.deadline.Round(0)
	if !now.Round(0).Before(m.deadline) {
		return nil, tooLate()
	}
	if len(p.audiences) > 0 && l.NotAfter.Sub(now) < minToken {
		return nil, refused("a token for another audience cannot be revoked where it is verified offline, and lives %s at least; this lease is to end in %s", minToken, l.NotAfter.Sub(now).Round(time.Second))
	}
	return m, nil
}

// inTime says whether the deadline still stands before us, by the wall clock.
func (m *minting) inTime() bool { return time.Now().Round(0).Before(m.deadline) }

// make puts the lease's objects there: its anchor first, whose name only one mint
// can take, then the account and what gives it rights.
func (is *Issuer) make(ctx context.Context, m *minting) error {
	var err error
	if m.named, err = is.namedRoles(ctx, m.plan); err != nil {
		return err
	}
	at := m.plan.anchor(is.spec, m.lease.Name)
	if m.anchor, err = is.create(ctx, m, making{at, object{Type: anchorType}}); err != nil {
		return err
	}
	// by the target's clock, which counts whole seconds (HAZARDS 8)
	if t := m.anchor.CreationTimestamp; t != nil && t.After(m.deadline) {
		return tooLate()
	}
	for _, x := range m.plan.places(is.spec, m.lease.Name) {
		if _, err := is.create(ctx, m, x); err != nil {
			return err
		}
	}
	return nil
}

// namedRoles reads the ClusterRoles that the scope names: a binding to one that is
// not there would be made, and give nothing. A broker that may not read them does
// without.
func (is *Issuer) namedRoles(ctx context.Context, p plan) (map[string][]rule, error) {
	out := map[string][]rule{}
	for _, g := range p.grants {
		for _, name := range g.clusterRoles {
			if _, seen := out[name]; seen {
				continue
			}
			var role object
			err := is.mint.do(ctx, call{method: http.MethodGet, path: ref{clusterRoles, "", name}.path()}, &role)
			if err != nil && !isStatus(err, http.StatusForbidden) {
				return nil, lookError("look for the ClusterRole "+name, err)
			}
			out[name] = role.Rules
		}
	}
	return out, nil
}

// create makes one object. What an older generation of the lease has left under
// its name is replaced.
func (is *Issuer) create(ctx context.Context, m *minting, x making) (metadata, error) {
	what := "make " + x.ref.String()
	x.obj.APIVersion, x.obj.Kind = x.ref.res.version(), x.ref.res.kind
	x.obj.Metadata = is.marks.meta(x.ref, m.mark, m.lease.NotAfter)
	for i := range attempts {
		if !m.inTime() {
			return metadata{}, tooLate()
		}
		var out object
		err := is.mint.do(ctx, call{method: http.MethodPost, path: x.ref.res.in(x.ref.namespace), body: x.obj, accept: asMetadata}, &out)
		if err == nil {
			m.made = true
			return out.Metadata, nil
		}
		f, status := said(err)
		if status != http.StatusConflict || f.reason != "AlreadyExists" {
			m.made = m.made || issuers.KindOf(sentError(what, err)) == issuers.Unknown
			return metadata{}, is.makeError(x.ref, what, err)
		}
		old, there, err := is.mint.look(ctx, x.ref)
		switch {
		case err != nil:
			return metadata{}, lookError(what, err)
		case !there:
			continue // it has just gone
		}
		if err := is.mayReplace(m, x.ref, old); err != nil {
			return metadata{}, err
		}
		m.replaced, m.made = true, true
		err = is.mint.remove(ctx, x.ref, old)
		is.deleted.Store(int64(time.Since(is.opened)))
		if err != nil && !isStatus(err, http.StatusNotFound) && !isStatus(err, http.StatusConflict) {
			return metadata{}, sentError("replace "+x.ref.String(), err)
		}
		if err := pause(ctx, i); err != nil {
			return metadata{}, tooLate()
		}
	}
	return metadata{}, &issuers.Error{Kind: issuers.Unknown, Detail: x.ref.String() + " of an older generation does not go away"}
}

// makeError knows that the broker's own namespace is no business of a requester.
func (is *Issuer) makeError(at ref, what string, err error) *issuers.Error {
	e := sentError(what, err)
	if e.Kind == issuers.BadScope && at.namespace == is.spec.Namespace {
		e.Kind, e.Detail = issuers.Refused, "the target's own namespace "+is.spec.Namespace+" is not there; kubectl create namespace "+is.spec.Namespace
	}
	return e
}

// mayReplace decides whether an object of that name may be taken away (HAZARDS 9,
// 16).
func (is *Issuer) mayReplace(m *minting, at ref, old metadata) error {
	k, ours := is.marks.read(at, old)
	switch {
	case !ours || k.lease != m.lease.ID:
		return foreign(at)
	case k.generation > m.lease.Generation || k.term > is.term:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "a newer generation of the lease, or a newer leader, has been there"}
	}
	return nil
}

// orUndo takes back what a failed mint has made. The kind of err is kept only if
// all of it is proven gone, or nothing was made.
func (is *Issuer) orUndo(ctx context.Context, m *minting, err error) error {
	e := *sentError("mint "+m.lease.Name, err)
	if !m.made || e.Kind == issuers.Unknown {
		return &e // the broker withdraws what is not known; that is no quicker here
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	if _, err := is.endLease(ctx, m.lease, m.plan.ending(is.spec, m.lease.Name)); err != nil && issuers.KindOf(err) != issuers.Foreign {
		e.Kind = issuers.Unknown
	}
	return &e
}
