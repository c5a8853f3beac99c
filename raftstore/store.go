package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// Store is one node. Its methods may be called from any goroutine.
type Store struct {
	cfg   Config
	log   *slog.Logger
	disk  *disk
	parts parts

	raft   *raft.Raft
	intake intake

	restoring sync.Mutex

	lead    *leadership
	beacons *beacons
	fresh   *freshness
	net     *network

	stop     context.CancelFunc // ends the background work
	work     sync.WaitGroup     // which is this
	failure  atomic.Pointer[error]
	failed   chan struct{} // closed by fail
	done     chan struct{} // closed once everything has ended
	once     sync.Once     // of shutdown
	closeErr error
}

// parts are what a Store opens, in the order of opening, and closes in reverse.
type parts struct {
	lock  *os.File
	port  *port
	log   *sealedLog
	snaps *sealedSnapshots
	state *state
	fsm   *fsm
	trans *transport
}

// RenewCertificate has this node know itself to others, from the next connection
// on, by a new key and certificate. Without it they are renewed each hour.
func (s *Store) RenewCertificate() { s.parts.port.id.renew() }

// Open starts a node. Close it when done; watch [Store.Done] meanwhile.
func Open(cfg Config, m Machine) (*Store, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, log: cfg.Logger.With("node", cfg.NodeID), intake: newIntake(),
		failed: make(chan struct{}), done: make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	if err := s.open(m); err != nil {
		cancel()
		return nil, errors.Join(err, s.closeParts())
	}
	s.start(ctx)
	return s, nil
}

func (s *Store) open(m Machine) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("raftstore: data directory: %w", err)
	}
	var err error
	p := &s.parts
	if p.lock, err = lockDir(s.cfg.Dir); err != nil {
		return err
	}
	if s.disk, err = newDisk(s.cfg.Dir, s.cfg.Disk); err != nil {
		return err
	}
	id, err := newIdentity(s.cfg.CA, s.cfg.NodeID)
	if err != nil {
		return err
	}
	if p.port, err = openPort(s.cfg.Listen, s.cfg.Advertise, id, s.log); err != nil {
		return err
	}
	logger := newHCLog(s.log)
	if p.log, err = openLog(s.cfg.Dir, s.cfg.Sealer, logger, s.fail); err != nil {
		return err
	}
	if p.snaps, err = openSnapshots(s.cfg.Dir, s.cfg.Sealer, logger); err != nil {
		return err
	}
	snap, err := p.snaps.latest()
	if err != nil {
		return err
	}
	if p.state, err = openState(s.cfg.Dir, s.cfg.Sealer, s.log, p.log.vouches(snap)); err != nil {
		return err
	}
	standIn, err := p.state.standIn(snap, p.log)
	if err != nil {
		return err
	}
	from := snap.index
	if standIn != nil {
		from = standIn.Index
	}
	if err := p.log.check(snap.index, from); err != nil {
		return err
	}
	p.fsm = &fsm{machine: m, state: p.state, hooks: s.cfg.Hooks, clock: s.cfg.Clock, fail: s.fail}
	return s.openRaft(id, snap, standIn)
}

// vouches says whether a state applied up to a position can be this node's:
// nothing beyond what log and snapshot hold, and of the same term.
func (l *sealedLog) vouches(snap position) func(position) bool {
	return func(pos position) bool {
		last, err := l.LastIndex()
		switch {
		case err != nil || pos.index > max(last, snap.index):
			return false
		case pos.index == snap.index:
			return pos.term == snap.term
		case pos.index > snap.index:
			return l.termAt(pos.index) == pos.term
		}
		return true // behind the snapshot: it will be restored
	}
}

func (s *Store) openRaft(id *identity, snap position, standIn *raft.SnapshotMeta) error {
	logger, t, p := newHCLog(s.log), s.cfg.Timing, &s.parts
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(s.cfg.NodeID)
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = t.Heartbeat, t.Election, t.LeaderLease
	conf.CommitTimeout = t.Commit
	conf.MaxAppendEntries, conf.BatchApplyCh = maxAppendEntries, true
	conf.SnapshotThreshold, conf.TrailingLogs = math.MaxUint64, t.TrailingLogs // see snapshotWhenDue
	conf.ShutdownOnRemove = false
	conf.NoLegacyTelemetry = true
	conf.Logger = logger
	// raft would take the snapshot as applied; that is true only of a state that is not behind it.
	conf.NoSnapshotRestoreOnStart = standIn != nil || snap.index > 0 && p.state.pos.index >= snap.index

	s.net = newNetwork(s, id)
	p.trans = &transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Logger: logger, MaxPool: 4, Timeout: 3 * time.Second,
		Stream: &raftStream{p.port.routes[protoRaft], id, s.net.nodeAt},
	})}
	if s.cfg.Bootstrap {
		if err := s.bootstrap(conf); err != nil {
			return err
		}
	}
	p.snaps.standIn.Store(standIn)
	r, err := raft.NewRaft(conf, p.fsm, p.log, p.log, p.snaps, p.trans)
	p.snaps.standIn.Store(nil)
	if err != nil {
		return fmt.Errorf("raftstore: start raft: %w", err)
	}
	s.raft = r
	s.net.raft.Store(r)
	return nil
}

