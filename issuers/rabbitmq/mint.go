package rabbitmq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	// defaultDeadline stands in for a lease without one.
	defaultDeadline = 30 * time.Second
	// attempts bounds how often a mint starts again because another of the same
	// lease was quicker.
	attempts = 10
)

// Issuer mints and withdraws users on one RabbitMQ cluster. It is safe for
// concurrent use; [Kind.Open] makes one.
type Issuer struct {
	spec    spec
	term    uint64
	api     *api
	own     string // the target's own tag
	log     *slog.Logger
	minting *locks

	mu       sync.Mutex
	halves   map[string]half // by user; see Sweep
	patience time.Duration
}

// Close implements [issuers.Issuer].
func (is *Issuer) Close() error {
	is.api.close()
	return nil
}

// user is one lease's user, ready to be written.
type user struct {
	lease    issuers.Lease
	grants   compiled
	password secret.Text
	hash     string
	deadline time.Time // by our clock
}

// Mint implements [issuers.Issuer].
func (is *Issuer) Mint(ctx context.Context, lease issuers.Lease) (issuers.Credential, error) {
	u, err := prepare(lease)
	if err != nil {
		return issuers.Credential{}, err
	}
	ctx, cancel := context.WithDeadline(ctx, u.deadline)
	defer cancel()
	release, err := is.minting.take(ctx, lease.ID)
	if err != nil {
		return issuers.Credential{}, beforeError("wait for another mint of the lease", err)
	}
	defer release()
	for i := range attempts {
		err = is.write(ctx, u)
		if !errors.Is(err, errDisturbed) || pause(ctx, i) != nil {
			break
		}
	}
	switch {
	case errors.Is(err, errDisturbed):
		return issuers.Credential{}, &issuers.Error{Kind: issuers.Superseded, Detail: "others mint the same lease"}
	case err != nil:
		return issuers.Credential{}, err
	}
	return is.credential(u), nil
}

func prepare(lease issuers.Lease) (*user, error) {
	if err := checkLease(lease); err != nil {
		return nil, err
	}
	if lease.Generation > maxGeneration {
		return nil, refused("the lease was minted anew %d times; request another", lease.Generation)
	}
	grants, err := compile(lease.Scope)
	if err != nil {
		return nil, &issuers.Error{Kind: issuers.Refused, Detail: "the scope is not one for this target", Err: err}
	}
	u := &user{lease: lease, grants: grants, deadline: lease.MintDeadline}
	if u.deadline.IsZero() {
		u.deadline = time.Now().Add(defaultDeadline)
	}
	if lease.NotAfter.Before(u.deadline) {
		u.deadline = lease.NotAfter
	}
	if !time.Now().Before(u.deadline) {
		return nil, tooLate()
	}
	if u.password, u.hash, err = newPassword(); err != nil {
		return nil, refused("no random numbers: %v", err)
	}
	return u, nil
}

// errDisturbed: the name was taken between the look and the write.
var errDisturbed = errors.New("another user of that name was made meanwhile")

// write makes the user. The order is the fence (HAZARDS 8, 9): the secret comes
// with a request that the server refuses if the name is taken, and the permissions,
// without which nobody enters a virtual host, come last, by requests that it refuses
// if the user is gone. DESIGN.md says what each does when it comes late.
func (is *Issuer) write(ctx context.Context, u *user) error {
	old, err := is.look(ctx, is.api.mint, u.lease.Name)
	if err != nil {
		return beforeError("look for "+u.lease.Name, err)
	}
	if err := is.mayReplace(u.lease, old); err != nil {
		return err
	}
	if err := is.checkExchanges(ctx, u); err != nil {
		return err
	}
	if !time.Now().Before(u.deadline) {
		return tooLate()
	}
	if old.there { // an earlier generation: its secret and its sessions end first
		one := []*ending{{lease: u.lease, out: &issuers.Outcome{}}}
		is.endBatch(ctx, is.api.mint, one)
		if one[0].out.Err != nil {
			return one[0].out.Err
		}
	}
	if err := is.create(ctx, u); err != nil {
		if e := new(issuers.Error); old.there && errors.As(err, &e) {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "the earlier generation has ended, and the new one is not made", Err: err}
		}
		return err
	}
	if err := is.grant(ctx, u); err != nil {
		return is.orUndo(ctx, u, err)
	}
	return is.confirm(ctx, u)
}

// create makes the user, which may not enter anywhere yet.
func (is *Issuer) create(ctx context.Context, u *user) error {
	body := map[string]any{
		"password_hash": u.hash, "hashing_algorithm": hashing,
		"tags": mark{u.lease.Generation, is.term}.tags(is.own),
	}
	if u.grants.limits != nil {
		body["limits"] = u.grants.limits
	}
	r, err := is.api.do(ctx, is.api.mint, call{method: http.MethodPut, path: at("users", u.lease.Name), body: body, header: "If-None-Match: *"})
	switch {
	case err != nil:
		return sentError("make "+u.lease.Name, err)
	case r.status == http.StatusPreconditionFailed:
		return errDisturbed
	case r.status != http.StatusCreated && r.status != http.StatusNoContent:
		return sentError("make "+u.lease.Name, said(r))
	}
	return nil
}

