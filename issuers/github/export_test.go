package github

import "github.com/mayfly-broker/mayfly/scope"

// Compile returns what a scope asks GitHub for.
func Compile(raw []byte, s scope.Scope) (repositories []string, permissions map[string]string, err error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, nil, err
	}
	w, err := sp.compile(s)
	return w.Repositories, w.Permissions, err
}
