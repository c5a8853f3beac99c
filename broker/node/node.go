// Package node is one node's life: uninitialised, sealed, running, and back.
//
// It owns the data directory, the keyring and the store, and makes an engine
// while the node is unsealed. It must know nothing of HTTP beyond handing a
// handler to the cluster port.
package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/notify"
	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/raftstore"
)

// Config says how to run a node. ID, Dir, URL and Kinds are required.
type Config struct {
	// ID names the node for ever within its cluster.
	ID  string
	Dir string
	// ClusterListen and ClusterAdvertise are the cluster port's addresses.
	ClusterListen    string
	ClusterAdvertise string
	// Issuer is the cluster's external URL, the same on every node; URL is this
	// node's own.
	Issuer string
	URL    string
	// URLs are all external URLs that a proof may name.
	URLs []string
	// Hint goes into enrolment tokens.
	Hint broker.Hint
	// LocalKey, where set, is the key file that seals the node instead of
	// shares, so that it starts unattended.
	LocalKey string
	// FirstPolicy is the Cedar text that a new cluster begins with.
	FirstPolicy string
	Kinds       []issuers.Kind
	// Plugins runs the kinds out of process; nil where there are none.
	Plugins broker.Plugins
	HTTP    *http.Client
	Logger  *slog.Logger
	// Disk says how much free space is kept back.
	Disk    Disk
	Version string
	// Join, where set, makes an empty node join a cluster instead of waiting to
	// be initialised.
	Join *Join

	timing raftstore.Timing // the store's own, but for tests
}

// Disk is how much free space under Dir is kept back, in MiB; 0 is the store's
// default. Below Reserve nothing new is issued; below Floor nothing is recorded.
type Disk struct{ ReserveMiB, FloorMiB uint64 }

// Join is how an empty node finds its cluster.
type Join struct {
	Token string // one-time, from `operator join-token`
}

// states of a node.
type state int

const (
	uninitialised state = iota
	sealed
	running
)

// Node is one node. It is safe for concurrent use.
type Node struct {
	cfg     Config
	log     *slog.Logger
	forward http.Handler
	guess   *rate.Limiter // attempts to unseal, recover or rekey

	// life is held while the node goes from one state to another, which may
	// take long. Everybody else reads what the last step has published.
	life      sync.Mutex
	condition condition
	published atomic.Pointer[condition]
	// newest is the wrapped keyring as last written while running, nil before:
	// a rekey elsewhere must void the old shares here, too.
	newest atomic.Pointer[seal.Wrapped]
	failed chan error
}

// condition is what a node is at one moment.
type condition struct {
	state    state
	wrapped  *seal.Wrapped
	unsealer *seal.Unsealer
	keyring  *seal.Keyring
	run      *run
}

// publish lets everybody see the condition. The caller holds life.
func (n *Node) publish() {
	c := n.condition
	n.published.Store(&c)
}

// begin takes life for a change of state; the result publishes and lets go.
func (n *Node) begin() (end func()) {
	n.life.Lock()
	return func() {
		n.publish()
		n.life.Unlock()
	}
}

// run is what exists only while the node is unsealed.
type run struct {
	store  *raftstore.Store
	engine *broker.Engine
	log    replicated
	teller *notify.Teller
	cancel context.CancelFunc
	wg     sync.WaitGroup
	grown  chan struct{} // the ledger has grown
	// ready is set once log and engine stand; diverged once a replica's Merkle
	// root was seen to differ.
	ready, diverged atomic.Bool
	leader          atomic.Pointer[leaderAt]
}

// Files of the data directory.
const (
	keyringFile = "keyring.json"
	pendingFile = "init.pending" // stands while an initialisation is unfinished
	joinFile    = "join.json"    // stands until a joining node is a voter
	raftDir     = "raft"
)

func (n *Node) path(name string) string { return filepath.Join(n.cfg.Dir, name) }

// New reads the data directory. Call Forwarded, then Start.
func New(cfg Config) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("node: data directory: %w", err)
	}
	n := &Node{cfg: cfg, log: cfg.Logger, guess: rate.NewLimiter(1, 10), forward: http.NotFoundHandler(), failed: make(chan error, 1)}
	if _, err := os.Stat(n.path(pendingFile)); err == nil {
		// The genesis record was never committed: nothing was given out that
		// this could lose.
		n.log.Warn("an initialisation was cut short; starting over")
		if err := n.wipe(); err != nil {
			return nil, err
		}
	}
	defer n.publish()
	w, err := seal.ReadFile(n.path(keyringFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return n, nil
	case err != nil:
		return nil, err
	}
	n.condition.wrapped, n.condition.state = w, sealed
	return n, n.newUnsealer()
}

func (n *Node) wipe() error {
	for _, f := range []string{keyringFile, raftDir, pendingFile} {
		if err := os.RemoveAll(n.path(f)); err != nil {
			return fmt.Errorf("node: %w", err)
		}
	}
	return nil
}

func (n *Node) newUnsealer() error {
	if n.condition.wrapped.Header().Method.Type != seal.MethodShamir {
		return nil
	}
	u, err := seal.NewUnsealer(n.condition.wrapped, n.throttle)
	n.condition.unsealer = u
	return err
}

