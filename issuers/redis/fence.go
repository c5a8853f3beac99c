package redis

import (
	"context"
	"fmt"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
)

// fenceRounds bounds the wait for connections that were told to end: about five
// seconds.
const fenceRounds = 80

// Fence implements [issuers.Fencer]. Connections say their leader's term in
// their client name, and only the admin user's are looked at: a lease may call
// its connections what it likes. What a connection that is not yet named may
// still bring is refused by its gate. A node that is down is left out.
func (is *Issuer) Fence(ctx context.Context) error {
	nodes, err := is.fleet.topology(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.down {
			continue
		}
		l, err := is.fleet.to(n.addr)
		if err != nil {
			return err
		}
		if err := is.fenceNode(ctx, n, l.end); err != nil {
			return err
		}
	}
	return nil
}

func (is *Issuer) fenceNode(ctx context.Context, n node, c *goredis.Client) error {
	for i := 0; ; i++ {
		text, err := c.Do(ctx, "CLIENT", "LIST").Text()
		if err != nil {
			return beforeError(n.addr+": find connections of older leaders", err)
		}
		older := is.older(text)
		if len(older) == 0 {
			return nil
		}
		if i == fenceRounds {
			return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("%s: %d connections of older leaders do not end", n.addr, len(older))}
		}
		for _, id := range older { // ids are never used twice
			if err := c.Do(ctx, "CLIENT", "KILL", "ID", id).Err(); err != nil {
				return sentError(n.addr+": end a connection of an older leader", err)
			}
		}
		if err := pause(ctx, i); err != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "wait for connections of older leaders", Err: err}
		}
	}
}

func (is *Issuer) older(list string) (ids []string) {
	for _, s := range sessions(list) {
		if term, ok := parseClientName(s.name); ok && s.user == is.spec.Admin.Username && term < is.term {
			ids = append(ids, s.id)
		}
	}
	return ids
}
