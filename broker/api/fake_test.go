package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/api/console"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// cluster is what the fake nodes share: sessions by token, and who leads.
type cluster struct {
	mu       sync.Mutex
	sessions map[string]ledger.Session
	leader   string
	leadURL  string
}

// fakeBroker answers with what it was asked, and remembers the last call. When
// err is set, every operation but Session fails with it.
type fakeBroker struct {
	console.Engine // what no test here asks for

	c        *cluster
	verifier *identity.Verifier

	mu      sync.Mutex
	err     error
	stale   bool // this node is cut off
	lagging bool // this node has not heard of the sessions yet
	ready   error
	calls   int
	last    broker.Caller
	lastIn  any
	login   broker.LoginInput
	hold    func(ctx context.Context) error // runs inside EndTask
	panics  bool
	lines   int // of an export before err
}

func (b *fakeBroker) set(f func(b *fakeBroker)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

func (b *fakeBroker) seen() (calls int, last broker.Caller, in any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls, b.last, b.lastIn
}

func (b *fakeBroker) note(c broker.Caller, in any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	b.last, b.lastIn = c, in
	if b.panics {
		panic("the fake was told to: sesame-panic-secret")
	}
	return b.err
}

// now is one fixed instant: proofs and nonces depend on nothing else.
var now = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

func (b *fakeBroker) Verifier() *identity.Verifier { return b.verifier }

func (b *fakeBroker) Ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ready
}

func (b *fakeBroker) Publish(_ context.Context, doc string) ([]byte, error) {
	if doc != "jwks" {
		return nil, fault.New(fault.NotFound, "", "There is no %s.", doc)
	}
	return []byte(`{"keys":[]}`), nil
}

func (b *fakeBroker) Session(_ context.Context, token string) (ledger.Session, error) {
	b.mu.Lock()
	stale, lagging := b.stale, b.lagging
	b.mu.Unlock()
	if stale {
		return ledger.Session{}, fault.New(fault.Unavailable, "stale", "This node is cut off.")
	}
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	s, ok := b.c.sessions[token]
	if !ok || lagging {
		return s, fault.New(fault.Unauthenticated, "session_unknown", "The session is unknown or has ended. Log in again.")
	}
	return s, nil
}

func (b *fakeBroker) Login(_ context.Context, in broker.LoginInput) (wire.LoginAnswer, error) {
	err := b.note(broker.Caller{}, in)
	b.set(func(b *fakeBroker) { b.login = in })
	return wire.LoginAnswer{SessionToken: "mfs_fresh", TokenType: "DPoP", Principal: "human:ann", ExpiresAt: now}, err
}
func (b *fakeBroker) Logout(_ context.Context, c broker.Caller) error { return b.note(c, nil) }
func (b *fakeBroker) Whoami(_ context.Context, c broker.Caller) (wire.Whoami, error) {
	return wire.Whoami{Principal: c.Session.Principal, Groups: []string{}, Binding: c.Session.Binding}, b.note(c, nil)
}
func (b *fakeBroker) Keys(_ context.Context, c broker.Caller, p string) ([]wire.Key, error) {
	return nil, b.note(c, p)
}
func (b *fakeBroker) AddKey(_ context.Context, c broker.Caller, in wire.AddKeyRequest) (wire.Key, error) {
	return wire.Key{Principal: in.Principal, JWK: in.JWK}, b.note(c, in)
}
func (b *fakeBroker) RemoveKey(_ context.Context, c broker.Caller, p, t string) error {
	return b.note(c, p+" "+t)
}
func (b *fakeBroker) Enrol(_ context.Context, c broker.Caller, p string, in wire.EnrolRequest) (wire.EnrolAnswer, error) {
	return wire.EnrolAnswer{Principal: p, Token: "mfe_shown_once"}, b.note(c, in)
}
func (b *fakeBroker) NodePlugins(context.Context, broker.Caller) ([]wire.NodePlugin, error) {
	return nil, nil
}

