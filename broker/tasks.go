package broker

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

// Bounds on a task's life.
const (
	defaultTaskTTL = time.Hour
	maxTaskTTL     = 30 * 24 * time.Hour // longer work is a service, not a task
	minLapse       = 5 * time.Second
)

// StartTask opens a task for the caller, or a child task for somebody else.
func (e *Engine) StartTask(ctx context.Context, c Caller, in wire.StartTaskRequest) (wire.Task, error) {
	t, err := e.newTask(c, in)
	if err != nil {
		return wire.Task{}, err
	}
	h := e.header(c)
	if in.Parent != "" {
		r, err := e.delegation(ctx, c, &t, in.Parent)
		if err != nil {
			return wire.Task{}, err
		}
		h.DecisionID, h.Decision = r.ID, r.encode()
	}
	res, err := e.commit(ctx, h, &ledger.StartTask{Task: t})
	if err != nil {
		return wire.Task{}, err
	}
	return e.Task(ctx, c, res.ID)
}

func (e *Engine) newTask(c Caller, in wire.StartTaskRequest) (t ledger.Task, err error) {
	if in.Name == "" || strings.HasPrefix(in.Name, ledger.PrefixTask) || strings.ContainsFunc(in.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return t, fault.New(fault.Invalid, "task_name", "A task needs a name of printable characters that does not begin with %s.", ledger.PrefixTask)
	}
	if in.Purpose == "" {
		return t, fault.New(fault.Invalid, "purpose_missing", "A task needs a purpose: what is the access for? It stands in every decision.")
	}
	ttl, err := parseTTL(in.TTL)
	if err != nil {
		return t, err
	}
	if ttl == 0 {
		ttl = defaultTaskTTL
	}
	if ttl > maxTaskTTL {
		return t, fault.New(fault.Invalid, "ttl_too_long", "A task lives at most %s.", maxTaskTTL)
	}
	lapse, err := parseTTL(in.Lapse)
	if err != nil {
		return t, err
	}
	if lapse > 0 && lapse < minLapse {
		return t, fault.New(fault.Invalid, "lapse_too_short", "A heartbeat window is at least %s.", minLapse)
	}
	id, err := e.newID(ledger.PrefixTask)
	if err != nil {
		return t, err
	}
	t = ledger.Task{ID: id, Name: in.Name, Purpose: in.Purpose, Principal: c.Session.Principal,
		DeadlineMS: e.now().Add(ttl).UnixMilli(), LapseMS: lapse.Milliseconds()}
	if in.For != "" {
		t.Principal = in.For
	}
	if len(in.Scope) > 0 {
		if t.Scope, err = scope.Parse(in.Scope); err != nil {
			return t, fault.Wrap(err, fault.Invalid, "invalid_authorization_details", "%v", err)
		}
	}
	if in.For != "" && in.For != c.Session.Principal && in.Parent == "" {
		return t, fault.New(fault.Invalid, "parent_missing", "A task for another principal is a child of one of your own tasks; name it with --parent.")
	}
	return t, nil
}

// delegation asks policy whether the caller may make the child task.
func (e *Engine) delegation(ctx context.Context, c Caller, t *ledger.Task, parent string) (ruling, error) {
	var ask question
	err := e.view(func(q ledger.Query) error {
		p, err := e.findTask(q, c, parent)
		if err != nil {
			return err
		}
		t.Parent = p.ID
		t.DeadlineMS = min(t.DeadlineMS, p.DeadlineMS)
		ask = question{
			action:   policy.ActionDelegate,
			resource: policy.Resource{Kind: "Task", Name: p.ID, Owner: p.Principal},
			context: policy.Context{Purpose: t.Purpose, Scope: flatten(t.Scope), Chain: []string{t.Principal},
				Task: policy.Task{ID: p.ID, Name: p.Name, Owner: p.Principal, Depth: int64(p.Depth)}},
		}
		return nil
	})
	if err != nil {
		return ruling{}, err
	}
	if t.Principal == c.Session.Principal {
		// Narrowing one's own work needs nobody's leave.
		var r ruling
		err := e.view(func(q ledger.Query) (err error) { r, err = e.decide(q, c, ask); return err })
		return r, err
	}
	return e.allow(ctx, c, ask)
}

// findTask finds a task by id, or by name among the caller's open ones.
func (e *Engine) findTask(q ledger.Query, c Caller, idOrName string) (ledger.Task, error) {
	id := idOrName
	if !strings.HasPrefix(id, ledger.PrefixTask) {
		id = q.TaskNamed(c.Session.Principal, idOrName)
	}
	t, ok := q.Task(id)
	if !ok {
		return t, fault.New(fault.NotFound, "task_not_found", "There is no open task %q of yours. List tasks with: mayfly task list", idOrName)
	}
	return t, nil
}

// HeartbeatTask tells that a task's worker lives.
func (e *Engine) HeartbeatTask(ctx context.Context, c Caller, id string) (wire.Task, error) {
	t, err := e.ownTask(c, id)
	if err != nil {
		return wire.Task{}, err
	}
	if _, err := e.commit(ctx, e.header(c), &ledger.HeartbeatTask{ID: t.ID}); err != nil {
		return wire.Task{}, err
	}
	return e.Task(ctx, c, t.ID)
}

func (e *Engine) ownTask(c Caller, id string) (t ledger.Task, err error) {
	err = e.view(func(q ledger.Query) error {
		t, err = e.findTask(q, c, id)
		return err
	})
	return t, err
}

