package client

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	// LongPoll is how long one call waits for a grant to change; the broker
	// allows a minute.
	LongPoll = 30 * time.Second
	// minPoll is the least time between two looks at a grant that has not
	// changed: a node that cannot wait must not be asked without end.
	minPoll = time.Second
	// changeTime is how long a change that is approved is left to whoever approved
	// it last, with whose call it is made.
	changeTime = 3 * time.Second
	// collectTime bounds collecting once it has begun: a broken off answer may
	// have held a credential.
	collectTime = time.Minute
)

// Codes of refusals in which approvals play a part.
const (
	CodeApprovalRequired = "approval_required"
	CodeQuorumImpossible = "quorum_impossible" // not enough people could ever sign
	CodeSelfApproval     = "self_approval"
	CodeAlreadyApproved  = "already_approved"
	CodeNotEligible      = "not_eligible"
	CodeGrantOver        = "grant_over"    // denied, cancelled, expired, revoked or used up
	CodeGrantVoid        = "grant_void"    // what it rested on has changed
	CodeHashMismatch     = "hash_mismatch" // what was signed is not what is there
	CodeStepUpRequired   = "step_up_required"
	CodeCoolingDown      = "cooling_down"
	CodeAccountHeld      = "account_held" // one holder at a time, and somebody else is it
)

// GrantFilter narrows a list of grants. The zero value is everything the caller
// may see.
type GrantFilter struct {
	Mine      bool   // asked for by the caller
	Pending   bool   // waiting for somebody: for approvals, or for a review
	Overdue   bool   // emergencies whose review is late
	State     string // one of wire's GrantWaiting and its like
	Principal string // who asked
	Limit     int    // of one page; 0 leaves it to the broker
	After     string // the last id of the page before
}

func (f GrantFilter) query() string {
	yes := func(b bool) string {
		if b {
			return "true"
		}
		return ""
	}
	limit := ""
	if f.Limit > 0 {
		limit = strconv.Itoa(f.Limit)
	}
	return query("mine", yes(f.Mine), "pending", yes(f.Pending), "overdue", yes(f.Overdue), "state", f.State, "principal", f.Principal, "limit", limit, "after", f.After)
}

func grantPath(id string) string { return "/grants/" + url.PathEscape(id) }

// Grants lists grants, those that needed no approval among them.
func (c *Client) Grants(ctx context.Context, f GrantFilter) ([]wire.Grant, error) {
	return get[[]wire.Grant](ctx, c, "/grants"+f.query())
}

// Grant reads one grant, with the document that approvers sign.
func (c *Client) Grant(ctx context.Context, id string) (wire.Grant, error) {
	return get[wire.Grant](ctx, c, grantPath(id))
}

// AwaitGrant reads one grant as soon as its version is not the given one, and
// after wait (at most a minute) as it is.
func (c *Client) AwaitGrant(ctx context.Context, id string, version uint64, wait time.Duration) (wire.Grant, error) {
	var g wire.Grant
	path := apiBase + grantPath(id) + query("wait", wait.String(), "version", strconv.FormatUint(version, 10))
	err := c.do(ctx, call{method: "GET", path: path, extra: wait, out: &g})
	return g, err
}

// ApproveGrant approves the document with that hash.
func (c *Client) ApproveGrant(ctx context.Context, id string, in wire.ApproveRequest) (wire.Grant, error) {
	return post[wire.Grant](ctx, c, grantPath(id)+"/approve", in)
}

// DenyGrant ends a waiting grant as an approver.
func (c *Client) DenyGrant(ctx context.Context, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return post[wire.Grant](ctx, c, grantPath(id)+"/deny", in)
}

// CancelGrant withdraws one's own request.
func (c *Client) CancelGrant(ctx context.Context, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return post[wire.Grant](ctx, c, grantPath(id)+"/cancel", in)
}

// RevokeGrant ends a grant and every lease on it.
func (c *Client) RevokeGrant(ctx context.Context, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return post[wire.Grant](ctx, c, grantPath(id)+"/revoke", in)
}

// PreviousAccess says what a grant's requester had before on its role and target.
func (c *Client) PreviousAccess(ctx context.Context, id string) (wire.PreviousAccess, error) {
	return get[wire.PreviousAccess](ctx, c, grantPath(id)+"/previous")
}

// ReviewGrant gives a verdict on an emergency grant.
func (c *Client) ReviewGrant(ctx context.Context, id string, in wire.ReviewRequest) (wire.Grant, error) {
	return post[wire.Grant](ctx, c, grantPath(id)+"/review", in)
}

// CollectGrant picks up what was approved: a credential, or for a change that
// it is made. The answer's status is waiting while approvals are missing. A
// change that was made already, as with its last approval, is no error.
func (c *Client) CollectGrant(ctx context.Context, id string, in wire.CollectRequest) (Access, error) {
	raw, err := post[json.RawMessage](ctx, c, grantPath(id)+"/collect", in)
	var e *Error
	if errors.As(err, &e) && e.Problem.Code == CodeGrantOver {
		if g, lookErr := c.Grant(ctx, id); lookErr == nil && made(g) {
			return madeAnswer(g)
		}
	}
	if err != nil {
		return Access{}, err
	}
	a := Access{Raw: raw}
	return a, decode("", raw, &a.AccessAnswer)
}

// made says whether a grant is a change that was made.
func made(g wire.Grant) bool { return g.Kind == wire.GrantChange && g.State == wire.GrantEnded }

