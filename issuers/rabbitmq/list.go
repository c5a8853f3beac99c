package rabbitmq

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
)

// List implements [issuers.Lister]. Users of our pattern that do not bear this
// target's mark belong to somebody else, perhaps to another target on the same
// cluster.
func (is *Issuer) List(ctx context.Context) ([]issuers.Found, error) {
	var out []issuers.Found
	err := is.list(ctx, func(u listedUser, m mark) {
		out = append(out, issuers.Found{Name: u.Name, LeaseID: strings.TrimPrefix(u.Name, userPrefix), Generation: m.generation})
	})
	return out, err
}

// list calls f with every user of ours. f is not to be believed before list has
// returned without an error: a list that was cut off is none.
func (is *Issuer) list(ctx context.Context, f func(listedUser, mark)) error {
	return is.stream(ctx, at("users")+"?columns=name,tags,password_hash", func(dec *json.Decoder) error {
		var u listedUser
		if err := dec.Decode(&u); err != nil {
			return err
		}
		if m, ours := readMark(is.own, u.Tags); ours && userPattern.MatchString(u.Name) {
			f(u, m)
		}
		return nil
	})
}

// stream reads a long list, one after the other.
func (is *Issuer) stream(ctx context.Context, path string, one func(*json.Decoder) error) error {
	read := func(r io.Reader) error {
		dec := json.NewDecoder(r)
		if t, err := dec.Token(); err != nil || t != json.Delim('[') {
			return fmt.Errorf("the answer to %s is no list: %w", path, err)
		}
		for dec.More() {
			if err := one(dec); err != nil {
				return fmt.Errorf("the answer to %s: %w", path, err)
			}
		}
		_, err := dec.Token() // the end
		return err
	}
	r, err := is.api.do(ctx, is.api.end, call{method: http.MethodGet, path: path, read: read})
	if err == nil && r.status != http.StatusOK {
		err = said(r)
	}
	if err != nil {
		return beforeError("list the users", err)
	}
	return nil
}

// Extend implements [issuers.Extender]. RabbitMQ keeps no expiry of users, so
// there is nothing to move: what is looked at is whether the user still stands.
func (is *Issuer) Extend(ctx context.Context, lease issuers.Lease) error {
	if err := checkLease(lease); err != nil {
		return err
	}
	f, err := is.look(ctx, is.api.end, lease.Name)
	switch {
	case err != nil:
		return beforeError("look for "+lease.Name, err)
	case !f.there:
		return &issuers.Error{Kind: issuers.Gone, Detail: "the server has no user " + lease.Name}
	case !f.ours:
		return foreign(lease.Name)
	case f.mark.generation > lease.Generation:
		return &issuers.Error{Kind: issuers.Superseded, Detail: fmt.Sprintf("the user is of generation %d", f.mark.generation)}
	}
	return nil
}
