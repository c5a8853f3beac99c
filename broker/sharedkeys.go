package broker

import (
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// holding is what a target signs with, and whether that is ever retired.
type holding struct {
	keys  []string
	turns bool
}

// checkSharedKeys refuses a target that takes a signing key which another one has,
// where one of them can retire it. It is checked at the door alone, since the
// ledger cannot read keys: two changes at one moment, or one that waited for
// approvals, can still bring it about. What stands already may be changed otherwise.
func (e *Engine) checkSharedKeys(q ledger.Query, plan []change, x change, spec ledger.TargetSpec, rest []byte) error {
	mine, ok := e.heldAfter(q, x.Name, rest, spec.Type, &x)
	if !ok || x.action() == "unchanged" {
		return nil
	}
	var before holding
	if old, rest, err := ledger.SplitTarget(x.before.Spec); x.exists && err == nil && old.Type == spec.Type {
		before, _ = e.heldAfter(q, x.Name, rest, old.Type, nil)
	}
	for _, o := range targetsAfter(q, plan) {
		other, rest, err := ledger.SplitTarget(o.Spec)
		if err != nil || other.Type != spec.Type || o.Name == x.Name {
			continue
		}
		var planned *change
		if i := slices.IndexFunc(plan, func(y change) bool { return y.Kind == ledger.KindTarget && y.Name == o.Name }); i >= 0 {
			planned = &plan[i]
		}
		theirs, _ := e.heldAfter(q, o.Name, rest, other.Type, planned)
		for _, key := range mine.keys {
			stood := slices.Contains(before.keys, key) && before.turns == mine.turns
			if stood || !slices.Contains(theirs.keys, key) || !mine.turns && !theirs.turns {
				continue
			}
			return fault.New(fault.Conflict, "key_shared", "Target %s: its %s is that of target %s, too. When either of them is rotated, nothing that the other mints is accepted any more. Give each target a key of its own.", x.Name, key, o.Name)
		}
	}
	return nil
}

// heldAfter reads what a target signs with, once x is written; false where its kind
// has no keys that people give.
func (e *Engine) heldAfter(q ledger.Query, name string, rest []byte, typ string, x *change) (holding, bool) {
	kind, err := e.kind(typ)
	if err != nil {
		return holding{}, false
	}
	h, ok := kind.(issuers.KeyHolder)
	if !ok {
		return holding{}, false
	}
	secrets := map[string]secret.Text{}
	o, _ := q.Object(ledger.KindTarget, name)
	for _, f := range o.Secrets {
		secrets[f] = secret.New(string(q.Secret(ledger.KindTarget, name, f)))
	}
	if x != nil {
		for _, s := range x.secrets {
			secrets[strings.TrimPrefix(s.Name, ledger.KindTarget+"/"+name+"/")] = secret.New(string(s.Value))
		}
	}
	_, turns, err := issuers.TurnsKeys(kind, rest)
	return holding{h.SigningKeys(rest, secrets), turns && err == nil}, true
}

// targetsAfter are the targets that there are once the plan is written.
func targetsAfter(q ledger.Query, plan []change) []ledger.Object {
	out := q.Objects(ledger.KindTarget)
	for _, x := range plan {
		if x.Kind != ledger.KindTarget {
			continue
		}
		out = slices.DeleteFunc(out, func(o ledger.Object) bool { return o.Name == x.Name })
		if !x.Delete {
			out = append(out, ledger.Object{Kind: x.Kind, Name: x.Name, Spec: x.Spec})
		}
	}
	return out
}
