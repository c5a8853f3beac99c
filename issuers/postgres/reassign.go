package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
)

func reassign(ctx context.Context, conn *pgx.Conn, lease issuers.Lease) error { return nil }