// EndTask ends a task and all below it. With wait it answers when every target
// has confirmed, or when the wait is over.
func (e *Engine) EndTask(ctx context.Context, c Caller, id string, wait time.Duration) (wire.EndTaskAnswer, error) {
	var answer wire.EndTaskAnswer
	t, err := e.ownTask(c, id)
	if err != nil {
		return answer, err
	}
	h := e.header(c)
	if !e.holds(c, t) {
		r, err := e.allowTaking(ctx, c, question{action: policy.ActionRevoke, resource: policy.Resource{Kind: "Task", Name: t.ID, Owner: t.Principal}})
		if err != nil {
			return answer, err
		}
		h.DecisionID, h.Decision = r.ID, r.encode()
	}
	// The leader's own round may set some of them to end before this call does; they
	// are waited for all the same.
	var leases []string
	if err := e.view(func(q ledger.Query) error { leases = leasesBelow(q, t.ID); return nil }); err != nil {
		return answer, err
	}
	res, err := e.commit(ctx, h, &ledger.EndTask{ID: t.ID, Reason: ledger.EndDone})
	if err != nil {
		return answer, err
	}
	answer.Ended = append([]string{}, res.Also...)
	drained, err := e.drainTasks(ctx, append([]string{t.ID}, res.Also...))
	if err != nil {
		return answer, err
	}
	leases = append(leases, drained...)
	slices.Sort(leases)
	leases = slices.Compact(leases)
	answer.Leases = len(leases)
	answer.Withdrawn = e.awaitEnded(ctx, leases, wait)
	// Who may end it sees what was ended, readable else or not.
	err = e.view(func(q ledger.Query) error {
		t, _ = q.Task(t.ID)
		answer.Task = wireTask(t)
		answer.Task.Leases, answer.Task.Children = q.LeasesOfTask(t.ID, ledger.MaxEndBatch), q.Children(t.ID)
		prove(q, leases, &answer)
		return nil
	})
	return answer, err
}

// prove tells what the end of leases is worth: one that is over by the ledger may
// have left a credential that nobody can take back.
func prove(q ledger.Query, leases []string, answer *wire.EndTaskAnswer) {
	var last int64
	for _, id := range leases {
		l, _ := q.Lease(id)
		_, account := ledger.AccountOf(l) // its secret ends by a rotation, not by the clock
		lives := !l.Revocable
		if l.State == ledger.LeaseEnded {
			var r wire.Receipt
			r, lives = wireLease(l).Outlived()
			if answer.Proofs == nil {
				answer.Proofs = map[string]int{}
			}
			answer.Proofs[r.Proof]++
		}
		if lives && !account {
			last = max(last, l.ExpiresMS)
		}
	}
	answer.WorksUntil = atOrNil(last)
}

// leasesBelow returns the open leases of a task and of all below it.
func leasesBelow(q ledger.Query, task string) []string {
	out := q.LeasesOfTask(task, math.MaxInt)
	for _, child := range q.Children(task) {
		out = append(out, leasesBelow(q, child)...)
	}
	return out
}

// holds reports whether a task is the caller's own or below one of the caller's.
func (e *Engine) holds(c Caller, t ledger.Task) bool {
	own := t.Principal == c.Session.Principal
	err := e.view(func(q ledger.Query) error {
		for _, a := range q.Ancestors(t) {
			own = own || a.Principal == c.Session.Principal
		}
		return nil
	})
	return err == nil && own
}

// awaitEnded waits until every lease has ended; 0 does not wait.
func (e *Engine) awaitEnded(ctx context.Context, ids []string, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		changed := e.changed.next()
		left := 0
		err := e.view(func(q ledger.Query) error {
			for _, id := range ids {
				if l, ok := q.Lease(id); ok && l.State != ledger.LeaseEnded {
					left++
				}
			}
			return nil
		})
		if err != nil || left == 0 {
			return err == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}

// Task returns one task with its open leases and children.
func (e *Engine) Task(ctx context.Context, c Caller, id string) (wire.Task, error) {
	var out wire.Task
	var t ledger.Task
	readable := false
	err := e.view(func(q ledger.Query) (err error) {
		if t, err = e.findTask(q, c, id); err != nil {
			return err
		}
		out = wireTask(t)
		out.Leases, out.Children = q.LeasesOfTask(t.ID, ledger.MaxEndBatch), q.Children(t.ID)
		readable = t.StartedBy == c.Session.Principal || e.mayRead(q, c, policy.Resource{Kind: "Task", Name: t.ID, Owner: t.Principal})
		return nil
	})
	if err != nil {
		return wire.Task{}, err
	}
	if !readable && !e.holds(c, t) {
		return wire.Task{}, fault.New(fault.NotFound, "task_not_found", "Task %s does not exist or is not yours.", id)
	}
	return out, nil
}

// TaskFilter narrows a list of tasks.
type TaskFilter struct {
	State     string // open, ended; empty is both
	Principal string
	Limit     int    // 1 to 1000; 0 is 100
	After     string // id of the last task of the page before
}

// Tasks lists tasks: the caller's own, or all that policy lets the caller read.
func (e *Engine) Tasks(_ context.Context, c Caller, f TaskFilter) ([]wire.Task, error) {
	out := []wire.Task{}
	limit := pageSize(f.Limit)
	err := e.view(func(q ledger.Query) error {
		all := e.mayRead(q, c, policy.Resource{Kind: "Cluster", Name: "cluster"})
		q.Tasks(f.After, func(t ledger.Task) bool {
			if (f.State == "" || t.State == f.State) && (f.Principal == "" || t.Principal == f.Principal) &&
				(all || t.Principal == c.Session.Principal || t.StartedBy == c.Session.Principal) {
				out = append(out, wireTask(t))
			}
			return len(out) < limit
		})
		return nil
	})
	return out, err
}

func pageSize(limit int) int {
	if limit <= 0 {
		return 100
	}
	return min(limit, 1000)
}

// rawMessage marshals what always marshals.
func rawMessage(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		return json.RawMessage("null")
	}
	return b
}
