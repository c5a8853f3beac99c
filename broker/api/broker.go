package api

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/api/console"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Broker is the engine as this package calls it. Every error is a *fault.Error
// or internal. What a follower cannot do fails with kind unavailable and code
// [CodeNoLeader], with nothing proposed; the call is then made at the leader.
type Broker interface {
	sessions
	configuration
	work
	grants
	oversight
	console.Engine // what its pages show and take, much of it the same

	// Verifier checks DPoP proofs with this node's nonces and replay cache.
	Verifier() *identity.Verifier
	// Ready returns nil when this node may serve.
	Ready() error
	// Publish returns a public document: "jwks".
	Publish(ctx context.Context, document string) ([]byte, error)
	// PublishTarget returns one public document of one target: "ca.pub", "krl".
	PublishTarget(ctx context.Context, name, document string) ([]byte, error)
}

type sessions interface {
	// Session looks a token up. Unauthenticated when it is unknown, expired or
	// contained; unavailable when this node is cut off (HAZARDS 5).
	Session(ctx context.Context, token string) (ledger.Session, error)
	Login(ctx context.Context, in broker.LoginInput) (wire.LoginAnswer, error)
	Logout(ctx context.Context, c broker.Caller) error
	Whoami(ctx context.Context, c broker.Caller) (wire.Whoami, error)
	Keys(ctx context.Context, c broker.Caller, principal string) ([]wire.Key, error)
	AddKey(ctx context.Context, c broker.Caller, in wire.AddKeyRequest) (wire.Key, error)
	RemoveKey(ctx context.Context, c broker.Caller, principal, thumbprint string) error
	Enrol(ctx context.Context, c broker.Caller, principal string, in wire.EnrolRequest) (wire.EnrolAnswer, error)
}

type configuration interface {
	Objects(ctx context.Context, c broker.Caller, kind string) ([]wire.Object, error)
	Object(ctx context.Context, c broker.Caller, kind, name string) (wire.Object, error)
	Apply(ctx context.Context, c broker.Caller, in wire.ApplyRequest) (wire.ApplyAnswer, error)
	CheckTarget(ctx context.Context, c broker.Caller, name string) (wire.TargetReport, error)
	PreviewTarget(ctx context.Context, c broker.Caller, in wire.TargetPreview) (wire.TargetReport, error)
	NodePlugins(ctx context.Context, c broker.Caller) ([]wire.NodePlugin, error)
}

type work interface {
	StartTask(ctx context.Context, c broker.Caller, in wire.StartTaskRequest) (wire.Task, error)
	HeartbeatTask(ctx context.Context, c broker.Caller, id string) (wire.Task, error)
	EndTask(ctx context.Context, c broker.Caller, id string, wait time.Duration) (wire.EndTaskAnswer, error)
	Task(ctx context.Context, c broker.Caller, id string) (wire.Task, error)
	Tasks(ctx context.Context, c broker.Caller, f broker.TaskFilter) ([]wire.Task, error)
	Request(ctx context.Context, c broker.Caller, in wire.AccessRequest) (wire.AccessAnswer, error)
	Lease(ctx context.Context, c broker.Caller, id string) (wire.Lease, error)
	Leases(ctx context.Context, c broker.Caller, f broker.LeaseFilter) ([]wire.Lease, error)
	Renew(ctx context.Context, c broker.Caller, id string, in wire.RenewRequest) (wire.Lease, error)
	Revoke(ctx context.Context, c broker.Caller, id string, in wire.RevokeRequest) (wire.Lease, error)
}

type grants interface {
	Grants(ctx context.Context, c broker.Caller, f broker.GrantFilter) ([]wire.Grant, error)
	Grant(ctx context.Context, c broker.Caller, id string) (wire.Grant, error)
	AwaitGrant(ctx context.Context, c broker.Caller, id string, version uint64, wait time.Duration) (wire.Grant, error)
	ApproveGrant(ctx context.Context, c broker.Caller, id string, in wire.ApproveRequest) (wire.Grant, error)
	DenyGrant(ctx context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error)
	CancelGrant(ctx context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error)
	RevokeGrant(ctx context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error)
	CollectGrant(ctx context.Context, c broker.Caller, id string, in wire.CollectRequest) (wire.AccessAnswer, error)
	PreviousAccess(ctx context.Context, c broker.Caller, grantID string) (wire.PreviousAccess, error)
	ReviewGrant(ctx context.Context, c broker.Caller, id string, in wire.ReviewRequest) (wire.Grant, error)
	KeyDocument(ctx context.Context, c broker.Caller, principal string, in wire.ApproveKey) (wire.KeyDocument, error)
}

type oversight interface {
	Whohas(ctx context.Context, c broker.Caller, name string) (wire.Whohas, error)
	Contain(ctx context.Context, c broker.Caller, in wire.ContainRequest) (wire.ContainAnswer, error)
	Release(ctx context.Context, c broker.Caller, in wire.ContainRequest) (wire.ContainAnswer, error)
	Decision(ctx context.Context, c broker.Caller, id string) (wire.Decision, error)
	TestPolicies(ctx context.Context, c broker.Caller, in wire.PolicyTestRequest) (wire.PolicyTestAnswer, error)
	ReplayPolicies(ctx context.Context, c broker.Caller, in wire.PolicyReplayRequest) (wire.PolicyReplayAnswer, error)
	AuditEntries(ctx context.Context, c broker.Caller, from uint64, limit int) (wire.AuditPage, error)
	AuditExport(ctx context.Context, c broker.Caller, from, to uint64, w io.Writer) error
	AuditVerify(ctx context.Context, c broker.Caller, from uint64) (wire.VerifyAnswer, error)
	Reconcile(ctx context.Context, c broker.Caller, in wire.ReconcileRequest) ([]wire.Drift, error)
	Rotate(ctx context.Context, c broker.Caller, in wire.RotateRequest) (wire.Rotation, error)
	Rotations(ctx context.Context, c broker.Caller) ([]wire.Rotation, error)
}

// Node is one node's life as this package calls it. The engine comes apart from
// it ([Config].Engine), because it exists only while the node is unsealed.
type Node interface {
	Status() wire.Status
	Init(ctx context.Context, in wire.InitRequest) (wire.InitAnswer, error)
	Unseal(ctx context.Context, in wire.UnsealRequest) (wire.Status, error)
	Recover(ctx context.Context, in wire.RecoverRequest) (wire.EnrolAnswer, error)
	Rekey(ctx context.Context, in wire.RekeyRequest) ([]string, error)
	Seal(ctx context.Context, c broker.Caller) error
	JoinToken(ctx context.Context, c broker.Caller) (wire.JoinTokenAnswer, error)
	Peers(ctx context.Context, c broker.Caller) ([]wire.Peer, error)
	RemovePeer(ctx context.Context, c broker.Caller, id string) error
	StepDown(ctx context.Context, c broker.Caller) error

	IsLeader() bool
	// LeaderURL is where clients reach the leader.
	LeaderURL(ctx context.Context) (string, error)
	// LeaderTransport carries a request to the leader's [Server.Forwarded]
	// handler, whatever host the request's URL names. It must not retry.
	LeaderTransport() http.RoundTripper
}
