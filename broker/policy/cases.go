package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// caseTime is context.now of a [Case] that does not set one: a Wednesday at noon.
var caseTime = time.Date(2020, time.January, 1, 12, 0, 0, 0, time.UTC)

// Case is one expectation of `policy test`.
type Case struct {
	// Name is unique in its file.
	Name    string  `json:"name"`
	Request Request `json:"request"`
	Want    Want    `json:"want"`
}

// Want is what a case expects. Permit is always compared; the rest where it is
// given.
type Want struct {
	Permit bool `json:"permit"`
	// Code is a code of [Decision].
	Code string `json:"code,omitempty"`
	// Policies are the IDs of exactly the policies that decided, in any order. An
	// empty list expects none; nil expects nothing.
	Policies []string `json:"policies,omitempty"`
	// MaxTTL is a duration ("15m"), or "none".
	MaxTTL string `json:"max_ttl,omitempty"`
	// ApprovalTTL likewise.
	ApprovalTTL string `json:"approval_ttl,omitempty"`
	// Approvals are exactly the quorums, as count by group. An empty map expects
	// none; nil expects nothing.
	Approvals map[string]int `json:"approvals,omitempty"`
	// StepUp is a value of @step_up, or "none".
	StepUp string `json:"step_up,omitempty"`
}

// none is the expectation that there is no such obligation.
const none = "none"

// CaseResult says how one case went.
type CaseResult struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	// Differences are sentences, each with what was expected and what came.
	Differences []string `json:"differences,omitempty"`
	Got         Decision `json:"got"`
}

// caseFile is how cases are written: want.permit must be there, so that a
// forgotten line does not read as the wish for a denial.
type caseFile struct {
	Cases []struct {
		Case
		Want struct {
			Want
			Permit *bool `json:"permit"`
		} `json:"want"`
	} `json:"cases"`
}

// DecodeCases reads a YAML or JSON document {cases: [{name, request, want}, …]}.
// Unknown fields, repeated keys and names, and expectations that cannot be read
// are refused: the error is a *fault.Error of kind Invalid, "invalid_cases".
func DecodeCases(document []byte) ([]Case, error) {
	cases, err := decodeCases(document)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "invalid_cases", "The test cases cannot be read: %s.", clip(oneLine(err.Error())))
	}
	return cases, nil
}

