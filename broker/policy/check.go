package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// checker looks through one policy for what the schema does not know. Cedar's
// validator finds that too, but does not say what would have been right.
type checker struct {
	words    *vocabulary
	problems []string
	nodes    int
	guards   int
	patterns int
}

func (c *checker) complain(format string, args ...any) {
	if msg := fmt.Sprintf(format, args...); !slices.Contains(c.problems, msg) {
		c.problems = append(c.problems, msg)
	}
}

// check returns what is wrong with a policy, in a stable order.
func (v *vocabulary) check(p *ast.Policy) []string {
	c := &checker{words: v}
	c.scope(p.Principal)
	c.scope(p.Action)
	c.scope(p.Resource)
	for _, cond := range p.Conditions {
		ast.Inspect(ast.NewNode(cond.Body), c.node)
	}
	if c.nodes > MaxNodes {
		c.complain("the conditions have %d parts; at most %d are allowed: split the policy", c.nodes, MaxNodes)
	}
	if c.guards > MaxGuards {
		c.complain("the conditions use has and hasTag %d times; at most %d are allowed: split the policy", c.guards, MaxGuards)
	}
	if c.patterns > MaxPatterns {
		c.complain("the conditions use like %d times; at most %d are allowed: split the policy", c.patterns, MaxPatterns)
	}
	if len(c.problems) > 0 {
		return c.problems
	}
	if c.applies(p); len(c.problems) > 0 {
		return c.problems
	}
	if err := v.validator.Policy("", p); err != nil {
		for _, e := range flatten(err) {
			c.complain("%s", clip(e.Error()))
		}
		slices.Sort(c.problems) // the validator goes through maps
		if more := len(c.problems) - maxTypeErrors; more > 0 {
			// One mistake comes back once for each action and kind.
			c.problems = append(c.problems[:maxTypeErrors], fmt.Sprintf("and %d more of the kind", more))
		}
	}
	return c.problems
}

// maxTypeErrors is how many type errors of one policy are worth reading.
const maxTypeErrors = 4

// applies checks that the actions a head names are done to the kind it names.
func (c *checker) applies(p *ast.Policy) {
	var kind types.EntityType
	switch s := p.Resource.(type) {
	case ast.ScopeTypeEq:
		kind = s.Entity.Type
	case ast.ScopeTypeIs:
		kind = s.Type
	case ast.ScopeTypeIsIn:
		kind = s.Type
	default:
		return
	}
	for _, action := range headActions(p.Action) {
		if action == anything {
			continue
		}
		if known := c.words.schema.Actions[action].AppliesTo.Resources; !slices.Contains(known, kind) {
			list := make([]string, len(known))
			for i, k := range known {
				list[i] = string(k)
			}
			c.complain("action %s is not done to a %s, but to %s", action.ID, kind, strings.Join(list, ", "))
		}
	}
}

func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

func (c *checker) scope(scope ast.IsScopeNode) {
	switch s := scope.(type) {
	case ast.ScopeTypeEq:
		c.entity(s.Entity)
	case ast.ScopeTypeIn:
		c.entity(s.Entity)
	case ast.ScopeTypeInSet:
		for _, uid := range s.Entities {
			c.entity(uid)
		}
	case ast.ScopeTypeIs:
		c.kind(s.Type)
	case ast.ScopeTypeIsIn:
		c.kind(s.Type)
		c.entity(s.Entity)
	}
}

func (c *checker) kind(t types.EntityType) bool {
	if slices.Contains(c.words.entities, string(t)) {
		return true
	}
	c.complain("unknown entity type %s; allowed are %s", t, strings.Join(c.words.entities, ", "))
	return false
}

