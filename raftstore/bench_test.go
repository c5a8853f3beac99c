package raftstore

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// benchMachine makes of each command what a lease costs the ledger: eight puts.
type benchMachine struct{}

func (benchMachine) Apply(tx *Tx, command []byte) (any, error) {
	id := command[:8]
	tx.Put("leases", id, command[:400])
	tx.Put("by-task", append([]byte("task-0001/"), id...), nil)
	tx.Put("by-end", append([]byte("2026-01-01/"), id...), nil)
	tx.Put("by-name", append([]byte("name/"), id...), id)
	tx.Put("decisions", id, command[400:800])
	tx.Put("leaves", id, command[:32])
	tx.Put("tree", []byte("root"), command[:32])
	tx.Put("counters", []byte("issued"), id)
	return nil, nil
}

// fsyncFloor is the median time of a 4 KiB write and fsync under dir.
func fsyncFloor(b *testing.B, dir string) time.Duration {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "floor"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	page := make([]byte, 4096)
	const rounds = 200
	began := time.Now()
	for i := range rounds {
		if _, err := f.WriteAt(page, int64(i%16)*4096); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(began) / rounds
}

func BenchmarkPropose(b *testing.B) {
	for _, nodes := range []int{1, 3} {
		c := newCluster(b, nodes, nil)
		for _, n := range c.nodes {
			n.parts.fsm.machine = benchMachine{} // nothing was proposed yet
		}
		leader := c.leader()
		floor := fsyncFloor(b, leader.cfg.Dir)
		var serial atomic.Uint64
		for _, clients := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("nodes=%d/clients=%d", nodes, clients), func(b *testing.B) {
				ctx := b.Context()
				var left atomic.Int64
				left.Store(int64(b.N))
				var wg sync.WaitGroup
				b.ResetTimer()
				for range clients {
					wg.Go(func() {
						for left.Add(-1) >= 0 {
							command := make([]byte, 1024)
							binary.BigEndian.PutUint64(command, serial.Add(1))
							if _, err := leader.Propose(ctx, Proposal{Command: command}); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
				b.ReportMetric(float64(floor.Microseconds()), "fsync-µs")
			})
		}
		for _, n := range c.nodes {
			n.close()
		}
	}
}
