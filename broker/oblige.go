package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
)

// A permit may ask for more than itself: @approvals, @step_up. A request for
// access waits for that, a change under dual control is co-signed. Whatever is
// done at once takes no such permit, unless it only takes power away (ADR 14).

// stepUpFresh is how long after signing in with a passkey a session shows the
// fresh passkey that a step-up asks for.
const stepUpFresh = 5 * time.Minute

// debt is what a permit asks for and nothing has given.
type debt struct {
	approvals []policy.Quorum
	stepUp    string
}

func (d debt) none() bool { return len(d.approvals) == 0 && d.stepUp == "" }

// owed returns what the permit asks for beyond what needs will gather, and beyond
// a passkey that the session shows.
func (r ruling) owed(needs []cosign.Need) debt {
	o := r.Decision.Obligations
	out := debt{stepUp: o.StepUp}
	for _, q := range o.Approvals {
		if !slices.ContainsFunc(needs, func(n cosign.Need) bool { return n.Group == q.Group && n.Count >= q.Count }) {
			out.approvals = append(out.approvals, q)
		}
	}
	if s := r.Request.Context.Session; out.stepUp == methodPasskey && s.Method == methodPasskey && s.AgeSeconds <= int64(stepUpFresh/time.Second) {
		out.stepUp = ""
	}
	return out
}

// owedBeyond is owed for the renewal of a lease: what its grant was approved with
// counts, and was waived where that was an emergency.
func (r ruling) owedBeyond(q ledger.Query, l ledger.Lease) debt {
	g, ok := q.Cosigned(l.Grant.ID)
	if ok && g.Kind == ledger.GrantEmergency {
		return debt{}
	}
	d := r.owed(g.Needs)
	if ok && g.StepUp == d.stepUp {
		d.stepUp = ""
	}
	return d
}

func declineRenewal(q ledger.Query, c Caller, r ruling, l ledger.Lease) *declined {
	if !r.Decision.Permit {
		return &declined{r, denied(c, r)}
	}
	if d := r.owedBeyond(q, l); !d.none() {
		return &declined{r, d.denial(c, r, "The lease was opened without. Request a new credential.")}
	}
	return nil
}

// denial says which policy asks for what, and instead what to do.
func (d debt) denial(c Caller, r ruling, instead string) *fault.Error {
	var asks, policies []string
	add := func(p, what string) {
		asks = append(asks, fmt.Sprintf("policy %s asks for %s", p, what))
		if !slices.Contains(policies, p) {
			policies = append(policies, p)
		}
	}
	for _, q := range d.approvals {
		add(q.Policy, fmt.Sprintf("%d approval(s) of group %s", q.Count, q.Group))
	}
	for _, p := range r.Decision.Policies {
		if s := p.Annotations["step_up"]; s != "" && s == d.stepUp {
			add(p.ID, "a fresh "+s)
		}
	}
	if instead == "" {
		instead = fmt.Sprintf("What is done at once cannot wait for that. Have somebody do it whom policy permits it without, or have a policy without these annotations permit it and %s no longer cover it.", strings.Join(policies, ", "))
	}
	code := ledger.CodeApprovalRequired
	if len(d.approvals) == 0 {
		code = ledger.CodeStepUp
	}
	res := r.Request.Resource
	return fault.New(fault.Denied, code, "%s may not %s %s %s at once: %s. %s See: mayfly policy explain %s",
		c.Session.Principal, r.Request.Action, res.Kind, res.Name, strings.Join(asks, ", "), instead, r.ID)
}

// permit decides and, on a denial, records it and returns the error. What the
// permit asks for is the caller's to look at: see allow and allowTaking.
func (e *Engine) permit(ctx context.Context, c Caller, ask question) (ruling, error) {
	var r ruling
	err := e.view(func(q ledger.Query) (err error) {
		r, err = e.decide(q, c, ask)
		return err
	})
	if err != nil {
		return r, err
	}
	if !r.Decision.Permit {
		return r, e.deny(ctx, c, r)
	}
	return r, nil
}

// allow decides for what is done at once: a permit that asks for approvals, or for
// a step-up that the session does not show, is none. A denial is recorded. Reads
// and other calls that commit nothing on a permit use it, too.
func (e *Engine) allow(ctx context.Context, c Caller, ask question) (ruling, error) {
	r, err := e.permit(ctx, c, ask)
	if err != nil {
		return r, err
	}
	return r, e.checkOwed(ctx, c, r)
}

// allowTaking is allow for what only takes power away and must not wait: a permit
// suffices, whatever else it asks for (ADR 14).
func (e *Engine) allowTaking(ctx context.Context, c Caller, ask question) (ruling, error) {
	return e.permit(ctx, c, ask)
}

// allowProposing is allow for what prepares a change of configuration, or asks for
// one: under dual control it gathers approvals.
func (e *Engine) allowProposing(ctx context.Context, c Caller, ask question) (ruling, error) {
	r, err := e.permit(ctx, c, ask)
	if err != nil {
		return r, err
	}
	var no *declined
	err = e.view(func(q ledger.Query) error { no = declineChange(c, r, q.Custodians()); return nil })
	if err == nil && no != nil {
		err = e.recordDenial(ctx, c, r, no.err)
	}
	return r, err
}

// checkOwed refuses and records what the permit asks for and nobody has given.
func (e *Engine) checkOwed(ctx context.Context, c Caller, r ruling) error {
	if d := r.owed(nil); !d.none() {
		return e.recordDenial(ctx, c, r, d.denial(c, r, ""))
	}
	return nil
}

// custodians are the approvals that a change of configuration gathers where it is
// under dual control.
func custodians(q ledger.Query, under bool) []cosign.Need {
	if !under {
		return nil
	}
	return q.Custodians()
}

// insteadOfChange says what to do where a change does not gather what a policy
// asks for.
func insteadOfChange(needs []cosign.Need) string {
	if len(needs) == 0 {
		return "A change of configuration is made at once, but for dual control (mayfly operator init --approver). Permit it in a policy without these annotations."
	}
	var by []string
	for _, n := range needs {
		by = append(by, fmt.Sprintf("%d of %s", n.Count, n.Group))
	}
	return fmt.Sprintf("A change under dual control is approved by %s and nobody else. Have the policy name them, or nobody.", strings.Join(by, " and "))
}
