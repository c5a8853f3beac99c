package ledger

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// What a change of configuration must be, beyond what holds for each object.

// checkPlain: people can tell what they sign. No object or key stands in it twice,
// so that no second version hides behind a first; and no spec has two members
// that differ in case alone: Go reads them as one.
func checkPlain(d *cosign.ChangeDocument) Result {
	for i, o := range d.Objects {
		if slices.ContainsFunc(d.Objects[:i], func(x cosign.ObjectChange) bool { return x.Kind == o.Kind && x.Name == o.Name }) {
			return refuse(CodeInvalid, "%s %s stands twice in the change.", o.Kind, o.Name)
		}
		if name := lookalike(o.Spec); name != "" {
			return refuse(CodeInvalid, "%s %s: the spec has two members called %q, which differ in case alone.", o.Kind, o.Name, name)
		}
	}
	for i, n := range d.Keys {
		thumb := keyOf(n).Thumbprint
		if slices.ContainsFunc(d.Keys[:i], func(x cosign.NewKey) bool { return keyOf(x).Thumbprint == thumb }) {
			return refuse(CodeInvalid, "A key stands twice in the change.")
		}
	}
	return done("")
}

// checkMade checks a change as a whole, when it is asked for and when it is made.
func (s *state) checkMade(c *context, changes []ObjectChange, d *cosign.ChangeDocument) Result {
	if res := s.checkChanges(c, changes); !res.OK() {
		return res
	}
	for i, n := range d.Keys {
		if res := s.checkApproveKey(keyOf(n)); !res.OK() {
			return res
		}
		mine := len(s.ids(bucketKeyOf, prefix(n.Principal), MaxKeys+1)) + 1
		for _, x := range d.Keys[:i] {
			if x.Principal == n.Principal {
				mine++
			}
		}
		switch {
		case mine > MaxKeys:
			return refuse(CodeCapCount, "%s would have %d keys; at most %d are allowed.", n.Principal, mine, MaxKeys)
		case slices.ContainsFunc(changes, func(o ObjectChange) bool { return o.Delete && o.Kind == KindPrincipal && o.Name == n.Principal }):
			return refuse(CodeInvalid, "The change deletes %s and gives it a key.", n.Principal)
		}
	}
	return s.checkRemains(c, changes, d.Keys)
}

// checkRemains refuses a change after which the custodians could approve nothing
// any more: too few people in their groups, or too few of them with a key.
func (s *state) checkRemains(c *context, changes []ObjectChange, keys []cosign.NewKey) Result {
	touched := func(kind, name string) (o ObjectChange, ok bool) {
		i := slices.IndexFunc(changes, func(x ObjectChange) bool { return x.Kind == kind && x.Name == name })
		if i < 0 {
			return o, false
		}
		return changes[i], true
	}
	if !slices.ContainsFunc(changes, func(o ObjectChange) bool { return o.Kind == KindGroup || o.Kind == KindPrincipal }) {
		return done("")
	}
	needs := s.custodians()
	able := make([][]string, len(needs))
	var people []string
	for i, n := range needs {
		var spec GroupSpec
		s.spec(KindGroup, n.Group, &spec)
		if o, ok := touched(KindGroup, n.Group); ok {
			spec = GroupSpec{}
			if !o.Delete && json.Unmarshal(o.Spec, &spec) != nil {
				return refuse(CodeInvalid, "Group %s does not read.", o.Name)
			}
		}
		for _, m := range spec.Members {
			o, changed := touched(KindPrincipal, m.Name)
			hasKey := slices.ContainsFunc(keys, func(k cosign.NewKey) bool { return k.Principal == m.Name }) || s.voucher(m.Name) == VouchKey
			_, founder := s.founder(m.Name)
			if !strings.HasPrefix(m.Name, "human:") || m.Until != nil || changed && o.Delete || !changed && !s.answers(m.Name) || !hasKey && !founder {
				continue
			}
			able[i] = append(able[i], m.Name)
		}
		slices.Sort(able[i])
		able[i] = slices.Compact(able[i])
		able[i] = able[i][:min(len(able[i]), MaxApprovers)]
		people = append(people, able[i]...)
	}
	slices.Sort(people)
	people = slices.Compact(people)
	have := seat(needs, people, func(need int, person string) bool { return slices.Contains(able[need], person) })
	for i, n := range needs {
		if have[i] < n.Count {
			return refuse(CodeLastAdmin, "After this change %d people of group %s could approve changes, and %d are needed: nobody could change anything any more. Who counts is a human without an end date who has a key to approve with.", have[i], n.Group, n.Count)
		}
	}
	return done("")
}

// lookalike returns the name of a member that stands twice in one object of raw,
// in the eyes of encoding/json, which takes names for equal that differ in case,
// or in the two letters beyond ASCII that fold into it; "" if none does.
func lookalike(raw []byte) string {
	type frame struct {
		object bool
		names  map[string]bool
		inName bool
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var open []frame
	for {
		tok, err := dec.Token()
		if err != nil { // its end; what does not read is refused elsewhere
			return ""
		}
		var top *frame
		if len(open) > 0 {
			top = &open[len(open)-1]
		}
		if d, ok := tok.(json.Delim); ok && (d == '}' || d == ']') {
			open = open[:len(open)-1]
			continue
		}
		if top != nil && top.object && top.inName {
			name, _ := tok.(string)
			if top.names[folded(name)] {
				return name
			}
			top.names[folded(name)], top.inName = true, false
			continue
		}
		if top != nil && top.object {
			top.inName = true
		}
		if d, ok := tok.(json.Delim); ok {
			open = append(open, frame{object: d == '{', inName: d == '{', names: map[string]bool{}})
		}
	}
}

// folded is a name as encoding/json compares it with a field's, which is ASCII.
func folded(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r == '\u017f': // long s
			return 's'
		case r == '\u212a': // the sign of the kelvin
			return 'k'
		}
		return r
	}, name)
}
