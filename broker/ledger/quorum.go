package ledger

import (
	"maps"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/cosign"
)

// Quorum: distinct people, none of whom has a part in what is asked.

// person is the human behind a principal: itself, or the owner who answers for it.
func (v *view) person(principal string) string {
	var p PrincipalSpec
	if strings.HasPrefix(principal, "human:") {
		return principal
	}
	if _, ok := v.spec(KindPrincipal, principal, &p); ok && p.Owner != "" {
		return p.Owner
	}
	return principal
}

// involved lists the persons who may not approve the grant: those of the
// requester, its owner when it asked, those of its chain, and of everybody who
// works, or started work, in the same tree of tasks. Sorted. whole is false where
// the tree is too large to be looked through: then nobody knows who else is, and
// nothing can be approved.
func (v *view) involved(g Cosigned) (out []string, whole bool) {
	add := func(principal string) {
		if principal != "" {
			out = append(out, v.person(principal))
		}
	}
	add(g.Principal)
	if g.Kind != GrantChange {
		if d, err := g.Access(); err == nil {
			add(d.Requester.Owner)
		}
	}
	queue := []string{v.root(g.TaskID)}
	seen := 0
	for ; len(queue) > 0 && seen < MaxTaskTree; seen++ {
		t, ok := v.task(queue[0])
		queue = queue[1:]
		if !ok {
			continue
		}
		add(t.Principal)
		add(t.StartedBy)
		queue = append(queue, v.ids(bucketTaskOf, prefix(t.ID), MaxTaskTree)...)
	}
	slices.Sort(out)
	return slices.Compact(out), len(queue) == 0
}

// root is the task at the top of the tree that a task stands in.
func (v *view) root(id string) string {
	for range MaxTaskDepth + 2 { // as far up as liveTask goes
		t, ok := v.task(id)
		if !ok || t.Parent == "" {
			return id
		}
		id = t.Parent
	}
	return id
}

// members returns, for each need, who is in its group now and can answer for a
// signature, with the person behind each, without those of the persons left out.
func (v *view) members(now int64, needs []cosign.Need, without []string) []map[string]string {
	return v.membersWhere(now, needs, func(name string) bool { return !slices.Contains(without, v.person(name)) })
}

// membersAmong is members of those principals alone: a group may be large, and
// who has signed are few.
func (v *view) membersAmong(now int64, needs []cosign.Need, names []string) []map[string]string {
	return v.membersWhere(now, needs, func(name string) bool { return slices.Contains(names, name) })
}

func (v *view) membersWhere(now int64, needs []cosign.Need, takes func(name string) bool) []map[string]string {
	out := make([]map[string]string, len(needs))
	for i, n := range needs {
		out[i] = map[string]string{}
		var spec GroupSpec
		if _, ok := v.spec(KindGroup, n.Group, &spec); !ok {
			continue
		}
		for _, m := range spec.Members {
			if m.Until != nil && m.Until.UnixMilli() <= now || !takes(m.Name) {
				continue
			}
			if p := v.person(m.Name); v.answers(m.Name) && v.answers(p) && strings.HasPrefix(p, "human:") {
				out[i][m.Name] = p
			}
		}
	}
	return out
}

// answers reports whether a principal exists and is not contained. Automation that
// nobody owns is nobody's word.
func (v *view) answers(principal string) bool {
	return v.Get(bucketObject, objectKey(KindPrincipal, principal)) != nil && !v.frozen(KindPrincipal, principal)
}

// persons returns the distinct persons among members, sorted.
func persons(members map[string]string) []string {
	return slices.Compact(slices.Sorted(maps.Values(members)))
}

// seat fills places by people, each of whom takes one, as many as can be; it
// returns how many places of each need are taken. people are sorted, so that all
// replicas seat alike. It is Kuhn's augmenting search; sizes are bounded by MaxApprovers.
func seat(needs []cosign.Need, people []string, fits func(need int, person string) bool) []int {
	var places []int // index of the need
	for i, n := range needs {
		for range min(n.Count, MaxApprovers) {
			places = append(places, i)
		}
	}
	by := make([]int, len(places)) // person + 1
	var try func(p int, seen []bool) bool
	try = func(p int, seen []bool) bool {
		for at, need := range places {
			if seen[at] || !fits(need, people[p]) {
				continue
			}
			seen[at] = true
			if by[at] == 0 || try(by[at]-1, seen) {
				by[at] = p + 1
				return true
			}
		}
		return false
	}
	for p := range people {
		try(p, make([]bool, len(places)))
	}
	have := make([]int, len(needs))
	for at, p := range by {
		if p != 0 {
			have[places[at]]++
		}
	}
	return have
}

func filled(needs []cosign.Need, have []int) bool {
	for i, n := range needs {
		if have[i] < n.Count {
			return false
		}
	}
	return true
}

