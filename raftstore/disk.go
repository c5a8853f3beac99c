package raftstore

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"
)

// disk watches the free space under the data directory, so that commands which
// end things always fit: ordinary ones stop at the reserve, urgent ones at the floor.
type disk struct {
	dir    string
	limits Disk
	free   atomic.Uint64 // bytes
}

func newDisk(dir string, limits Disk) (*disk, error) {
	d := &disk{dir: dir, limits: limits}
	return d, d.measure()
}

func (d *disk) measure() error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &st); err != nil {
		return fmt.Errorf("raftstore: free disk space: %w", err)
	}
	d.free.Store(st.Bavail * uint64(st.Bsize))
	return nil
}

func (d *disk) watch(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(d.limits.Poll)
	defer tick.Stop()
	low := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := d.measure(); err != nil {
			log.Warn("free disk space is unknown", "error", err)
			continue
		}
		if now := !d.allows(false); now != low {
			low = now
			log.Warn("disk space crossed the reserve", "low", low, "free_bytes", d.free.Load(), "reserve_bytes", d.limits.Reserve)
		}
	}
}

func (d *disk) allows(urgent bool) bool {
	if urgent {
		return d.free.Load() >= d.limits.Floor
	}
	return d.free.Load() >= d.limits.Reserve
}

// flags tells the leader how this node's disk is doing.
func (d *disk) flags() (f byte) {
	if !d.allows(false) {
		f |= flagDiskLow
	}
	if !d.allows(true) {
		f |= flagDiskFloor
	}
	return f
}