func (b *fakeBroker) Objects(_ context.Context, c broker.Caller, kind string) ([]wire.Object, error) {
	return nil, b.note(c, kind)
}
func (b *fakeBroker) Object(_ context.Context, c broker.Caller, kind, name string) (wire.Object, error) {
	return wire.Object{Kind: kind, Name: name, Spec: []byte(`{}`)}, b.note(c, name)
}
func (b *fakeBroker) Apply(_ context.Context, c broker.Caller, in wire.ApplyRequest) (wire.ApplyAnswer, error) {
	return wire.ApplyAnswer{Changes: []wire.Change{}}, b.note(c, in)
}
func (b *fakeBroker) CheckTarget(_ context.Context, c broker.Caller, name string) (wire.TargetReport, error) {
	return wire.TargetReport{Target: name}, b.note(c, name)
}
func (b *fakeBroker) PreviewTarget(_ context.Context, c broker.Caller, in wire.TargetPreview) (wire.TargetReport, error) {
	return wire.TargetReport{Target: in.Name}, b.note(c, in)
}
func (b *fakeBroker) StartTask(_ context.Context, c broker.Caller, in wire.StartTaskRequest) (wire.Task, error) {
	return wire.Task{ID: "task_1", Name: in.Name}, b.note(c, in)
}
func (b *fakeBroker) HeartbeatTask(_ context.Context, c broker.Caller, id string) (wire.Task, error) {
	return wire.Task{ID: id}, b.note(c, id)
}
func (b *fakeBroker) EndTask(ctx context.Context, c broker.Caller, id string, wait time.Duration) (wire.EndTaskAnswer, error) {
	err := b.note(c, wait)
	b.mu.Lock()
	hold := b.hold
	b.mu.Unlock()
	if hold != nil {
		err = hold(ctx)
	}
	return wire.EndTaskAnswer{Task: wire.Task{ID: id}, Ended: []string{}}, err
}
func (b *fakeBroker) Task(_ context.Context, c broker.Caller, id string) (wire.Task, error) {
	return wire.Task{ID: id}, b.note(c, id)
}
func (b *fakeBroker) Tasks(_ context.Context, c broker.Caller, f broker.TaskFilter) ([]wire.Task, error) {
	return nil, b.note(c, f)
}
func (b *fakeBroker) Request(_ context.Context, c broker.Caller, in wire.AccessRequest) (wire.AccessAnswer, error) {
	return wire.AccessAnswer{Status: "issued", Role: in.Role, Credential: map[string]string{"password": "sesame-credential"}}, b.note(c, in)
}
func (b *fakeBroker) Lease(_ context.Context, c broker.Caller, id string) (wire.Lease, error) {
	return wire.Lease{ID: id}, b.note(c, id)
}
func (b *fakeBroker) Leases(_ context.Context, c broker.Caller, f broker.LeaseFilter) ([]wire.Lease, error) {
	return nil, b.note(c, f)
}
func (b *fakeBroker) Renew(_ context.Context, c broker.Caller, id string, in wire.RenewRequest) (wire.Lease, error) {
	return wire.Lease{ID: id}, b.note(c, in)
}
func (b *fakeBroker) Revoke(_ context.Context, c broker.Caller, id string, in wire.RevokeRequest) (wire.Lease, error) {
	return wire.Lease{ID: id}, b.note(c, in)
}
func (b *fakeBroker) Whohas(_ context.Context, c broker.Caller, name string) (wire.Whohas, error) {
	return wire.Whohas{LeaseID: "lease_1"}, b.note(c, name)
}
func (b *fakeBroker) Contain(_ context.Context, c broker.Caller, in wire.ContainRequest) (wire.ContainAnswer, error) {
	return wire.ContainAnswer{What: in.What}, b.note(c, in)
}
func (b *fakeBroker) Rotate(_ context.Context, c broker.Caller, in wire.RotateRequest) (wire.Rotation, error) {
	return wire.Rotation{Kind: in.Kind, Name: in.Name}, b.note(c, in)
}
func (b *fakeBroker) Rotations(_ context.Context, c broker.Caller) ([]wire.Rotation, error) {
	return nil, b.note(c, nil)
}
func (b *fakeBroker) Release(_ context.Context, c broker.Caller, in wire.ContainRequest) (wire.ContainAnswer, error) {
	return wire.ContainAnswer{What: in.What}, b.note(c, in)
}
func (b *fakeBroker) Decision(_ context.Context, c broker.Caller, id string) (wire.Decision, error) {
	return wire.Decision{ID: id, Decision: []byte(`{}`)}, b.note(c, id)
}
func (b *fakeBroker) TestPolicies(_ context.Context, c broker.Caller, in wire.PolicyTestRequest) (wire.PolicyTestAnswer, error) {
	return wire.PolicyTestAnswer{}, b.note(c, in)
}
func (b *fakeBroker) ReplayPolicies(_ context.Context, c broker.Caller, in wire.PolicyReplayRequest) (wire.PolicyReplayAnswer, error) {
	return wire.PolicyReplayAnswer{Groups: []wire.PolicyReplayGroup{}}, b.note(c, in)
}
func (b *fakeBroker) AuditEntries(_ context.Context, c broker.Caller, from uint64, limit int) (wire.AuditPage, error) {
	return wire.AuditPage{Size: from + uint64(limit)}, b.note(c, limit)
}
func (b *fakeBroker) AuditExport(_ context.Context, c broker.Caller, from, to uint64, w io.Writer) error {
	err := b.note(c, [2]uint64{from, to})
	b.mu.Lock()
	lines := b.lines
	b.mu.Unlock()
	for i := range lines {
		if _, werr := fmt.Fprintf(w, "{\"seq\":%d}\n", i); werr != nil {
			return werr
		}
	}
	return err
}
func (b *fakeBroker) AuditVerify(_ context.Context, c broker.Caller, from uint64) (wire.VerifyAnswer, error) {
	return wire.VerifyAnswer{OK: true}, b.note(c, from)
}
func (b *fakeBroker) Reconcile(_ context.Context, c broker.Caller, in wire.ReconcileRequest) ([]wire.Drift, error) {
	return nil, b.note(c, in)
}

