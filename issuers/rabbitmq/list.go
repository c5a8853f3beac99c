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
	read := func(r io.Reader) error {
		out = nil
		dec := json.NewDecoder(r)
		if t, err := dec.Token(); err != nil || t != json.Delim('[') {
			return fmt.Errorf("the list of users is no list: %w", err)
		}
		for dec.More() {
			var u listedUser
			if err := dec.Decode(&u); err != nil {
				return fmt.Errorf("the list of users: %w", err)
			}
			if !userPattern.MatchString(u.Name) {
				continue
			}
			if m, ours := readMark(is.own, u.Tags); ours {
				out = append(out, issuers.Found{Name: u.Name, LeaseID: strings.TrimPrefix(u.Name, userPrefix), Generation: m.generation})
			}
		}
		_, err := dec.Token() // the end: a list that was cut off is none
		return err
	}
	r, err := is.api.do(ctx, is.api.end, call{method: http.MethodGet, path: at("users") + "?columns=name,tags", read: read})
	if err == nil && r.status != http.StatusOK {
		err = said(r)
	}
	if err != nil {
		return nil, beforeError("list the users", err)
	}
	return out, nil
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