// throttle bounds attempts that could guess at shares.
func (n *Node) throttle() error {
	if !n.guess.Allow() {
		return &fault.Error{Kind: fault.RateLimited, Code: "rate_limited", RetryAfter: time.Second, Detail: "Too many attempts. Wait a second."}
	}
	return nil
}

// Forwarded sets the handler for calls that peers forward over the cluster
// port. Call it before Start.
func (n *Node) Forwarded(h http.Handler) { n.forward = h }

// Start unseals a node that can do so by itself, and joins a cluster where the
// configuration says so. A node that waits for shares or for `operator init`
// starts without an error.
func (n *Node) Start(ctx context.Context) error {
	defer n.begin()()
	if n.condition.state == uninitialised && n.cfg.Join != nil {
		if err := n.join(ctx); err != nil {
			return err
		}
	}
	if n.condition.state != sealed || n.cfg.LocalKey == "" {
		return nil
	}
	k, err := n.condition.wrapped.UnsealLocal(n.cfg.LocalKey)
	if err != nil {
		return err
	}
	return n.open(ctx, k, false)
}

// Close stops the node. It can be started anew from its directory.
func (n *Node) Close() error {
	defer n.begin()()
	return n.close()
}

// close ends the run; the node is sealed afterwards.
func (n *Node) close() error {
	c := &n.condition
	if c.run == nil {
		return nil
	}
	r, k := c.run, c.keyring
	c.run, c.keyring, c.state = nil, nil, sealed
	n.publish() // no new request comes in
	r.cancel()
	r.wg.Wait()
	err := r.store.Close()
	r.engine.Close()
	k.Close()
	if w := n.newest.Swap(nil); w != nil {
		c.wrapped = w
	}
	return errors.Join(err, n.newUnsealer())
}

// Engine returns the engine of an unsealed node.
func (n *Node) Engine() (*broker.Engine, error) {
	r, err := n.current()
	if err != nil {
		return nil, err
	}
	return r.engine, nil
}

// current returns the run, or why there is none.
func (n *Node) current() (*run, error) {
	c := n.published.Load()
	switch c.state {
	case running:
		return c.run, nil
	case sealed:
		return nil, &fault.Error{Kind: fault.Unavailable, Code: "sealed", Detail: "This node is sealed. Holders of shares unseal it with: mayfly operator unseal"}
	default:
		return nil, &fault.Error{Kind: fault.Unavailable, Code: "uninitialised", Detail: "This node belongs to no cluster yet. Initialise one with: mayfly operator init"}
	}
}

// Status describes the node. It needs no session.
func (n *Node) Status() wire.Status {
	c := n.published.Load()
	s := wire.Status{Node: n.cfg.ID, Version: n.cfg.Version, Initialised: c.state != uninitialised, Sealed: c.state == sealed, Role: "uninitialised"}
	if c.wrapped != nil {
		h := c.wrapped.Header()
		if w := n.newest.Load(); w != nil {
			h = w.Header()
		}
		s.Cluster, s.Threshold, s.Total = h.ClusterID, h.Method.Threshold, h.Method.Shares
	}
	if c.state == sealed {
		s.Role = "sealed"
		if c.unsealer != nil {
			s.Have = c.unsealer.Progress().Have
		}
		return s
	}
	if c.run == nil {
		return s
	}
	st := c.run.store.Stats()
	s.Role, s.Fresh = roleWord(st.State), st.Fresh
	if id, _, ok := c.run.store.Leader(); ok {
		s.Leader = id
	}
	if _, size, _, err := c.run.engine.Begun(); err == nil {
		s.Size = size
	}
	s.Barrier = c.keyring.Newest()
	return s
}

func roleWord(raftState string) string {
	switch raftState {
	case "Leader":
		return "leader"
	case "Follower":
		return "follower"
	case "Candidate":
		return "candidate"
	default:
		return "stopped"
	}
}

// IsLeader reports whether this node leads.
func (n *Node) IsLeader() bool {
	r, err := n.current()
	return err == nil && r.store.IsLeader()
}

// LeaderTransport carries requests to the leader's cluster port.
func (n *Node) LeaderTransport() http.RoundTripper { return leaderTransport{n} }

type leaderTransport struct{ n *Node }

// RoundTrip implements [http.RoundTripper].
func (t leaderTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	r, err := t.n.current()
	if err != nil {
		return nil, err
	}
	return r.store.LeaderTransport().RoundTrip(req)
}

// Failed gives the error with which a store has stopped itself; the process
// should end. Sealing is no failure.
func (n *Node) Failed() <-chan error { return n.failed }

// watchStore reports a store that stops while nobody asked it to.
func (n *Node) watchStore(ctx context.Context, r *run) {
	select {
	case <-ctx.Done():
	case <-r.store.Done():
		if ctx.Err() == nil {
			n.failed <- fmt.Errorf("node: the store has stopped itself: %w", r.store.Err())
		}
	}
}

// AwaitLeader waits until the cluster has a leader and this node has applied
// what it had committed.
func (n *Node) AwaitLeader(ctx context.Context) error {
	r, err := n.current()
	if err != nil {
		return err
	}
	return r.awaitLeader(ctx)
}

func (r *run) awaitLeader(ctx context.Context) error {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		if r.store.IsLeader() && r.store.Barrier(ctx) == nil || !r.store.IsLeader() && r.log.Fresh() == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.store.Done():
			return storeFault(r.store.Err())
		case <-t.C:
		}
	}
}