// entity checks a literal such as Role::"orders/readwrite".
func (c *checker) entity(uid types.EntityUID) {
	if uid.Type == actionType {
		if !slices.Contains(c.words.actions, string(uid.ID)) {
			c.complain("unknown action %q; allowed are %s", string(uid.ID), strings.Join(c.words.actions, ", "))
		}
		return
	}
	if !c.kind(uid.Type) {
		return
	}
	id := string(uid.ID)
	if id == "" {
		c.complain("%s::\"\" names nothing", uid.Type)
		return
	}
	if problem := checkText(id, MaxEntityIDBytes); problem != "" {
		c.complain("the id in %s %s", uid, problem)
		return
	}
	kind, name, qualified := strings.Cut(id, ":")
	_, isKind := principalTypes[kind]
	switch {
	case uid.Type == principalType && !(qualified && isKind && name != ""):
		c.complain(`%s must name its kind, as in Principal::"agent:coder"`, uid)
	case qualified && isKind && principalTypes[kind] == uid.Type:
		c.complain("%s can match nobody; write %s", uid, types.NewEntityUID(uid.Type, types.String(name)))
	}
}

// node checks one part of a condition; it is given to ast.Inspect.
func (c *checker) node(n ast.IsNode) bool {
	c.nodes++
	if c.nodes > MaxNodes {
		return true // counting on, for the message
	}
	switch n := n.(type) {
	case ast.NodeValue:
		if uid, ok := n.Value.(types.EntityUID); ok {
			c.entity(uid)
		}
	case ast.NodeTypeIs:
		c.kind(n.EntityType)
	case ast.NodeTypeIsIn:
		c.kind(n.EntityType)
	case ast.NodeTypeLike:
		c.patterns++
		c.pattern(n.Value)
	case ast.NodeTypeAccess:
		c.attribute(n.Arg, string(n.Value))
	case ast.NodeTypeHas:
		c.guards++
		c.attribute(n.Arg, string(n.Value))
	case ast.NodeTypeGetTag:
		c.subject(n.Left)
	case ast.NodeTypeHasTag:
		c.guards++
		c.subject(n.Left)
	}
	return true
}

// pattern bounds a `like`.
func (c *checker) pattern(p types.Pattern) {
	text := p.MarshalCedar()
	wildcards := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '*':
			wildcards++
		}
	}
	if wildcards > MaxPatternWildcards || len(text) > MaxPatternBytes {
		c.complain("the pattern %s is too large; at most %d wildcards and %d bytes are allowed", clip(string(text)), MaxPatternWildcards, MaxPatternBytes)
	}
}

// attribute checks arg.name where arg is a plain path from a variable.
func (c *checker) attribute(arg ast.IsNode, name string) {
	c.subject(arg)
	root, path, ok := pathOf(arg)
	if !ok {
		return
	}
	have, ok := c.words.attributes(root, path)
	if !ok {
		return
	}
	if _, ok := have[types.String(name)]; !ok {
		c.complain("%s has no attribute %q; it has %s", strings.Join(append([]string{root}, path...), "."), name, names(have))
	}
}

// subject refuses attributes of entities that are named in the policy. Only the
// request's own principal and resource are at hand, so reading those of another
// would be an error each time, and an error denies.
func (c *checker) subject(n ast.IsNode) {
	if value, ok := n.(ast.NodeValue); ok {
		if uid, ok := value.Value.(types.EntityUID); ok {
			c.complain("%s has no attributes or tags here; only principal and resource have", uid)
		}
	}
}

// pathOf returns context, [a b] for context.a.b.
func pathOf(n ast.IsNode) (root string, path []string, ok bool) {
	for {
		switch at := n.(type) {
		case ast.NodeTypeVariable:
			slices.Reverse(path)
			return string(at.Name), path, true
		case ast.NodeTypeAccess:
			path = append(path, string(at.Value))
			n = at.Arg
		default:
			return "", nil, false
		}
	}
}

// checkText says what is wrong with a name or text that people will read, and ""
// when nothing is: what cannot be seen can hide what a policy says.
func checkText(s string, maxBytes int) string {
	if len(s) > maxBytes {
		return fmt.Sprintf("has %d bytes; at most %d are allowed", len(s), maxBytes)
	}
	if !utf8.ValidString(s) {
		return "is not UTF-8 text"
	}
	for _, r := range s {
		if r != ' ' && !unicode.IsGraphic(r) || unicode.Is(unicode.Zs, r) && r != ' ' {
			return fmt.Sprintf("holds a control or invisible character (U+%04X)", r)
		}
	}
	return ""
}

// clip bounds a text that goes into a message or a decision.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= MaxReasonText {
		return s
	}
	cut := MaxReasonText - len("…")
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