// fakeNode is one node of the fake cluster.
type fakeNode struct {
	c         *cluster
	name      string
	transport http.RoundTripper

	mu     sync.Mutex
	sealed bool
}

func (n *fakeNode) setSealed(sealed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sealed = sealed
}

func (n *fakeNode) isSealed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sealed
}

func (n *fakeNode) Status() wire.Status {
	return wire.Status{Node: n.name, Initialised: true, Sealed: n.isSealed(), Role: "leader"}
}
func (n *fakeNode) Init(_ context.Context, in wire.InitRequest) (wire.InitAnswer, error) {
	return wire.InitAnswer{Cluster: "c", Shares: make([]string, max(0, min(in.Shares, 9)))}, nil
}
func (n *fakeNode) Unseal(_ context.Context, in wire.UnsealRequest) (wire.Status, error) {
	if in.Share == "" {
		return wire.Status{}, fault.New(fault.Invalid, "share_missing", "A share is needed.")
	}
	return n.Status(), nil
}
func (n *fakeNode) Recover(_ context.Context, in wire.RecoverRequest) (wire.EnrolAnswer, error) {
	return wire.EnrolAnswer{Principal: in.Principal}, nil
}
func (n *fakeNode) Rekey(context.Context, wire.RekeyRequest) ([]string, error) { return nil, nil }
func (n *fakeNode) Seal(context.Context, broker.Caller) error                  { n.setSealed(true); return nil }
func (n *fakeNode) Peers(context.Context, broker.Caller) ([]wire.Peer, error)  { return nil, nil }
func (n *fakeNode) RemovePeer(context.Context, broker.Caller, string) error    { return nil }
func (n *fakeNode) StepDown(context.Context, broker.Caller) error              { return nil }
func (n *fakeNode) JoinToken(context.Context, broker.Caller) (wire.JoinTokenAnswer, error) {
	return wire.JoinTokenAnswer{Token: "mfj_shown_once"}, nil
}

func (n *fakeNode) IsLeader() bool {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.c.leader == n.name
}

func (n *fakeNode) LeaderURL(context.Context) (string, error) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.c.leader == "" {
		return "", errors.New("no leader")
	}
	return n.c.leadURL, nil
}

func (n *fakeNode) LeaderTransport() http.RoundTripper { return n.transport }

// SignInMethods implements console.Engine: nobody signs in elsewhere.
func (b *fakeBroker) SignInMethods(context.Context) ([]string, error) { return nil, nil }
