// Command example is a plugin: it serves the kind htpasswd. A node runs it;
// docs/plugins.md says how it is built and registered.
package main

import (
	"github.com/mayfly-broker/mayfly/plugins/example/htpasswd"
	"github.com/mayfly-broker/mayfly/plugins/sdk"
)

func main() { sdk.Serve(htpasswd.Kind{}, &htpasswd.Issuer{}) }
