package postgres

import (
	"context"

	"github.com/mayfly-broker/mayfly/issuers"
)

func (is *Issuer) Extend(ctx context.Context, lease issuers.Lease) error       { return nil }
func (is *Issuer) List(ctx context.Context) ([]issuers.Found, error)           { return nil, nil }
func (is *Issuer) Fence(ctx context.Context) error                             { return nil }
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error)        { return nil, nil }
