package identity

import (
	"context"
	"crypto"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// keyCache keeps the keys of an issuer. It fetches when it has none, when they
// are old, and when a token names a key it does not know; at most once per
// interval whatever the tokens say, one fetch at a time, in the goroutine of
// the request that needs it. There is nothing to start or stop.
type keyCache struct {
	fetch func(ctx context.Context) ([]verificationKey, error)
	turn  chan struct{} // holds one token: whoever has it fetches

	mu    sync.Mutex
	state keyState
}

// keyState is replaced whole, never changed: readers keep what they got.
type keyState struct {
	keys    []verificationKey
	fetched time.Time // when keys were last fetched; zero before the first success
	tried   time.Time // when the last fetch began, whatever came of it
	failure error     // of the last fetch
}

func newKeyCache(fetch func(ctx context.Context) ([]verificationKey, error)) *keyCache {
	return &keyCache{fetch: fetch, turn: make(chan struct{}, 1)}
}

// find implements keySource.
func (c *keyCache) find(ctx context.Context, t *jws, now time.Time) ([]crypto.PublicKey, error) {
	s := c.read()
	found := pick(s.keys, t.kid, t.alg)
	if len(found) > 0 && s.within(keysFresh, now) {
		return found, nil
	}
	if s.due(now) {
		if err := c.refresh(ctx, now, len(found) > 0 && s.within(keysUsable, now)); err != nil {
			return nil, err
		}
		s = c.read()
		found = pick(s.keys, t.kid, t.alg)
	}
	switch {
	case !s.within(keysUsable, now):
		return nil, s.down()
	case len(found) == 0:
		return nil, errUnknownKey(t.kid)
	default:
		return found, nil
	}
}

// ready sees to it that an issuer's document was read not long ago.
func (c *keyCache) ready(ctx context.Context, now time.Time) error {
	s := c.read()
	if !s.within(keysFresh, now) && s.due(now) {
		if err := c.refresh(ctx, now, s.within(keysUsable, now)); err != nil {
			return err
		}
		s = c.read()
	}
	if !s.within(keysUsable, now) {
		return s.down()
	}
	return nil
}

func (s keyState) down() *fault.Error {
	e := fault.Wrap(s.failure, fault.Unavailable, CodeIssuerDown, "The issuer's keys cannot be fetched now; try again, or on another node.")
	e.RetryAfter = refreshEvery
	return e
}

// refresh fetches once. Others wait for it, unless they have keys that will do:
// a slow issuer delays one request per interval then, not all.
func (c *keyCache) refresh(ctx context.Context, now time.Time, optional bool) error {
	select {
	case c.turn <- struct{}{}:
	default:
		if optional {
			return nil
		}
		select {
		case c.turn <- struct{}{}:
		case <-ctx.Done():
			return fault.Wrap(ctx.Err(), fault.Unavailable, CodeIssuerDown, "The request ended while the issuer's keys were being fetched.")
		}
	}
	defer func() { <-c.turn }()
	s := c.read()
	if !s.due(now) {
		return nil // somebody else fetched while we waited
	}
	s.tried = now
	// A client that hangs up must not spoil the fetch for those who wait; the
	// fetch bounds its own time.
	keys, err := c.fetch(context.WithoutCancel(ctx))
	if s.failure = err; err == nil {
		s.keys, s.fetched = keys, now
	}
	c.mu.Lock()
	c.state = s
	c.mu.Unlock()
	return nil
}

func (c *keyCache) read() keyState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// within reports whether the keys were fetched at most d ago.
func (s keyState) within(d time.Duration, now time.Time) bool {
	return !s.fetched.IsZero() && now.Sub(s.fetched) < d
}

// due reports whether a fetch is allowed. A clock that stepped back must not
// stop them for as long as the step was.
func (s keyState) due(now time.Time) bool {
	since := now.Sub(s.tried)
	return since >= refreshEvery || since <= -refreshEvery
}
