package main

import (
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// Whoever has added a target is told how to see it work, whatever its kind.
func TestEveryKindCanBeTriedOut(t *testing.T) {
	for _, k := range targetKinds() {
		name := k.Name()
		if _, ok := tries[name]; !ok {
			t.Errorf("nobody has said how to try out a target of kind %s", name)
		}
		if got := tryOut(name, wire.Object{Name: "prod/readonly"}); !strings.Contains(got, " prod/readonly ") || strings.Contains(got, "ROLE ") {
			t.Errorf("%s: %s", name, got)
		}
	}
}