func (s *Store) bootstrap(conf *raft.Config) error {
	p := &s.parts
	have, err := raft.HasExistingState(p.log, p.log, p.snaps)
	if err != nil || have {
		return err
	}
	err = raft.BootstrapCluster(conf, p.log, p.log, p.snaps, p.trans, raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: conf.LocalID, Address: p.trans.LocalAddr(),
	}}})
	if err != nil {
		return fmt.Errorf("raftstore: bootstrap: %w", err)
	}
	return nil
}

// start begins the background work. Until then nothing but raft runs.
func (s *Store) start(ctx context.Context) {
	s.fresh = newFreshness(s)
	s.beacons = newBeacons(s)
	s.lead = newLeadership(s)
	s.work.Go(func() { s.disk.watch(ctx, s.log) })
	s.work.Go(func() { s.syncState(ctx) })
	s.work.Go(func() { s.snapshotWhenDue(ctx) })
	s.work.Go(func() { s.beacons.run(ctx) })
	s.work.Go(func() { s.lead.run(ctx) })
	s.net.serve()
	s.parts.port.serve()
	s.work.Go(func() {
		select {
		case <-s.failed:
			s.shutdownOnFailure()
		case <-ctx.Done():
		}
	})
}

func (s *Store) syncState(ctx context.Context) {
	tick := time.NewTicker(s.cfg.Timing.StateSync)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.parts.state.sync(); err != nil {
				s.parts.fsm.die(err)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// snapshotWhenDue takes a snapshot when the log has grown enough since the newest
// one. raft itself would count from the state that it started with, and a node
// that is restarted often would never come to the end of its log.
func (s *Store) snapshotWhenDue(ctx context.Context) {
	tick := time.NewTicker(s.cfg.Timing.SnapshotInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		snap, err := s.parts.snaps.latest()
		if err == nil && s.raft.LastIndex()-snap.index >= s.cfg.Timing.SnapshotThreshold {
			err = s.raft.Snapshot().Error()
		}
		if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && ctx.Err() == nil {
			s.log.Error("snapshot failed", "error", err)
		}
	}
}

// fail stops the node because of err: what it holds can no longer be trusted,
// or an entry cannot be applied. It does not block.
func (s *Store) fail(err error) {
	if !s.failure.CompareAndSwap(nil, &err) {
		return
	}
	s.log.Error("node stops", "error", err)
	if verr := voidPassport(s.cfg.Dir); verr != nil {
		s.log.Error("state file could not be marked for rebuilding", "error", verr)
	}
	close(s.failed)
}

// Done is closed when the node has stopped, by [Store.Close] or by a failure,
// which [Store.Err] then names.
func (s *Store) Done() <-chan struct{} { return s.done }

// Err returns why the node stopped itself; nil while it runs, and after an
// ordinary Close.
func (s *Store) Err() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// shutdownOnFailure runs in a goroutine of s.work, which shutdown waits for.
func (s *Store) shutdownOnFailure() {
	go func() {
		if err := s.shutdown(); err != nil {
			s.log.Warn("shutdown after failure", "error", err)
		}
	}()
}

// Close stops the node and waits until everything it started has ended. It does
// not hand leadership over: call [Store.StepDown] first to spare the others an election.
func (s *Store) Close() error { return s.shutdown() }

// drainTimeout bounds the wait for proposals that raft has yet to answer. It
// answers within the leader lease unless applying is stuck.
const drainTimeout = 10 * time.Second

func (s *Store) shutdown() error {
	s.once.Do(func() {
		defer close(s.done)
		s.intake.close()
		s.stop()
		s.work.Wait()
		if !s.intake.drain(drainTimeout) {
			s.log.Warn("proposals were still unanswered at shutdown")
		}
		s.closeErr = s.raft.Shutdown().Error()
		s.net.close()
		s.closeErr = errors.Join(s.closeErr, s.closeParts())
	})
	<-s.done
	return s.closeErr
}

// closeParts closes what was opened.
func (s *Store) closeParts() error {
	var errs []error
	p := &s.parts
	if p.trans != nil {
		p.trans.CloseStreams()
		errs = append(errs, p.trans.Close())
	}
	if p.port != nil {
		errs = append(errs, p.port.close())
	}
	if p.state != nil {
		errs = append(errs, p.state.close())
	}
	if p.log != nil {
		errs = append(errs, p.log.close())
	}
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	return errors.Join(errs...)
}

// lockDir makes sure that no other process has dir open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("raftstore: lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(ErrLocked, f.Close())
	}
	return f, nil
}
