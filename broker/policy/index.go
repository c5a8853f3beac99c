package policy

import (
	"iter"
	"slices"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// index finds the policies whose scope head can match a request without looking
// at the others. It is a table by action, then resource, then principal; each
// policy stands once for each of its actions, under the most specific thing its
// head names: an entity (== or in), else a type (is), else nothing.
//
// A request looks under every entity its principal and resource are or are in,
// so the work is that of the request's own ancestors and of what it finds. The
// result may hold policies that do not match, never lacks one that does; Cedar
// evaluates the heads again.
type index map[types.EntityUID]byResource

type byResource map[types.EntityUID]*byPrincipal

type byPrincipal struct {
	rules map[types.EntityUID][]int32 // positions in Set.policies, ascending
	first []int32                     // the first MaxNearly permits here, for near misses
}

// anything is the key of what names neither an entity nor a type; a type's key
// has an empty ID, which no entity in a policy or request has.
var anything types.EntityUID

func newIndex(rules []*rule) index {
	ix := make(index)
	for at, r := range rules {
		principal, resource := headKey(r.ast.Principal), headKey(r.ast.Resource)
		for _, action := range headActions(r.ast.Action) {
			resources, ok := ix[action]
			if !ok {
				resources = make(byResource)
				ix[action] = resources
			}
			principals, ok := resources[resource]
			if !ok {
				principals = &byPrincipal{rules: make(map[types.EntityUID][]int32)}
				resources[resource] = principals
			}
			principals.rules[principal] = append(principals.rules[principal], int32(at))
			if r.permits() && len(principals.first) < MaxNearly {
				principals.first = append(principals.first, int32(at))
			}
		}
	}
	return ix
}

func headKey(scope ast.IsScopeNode) types.EntityUID {
	switch s := scope.(type) {
	case ast.ScopeTypeEq:
		return s.Entity
	case ast.ScopeTypeIn:
		return s.Entity
	case ast.ScopeTypeIsIn:
		return s.Entity
	case ast.ScopeTypeIs:
		return types.EntityUID{Type: s.Type}
	default:
		return anything
	}
}

// headActions returns the actions a head names, each once; anything for all.
// The schema groups no actions, so that "in" is the same as "==".
func headActions(scope ast.IsActionScopeNode) []types.EntityUID {
	switch s := scope.(type) {
	case ast.ScopeTypeEq:
		return []types.EntityUID{s.Entity}
	case ast.ScopeTypeIn:
		return []types.EntityUID{s.Entity}
	case ast.ScopeTypeInSet:
		actions := slices.Clone(s.Entities)
		slices.SortFunc(actions, compareUID)
		return slices.Compact(actions)
	default:
		return []types.EntityUID{anything}
	}
}

// candidates is the part of a set that can apply to one request.
type candidates struct {
	set *Set
	at  []int32 // ascending, hence by id
}

// All implements cedar.PolicyIterator, in the order of ids.
func (c candidates) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, at := range c.at {
			r := c.set.policies[at]
			if !yield(cedar.PolicyID(r.id), r.cedar) {
				return
			}
		}
	}
}

// needs is what all of them together can look at.
func (c candidates) needs() needs {
	var n needs
	for _, at := range c.at {
		n |= c.set.policies[at].needs
	}
	return n
}

// candidates returns the policies that can apply to f.
func (s *Set) candidates(f *facts) candidates {
	var found []int32
	for principals := range s.index.tables(f) {
		// Whichever is fewer: the principal's ancestors, or what stands here.
		if len(f.principalKeys) <= len(principals.rules) {
			for _, key := range f.principalKeys {
				found = append(found, principals.rules[key]...)
			}
			continue
		}
		for key, rules := range principals.rules {
			if _, ok := slices.BinarySearchFunc(f.principalKeys, key, compareUID); ok {
				found = append(found, rules...)
			}
		}
	}
	slices.Sort(found)
	return candidates{set: s, at: found}
}

// tables yields the tables for the action, or any, and each thing that the
// resource is, is in, or is not asked to be.
func (ix index) tables(f *facts) iter.Seq[*byPrincipal] {
	return func(yield func(*byPrincipal) bool) {
		for _, action := range []types.EntityUID{f.request.Action, anything} {
			resources := ix[action]
			for _, key := range f.resourceKeys {
				if principals, ok := resources[key]; ok && !yield(principals) {
					return
				}
			}
		}
	}
}
