package kubernetes

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// Rule is a rule of a role.
type Rule = rule

// Compile is a scope's plan as text.
func Compile(s scope.Scope) (string, error) {
	p, err := compile(s)
	if err != nil {
		return "", err
	}
	if p.account != "" {
		return "token of " + p.namespace + "/" + p.account + " for " + strings.Join(p.audiences, " "), nil
	}
	var grants []string
	for _, g := range p.grants {
		at := g.namespace
		if at == "" {
			at = "*"
		}
		words := []string{at + ":"}
		for _, r := range g.rules {
			b, err := json.Marshal(r)
			if err != nil {
				return "", err
			}
			words = append(words, string(b))
		}
		grants = append(grants, strings.Join(append(words, g.clusterRoles...), " "))
	}
	return strings.Join(grants, "; "), nil
}

// CompiledRules are all rules of a scope.
func CompiledRules(s scope.Scope) []Rule {
	var out []Rule
	p, _ := compile(s)
	for _, g := range p.grants {
		out = append(out, g.rules...)
	}
	return out
}

// Paths are those of all objects of a scope's lease.
func Paths(s scope.Scope) []string {
	var out []string
	p, _ := compile(s)
	for _, r := range p.ending(spec{Namespace: defaultNamespace}, namePrefix+"00000000000000000000000000") {
		out = append(out, r.path())
	}
	return append(out, p.holder(spec{Namespace: defaultNamespace}, "x").path()+"/token")
}

// MarkOf writes a mark, and returns what reads it as another object's.
func MarkOf(key, namespace, name, lease string, generation, term uint64) func(key, namespace, name, lease string, generation, term uint64) bool {
	m := newMarker(secret.New(key)).meta(ref{secrets, namespace, name}, mark{lease, generation, term}, time.Time{})
	return func(key, namespace, name, lease string, generation, term uint64) bool {
		m.Labels[labelLease] = lease
		m.Annotations[noteGeneration], m.Annotations[noteTerm] = strconv.FormatUint(generation, 10), strconv.FormatUint(term, 10)
		k, ours := newMarker(secret.New(key)).read(ref{secrets, namespace, name}, m)
		return ours && k == mark{lease, generation, term}
	}
}
