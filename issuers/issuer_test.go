package issuers_test

import (
	"encoding/json"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
)

type always struct{ issuers.Kind }

func (always) Revocable() bool { return true }

type sometimes struct{ always }

func (sometimes) RevocableOn(spec json.RawMessage) bool { return string(spec) == `{"key":true}` }

// A kind's answer for a target goes before its answer for all.
func TestRevocable(t *testing.T) {
	for _, c := range []struct {
		kind issuers.Kind
		spec string
		want bool
	}{{always{}, `{}`, true}, {sometimes{}, `{}`, false}, {sometimes{}, `{"key":true}`, true}} {
		if got := issuers.Revocable(c.kind, json.RawMessage(c.spec)); got != c.want {
			t.Errorf("%T on %s: %v", c.kind, c.spec, got)
		}
	}
}
