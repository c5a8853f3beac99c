package ledger

import (
	"bytes"
	"encoding/json"
)

// memo remembers how the documents that every lease stands on decode. An entry
// counts only for the very bytes it was made of, so that it can never change a
// result: it only saves reading the same text again.
type memo struct {
	roles   map[string]remembered[RoleSpec]
	targets map[string]remembered[TargetSpec]
}

type remembered[T any] struct {
	raw    []byte
	object Object
	spec   T
}

// maxMemo bounds each map; beyond it, it begins anew.
const maxMemo = 4096

// recall decodes the object under k, or remembers.
func recall[T any](s *state, m *map[string]remembered[T], k []byte, decode func(Object) (T, error)) (Object, T, bool) {
	var zero T
	raw := s.Get(bucketObject, k)
	if raw == nil {
		return Object{}, zero, false
	}
	if known, ok := (*m)[string(k)]; ok && bytes.Equal(known.raw, raw) {
		return known.object, known.spec, true
	}
	r := remembered[T]{raw: bytes.Clone(raw)}
	if err := json.Unmarshal(r.raw, &r.object); err != nil {
		s.corrupt(bucketObject, k, err)
		return Object{}, zero, false
	}
	var err error
	if r.spec, err = decode(r.object); err != nil {
		s.corrupt(bucketObject, k, err)
		return Object{}, zero, false
	}
	if *m == nil || len(*m) >= maxMemo {
		*m = map[string]remembered[T]{}
	}
	(*m)[string(k)] = r
	return r.object, r.spec, true
}

// role returns a role; what it holds is shared and must not be changed.
func (s *state) role(name string) (Object, RoleSpec, bool) {
	return recall(s, &s.memo.roles, objectKey(KindRole, name), func(o Object) (spec RoleSpec, err error) {
		err = json.Unmarshal(o.Spec, &spec)
		return spec, err
	})
}

// target returns a target; what it holds is shared and must not be changed.
func (s *state) target(name string) (Object, TargetSpec, bool) {
	return recall(s, &s.memo.targets, objectKey(KindTarget, name), func(o Object) (TargetSpec, error) {
		spec, _, err := SplitTarget(o.Spec)
		return spec, err
	})
}
