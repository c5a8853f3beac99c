package broker

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

func groupOf(t testing.TB, name string, members ...ledger.Member) ledger.Object {
	t.Helper()
	spec, err := json.Marshal(ledger.GroupSpec{Members: members})
	if err != nil {
		t.Fatal(err)
	}
	return ledger.Object{Kind: ledger.KindGroup, Name: name, Spec: spec}
}

func TestMembershipEndsWithItsTime(t *testing.T) {
	now := time.Date(2026, 3, 3, 12, 0, 0, 0, time.UTC)
	past, later := now.Add(-time.Second), now.Add(time.Hour)
	m := membersOf([]ledger.Object{
		groupOf(t, "both", ledger.Member{Name: "human:ann", Until: &past}, ledger.Member{Name: "human:ann"}),
		groupOf(t, "ended", ledger.Member{Name: "human:ann", Until: &past}),
		groupOf(t, "now", ledger.Member{Name: "human:ann", Until: &now}),
		groupOf(t, "ops", ledger.Member{Name: "human:bo"}, ledger.Member{Name: "human:ann", Until: &later}, ledger.Member{Name: "human:ann"}),
		{Kind: ledger.KindGroup, Name: "unreadable", Spec: json.RawMessage(`{"members": 7}`)},
	})
	for who, want := range map[string][]string{"human:ann": {"both", "ops"}, "human:bo": {"ops"}, "human:eve": nil} {
		if got := m.groups(who, now); !slices.Equal(got, want) {
			t.Errorf("%s is in %v, want %v", who, got, want)
		}
	}
}

// What a decision pays for its principal's groups does not grow with them.
func BenchmarkGroups(b *testing.B) {
	for _, n := range []int{64, 10_000} {
		var members []ledger.Member
		for i := range n {
			members = append(members, ledger.Member{Name: fmt.Sprintf("workload:w%d", i)})
		}
		m := membersOf([]ledger.Object{groupOf(b, "load", members...)})
		b.Run(fmt.Sprintf("members=%d", n), func(b *testing.B) {
			for b.Loop() {
				if len(m.groups("workload:w1", time.Time{})) != 1 {
					b.Fatal("not in the group")
				}
			}
		})
	}
}
