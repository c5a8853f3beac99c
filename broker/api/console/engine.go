package console

import (
	"context"
	"encoding/json"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// Engine is the broker as the console calls it. Every error is a *fault.Error
// or internal.
type Engine interface {
	people
	passkeys
	providers
	grants
	record
	turns

	// Session looks a token up, whatever binds it.
	Session(ctx context.Context, token string) (ledger.Session, error)
	// Logout ends the caller's session.
	Logout(ctx context.Context, c broker.Caller) error
}

// people is who calls, and what there is.
type people interface {
	Whoami(ctx context.Context, c broker.Caller) (wire.Whoami, error)
	Keys(ctx context.Context, c broker.Caller, principal string) ([]wire.Key, error)
	RemoveKey(ctx context.Context, c broker.Caller, principal, thumbprint string) error
	Objects(ctx context.Context, c broker.Caller, kind string) ([]wire.Object, error)
	Object(ctx context.Context, c broker.Caller, kind, name string) (wire.Object, error)
	CheckTarget(ctx context.Context, c broker.Caller, name string) (wire.TargetReport, error)
	Tasks(ctx context.Context, c broker.Caller, f broker.TaskFilter) ([]wire.Task, error)
	Task(ctx context.Context, c broker.Caller, id string) (wire.Task, error)
	Leases(ctx context.Context, c broker.Caller, f broker.LeaseFilter) ([]wire.Lease, error)
	Lease(ctx context.Context, c broker.Caller, id string) (wire.Lease, error)
}

// passkeys are the ceremonies of WebAuthn; options and answers are the JSON
// that the browser's own API takes and gives (WebAuthn §5.1).
type passkeys interface {
	// PasskeyLogin returns the options of a sign-in.
	PasskeyLogin(ctx context.Context) (json.RawMessage, error)
	// LoginPasskey opens a session bound to a cookie.
	LoginPasskey(ctx context.Context, in broker.PasskeyLogin) (wire.LoginAnswer, error)
	// LoginEnrolled opens one for a person's enrolment token, which is spent.
	LoginEnrolled(ctx context.Context, token secret.Text, address string) (wire.LoginAnswer, error)
	// NewPasskey returns the options by which the caller makes a passkey.
	NewPasskey(ctx context.Context, c broker.Caller) (json.RawMessage, error)
	// OfferPasskey checks a passkey that was just made, and says what must sign it.
	OfferPasskey(ctx context.Context, c broker.Caller, response json.RawMessage) (broker.PasskeyOffer, error)
	// AddPasskey registers it. proof is its own signature, vouch that of another.
	AddPasskey(ctx context.Context, c broker.Caller, ticket string, proof, vouch *wire.Signature) (wire.Key, error)
	// Passkeys lists the caller's.
	Passkeys(ctx context.Context, c broker.Caller) ([]broker.Passkey, error)
}

// providers are pages elsewhere that people sign in by.
type providers interface {
	// SignInMethods lists them by name.
	SignInMethods(ctx context.Context) ([]string, error)
	// BeginSignIn says where to send the browser, and what it must bring back.
	BeginSignIn(ctx context.Context, in broker.SignInRequest) (broker.SignInStart, error)
	// FinishSignIn opens a session bound to a cookie, and says which page was
	// wanted.
	FinishSignIn(ctx context.Context, in broker.SignInAnswer) (wire.LoginAnswer, string, error)
}

// grants are what people approve.
type grants interface {
	Grants(ctx context.Context, c broker.Caller, f GrantFilter) ([]wire.Grant, error)
	Grant(ctx context.Context, c broker.Caller, id string) (wire.Grant, error)
	// Previous returns what the same requester was last granted on the same
	// role; not_found where there is nothing.
	Previous(ctx context.Context, c broker.Caller, id string) (wire.Grant, error)
	ApproveGrant(ctx context.Context, c broker.Caller, id string, in wire.ApproveRequest) (wire.Grant, error)
	DenyGrant(ctx context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error)
	CancelGrant(ctx context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error)
	RevokeGrant(ctx context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error)
	ReviewGrant(ctx context.Context, c broker.Caller, id string, in wire.ReviewRequest) (wire.Grant, error)
	// ReviewHash returns, in hex, what a reviewer of that verdict and note signs.
	ReviewHash(ctx context.Context, c broker.Caller, id, verdict, note string) (string, error)
}

// record is what was decided and done.
type record interface {
	Decision(ctx context.Context, c broker.Caller, id string) (wire.Decision, error)
	ReplayPolicies(ctx context.Context, c broker.Caller, in wire.PolicyReplayRequest) (wire.PolicyReplayAnswer, error)
	TestPolicies(ctx context.Context, c broker.Caller, in wire.PolicyTestRequest) (wire.PolicyTestAnswer, error)
	AuditEntries(ctx context.Context, c broker.Caller, from uint64, limit int) (wire.AuditPage, error)
}

// Node is one node's life as the console shows it.
type Node interface {
	Status() wire.Status
	Peers(ctx context.Context, c broker.Caller) ([]wire.Peer, error)
}

// GrantFilter narrows a list of grants.
type GrantFilter = broker.GrantFilter

// pollEvery is how often a live page looks whether the ledger has grown.
const pollEvery = time.Second
