package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/policy"
)

const (
	decisionBudget = 20 * time.Microsecond
	documentSize   = 500 // policies in one document; one may not hold any number
)

// measureDecision times a decision in this process, at few policies and many.
func measureDecision(_ context.Context, b *bench, _ section) error {
	for _, n := range []int{10, 1000} {
		set, err := policy.Compile(installation(n))
		if err != nil {
			return err
		}
		var worst time.Duration
		for _, group := range []string{"sre", "nobody"} {
			each, err := decide(set, group, b.cell/4)
			if err != nil {
				return err
			}
			worst = max(worst, each)
		}
		b.add(row{what: fmt.Sprintf("one decision at %d policies (in this process)", set.Len()), got: short(worst), detail: "median, the slower of permit and deny", budget: "< " + short(decisionBudget), met: met(worst < decisionBudget)})
	}
	return nil
}

// installation makes n policies as a large one has them: most name a role or a
// group of their own, a few name neither.
func installation(n int) []policy.Source {
	var sources []policy.Source
	var text strings.Builder
	for i := range n {
		switch {
		case i == 0:
			text.WriteString("@id(\"write\") @max_ttl(\"15m\") permit (principal in Group::\"sre\", action == Action::\"request\", resource == Role::\"orders/readwrite\") when { context.session.bound };\n")
		case i < 5:
			fmt.Fprintf(&text, "@id(\"risk%d\") forbid (principal, action == Action::\"request\", resource) when { context.risk > %d };\n", i, 90+i)
		case i%3 == 0:
			fmt.Fprintf(&text, "@id(\"team%d\") permit (principal in Group::\"team%d\", action == Action::\"request\", resource == Role::\"orders/readwrite\") when { context.session.bound };\n", i, i)
		case i%3 == 1:
			fmt.Fprintf(&text, "@id(\"zone%d\") permit (principal in Group::\"team%d\", action, resource in Zone::\"eu\") when { context.session.bound };\n", i, i)
		default:
			fmt.Fprintf(&text, "@id(\"role%d\") permit (principal in Group::\"sre\", action == Action::\"request\", resource == Role::\"db%d/read\") when { context.session.bound && context.risk < 60 };\n", i, i)
		}
		if i%documentSize == documentSize-1 || i == n-1 {
			sources = append(sources, policy.Source{Name: fmt.Sprintf("doc%d", i), Text: text.String()})
			text.Reset()
		}
	}
	return sources
}

// decide returns the median time of a decision, over at least a thousand: on a
// shared machine the mean measures the neighbours.
func decide(set *policy.Set, group string, d time.Duration) (time.Duration, error) {
	r := policy.Request{
		Principal: policy.Principal{Kind: "human", Name: "ann", Groups: []string{group, "oncall", "emea"}},
		Action:    policy.ActionRequest,
		Resource:  policy.Resource{Kind: "Role", Name: "orders/readwrite", Target: "orders", Zone: "eu", Type: "postgres", Labels: map[string]string{"classification": "pii"}},
		Context: policy.Context{
			Now: time.Now(), Session: policy.Session{Bound: true, Binding: "dpop", AttestedKey: true, Method: "key"}, Network: policy.Network{IP: netip.MustParseAddr("10.1.2.3")},
			Task: policy.Task{ID: "t1", Name: "deploy", Owner: "human:ann", Depth: 1}, Scope: policy.Scope{Actions: []string{"select"}, Tables: []string{"public.orders"}},
			Purpose: "ticket 4711", TTLSeconds: 600, Risk: 10,
		},
	}
	if set.Decide(r).Permit != (group == "sre") {
		return 0, errors.New("the policies do not decide as they should")
	}
	var took []time.Duration
	began := time.Now()
	for len(took) < 1000 || time.Since(began) < d {
		at := time.Now()
		set.Decide(r)
		took = append(took, time.Since(at))
	}
	return median(took), nil
}