// checkPossible refuses what nobody could ever approve.
func (s *state) checkPossible(c *context, g Cosigned) Result {
	if !wellFormed(g.Needs) {
		return refuse(CodeInvalid, "Needs name each group once, sorted, with at least one and in all at most %d people.", MaxApprovers)
	}
	involved, whole := s.involved(g)
	if !whole {
		return refuse(CodeTaskTree, "The tree of tasks is larger than %d, so that nobody can tell who has a part in it. Ask in a task of its own.", MaxTaskTree)
	}
	members := s.members(c.now, g.Needs, involved)
	var people []string
	could := make([][]string, len(members))
	for i, m := range members {
		could[i] = persons(m)
		could[i] = could[i][:min(len(could[i]), MaxApprovers)] // as many as there can be places
		people = append(people, could[i]...)
	}
	slices.Sort(people)
	people = slices.Compact(people)
	have := seat(g.Needs, people, func(need int, person string) bool { return slices.Contains(could[need], person) })
	for i, n := range g.Needs {
		if have[i] < n.Count {
			return refuse(CodeQuorum, "%d of group %s would have to approve (%s), and only %d others than those involved could. Nobody was asked.", n.Count, n.Group, n.By, len(could[i]))
		}
	}
	return done("")
}

func wellFormed(needs []cosign.Need) bool {
	total := 0
	for i, n := range needs {
		if n.Group == "" || len(n.Group) > MaxNameBytes || len(n.By) > 2*MaxNameBytes || n.Count < 1 || i > 0 && needs[i-1].Group >= n.Group {
			return false
		}
		total += n.Count
	}
	return len(needs) <= MaxNeeds && total <= MaxApprovers
}

// checkFloor: the needs hold all that the role's own record asks for (HAZARDS 1).
func checkFloor(role RoleSpec, needs []cosign.Need) Result {
	for _, a := range role.Approvals {
		if !slices.ContainsFunc(needs, func(n cosign.Need) bool { return n.Group == a.Group && n.Count >= a.Count }) {
			return refuse(CodeApprovalRequired, "The role asks for %d of %s, and the grant for fewer.", a.Count, a.Group)
		}
	}
	return done("")
}

// counted says why a signature does not count now; "" if it does: its key is
// still registered for that person, who is not contained.
func (v *view) uncounted(sg Signed) string {
	var k Key
	switch {
	case !v.load(bucketKey, []byte(sg.Signature.Key), &k) || k.Use != UseApprove || k.Principal != sg.Principal:
		return "the key was removed"
	case v.frozen(KindPrincipal, sg.Principal) || v.frozen(KindPrincipal, sg.Person):
		return sg.Person + " is contained"
	case v.person(sg.Principal) != sg.Person:
		return sg.Principal + " has another owner now"
	}
	return ""
}

// quorum counts the signatures as of now: how many places of each need are
// filled, and whether the step-up is there.
func (v *view) quorum(now int64, g Cosigned) (have []int, steppedUp bool) {
	have = make([]int, len(g.Needs))
	involved, whole := v.involved(g)
	if !whole {
		return have, false
	}
	self := v.person(g.Principal)
	var names []string
	for _, sg := range g.Signed {
		names = append(names, sg.Principal)
	}
	members := v.membersAmong(now, g.Needs, names)
	var people []string
	signers := map[string][]string{} // principals that signed, by person
	for _, sg := range g.Signed {
		switch {
		case v.uncounted(sg) != "":
		case sg.StepUp:
			steppedUp = steppedUp || sg.Person == self
		case !slices.Contains(involved, sg.Person):
			people = append(people, sg.Person)
			signers[sg.Person] = append(signers[sg.Person], sg.Principal)
		}
	}
	slices.Sort(people)
	people = slices.Compact(people)
	have = seat(g.Needs, people, func(need int, person string) bool {
		return slices.ContainsFunc(signers[person], func(principal string) bool { return members[need][principal] == person })
	})
	return have, steppedUp || g.StepUp == ""
}

// enough reports whether the grant has all its signatures as of now.
func (v *view) enough(now int64, g Cosigned) bool {
	have, steppedUp := v.quorum(now, g)
	return steppedUp && filled(g.Needs, have)
}

// stands says what has changed of what the grant rests on; "" if nothing has.
func (v *view) stands(g Cosigned) string {
	var common cosign.Common
	if g.Kind == GrantChange {
		d, err := g.Change()
		if err != nil {
			return "its document does not read"
		}
		common = d.Common
	} else {
		d, err := g.Access()
		if err != nil {
			return "its document does not read"
		}
		if o, ok := v.object(KindRole, d.Role); !ok || o.Version != d.RoleVersion {
			return "role " + d.Role + " has changed"
		}
		if o, ok := v.object(KindTarget, d.Target); !ok || o.Version != d.TargetVersion {
			return "target " + d.Target + " has changed"
		}
		common = d.Common
	}
	for _, p := range common.Policies {
		if o, ok := v.object(KindPolicy, p.Object); !ok || o.Version != p.Version {
			return "policy " + p.ID + " has changed"
		}
	}
	return ""
}
