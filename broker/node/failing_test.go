package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/jwt"
	"github.com/mayfly-broker/mayfly/secret"
)

// stubborn is a kind whose keys do not turn while it is so.
type stubborn struct {
	jwt.Kind
	fails *atomic.Bool
}

func (s stubborn) TurnKeys(ctx context.Context, spec json.RawMessage, secrets map[string]secret.Text, turn issuers.KeyTurn) (map[string]secret.Text, error) {
	if s.fails.Load() {
		return nil, errors.New("it may not")
	}
	return s.Kind.TurnKeys(ctx, spec, secrets, turn)
}

// TestMetricsOfFailingRotations: a rotation that fails is counted by its target until
// it has succeeded.
func TestMetricsOfFailingRotations(t *testing.T) {
	t.Parallel()
	var fails atomic.Bool
	fails.Store(true)
	cfg := config(t, "n1", t.TempDir())
	cfg.Kinds = []issuers.Kind{stubborn{fails: &fails}}
	n := start(t, cfg)
	initialise(t, n)
	for _, name := range []string{"one", "two"} {
		must(t, tryWrite(t.Context(), n, wire.Object{Kind: "Target", Name: name, Spec: []byte(`{"type":"jwt"}`)}))
	}
	e, err := n.Engine()
	must(t, err)
	rotate := func() wire.Rotation {
		t.Helper()
		r, err := e.Rotate(t.Context(), as(ann), wire.RotateRequest{Kind: "target", Name: "one"})
		must(t, err)
		return r
	}
	if r := rotate(); r.Problem == "" {
		t.Fatalf("it has not failed: %+v", r)
	}
	if got := metric(t, n, "mayfly_rotations_failing", "one"); got != 1 {
		t.Errorf("one rotation fails, and the metric says %g", got)
	}
	if got := metric(t, n, "mayfly_rotations_failing", "two"); got > 0 {
		t.Errorf("no rotation of the other fails, and the metric says %g", got)
	}
	fails.Store(false)
	rotate()
	eventually(t, "nothing fails any more", func() bool { return metric(t, n, "mayfly_rotations_failing", "one") <= 0 })
}
