package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// Problem is one thing that is wrong with the sources.
type Problem struct {
	Source string // "" when it is about all of them
	Line   int    // 0 when it is about the whole document
	Policy string // the policy's @id; "" when it has none that can be read
	What   string // what is wrong and what is allowed
}

// String renders the problem on one line: "ops.cedar:3: policy dba-write: …".
func (p Problem) String() string {
	var b strings.Builder
	if p.Source != "" {
		b.WriteString(visible(p.Source))
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Policy != "" {
		fmt.Fprintf(&b, "policy %s: ", p.Policy)
	}
	b.WriteString(p.What)
	return b.String()
}

// Problems is all that is wrong with the sources, in the order of the sources.
// Compile's error holds it, for errors.As.
type Problems []Problem

// Error implements error, in short; String of each problem says it all.
func (p Problems) Error() string {
	if len(p) == 0 {
		return "no problems"
	}
	return fmt.Sprintf("%d problems, the first: %s", len(p), p[0])
}

// rule is one compiled policy.
type rule struct {
	notes
	source string
	line   int
	hash   string
	needs  needs
	head   string // what the head asks of the principal, for near misses
	cedar  *cedar.Policy
	ast    *ast.Policy
}

func (r *rule) permits() bool { return r.cedar.Effect() == cedar.Permit }

// compiler gathers rules and problems.
type compiler struct {
	words    *vocabulary
	rules    []*rule
	byID     map[string]*rule
	problems Problems
	more     int // problems beyond MaxProblems
}

func (c *compiler) complain(p Problem) {
	if len(c.problems) >= MaxProblems {
		c.more++
		return
	}
	c.problems = append(c.problems, p)
}

// Compile checks the sources and makes a [Set] of them. The error is a
// *fault.Error of kind Invalid and code "invalid_policy"; it reports everything
// that is wrong at once (at most [MaxProblems]), and holds [Problems].
func Compile(sources []Source) (*Set, error) {
	words, err := newVocabulary()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "The policy schema does not load.")
	}
	c := &compiler{words: words, byID: make(map[string]*rule)}
	if problem := checkSize(sources); problem != "" {
		c.complain(Problem{What: problem})
	} else {
		for _, src := range sources {
			c.source(src)
		}
	}
	if len(c.problems) > 0 {
		return nil, c.fault()
	}
	slices.SortFunc(c.rules, func(a, b *rule) int { return strings.Compare(a.id, b.id) })
	return &Set{words: words, policies: c.rules, index: newIndex(c.rules), hash: hashOf(c.rules)}, nil
}

func checkSize(sources []Source) string {
	if len(sources) > MaxSources {
		return fmt.Sprintf("there are %d documents; at most %d are allowed", len(sources), MaxSources)
	}
	total := 0
	for _, src := range sources {
		total += len(src.Text)
	}
	if total > MaxTotalBytes {
		return fmt.Sprintf("the documents have %d bytes together; at most %d are allowed", total, MaxTotalBytes)
	}
	return ""
}

func (c *compiler) fault() error {
	lines := []string{"The policies cannot be loaded:"}
	for _, p := range c.problems {
		lines = append(lines, p.String())
	}
	if c.more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", c.more))
	}
	return fault.Wrap(c.problems, fault.Invalid, "invalid_policy", "%s", strings.Join(lines, "\n"))
}

func (c *compiler) source(src Source) {
	if problem := checkText(src.Name, MaxEntityIDBytes); problem != "" || src.Name == "" {
		c.complain(Problem{What: fmt.Sprintf("a document's name %s must be visible text of 1 to %d bytes", visible(clip(src.Name)), MaxEntityIDBytes)})
		return
	}
	statements, err := split(src.Text)
	if err != nil {
		c.complain(Problem{Source: src.Name, What: err.Error()})
		return
	}
	for _, st := range statements {
		if len(c.rules) >= MaxPolicies {
			c.complain(Problem{Source: src.Name, Line: st.line, What: fmt.Sprintf("there are more than %d policies", MaxPolicies)})
			return
		}
		c.statement(src.Name, st)
	}
}

func (c *compiler) statement(source string, st statement) {
	var list cedar.PolicyList
	if err := list.UnmarshalCedar([]byte(st.text)); err != nil {
		c.complain(Problem{Source: source, Line: st.line, What: parseProblem(st)})
		return
	}
	if len(list) != 1 { // a policy that was skipped could be a forbid
		c.complain(Problem{Source: source, Line: st.line, What: fmt.Sprintf("%d policies where one was expected", len(list))})
		return
	}
	r := &rule{source: source, line: st.line, cedar: list[0], ast: (*ast.Policy)(list[0].AST()), hash: hashText(st.text)}
	var problems []string
	r.notes, problems = readAnnotations(r.cedar.Annotations(), r.cedar.Effect())
	problems = append(problems, c.words.check(r.ast)...)
	if first, ok := c.byID[r.id]; ok && r.id != "" {
		problems = append(problems, fmt.Sprintf("@id is taken by the policy at %s:%d; it must be unique", first.source, first.line))
	} else if r.id != "" {
		c.byID[r.id] = r
	}
	r.needs, r.head = needsOf(r.ast), headText(r.ast)
	for _, what := range problems {
		c.complain(Problem{Source: source, Line: st.line, Policy: r.id, What: what})
	}
	c.rules = append(c.rules, r)
}

// parseProblem parses a broken statement once more, moved to where it stands in
// its document, so that the parser's own message names the right line.
func parseProblem(st statement) string {
	moved := strings.Repeat("\n", st.line-1) + strings.Repeat(" ", st.column-1) + st.text
	var list cedar.PolicyList
	err := list.UnmarshalCedar([]byte(moved))
	if err == nil {
		return "the policy cannot be parsed"
	}
	return clip(err.Error())
}

// hashText hashes one policy as it is written: two texts that mean the same hash
// differently, two that differ never the same.
func hashText(text string) string {
	sum := sha256.Sum256([]byte("mayfly.policy.v1\x00" + text))
	return hex.EncodeToString(sum[:])
}

// hashOf hashes rules, which are sorted by id.
func hashOf(rules []*rule) string {
	h := sha256.New()
	h.Write([]byte("mayfly.policyset.v1\x00"))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(rules))))
	for _, r := range rules {
		h.Write([]byte(r.hash)) // of one length; the id is part of the hashed text
	}
	return hex.EncodeToString(h.Sum(nil))
}
