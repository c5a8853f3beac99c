package ledger

import (
	"slices"

	"github.com/mayfly-broker/mayfly/scope"
)

// States of a task.
const (
	TaskOpen  = "open"
	TaskEnded = "ended"
)

// Task is a piece of work with a purpose and a deadline. Everything is issued
// inside one; ending it withdraws everything.
type Task struct {
	ID        string `json:"id"`
	Name      string `json:"name,omitempty"`
	Purpose   string `json:"purpose,omitempty"`
	Principal string `json:"principal"` // who works in it
	StartedBy string `json:"started_by,omitempty"`
	Parent    string `json:"parent,omitempty"`
	Depth     int    `json:"depth,omitempty"`
	// Scope narrows what may be granted; nil does not. It is the effective one:
	// a child that names none has its parent's.
	Scope scope.Scope `json:"scope,omitempty"`
	// Implicit tasks are opened by a request without one and end with its lease.
	Implicit bool   `json:"implicit,omitempty"`
	Instance string `json:"instance,omitempty"`
	Role     string `json:"role,omitempty"` // of an implicit task

	StartedMS  int64 `json:"started_ms"`
	DeadlineMS int64 `json:"deadline_ms"`
	// LapseMS, where not 0, ends the task when no heartbeat came for so long.
	LapseMS   int64  `json:"lapse_ms,omitempty"`
	BeatMS    int64  `json:"beat_ms,omitempty"`
	State     string `json:"state"`
	EndedMS   int64  `json:"ended_ms,omitempty"`
	EndReason string `json:"end_reason,omitempty"`
}

// DueMS is when the task ends by itself.
func (t Task) DueMS() int64 {
	if t.LapseMS > 0 {
		return min(t.DeadlineMS, t.BeatMS+t.LapseMS)
	}
	return t.DeadlineMS
}

func (v *view) task(id string) (Task, bool) {
	var t Task
	ok := v.load(bucketTask, []byte(id), &t)
	return t, ok
}

// StartTask opens a task.
type StartTask struct {
	Task Task `json:"task"`
}

// Type implements [Body].
func (*StartTask) Type() string { return "start_task" }

func (b *StartTask) apply(s *state, c *context) Result {
	t := b.Task
	if res := s.checkNewTask(c, &t); !res.OK() {
		return res
	}
	if t.Name != "" {
		k := key(t.Principal, t.Name)
		if old := s.Get(bucketTaskName, k); old != nil {
			return refuse(CodeExists, "%s has an open task named %s (%s). End it or choose another name.", t.Principal, t.Name, old)
		}
		s.put(bucketTaskName, k, []byte(t.ID))
	}
	if t.Parent != "" {
		s.put(bucketTaskOf, key(t.Parent, t.ID), []byte{1})
	}
	s.put(bucketTaskDue, due(t.DueMS(), t.ID), []byte{1})
	s.addCount(1, "t", t.Principal)
	s.save(bucketTask, []byte(t.ID), t)
	return done(t.ID)
}

// checkNewTask fills in and checks a task that is to be opened.
func (s *state) checkNewTask(c *context, t *Task) Result {
	t.State, t.StartedMS, t.BeatMS, t.StartedBy = TaskOpen, c.now, c.now, c.Actor.Principal
	switch {
	case !validID(PrefixTask, t.ID) || s.Get(bucketTask, []byte(t.ID)) != nil:
		return refuse(CodeInvalid, "The task's id is not well formed or taken.")
	case len(t.Name) > MaxNameBytes || len(t.Purpose) > MaxPurposeBytes:
		return refuse(CodeInvalid, "A task's name has at most %d bytes, its purpose %d.", MaxNameBytes, MaxPurposeBytes)
	case t.DeadlineMS <= c.now:
		return refuse(CodeTTL, "The task's deadline has passed.")
	case t.LapseMS < 0:
		return refuse(CodeInvalid, "A heartbeat window cannot be negative.")
	case s.Get(bucketObject, objectKey(KindPrincipal, t.Principal)) == nil:
		return refuse(CodeNotFound, "Principal %s does not exist.", t.Principal)
	case s.frozen(KindPrincipal, t.Principal):
		return refuse(CodeFrozen, "%s is contained.", t.Principal)
	case !t.Implicit && s.count("t", t.Principal) >= MaxOpenTasks:
		return refuse(CodeCapCount, "%s has %d open tasks; end some first.", t.Principal, MaxOpenTasks)
	}
	if t.Scope != nil {
		n, err := t.Scope.Normalise()
		if err != nil {
			return refuse(CodeInvalid, "%v.", err)
		}
		t.Scope = n
	}
	if t.Parent == "" {
		if t.Principal != c.Actor.Principal {
			return refuse(CodeTaskForeign, "A task for another principal is a child of one of your own tasks; name it with --parent.")
		}
		return done("")
	}
	return s.checkChild(c, t)
}

// checkChild: a child is narrower than its parent in scope and time (law 3).
func (s *state) checkChild(c *context, t *Task) Result {
	parent, res := s.liveTask(c, t.Parent, c.Actor.Principal)
	if !res.OK() {
		return res
	}
	t.Depth = parent.Depth + 1
	switch {
	case t.Depth > MaxTaskDepth:
		return refuse(CodeTaskTree, "Tasks nest at most %d deep.", MaxTaskDepth)
	case t.DeadlineMS > parent.DeadlineMS:
		return refuse(CodeTTL, "A child task's deadline cannot be later than its parent's.")
	case len(s.ids(bucketTaskOf, prefix(parent.ID), MaxTaskTree)) >= MaxTaskTree:
		return refuse(CodeTaskTree, "A task has at most %d children.", MaxTaskTree)
	}
	switch {
	case parent.Scope == nil:
	case t.Scope == nil:
		t.Scope = parent.Scope
	default:
		if err := scope.Covers(parent.Scope, t.Scope); err != nil {
			return refuse(CodeNarrow, "The child task's scope exceeds its parent's: %v.", err)
		}
	}
	return done("")
}

