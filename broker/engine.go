// Package broker turns requests into leases and ends them.
//
// An [Engine] authenticates, decides, commits and mints, in that order, and on
// the leader it also withdraws what has ended. It holds no truth of its own:
// the ledger does, and an Engine can be thrown away at any instant and made
// anew on another node. It talks to targets through package issuers only, and
// must know nothing of HTTP or of how the log is replicated.
package broker

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// Log is the replicated log as the engine needs it.
type Log interface {
	// Propose commits one command and returns its result. Urgent commands (ends
	// and containment) are taken even when the disk is nearly full. Errors are
	// *fault.Error: unavailable "no_leader", indeterminate.
	Propose(ctx context.Context, command []byte, urgent bool) (ledger.Result, error)
	// View runs fn in a read transaction.
	View(fn func(ledger.Reader) error) error
	// Fresh returns an error when this node may not serve reads: it is cut off
	// from the quorum (HAZARDS 5).
	Fresh() error
	// Term is the current fencing number.
	Term() uint64
}

// Config is what an Engine is made of. Log, Kinds and Issuer are needed; the
// rest has defaults.
type Config struct {
	Log   Log
	Node  string
	Kinds []issuers.Kind
	// Plugins are the kinds out of process; nil for none. A built-in kind of the
	// same name goes before.
	Plugins Plugins
	// Barrier makes barrier keys; nil where the node has none.
	Barrier Barrier
	// Issuer is the cluster's external URL: `iss` of tokens and the audience of
	// key assertions.
	Issuer string
	// URLs are the external URLs that proofs may name; Issuer is one of them.
	URLs   []string
	Clock  func() time.Time // time.Now
	Random io.Reader        // crypto/rand
	HTTP   *http.Client     // for OIDC discovery
	Logger *slog.Logger
	// Hint goes into enrolment tokens: where the cluster is and whose CA it has.
	Hint Hint
	// Timing bounds waits; the zero value has the defaults.
	Timing Timing
	// Signer signs checkpoints; nil where the node has no key for it.
	Signer note.Signer
}

// Plugins are kinds of targets that run in processes of their own, on this node.
type Plugins interface {
	// Kind returns the kind that a plugin serves; found is false where none of that
	// name is registered. The error is an *[issuers.Pending] while the plugin
	// starts, else it says why this node cannot use it.
	Kind(name string) (k issuers.Kind, found bool, err error)
	// Set says which plugins there shall be, by name. It does not wait for them.
	Set(plugins map[string]ledger.PluginSpec)
	// Status says how each does on this node, by name.
	Status() []wire.NodePlugin
}

// Hint tells a newcomer how to reach and recognise the cluster.
type Hint struct {
	Addresses []string
	CAHash    [32]byte
}

// Timing bounds what the engine waits for.
type Timing struct {
	// Mint is how long a mint may take, from commit to the target's last word.
	Mint time.Duration // 15 s
	// Slot is how long a request waits for its turn at a busy target.
	Slot time.Duration // 5 s
	// Session is the longest session of the built-in key method.
	Session time.Duration // 15 min
}

// Engine is one node's broker. It is safe for concurrent use.
type Engine struct {
	cfg      Config
	log      *slog.Logger
	kinds    map[string]issuers.Kind
	decider  *decider
	targets  *targets
	denials  *denials
	verifier *identity.Verifier
	methods  *methods
	passkeys *Passkeys
	signIns  *SignIns
	lead     leadership
	changed  broadcast
	settled  settled
	plugged  plugged
	// rereading is set while history is read again, by a replay or a verification: it
	// may take a processor for itself.
	rereading atomic.Bool
}

// New returns an Engine.
func New(cfg Config) (*Engine, error) {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{Timeout: 10 * time.Second}
	}
	cfg.Timing = cfg.Timing.withDefaults()
	verifier, err := identity.NewVerifier(identity.VerifierConfig{ExternalURLs: append([]string{cfg.Issuer}, cfg.URLs...), Nonces: identity.NewNonces(cfg.Node)})
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg:      cfg,
		log:      cfg.Logger,
		kinds:    map[string]issuers.Kind{},
		decider:  &decider{},
		denials:  newDenials(),
		verifier: verifier,
		methods:  &methods{},
		passkeys: NewPasskeys(append([]string{cfg.Issuer}, cfg.URLs...), cfg.Clock),
		signIns:  NewSignIns(append([]string{cfg.Issuer}, cfg.URLs...), cfg.Clock, cfg.HTTP),
	}
	for _, k := range cfg.Kinds {
		e.kinds[k.Name()] = k
	}
	e.targets = newTargets(e)
	e.lead.wake = make(chan struct{}, 1)
	return e, nil
}

func (t Timing) withDefaults() Timing {
	if t.Mint == 0 {
		t.Mint = 15 * time.Second
	}
	if t.Slot == 0 {
		t.Slot = 5 * time.Second
	}
	if t.Session == 0 {
		t.Session = 15 * time.Minute
	}
	return t
}

// Verifier returns the DPoP verifier with this node's nonces.
func (e *Engine) Verifier() *identity.Verifier { return e.verifier }

// Ready returns nil when this node may serve.
func (e *Engine) Ready() error { return e.cfg.Log.Fresh() }

// Close releases the connections to all targets.
func (e *Engine) Close() { e.targets.closeAll() }

