package broker

import (
	"encoding/json"
	"sync"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// documents keeps the roles, targets and principals that decisions read, in
// decoded form, for as long as no object changes: every object change moves the
// policy epoch, and a new epoch has documents of its own. What they hold is
// shared and must not be changed.
type documents struct {
	mu         sync.RWMutex
	roles      map[string]*roleDoc
	targets    map[string]*targetDoc
	principals map[string]*ledger.PrincipalSpec
}

type roleDoc struct {
	object ledger.Object
	spec   ledger.RoleSpec
}

type targetDoc struct {
	object ledger.Object
	spec   ledger.TargetSpec
	rest   json.RawMessage // the kind's own part
}

// maxDocuments bounds each map; a cluster with more reads the rest anew.
const maxDocuments = 10_000

// recall returns what is kept under name, or reads and keeps it. Reading
// returns nil for what does not exist.
func recall[T any](d *documents, m *map[string]*T, name string, read func() *T) *T {
	d.mu.RLock()
	doc := (*m)[name]
	d.mu.RUnlock()
	if doc != nil {
		return doc
	}
	if doc = read(); doc == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if *m == nil {
		*m = map[string]*T{}
	}
	if len(*m) < maxDocuments {
		(*m)[name] = doc
	}
	return doc
}

// role returns a role, or nil.
func (g *ground) role(q ledger.Query, name string) *roleDoc {
	return recall(&g.docs, &g.docs.roles, name, func() *roleDoc {
		var r roleDoc
		var ok bool
		if r.object, ok = q.Spec(ledger.KindRole, name, &r.spec); !ok {
			return nil
		}
		return &r
	})
}

// target returns a target, or nil.
func (g *ground) target(q ledger.Query, name string) *targetDoc {
	return recall(&g.docs, &g.docs.targets, name, func() *targetDoc {
		o, ok := q.Object(ledger.KindTarget, name)
		if !ok {
			return nil
		}
		spec, rest, err := ledger.SplitTarget(o.Spec)
		if err != nil {
			return nil // Apply refused anything else
		}
		return &targetDoc{object: o, spec: spec, rest: rest}
	})
}

// owner returns a principal's own document; the zero one if there is none.
func (g *ground) owner(q ledger.Query, name string) ledger.PrincipalSpec {
	doc := recall(&g.docs, &g.docs.principals, name, func() *ledger.PrincipalSpec {
		var p ledger.PrincipalSpec
		if _, ok := q.Spec(ledger.KindPrincipal, name, &p); !ok {
			return nil
		}
		return &p
	})
	if doc == nil {
		return ledger.PrincipalSpec{}
	}
	return *doc
}
