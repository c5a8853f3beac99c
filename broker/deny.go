package broker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
)

// denials bounds how fast one principal can fill the ledger with denials
// (HAZARDS 17). What is over the bound is refused without a record of its own
// and counted; the next recorded denial carries the count.
type denials struct {
	mu sync.Mutex
	by map[string]*denier
}

type denier struct {
	limit *rate.Limiter
	over  int
	seen  time.Time
}

const (
	denialsPerSecond = 5
	denialsBurst     = 20
	maxDeniers       = 10_000
)

func newDenials() *denials { return &denials{by: map[string]*denier{}} }

// take reports whether a denial of principal may be recorded, and how many
// went unrecorded before it.
func (d *denials) take(principal string, now time.Time) (ok bool, repeats int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p, known := d.by[principal]
	if !known {
		d.forgetIdle(now)
		p = &denier{limit: rate.NewLimiter(denialsPerSecond, denialsBurst)}
		d.by[principal] = p
	}
	p.seen = now
	if !p.limit.AllowN(now, 1) {
		p.over++
		return false, 0
	}
	repeats, p.over = p.over, 0
	return true, repeats
}

// forgetIdle keeps the map bounded: a minute refills every bucket.
func (d *denials) forgetIdle(now time.Time) {
	if len(d.by) < maxDeniers {
		return
	}
	for k, p := range d.by {
		if now.Sub(p.seen) > time.Minute {
			delete(d.by, k)
		}
	}
}

// deny records a denial and returns it as an error: no answer before its
// record (law 5).
func (e *Engine) deny(ctx context.Context, c Caller, r ruling) error {
	return e.recordDenial(ctx, c, r, denied(c, r))
}

func denied(c Caller, r ruling) *fault.Error {
	return fault.New(fault.Denied, denialCode(r.Decision), "%s", denialText(c, r))
}

// refuse records a refusal that is not policy's (a cap, a scope that is too
// wide) with the same bound and the same trace.
func (e *Engine) recordDenial(ctx context.Context, c Caller, r ruling, err *fault.Error) error {
	ok, repeats := e.denials.take(c.Session.Principal, e.now())
	if !ok {
		return &fault.Error{
			Kind: fault.RateLimited, Code: "rate_limited", RetryAfter: time.Second,
			Detail: "Too many refused requests in a short time; this one was counted but not decided in full. Last reason: " + err.Detail,
		}
	}
	h := e.header(c)
	h.Idem = nil // a denial may turn into a permit when asked again
	h.DecisionID, h.Decision = r.ID, r.encode()
	res := r.Request.Resource
	if _, cerr := e.commit(ctx, h, &ledger.RecordDecision{Action: r.Request.Action, Resource: res.Kind + "/" + res.Name, Code: err.StableCode(), Repeats: repeats}); cerr != nil {
		return cerr
	}
	err.DecisionID = r.ID
	return err
}

func denialCode(d policy.Decision) string {
	if d.Code == policy.CodeNoPermit {
		return "denied"
	}
	return d.Code
}

// denialText says who may not do what, why, and what to do next.
func denialText(c Caller, r ruling) string {
	var b strings.Builder
	res := r.Request.Resource
	fmt.Fprintf(&b, "%s may not %s %s %s: ", c.Session.Principal, r.Request.Action, res.Kind, res.Name)
	d := r.Decision
	switch d.Code {
	case policy.CodeForbidden:
		fmt.Fprintf(&b, "policy %s forbids it.", policyIDs(d.Policies))
	case policy.CodePolicyError:
		b.WriteString("a policy could not be evaluated, and what cannot be decided is denied.")
	case policy.CodeNoPermit:
		b.WriteString("no policy permits it.")
		for _, n := range d.Nearly {
			fmt.Fprintf(&b, " %s would, but for: %s.", n.ID, n.Missing)
		}
	default:
		b.WriteString(d.Code + ".")
	}
	fmt.Fprintf(&b, " See: mayfly policy explain %s", r.ID)
	return b.String()
}

func policyIDs(reasons []policy.Reason) string {
	var ids []string
	for _, p := range reasons {
		ids = append(ids, p.ID)
	}
	return strings.Join(ids, ", ")
}