func (e *Engine) now() time.Time { return e.cfg.Clock() }

// newID returns a fresh id.
func (e *Engine) newID(prefix string) (string, error) {
	return ledger.NewID(prefix, e.now(), e.cfg.Random)
}

// view reads the ledger.
func (e *Engine) view(fn func(q ledger.Query) error) error {
	return e.cfg.Log.View(func(r ledger.Reader) error {
		q := ledger.NewQuery(r)
		if err := fn(q); err != nil {
			return err
		}
		return q.Err()
	})
}

// header starts a command's header for a caller; the zero Caller is the broker
// itself.
func (e *Engine) header(c Caller) ledger.Header {
	return ledger.Header{
		AtMS: e.now().UnixMilli(),
		Node: e.cfg.Node,
		Term: e.cfg.Log.Term(),
		Actor: ledger.Actor{
			Principal: c.Session.Principal,
			Session:   c.Session.ID,
			Instance:  c.Session.Instance,
			Address:   c.Address,
		},
		Idem: c.Idem,
	}
}

// commit proposes a command. A refusal by the ledger comes back as the result
// *and* as an error, so that no caller can overlook it.
func (e *Engine) commit(ctx context.Context, h ledger.Header, b ledger.Body, secrets ...ledger.Secret) (ledger.Result, error) {
	raw, err := ledger.Encode(h, b, secrets...)
	if err != nil {
		return ledger.Result{}, fault.Wrap(err, fault.Invalid, "too_large", "The request is too large for one record.")
	}
	res, err := e.cfg.Log.Propose(ctx, raw, urgent(b))
	if err != nil {
		return res, err
	}
	if !res.OK() {
		return res, refusal(res, h.DecisionID)
	}
	return res, nil
}

// urgent says which commands must go on when the disk is nearly full: those
// that end things (HAZARDS 17).
func urgent(b ledger.Body) bool {
	switch b := b.(type) {
	case *ledger.OpenSession:
		// People must be able to log in to end things; workloads can wait.
		return strings.HasPrefix(b.Session.Principal, "human:")
	case *ledger.EndLeases, *ledger.RecordWithdrawals, *ledger.EndTask, *ledger.EndGrant, *ledger.Freeze, *ledger.EndSession, *ledger.ForceEnd, *ledger.Sweep:
		return true
	}
	return false
}

// kindOfCode maps the ledger's refusals to kinds of errors.
var kindOfCode = map[string]fault.Kind{
	ledger.CodeStale:            fault.Conflict,
	ledger.CodeInvalid:          fault.Invalid,
	ledger.CodeNotFound:         fault.NotFound,
	ledger.CodeExists:           fault.Conflict,
	ledger.CodeConflict:         fault.Conflict,
	ledger.CodeInUse:            fault.Conflict,
	ledger.CodeNotGenesis:       fault.Conflict,
	ledger.CodeIdemMismatch:     fault.Conflict,
	ledger.CodeTaskEnded:        fault.Denied,
	ledger.CodeTaskForeign:      fault.Denied,
	ledger.CodeTaskTree:         fault.Invalid,
	ledger.CodeNarrow:           fault.Denied,
	ledger.CodeTTL:              fault.Denied,
	ledger.CodeFrozen:           fault.Denied,
	ledger.CodeApprovalRequired: fault.ApprovalRequired,
	ledger.CodeCapRole:          fault.RateLimited,
	ledger.CodeCapInstance:      fault.RateLimited,
	ledger.CodeCapRate:          fault.RateLimited,
	ledger.CodeCapCount:         fault.RateLimited,
	ledger.CodeTokenSpent:       fault.Unauthenticated,
	ledger.CodeLeaseEnded:       fault.Conflict,
	ledger.CodeLastAdmin:        fault.Conflict,
	ledger.CodeGeneration:       fault.Conflict,
	ledger.CodeQuorum:           fault.Denied,
	ledger.CodeSelfApproval:     fault.Denied,
	ledger.CodeNotEligible:      fault.Denied,
	ledger.CodeTwice:            fault.Conflict,
	ledger.CodeGrantOver:        fault.Conflict,
	ledger.CodeGrantVoid:        fault.Denied,
	ledger.CodeCooling:          fault.RateLimited,
	ledger.CodeSignature:        fault.Denied,
	ledger.CodeEmergency:        fault.Denied,
	ledger.CodeStepUp:           fault.Denied,
	ledger.CodeVouch:            fault.Denied,
	ledger.CodeRotating:         fault.Conflict,
	ledger.CodeAccountHeld:      fault.Conflict,
}

func refusal(res ledger.Result, decision string) *fault.Error {
	kind, ok := kindOfCode[res.Code]
	if !ok {
		kind = fault.Internal
	}
	err := &fault.Error{Kind: kind, Code: res.Code, Detail: res.Detail, DecisionID: decision}
	switch res.Code {
	case ledger.CodeCapRate:
		err.RetryAfter = time.Minute
	case ledger.CodeCooling:
		err.RetryAfter = ledger.CoolingMS * time.Millisecond
	case ledger.CodeAccountHeld:
		err.RetryAfter = time.Second
	case ledger.CodeCapRole, ledger.CodeCapInstance:
		err.RetryAfter = 30 * time.Second
	}
	return err
}