func madeAnswer(g wire.Grant) (Access, error) {
	a := Access{AccessAnswer: wire.AccessAnswer{Status: StatusIssued, GrantID: g.ID, TaskID: g.TaskID, DecisionID: g.DecisionID}}
	var err error
	a.Raw, err = json.Marshal(a.AccessAnswer)
	return a, err
}

// KeyDocument asks for what a new approval key signs to be registered.
func (c *Client) KeyDocument(ctx context.Context, principal string, key wire.ApproveKey) (wire.KeyDocument, error) {
	return post[wire.KeyDocument](ctx, c, "/keys/document", struct {
		Principal string          `json:"principal,omitempty"`
		Approve   wire.ApproveKey `json:"approve"`
	}{principal, key})
}

// RequestAndWait asks for a credential and, where people must approve first,
// waits for them and collects it. When ctx ends before, the answer is the
// waiting one, beside ctx's error; the grant goes on waiting.
// Watch, where given, hears of each version of the grant.
func (c *Client) RequestAndWait(ctx context.Context, in wire.AccessRequest, watch func(wire.Grant)) (Access, error) {
	asked, err := c.Request(ctx, in)
	if err != nil || asked.Status != StatusWaiting {
		return asked, err
	}
	a, err := c.AwaitAndCollect(ctx, asked.GrantID, wire.CollectRequest{CSR: in.CSR, PublicKey: in.PublicKey}, watch)
	if err != nil && ctx.Err() != nil {
		return asked, ctx.Err()
	}
	return a, err
}

// The statuses of [Access].
const (
	StatusIssued  = "issued"
	StatusWaiting = "waiting"
)

// AwaitAndCollect waits until a grant is approved and collects it. Nodes that
// are away, and leaders that change, are waited out as long as ctx lives; its
// end is ctx's error, and the grant goes on waiting. A grant that ended instead
// is an *[Error] with [CodeGrantOver] or [CodeGrantVoid]. Watch, where given, hears of each version.
func (c *Client) AwaitAndCollect(ctx context.Context, id string, in wire.CollectRequest, watch func(wire.Grant)) (Access, error) {
	var version uint64
	wait := LongPoll
	for first := true; ; first = false {
		asked := time.Now()
		g, err := c.lookAt(ctx, id, version, first, wait)
		if ctx.Err() != nil {
			return Access{}, ctx.Err()
		}
		if err != nil {
			return Access{}, err
		}
		changed := first || g.Version != version
		version = g.Version
		if changed && watch != nil {
			watch(g)
		}
		switch {
		case g.State == wire.GrantWaiting:
		case made(g):
			return madeAnswer(g)
		case g.Kind == wire.GrantChange && g.State == wire.GrantApproved && wait > changeTime:
			wait, changed = changeTime, true // the last approval is about to make it
		case g.State == wire.GrantApproved, g.State == wire.GrantOpen:
			a, err := c.collect(ctx, id, in)
			// A signature may have ceased to count since: then it waits again.
			if err != nil || a.Status != StatusWaiting {
				return a, err
			}
			changed = false
		default:
			return Access{}, overError(g)
		}
		if !changed && !sleep(ctx, minPoll-time.Since(asked)) {
			return Access{}, ctx.Err()
		}
	}
}

// lookAt reads a grant, however long no node can say.
func (c *Client) lookAt(ctx context.Context, id string, version uint64, first bool, poll time.Duration) (wire.Grant, error) {
	for {
		var g wire.Grant
		var err error
		if first {
			g, err = c.Grant(ctx, id)
		} else {
			g, err = c.AwaitGrant(ctx, id, version, poll)
		}
		var e *Error
		if err == nil || !errors.As(err, &e) || !e.Retryable() && e.Problem.Kind != KindRateLimited {
			return g, err
		}
		pause := max(jitter(lastPause), time.Duration(e.Problem.RetryAfter)*time.Second)
		if c.cfg.OnRetry != nil {
			c.cfg.OnRetry(err, pause)
		}
		if !sleep(ctx, pause) {
			return g, err
		}
	}
}

// collect collects once. A deadline does not break it off, since the answer may
// be on its way; only a cancellation does.
func (c *Client) collect(ctx context.Context, id string, in wire.CollectRequest) (Access, error) {
	inner, cancel := context.WithTimeout(context.WithoutCancel(ctx), collectTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.Canceled) {
			cancel()
		}
	})
	defer stop()
	if key, _ := ctx.Value(idempotencyKey{}).(string); key != "" {
		// Another call needs another key, but the same one each time.
		sum := sha256.Sum256([]byte(key + "\x00" + id))
		inner = WithIdempotencyKey(inner, base64.RawURLEncoding.EncodeToString(sum[:]))
	}
	return c.CollectGrant(inner, id, in)
}

// overError says how a grant ended that was waited for.
func overError(g wire.Grant) error {
	code, how := CodeGrantOver, "has ended"
	switch g.State {
	case wire.GrantDenied:
		how = "was denied"
	case wire.GrantRevoked:
		how = "was revoked"
	case wire.GrantCancelled:
		how = "was cancelled"
	case wire.GrantExpired:
		how = "was not approved, or not collected, in time"
	case wire.GrantVoid:
		code, how = CodeGrantVoid, "is void: what it rested on has changed; ask again"
	}
	detail := fmt.Sprintf("The grant %s", how)
	if g.EndedBy != "" {
		detail += " by " + g.EndedBy
	}
	if g.EndReason != "" {
		detail += fmt.Sprintf(" (%s)", g.EndReason)
	}
	e := newError(KindDenied, code, "%s.", detail)
	e.Problem.DecisionID = g.DecisionID
	return e
}
