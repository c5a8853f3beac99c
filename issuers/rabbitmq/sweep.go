package rabbitmq

import (
	"context"
	"encoding/json"
	"time"
)

// abandoned is how long a user may stand without a permission. A mint gives it
// some within its deadline, which is half a minute.
const abandoned = 5 * time.Minute

// half is a user that was seen without permissions.
type half struct {
	hash  string
	since time.Time // when it was first seen; by our clock
}

// Sweep implements [issuers.Sweeper]. It removes users of ours that were made and
// never given a permission: what a request that came late leaves behind (HAZARDS
// 8). They open nothing; this keeps them from piling up. A user goes only if it was
// seen so twice, the same, with more time between than any mint has.
func (is *Issuer) Sweep(ctx context.Context) error {
	seen := map[string]half{}
	now := time.Now()
	if err := is.list(ctx, func(u listedUser, _ mark) { seen[u.Name] = half{u.Hash, now} }); err != nil {
		return err
	}
	if len(seen) == 0 {
		is.remember(nil)
		return nil
	}
	err := is.stream(ctx, at("permissions")+"?columns=user", func(dec *json.Decoder) error {
		var p struct {
			User string `json:"user"`
		}
		err := dec.Decode(&p)
		delete(seen, p.User)
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range is.remember(seen) {
		if err := is.sweepOne(ctx, name, seen[name].hash); err != nil {
			return err
		}
	}
	return nil
}

// remember keeps what was seen for the next sweep, and returns who has stood long
// enough.
func (is *Issuer) remember(seen map[string]half) (old []string) {
	is.mu.Lock()
	defer is.mu.Unlock()
	for name, h := range seen {
		if was, ok := is.halves[name]; ok && was.hash == h.hash {
			seen[name] = was
			if h.since.Sub(was.since) >= is.patience {
				old = append(old, name)
			}
		}
	}
	is.halves = seen
	return old
}

// sweepOne deletes a user unless it was made anew meanwhile.
func (is *Issuer) sweepOne(ctx context.Context, name, hash string) error {
	f, err := is.look(ctx, is.api.end, name)
	if err == nil && f.there && f.ours && f.hash == hash {
		is.log.Info("a user that never got its rights is removed", "user", name)
		err = is.delete(ctx, is.api.end, at("users", name))
	}
	if err != nil {
		return sentError("remove "+name, err)
	}
	return nil
}