// grant writes topic permissions, which only restrict, and then the permissions.
func (is *Issuer) grant(ctx context.Context, u *user) error {
	put := func(path, vhost string, body map[string]string) error {
		r, err := is.api.do(ctx, is.api.mint, call{method: http.MethodPut, path: path, body: body})
		switch {
		case err != nil:
			return sentError("grant rights in "+vhost, err)
		case r.status == http.StatusBadRequest || r.status == http.StatusNotFound:
			return is.noVHost(ctx, vhost, said(r))
		case r.status != http.StatusCreated && r.status != http.StatusNoContent:
			return sentError("grant rights in "+vhost, said(r))
		}
		return nil
	}
	for _, v := range u.grants.vhosts {
		for _, t := range v.topics {
			body := map[string]string{"exchange": t.exchange, write: everything, read: t.read}
			if err := put(at("topic-permissions", v.name, u.lease.Name), v.name, body); err != nil {
				return err
			}
		}
	}
	for _, v := range u.grants.vhosts {
		if err := put(at("permissions", v.name, u.lease.Name), v.name, v.rights); err != nil {
			return err
		}
	}
	return nil
}

// noVHost finds out why the server refused to grant rights: the virtual host is
// not there, or the user is not any more.
func (is *Issuer) noVHost(ctx context.Context, vhost string, answer error) error {
	r, err := is.api.do(ctx, is.api.mint, call{method: http.MethodGet, path: at("vhosts", vhost)})
	switch {
	case err != nil:
		return &issuers.Error{Kind: issuers.Unknown, Detail: "grant rights in " + vhost, Err: err}
	case r.status == http.StatusNotFound:
		return &issuers.Error{Kind: issuers.BadScope, Detail: fmt.Sprintf("the server has no virtual host %q", vhost)}
	}
	return &issuers.Error{Kind: issuers.Superseded, Detail: "the user was withdrawn while it was made", Err: answer}
}

// checkExchanges: topics bind nobody on an exchange of another type, so there must
// be one of that name and of type topic.
func (is *Issuer) checkExchanges(ctx context.Context, u *user) error {
	for _, v := range u.grants.vhosts {
		for _, t := range v.topics {
			r, err := is.api.do(ctx, is.api.mint, call{method: http.MethodGet, path: at("exchanges", v.name, t.exchange) + "?columns=type"})
			if err != nil {
				return beforeError("look for the exchange "+t.exchange, err)
			}
			var body struct {
				Type string `json:"type"`
			}
			switch {
			case r.status == http.StatusNotFound:
				return &issuers.Error{Kind: issuers.BadScope, Detail: fmt.Sprintf("there is no exchange %q in the virtual host %q", t.exchange, v.name)}
			case r.status != http.StatusOK:
				return beforeError("look for the exchange "+t.exchange, said(r))
			case json.Unmarshal(r.body, &body) != nil || body.Type != "topic":
				return &issuers.Error{Kind: issuers.BadScope, Detail: fmt.Sprintf("the exchange %q in %q is not of type topic, so that topics would bind nobody on it", t.exchange, v.name)}
			}
		}
	}
	return nil
}

// confirm looks whether the user that stands in the end is this one: two leaders
// may have written at once, and a withdrawal may have come between.
func (is *Issuer) confirm(ctx context.Context, u *user) error {
	f, err := is.look(ctx, is.api.mint, u.lease.Name)
	switch {
	case err != nil:
		return &issuers.Error{Kind: issuers.Unknown, Detail: "look whether " + u.lease.Name + " stands", Err: err}
	case !f.there || f.hash != u.hash:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "the user was withdrawn, or made anew, while it was made"}
	case !maps.Equal(f.limits, u.grants.limits):
		return is.orUndo(ctx, u, refused("the server does not keep the limits of the scope: its feature flag user_limits may be off"))
	}
	return nil
}

// orUndo removes a user that got its name and not its rights. The kind of err is
// kept only if the user is proven gone. Where nobody knows what the server did,
// it does not answer, and the broker withdraws.
func (is *Issuer) orUndo(ctx context.Context, u *user, err error) error {
	e := *sentError("mint "+u.lease.Name, err)
	if e.Kind == issuers.Superseded {
		return &e // what stands is somebody else's work
	}
	if e.Kind != issuers.Unknown {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ioTimeout)
		defer cancel()
		one := []*ending{{lease: u.lease, out: &issuers.Outcome{}}}
		if is.withdrawBatch(ctx, is.api.mint, one); one[0].out.Err != nil {
			e.Kind = issuers.Unknown
		}
	}
	if e.Kind == issuers.Unreachable && ctx.Err() != nil {
		e.Kind = issuers.TooLate
	}
	return &e
}