// liveTask returns an open task of the principal whose ancestors are all open,
// in time, and free of containment (HAZARDS 20).
func (s *state) liveTask(c *context, id, principal string) (Task, Result) {
	t, ok := s.task(id)
	if !ok {
		return t, refuse(CodeNotFound, "Task %s does not exist.", id)
	}
	if t.Principal != principal {
		return t, refuse(CodeTaskForeign, "Task %s belongs to another principal.", id)
	}
	for a, depth := t, 0; ; depth++ {
		switch {
		case a.State != TaskOpen || a.DueMS() <= c.now:
			return t, refuse(CodeTaskEnded, "Task %s has ended.", a.ID)
		case s.frozen(KindPrincipal, a.Principal):
			return t, refuse(CodeFrozen, "%s, in whose task this is, is contained.", a.Principal)
		case a.Parent == "":
			return t, done("")
		case depth > MaxTaskDepth:
			return t, refuse(CodeTaskTree, "Tasks nest at most %d deep.", MaxTaskDepth)
		}
		parent, ok := s.task(a.Parent)
		if !ok {
			return t, refuse(CodeTaskEnded, "Task %s no longer exists.", a.Parent)
		}
		a = parent
	}
}

// HeartbeatTask moves the lapse of a task.
type HeartbeatTask struct {
	ID string `json:"id"`
}

// Type implements [Body].
func (*HeartbeatTask) Type() string { return "heartbeat_task" }

func (b *HeartbeatTask) apply(s *state, c *context) Result {
	t, res := s.liveTask(c, b.ID, c.Actor.Principal)
	if !res.OK() {
		return res
	}
	if !t.Implicit {
		s.del(bucketTaskDue, due(t.DueMS(), t.ID))
	}
	t.BeatMS = c.now
	if !t.Implicit {
		s.put(bucketTaskDue, due(t.DueMS(), t.ID), []byte{1})
	}
	s.save(bucketTask, []byte(t.ID), t)
	return done(t.ID)
}

// Reasons for which tasks and leases end.
const (
	EndDone       = "task_ended" // by its principal
	EndDeadline   = "deadline"
	EndLapsed     = "lapsed"
	EndExpired    = "expired"
	EndRevoked    = "revoked"
	EndContained  = "contained"
	EndSuperseded = "superseded"
	EndMintFailed = "mint_failed"
	EndWithLease  = "lease_ended" // an implicit task
	EndWithGrant  = "grant_ended" // an implicit task
)

// EndTask ends a task and its descendants. Their leases are set to end by the
// leader, in batches; from now on none of them can be renewed or reminted.
type EndTask struct {
	ID     string `json:"id"`
	Reason string `json:"reason"`
}

// Type implements [Body].
func (*EndTask) Type() string { return "end_task" }

func (b *EndTask) apply(s *state, c *context) Result {
	t, ok := s.task(b.ID)
	switch {
	case !ok:
		return refuse(CodeNotFound, "Task %s does not exist.", b.ID)
	case t.State == TaskEnded:
		return done(t.ID)
	case b.Reason == EndDeadline && t.DeadlineMS > c.now, b.Reason == EndLapsed && t.DueMS() > c.now:
		return refuse(CodeStale, "Task %s is not due.", t.ID)
	case !slices.Contains([]string{EndDone, EndDeadline, EndLapsed, EndRevoked, EndContained}, b.Reason):
		return refuse(CodeInvalid, "A task does not end for the reason %q.", b.Reason)
	}
	ended := s.endTree(c, t, b.Reason)
	return done(t.ID, ended...)
}

// endTree ends a task and every open descendant, and marks each for draining.
func (s *state) endTree(c *context, root Task, reason string) []string {
	var ended []string
	queue := []Task{root}
	for len(queue) > 0 {
		t := queue[0]
		queue = queue[1:]
		for _, id := range s.ids(bucketTaskOf, prefix(t.ID), MaxTaskTree) {
			if child, ok := s.task(id); ok && child.State == TaskOpen {
				queue = append(queue, child)
			}
		}
		s.closeTask(c, t, reason)
		if t.ID != root.ID {
			ended = append(ended, t.ID)
		}
	}
	return ended
}

// closeTask ends one task and takes it out of the indexes of open ones.
func (s *state) closeTask(c *context, t Task, reason string) {
	if t.Implicit {
		if k := key(t.Principal, t.Instance, t.Role); string(s.Get(bucketInstance, k)) == t.ID {
			s.del(bucketInstance, k)
		}
	} else {
		s.del(bucketTaskDue, due(t.DueMS(), t.ID))
		s.addCount(-1, "t", t.Principal) // implicit ones are bounded by the caps on leases
	}
	if t.Name != "" {
		s.del(bucketTaskName, key(t.Principal, t.Name))
	}
	t.State, t.EndedMS, t.EndReason = TaskEnded, c.now, reason
	s.save(bucketTask, []byte(t.ID), t)
	for _, id := range s.ids(bucketGrantTask, prefix(t.ID), MaxWaiting) {
		if g, ok := s.cosigned(id); ok && (g.State == GrantWaiting || g.State == GrantApproved) {
			s.endGrant(c, g, GrantCancelled, "its task has ended")
		}
	}
	if s.Get(bucketTaskEnds, []byte(t.ID)) == nil && len(s.ids(bucketLeaseTask, prefix(t.ID), 1)) > 0 {
		s.put(bucketTaskEnds, []byte(t.ID), []byte{1})
	}
}
