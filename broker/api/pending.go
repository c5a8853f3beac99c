package api

import (
	"crypto/x509"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Caller is who calls.
type Caller struct {
	Session ledger.Session
	Address string
	Idem    *ledger.Idem
}

// LoginInput is what was proven about a connection that logs in.
type LoginInput struct {
	wire.LoginRequest
	JKT       string
	PeerCerts []*x509.Certificate
	X5T       string
	Address   string
}

// TaskFilter selects tasks.
type TaskFilter struct {
	State, Principal string
	Limit            int
	After            string
}

// LeaseFilter selects leases.
type LeaseFilter struct {
	State, Target, Principal, Task string
	Limit                          int
	After                          string
}
