package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// keyed is the kind of the rig with signing keys that people give; those of system
// t1 turn.
type keyed struct{ *brokertest.Kind }

func (keyed) SigningKeys(_ json.RawMessage, secrets map[string]secret.Text) []string {
	if s := secrets["seed"]; !s.IsZero() {
		return []string{"key of " + strings.TrimPrefix(s.Reveal(), "seed of ")}
	}
	return nil
}

func (keyed) TurnsKeysOn(spec json.RawMessage) error {
	if !strings.Contains(string(spec), `"t1"`) {
		return errors.New("it does not turn")
	}
	return nil
}

func (keyed) TurnKeys(context.Context, json.RawMessage, map[string]secret.Text, issuers.KeyTurn) (map[string]secret.Text, error) {
	return nil, errors.New("not here")
}

func (keyed) KeyTimes(json.RawMessage) (publish, honour time.Duration) {
	return time.Second, time.Second
}

// TestTwoTargetsWithOneSigningKey: where one of them can retire it, the second is
// refused, and what is told names no secret.
func TestTwoTargetsWithOneSigningKey(t *testing.T) {
	target := func(name, system, seed, label string) wire.Object {
		o := wire.Object{Kind: "Target", Name: name, Spec: json.RawMessage(`{"type":"memory","system":"` + system + `","labels":{"l":"` + label + `"}}`)}
		if seed != "" {
			o.Secrets = map[string]string{"seed": "seed of " + seed}
		}
		return o
	}
	for name, c := range map[string]struct {
		steps   [][]wire.Object // all but the last are taken
		refused bool
		delete  []wire.Ref // with the last
	}{
		"another key":                {steps: [][]wire.Object{{target("a", "t1", "X", "")}, {target("b", "t1", "Y", "")}}},
		"the same key":               {steps: [][]wire.Object{{target("a", "t1", "X", "")}, {target("b", "t1", "X", "")}}, refused: true},
		"in one change":              {steps: [][]wire.Object{{target("a", "t1", "X", ""), target("b", "t1", "X", "")}}, refused: true},
		"one of them turns":          {steps: [][]wire.Object{{target("a", "t1", "X", "")}, {target("b", "t2", "X", "")}}, refused: true},
		"the other turns":            {steps: [][]wire.Object{{target("a", "t2", "X", "")}, {target("b", "t1", "X", "")}}, refused: true},
		"none turns":                 {steps: [][]wire.Object{{target("a", "t2", "X", "")}, {target("b", "t2", "X", "")}}},
		"a new key of an old one":    {steps: [][]wire.Object{{target("a", "t1", "X", ""), target("b", "t1", "Y", "")}, {target("b", "t1", "X", "")}}, refused: true},
		"the first gets another":     {steps: [][]wire.Object{{target("a", "t1", "X", "")}, {target("a", "t1", "Z", ""), target("b", "t1", "X", "")}}},
		"the first goes":             {steps: [][]wire.Object{{target("a", "t1", "X", "")}, {target("b", "t1", "X", "")}}, delete: []wire.Ref{{Kind: "Target", Name: "a"}}},
		"what stands goes on":        {steps: [][]wire.Object{{target("a", "t2", "X", ""), target("b", "t2", "X", "")}, {target("b", "t2", "", "x")}}},
		"what stands begins to turn": {steps: [][]wire.Object{{target("a", "t2", "X", ""), target("b", "t2", "X", "")}, {target("b", "t1", "", "x")}}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			e, err := broker.New(broker.Config{Log: r.log, Node: "n1", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{keyed{r.kind}}})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			for i, step := range c.steps {
				in := wire.ApplyRequest{Objects: step}
				last := i == len(c.steps)-1
				if last {
					in.Delete = c.delete
				}
				_, err := e.Apply(t.Context(), opCaller, in)
				if !last || !c.refused {
					if err != nil {
						t.Fatal(err)
					}
					continue
				}
				r.fails(err, fault.Conflict, "key_shared")
				if !strings.Contains(err.Error(), "key of X is that of target") || strings.Contains(err.Error(), "seed of") {
					t.Error(err)
				}
			}
		})
	}
}
