package identity

import (
	"crypto/sha256"
	"encoding/json"
	"strconv"
)

// newFacts starts the facts of an attestation.
func newFacts(m Method) map[string]string {
	return map[string]string{"method": clipFact(m.Name), "method_type": string(m.Type)}
}

// addClaims puts the claims by which the method decided, and those it lists
// under facts, beside the others. No further claim is passed on: a token may
// hold what policy and audit have no business to know.
func (m Method) addClaims(facts map[string]string, claims object) {
	for _, path := range m.factPaths() {
		if len(facts) >= maxFacts {
			return
		}
		v, ok := claims.lookup(path)
		if !ok {
			continue
		}
		if s, ok := factValue(v); ok {
			facts["claim."+path] = s
		}
	}
}

// factPaths lists the paths in the spec's order, which is the same on every node.
func (m Method) factPaths() []string {
	var out []string
	seen := map[string]bool{}
	add := func(path string) {
		if path != "" && !seen[path] {
			seen[path] = true
			out = append(out, path)
		}
	}
	for _, path := range m.facts {
		add(path)
	}
	for _, c := range m.require {
		add(c.path)
	}
	for _, r := range m.bind {
		for _, c := range r.when {
			add(c.path)
		}
		for _, path := range r.as.claims() {
			add(path)
		}
		add(r.instance)
	}
	return out
}

// factValue renders a string, number, boolean, or list of these.
func factValue(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return clipFact(v), true
	case json.Number:
		return clipFact(v.String()), true
	case bool:
		return strconv.FormatBool(v), true
	case []any:
		for _, item := range v {
			switch item.(type) {
			case string, json.Number, bool:
			default:
				return "", false
			}
		}
		text, err := json.Marshal(v)
		return clipFact(string(text)), err == nil
	default:
		return "", false
	}
}

// clipFact keeps a value as it is, or replaces what is too long or not
// printable by its hash: a shortened value could equal another one.
func clipFact(s string) string {
	if len(s) <= maxFact && printable(s) {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + strictBase64.EncodeToString(sum[:])
}
