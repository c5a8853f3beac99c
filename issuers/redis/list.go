package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
)

// List implements [issuers.Lister]. Users of our pattern that do not bear this
// target's mark belong to somebody else, perhaps to another target on the same
// server. A node that is down is left out; withdrawals do not leave it out.
func (is *Issuer) List(ctx context.Context) ([]issuers.Found, error) {
	nodes, err := is.fleet.topology(ctx)
	if err != nil {
		return nil, err
	}
	marks := map[string]mark{}
	for _, n := range nodes {
		if n.down {
			continue
		}
		if err := is.listOn(ctx, n, marks); err != nil {
			return nil, beforeError(n.addr+": list the users", err)
		}
	}
	var out []issuers.Found
	for name, m := range marks {
		out = append(out, issuers.Found{Name: name, LeaseID: strings.TrimPrefix(name, userPrefix), Generation: m.generation})
	}
	slices.SortFunc(out, func(a, b issuers.Found) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (is *Issuer) listOn(ctx context.Context, n node, marks map[string]mark) error {
	l, err := is.fleet.to(n.addr)
	if err != nil {
		return err
	}
	names, err := l.end.Do(ctx, "ACL", "USERS").StringSlice()
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(s string) bool { return !userPattern.MatchString(s) })
	for chunk := range slices.Chunk(names, lookSize) {
		pipe := l.end.Pipeline()
		cmds := make([]*goredis.Cmd, len(chunk))
		for i, name := range chunk {
			cmds[i] = pipe.Do(ctx, "ACL", "GETUSER", name)
		}
		if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, goredis.Nil) {
			return err
		}
		for i, name := range chunk {
			f, err := is.marks.readUser(name, cmds[i])
			if err != nil {
				return err
			}
			if f.ours && f.mark.generation >= marks[name].generation {
				marks[name] = f.mark
			}
		}
	}
	return nil
}

// Extend implements [issuers.Extender]. Redis keeps no expiry of users, so there
// is nothing to move: what is looked at is whether the user still stands.
func (is *Issuer) Extend(ctx context.Context, lease issuers.Lease) error {
	if err := checkLease(lease); err != nil {
		return err
	}
	nodes, err := is.fleet.topology(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.replica || is.spec.Topology == topologyCluster && n.slot < 0 {
			continue
		}
		l, err := is.fleet.to(n.addr)
		if err != nil {
			return err
		}
		f, err := is.marks.readUser(lease.Name, l.end.Do(ctx, "ACL", "GETUSER", lease.Name))
		switch {
		case err != nil:
			return beforeError(n.addr+": look for "+lease.Name, err)
		case !f.there:
			return &issuers.Error{Kind: issuers.Gone, Detail: n.addr + " has no user " + lease.Name + "; a restart or a failover may have lost it"}
		case !f.ours:
			return &issuers.Error{Kind: issuers.Foreign, Detail: "the user " + lease.Name + " does not bear the broker's mark of this lease"}
		case f.mark.generation > lease.Generation:
			return &issuers.Error{Kind: issuers.Superseded, Detail: fmt.Sprintf("the user is of generation %d", f.mark.generation)}
		}
	}
	return nil
}