func decodeCases(document []byte) ([]Case, error) {
	if len(document) > MaxCasesBytes {
		return nil, fmt.Errorf("the document has %d bytes; at most %d are allowed", len(document), MaxCasesBytes)
	}
	if severalDocuments(document) {
		return nil, errors.New("there is more than one document; one list holds all cases")
	}
	asJSON, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, err
	}
	var file caseFile
	dec := json.NewDecoder(bytes.NewReader(asJSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil {
		return nil, err
	}
	if len(file.Cases) == 0 || len(file.Cases) > MaxCases {
		return nil, fmt.Errorf("there are %d cases; 1 to %d are allowed, under the key \"cases\"", len(file.Cases), MaxCases)
	}
	seen := make(map[string]bool, len(file.Cases))
	cases := make([]Case, len(file.Cases))
	for i, c := range file.Cases {
		if c.Name == "" || seen[c.Name] {
			return nil, fmt.Errorf("case %d needs a name of its own, and has %q", i+1, c.Name)
		}
		seen[c.Name] = true
		if c.Want.Permit == nil {
			return nil, fmt.Errorf("case %q: want.permit is missing; it is true or false", c.Name)
		}
		want := c.Want.Want
		want.Permit = *c.Want.Permit
		if err := want.check(); err != nil {
			return nil, fmt.Errorf("case %q: %w", c.Name, err)
		}
		cases[i] = Case{Name: c.Name, Request: c.Request, Want: want}
	}
	return cases, nil
}

// severalDocuments reports whether a YAML marker ends the first document. The
// YAML reader would leave out what follows, and those cases would never run.
func severalDocuments(document []byte) bool {
	content := false
	for line := range bytes.Lines(document) {
		line = bytes.TrimRight(line, " \t\r\n")
		word, _, _ := bytes.Cut(line, []byte(" "))
		marker := string(word) == "---" || string(word) == "..."
		if marker && content {
			return true
		}
		content = content || marker || len(line) > 0 && line[0] != '#' && line[0] != '%'
	}
	return false
}

func (w Want) check() error {
	for field, value := range map[string]string{"max_ttl": w.MaxTTL, "approval_ttl": w.ApprovalTTL} {
		if value == "" || value == none {
			continue
		}
		if _, err := readTTL(field, value); err != nil {
			return fmt.Errorf("want.%s %q is neither a duration of whole seconds nor %q", field, value, none)
		}
	}
	if w.StepUp != "" && w.StepUp != none && !slices.Contains(stepUps, w.StepUp) {
		return fmt.Errorf("want.step_up %q is not known; allowed are %s and %s", w.StepUp, strings.Join(stepUps, ", "), none)
	}
	codes := []string{CodePermit, CodeNoPermit, CodeForbidden, CodePolicyError, CodeUnknownAction, CodeInvalidRequest}
	if w.Code != "" && !slices.Contains(codes, w.Code) {
		return fmt.Errorf("want.code %q is not known; allowed are %s", w.Code, strings.Join(codes, ", "))
	}
	if w.Code != "" && w.Permit != (w.Code == CodePermit) {
		return fmt.Errorf("want.permit %t and want.code %q exclude each other", w.Permit, w.Code)
	}
	if !w.Permit && (w.MaxTTL != "" || w.ApprovalTTL != "" || w.StepUp != "" || w.Approvals != nil) {
		return errors.New("a denial has no obligations to expect")
	}
	return nil
}

// RunCases decides each case against s. A case that sets no context.now is decided
// at noon of 2020-01-01, a Wednesday, UTC. An expectation that cannot be read is a
// difference, never a pass.
func RunCases(s *Set, cases []Case) []CaseResult {
	results := make([]CaseResult, len(cases))
	for i, c := range cases {
		if c.Request.Context.Now.IsZero() {
			c.Request.Context.Now = caseTime
		}
		got := s.Decide(c.Request)
		differences := c.Want.compare(got)
		results[i] = CaseResult{Name: c.Name, Passed: len(differences) == 0, Differences: differences, Got: got}
	}
	return results
}

// compare says in which ways got is not what is wanted.
func (w Want) compare(got Decision) []string {
	if err := w.check(); err != nil {
		return []string{err.Error()}
	}
	var out []string
	differ := func(field string, want, have any) {
		out = append(out, fmt.Sprintf("%s: want %v, got %v", field, want, have))
	}
	if got.Permit != w.Permit {
		differ("permit", w.Permit, fmt.Sprintf("%t (%s)", got.Permit, got.Code))
	}
	if w.Code != "" && got.Code != w.Code {
		differ("code", w.Code, got.Code)
	}
	ids := make([]string, len(got.Policies))
	for i, p := range got.Policies {
		ids[i] = p.ID
	}
	if want := slices.Sorted(slices.Values(w.Policies)); w.Policies != nil && !slices.Equal(want, ids) {
		differ("policies", want, ids)
	}
	if !w.Permit || !got.Permit {
		return out // a denial has no obligations to compare
	}
	compareTTL := func(field, want string, have time.Duration) {
		wanted, _ := time.ParseDuration(want) // checked; "none" is 0
		if want != "" && wanted != have {
			differ(field, want, have)
		}
	}
	compareTTL("max_ttl", w.MaxTTL, got.Obligations.MaxTTL)
	compareTTL("approval_ttl", w.ApprovalTTL, got.Obligations.ApprovalTTL)
	if have := got.Obligations.StepUp; w.StepUp != "" && strings.TrimPrefix(w.StepUp, none) != have {
		differ("step_up", w.StepUp, have)
	}
	return append(out, w.compareApprovals(got.Obligations.Approvals)...)
}

func (w Want) compareApprovals(got []Quorum) []string {
	if w.Approvals == nil {
		return nil
	}
	have := make(map[string]int, len(got))
	for _, q := range got {
		have[q.Group] = q.Count
	}
	same := len(have) == len(w.Approvals)
	for group, count := range w.Approvals {
		same = same && have[group] == count
	}
	if same {
		return nil
	}
	return []string{fmt.Sprintf("approvals: want %v, got %v", w.Approvals, have)}
}
