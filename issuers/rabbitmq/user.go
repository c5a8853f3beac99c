package rabbitmq

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/mayfly-broker/mayfly/issuers"
)

// found is what the server says of a user.
type found struct {
	there bool
	ours  bool
	mark  mark
	hash  string
	tags  []string
	// limits are the user's, as the API calls them.
	limits map[string]int
}

// listedUser is a user as the API shows it.
type listedUser struct {
	Name   string         `json:"name"`
	Hash   string         `json:"password_hash"`
	Tags   []string       `json:"tags"`
	Limits map[string]int `json:"limits"`
}

// look asks for one user.
func (is *Issuer) look(ctx context.Context, c *http.Client, name string) (found, error) {
	r, err := is.api.do(ctx, c, call{method: http.MethodGet, path: at("users", name)})
	switch {
	case err != nil:
		return found{}, err
	case r.status == http.StatusNotFound:
		return found{}, nil
	case r.status != http.StatusOK:
		return found{}, said(r)
	}
	var u listedUser
	if err := json.Unmarshal(r.body, &u); err != nil || u.Name != name {
		return found{}, fmt.Errorf("the answer for the user %s cannot be read: %w", name, err)
	}
	f := found{there: true, hash: u.Hash, tags: u.Tags, limits: u.Limits}
	f.mark, f.ours = readMark(is.own, u.Tags)
	return f, nil
}

// sessions lists a user's connections by what tells them apart. The server takes
// this list from the table by which it counts a user's connections, which knows a
// connection as soon as it is open; /api/connections comes from statistics.
func (is *Issuer) sessions(ctx context.Context, c *http.Client, name string) ([]string, error) {
	r, err := is.api.do(ctx, c, call{method: http.MethodGet, path: at("connections", "username", name)})
	if err == nil && r.status != http.StatusOK {
		err = said(r)
	}
	if err != nil {
		return nil, err
	}
	var list []struct {
		Node string `json:"node"`
		Name string `json:"name"`
	}
	if err := json.Unmarshal(r.body, &list); err != nil {
		return nil, fmt.Errorf("the list of connections of %s cannot be read: %w", name, err)
	}
	out := []string{}
	for _, x := range list {
		out = append(out, x.Node+" "+x.Name)
	}
	return out, nil
}

// mayReplace decides whether a user of that name may be made anew.
func (is *Issuer) mayReplace(l issuers.Lease, old found) error {
	switch {
	case !old.there:
		return nil
	case !old.ours:
		return foreign(l.Name)
	case old.mark.generation > l.Generation || old.mark.term > is.term:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "a newer generation of the lease, or a newer leader, has been there"}
	}
	return nil
}

func foreign(name string) *issuers.Error {
	return &issuers.Error{Kind: issuers.Foreign, Detail: "the user " + name + " exists without this target's mark; it is left alone"}
}

// locks keep mints of one lease apart within this process; between processes
// the server's refusal to make a user twice does.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	ch    chan struct{}
	users int
}

func newLocks() *locks { return &locks{held: map[string]*lock{}} }

// take waits for the lock of a name, at most until ctx ends.
func (l *locks) take(ctx context.Context, name string) (release func(), err error) {
	l.mu.Lock()
	k, ok := l.held[name]
	if !ok {
		k = &lock{ch: make(chan struct{}, 1)}
		l.held[name] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case k.ch <- struct{}{}:
		return func() { <-k.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
