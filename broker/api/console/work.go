package console

import (
	"slices"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// TaskNode is a task in the tree.
type TaskNode struct {
	Task   wire.Task
	Leases []wire.Lease
	Kids   []*TaskNode
}

// maxTree is how many tasks and leases one page draws.
const maxTree = 400

// taskTree hangs tasks under their parents, and leases under their tasks. A
// task whose parent is not in the list is a root.
func taskTree(tasks []wire.Task, leases []wire.Lease) []*TaskNode {
	by := map[string]*TaskNode{}
	for _, t := range tasks {
		by[t.ID] = &TaskNode{Task: t}
	}
	for _, l := range leases {
		if n := by[l.TaskID]; n != nil {
			n.Leases = append(n.Leases, l)
		}
	}
	var roots []*TaskNode
	for _, t := range tasks {
		n := by[t.ID]
		if p := by[t.Parent]; p != nil && t.Parent != t.ID {
			p.Kids = append(p.Kids, n)
		} else {
			roots = append(roots, n)
		}
	}
	return roots
}

type tasksBody struct {
	Tree  []*TaskNode
	State string
	Count int
	Full  bool
}

func (s *Console) listTasks(x *exchange) error {
	ctx := x.r.Context()
	b := tasksBody{State: "open"}
	if x.query("state") == "ended" {
		b.State = "ended"
	}
	tasks, err := x.engine.Tasks(ctx, x.caller, broker.TaskFilter{State: b.State, Limit: maxTree})
	if err != nil {
		return err
	}
	var leases []wire.Lease
	if b.State == "open" {
		if leases, err = x.engine.Leases(ctx, x.caller, broker.LeaseFilter{State: "open", Limit: maxTree}); err != nil {
			return err
		}
	}
	b.Tree, b.Count, b.Full = taskTree(tasks, leases), len(tasks), len(tasks) == maxTree
	slices.Reverse(b.Tree) // the newest first
	return x.show("tasks", page{Title: "Tasks", Nav: "tasks", Body: b})
}

type taskBody struct {
	Task   wire.Task
	Tree   []Branch
	Leases []wire.Lease
	Kids   []wire.Task
	Grants []wire.Grant
}

func (s *Console) showTask(x *exchange) error {
	ctx := x.r.Context()
	var b taskBody
	var err error
	if b.Task, err = x.engine.Task(ctx, x.caller, x.r.PathValue("id")); err != nil {
		return err
	}
	b.Tree = scopeTree(b.Task.Scope)
	if b.Leases, err = x.engine.Leases(ctx, x.caller, broker.LeaseFilter{Task: b.Task.ID, Limit: perPage}); err != nil {
		return err
	}
	for _, id := range b.Task.Children[:min(len(b.Task.Children), perPage)] {
		if kid, err := x.engine.Task(ctx, x.caller, id); err == nil {
			b.Kids = append(b.Kids, kid)
		}
	}
	return x.show("task", page{Title: "Task", Nav: "tasks", Body: b})
}

type leasesBody struct {
	Leases                   []wire.Lease
	State, Target, Principal string
	Next                     string
}

// leaseStates are what the list of leases can be narrowed to; "all" is all.
var leaseStates = []string{"open", "ending", "ended", "all"}

func (s *Console) listLeases(x *exchange) error {
	b := leasesBody{State: x.query("state"), Target: x.query("target"), Principal: x.query("principal")}
	if !slices.Contains(leaseStates, b.State) {
		b.State = "open"
	}
	f := broker.LeaseFilter{State: b.State, Target: b.Target, Principal: b.Principal, Limit: perPage, After: x.query("after")}
	if b.State == "all" {
		f.State = ""
	}
	var err error
	if b.Leases, err = x.engine.Leases(x.r.Context(), x.caller, f); err != nil {
		return err
	}
	if len(b.Leases) == perPage {
		b.Next = b.Leases[perPage-1].ID
	}
	return x.show("leases", page{Title: "Leases", Nav: "leases", Body: b})
}

type leaseBody struct {
	Lease   wire.Lease
	Tree    []Branch
	Alarms  []Alarm
	Receipt string
	// Lives is the proof with which the lease is over and its credential may not be.
	Lives string
}

func (s *Console) showLease(x *exchange) error {
	l, err := x.engine.Lease(x.r.Context(), x.caller, x.r.PathValue("id"))
	if err != nil {
		return err
	}
	b := leaseBody{Lease: l, Tree: scopeTree(l.Scope), Alarms: alarms(l.Scope)}
	if len(l.Receipt) > 0 {
		b.Receipt = indent(l.Receipt)
	}
	if r, yes := l.Outlived(); yes {
		b.Lives = r.Proof
	}
	return x.show("lease", page{Title: "Lease", Nav: "leases", Body: b})
}
