package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/raftstore"
	"github.com/mayfly-broker/mayfly/scope"
)

const (
	manyLeases = 1_000_000
	perCommand = 5_000
)

// filler makes of each command that many records of leases, as a month makes
// them: one in ten on the target "fleet", one in ten of those ended before its
// time.
type filler struct{}

func (filler) Apply(tx *raftstore.Tx, command []byte) (any, error) {
	first := binary.BigEndian.Uint64(command)
	for i := first; i < first+perCommand; i++ {
		l := ledger.Lease{
			ID: fmt.Sprintf("%s%026d", ledger.PrefixLease, i), Target: "orders", Name: fmt.Sprintf("mayfly_%026d", i), Generation: 1, State: ledger.LeaseOpen,
			OpenedMS: int64(i), ExpiresMS: int64(i) + 3_600_000, NotAfterMS: int64(i) + 3_600_000, MintDeadlineMS: int64(i) + 15_000,
			Grant: ledger.Grant{
				ID: fmt.Sprintf("grt_%026d", i), DecisionID: fmt.Sprintf("dec_%026d", i), TaskID: fmt.Sprintf("tsk_%026d", i), Principal: "workload:billing", Role: "orders/readonly",
				RoleVersion: 3, Purpose: "the report of the month", BoundedBy: "role",
				Scope: scope.Scope{{Type: "database", Identifier: "orders", Actions: []string{"select"}, Tables: []scope.Table{{Name: "public.*"}}}},
			},
		}
		if i%10 == 0 {
			l.Target = "fleet"
		}
		if i%2 == 0 {
			l.State, l.End = ledger.LeaseEnded, &ledger.End{Reason: ledger.EndExpired, SinceMS: int64(i), EndedMS: int64(i), Receipt: json.RawMessage(`{"proof":"absent","detail":"no account, no session"}`)}
		}
		if i%100 == 0 {
			l.End.Reason = ledger.EndRevoked
		}
		record, err := json.Marshal(l)
		if err != nil {
			return nil, err
		}
		tx.Put("lease", []byte(l.ID), record)
	}
	return nil, nil
}

// BenchmarkRevocationList is what making one target's revocation list costs the
// ledger of a node with a million leases in the last month: the sealed records
// are read one by one. Lists after the first look up what was unexpired alone.
func BenchmarkRevocationList(b *testing.B) {
	k, err := seal.New("bench", time.Now())
	if err != nil {
		b.Fatal(err)
	}
	if err := newSecrets(k, time.Now()); err != nil {
		b.Fatal(err)
	}
	ca, err := authority(k)
	if err != nil {
		b.Fatal(err)
	}
	store, err := raftstore.Open(raftstore.Config{NodeID: "bench", Dir: filepath.Join(b.TempDir(), "raft"), Listen: "127.0.0.1:0", CA: ca, Sealer: k, Bootstrap: true}, filler{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	fill(b, store)
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			found := 0
			err := store.View(func(tx *raftstore.Tx) error {
				q := ledger.NewQuery(tx)
				q.Unexpired("fleet", "", 0, func(string) { found++ })
				return q.Err()
			})
			if err != nil || found != manyLeases/10 {
				b.Fatal(found, err)
			}
		}
		b.ReportMetric(b.Elapsed().Seconds()*1e6/float64(b.N)/manyLeases, "µs/lease")
	})
	b.Run("next, 10000 unexpired", func(b *testing.B) {
		for b.Loop() {
			err := store.View(func(tx *raftstore.Tx) error {
				q := ledger.NewQuery(tx)
				for i := range 10_000 {
					if _, ok := q.Lease(fmt.Sprintf("%s%026d", ledger.PrefixLease, i*100)); !ok {
						return q.Err()
					}
				}
				return q.Err()
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func fill(b *testing.B, store *raftstore.Store) {
	b.Helper()
	led := make(chan struct{})
	store.Lead(func(ctx context.Context) { close(led); <-ctx.Done() })
	<-led
	for first := uint64(0); first < manyLeases; first += perCommand {
		if _, err := store.Propose(b.Context(), raftstore.Proposal{Command: binary.BigEndian.AppendUint64(nil, first)}); err != nil {
			b.Fatal(err)
		}
	}
}
