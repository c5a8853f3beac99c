package mysql

import (
	"context"
	"fmt"

	"github.com/mayfly-broker/mayfly/issuers"
)

// fenceRounds bounds the wait for connections that were told to end: about
// fourteen seconds.
const fenceRounds = 180

// Fence implements [issuers.Fencer]. Each connection of the broker's stands in
// its table with its leader's term, id and address; only those that are still the
// admin account's are ended.
func (is *Issuer) Fence(ctx context.Context) error {
	conn, err := is.server.acquire(ctx, is.server.end)
	if err != nil {
		return err
	}
	defer conn.release()
	for n := 0; ; n++ {
		older, err := conn.list(ctx, "SELECT CAST(c.id AS CHAR) FROM "+schemaName+".connections c JOIN "+conn.processlist()+
			" p ON p.id = c.id AND p.user = c.admin AND COALESCE(p.host, '') = c.address WHERE c.term < ? AND c.admin = ? AND c.id <> CONNECTION_ID()", is.term, is.server.admin)
		if err != nil {
			return sentError("find connections of older leaders", err)
		}
		if len(older) == 0 {
			return nil
		}
		if n == fenceRounds {
			return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("%d connections of older leaders do not end", len(older))}
		}
		for _, id := range older {
			if err := conn.kill(ctx, id); err != nil {
				return sentError("end connections of older leaders", err)
			}
		}
		if err := pause(ctx, n); err != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "wait for connections of older leaders", Err: err}
		}
	}
}
