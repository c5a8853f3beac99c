package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

// fenceRounds bounds the wait for connections that were told to end: about
// fourteen seconds.
const fenceRounds = 180

// Fence implements [issuers.Fencer]. Connections say their leader's term in
// application_name, and only the admin account's are looked at: a client may
// call itself what it likes.
func (is *Issuer) Fence(ctx context.Context) error {
	conn, _, err := acquire(ctx, is.server.end)
	if err != nil {
		return err
	}
	defer conn.Release()
	for n := 0; ; n++ {
		older, err := is.connections(ctx, conn.Conn(), func(term uint64) bool { return term < is.term })
		if err != nil {
			return sentError("find connections of older leaders", err)
		}
		if len(older) == 0 {
			return nil
		}
		if n == fenceRounds {
			return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("%d connections of older leaders do not end", len(older))}
		}
		// the term is looked at again: a process id may have a new owner by now
		_, err = conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE pid = ANY($1) AND usename = current_user AND application_name = ANY($2)`, pids(older), apps(older))
		if err != nil {
			return sentError("end connections of older leaders", err)
		}
		if err := pause(ctx, n); err != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "wait for connections of older leaders", Err: err}
		}
	}
}

type backend struct {
	pid int32
	app string
}

// connections returns the admin account's other connections of such terms.
func (is *Issuer) connections(ctx context.Context, c *pgx.Conn, of func(term uint64) bool) ([]backend, error) {
	rows, err := c.Query(ctx, `SELECT pid, application_name FROM pg_stat_activity
		WHERE usename = current_user AND pid <> pg_backend_pid() AND starts_with(application_name, 'mayfly/')`)
	if err != nil {
		return nil, err
	}
	var out []backend
	var b backend
	_, err = pgx.ForEachRow(rows, []any{&b.pid, &b.app}, func() error {
		if term, ok := parseAppName(b.app); ok && of(term) {
			out = append(out, b)
		}
		return nil
	})
	return out, err
}

func pids(bs []backend) []int32 {
	out := make([]int32, len(bs))
	for i, b := range bs {
		out[i] = b.pid
	}
	return out
}

func apps(bs []backend) []string {
	out := make([]string, len(bs))
	for i, b := range bs {
		out[i] = b.app
	}
	return out
}
