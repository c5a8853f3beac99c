package broker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestParkedLeasesStayParkedHoweverMany: leases that wait for an account's rotation
// cost no round trip, and would be asked again without a pause.
func TestParkedLeasesStayParkedHoweverMany(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	w, l := newWithdrawer(&Engine{cfg: Config{Clock: func() time.Time { return now }}}), newLane()
	batch := func(n int) map[string]error {
		failed := map[string]error{}
		for i := range withdrawBatch {
			failed[fmt.Sprint(n, i)] = errors.New("waits for account app to be rotated")
		}
		return failed
	}
	for n := range 8 {
		w.park(context.Background(), l, batch(n), nil)
	}
	if len(l.parked) != 8*withdrawBatch {
		t.Errorf("%d of %d are parked", len(l.parked), 8*withdrawBatch)
	}
	now = now.Add(time.Hour)
	if w.park(context.Background(), l, batch(8), nil); len(l.parked) != withdrawBatch {
		t.Errorf("%d are remembered long after", len(l.parked))
	}
}
