package node_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// TestTheLedgerIsVerifiedByParts: each goes on where the one before it ended.
func TestTheLedgerIsVerifiedByParts(t *testing.T) {
	e, operator := startDev(t)
	whole, err := e.AuditVerify(t.Context(), operator, 0)
	if err != nil || !whole.OK || whole.Size < 3 || whole.Next != 0 {
		t.Fatalf("%+v %v", whole, err)
	}
	rest, err := e.AuditVerify(t.Context(), operator, whole.Size-2)
	if err != nil || !rest.OK || rest.Size < whole.Size {
		t.Errorf("%+v %v", rest, err)
	}
	for _, from := range []uint64{whole.Size + 1000, 1 << 63} {
		if a, err := e.AuditVerify(t.Context(), operator, from); fault.KindOf(err) != fault.Invalid || a.OK {
			t.Errorf("from %d of %d: %+v %v", from, whole.Size, a, err)
		}
	}
}
