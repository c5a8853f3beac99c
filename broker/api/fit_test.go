package api_test

import (
	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/api/console"
	"github.com/mayfly-broker/mayfly/broker/node"
)

// The engine and the node are what this package is wired to in the binary.
var (
	_ api.Broker = (*broker.Engine)(nil)
	_ api.Node   = (*node.Node)(nil)

	_ console.Engine = (*broker.Engine)(nil)
)
