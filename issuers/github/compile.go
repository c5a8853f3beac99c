package github

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

const scopeType = "github"

// order in which a permission's levels include each other.
var order = map[string]int{"read": 1, "write": 2, "admin": 3}

// permissions of repositories and their levels (rest-api-description, schema
// app-permissions). Those of organisations and users are left out: a list of
// repositories does not narrow them.
var permissions = map[string][]string{
	"actions": {"read", "write"}, "administration": {"read", "write"}, "attestations": {"read", "write"}, "checks": {"read", "write"}, "codespaces": {"read", "write"},
	"contents": {"read", "write"}, "dependabot_secrets": {"read", "write"}, "deployments": {"read", "write"}, "discussions": {"read", "write"},
	"environments": {"read", "write"}, "issues": {"read", "write"}, "merge_queues": {"read", "write"}, "metadata": {"read"}, "packages": {"read", "write"},
	"pages": {"read", "write"}, "pull_requests": {"read", "write"}, "repository_custom_properties": {"read", "write"}, "repository_hooks": {"read", "write"},
	"repository_projects": {"read", "write", "admin"}, "secret_scanning_alerts": {"read", "write"}, "secrets": {"read", "write"}, "security_events": {"read", "write"},
	"single_file": {"read", "write"}, "statuses": {"read", "write"}, "vulnerability_alerts": {"read", "write"}, "workflows": {"write"},
}

// lasting permissions make what acts after the lease: deploy keys, collaborators,
// hooks, secrets, code that runs with the repository's own token.
var lasting = []string{"actions:write", "administration:write", "codespaces:write", "dependabot_secrets:write", "environments:write", "repository_hooks:write",
	"repository_projects:admin", "secrets:write", "workflows:write"}

// wanted is what a token is asked for. Neither part is ever empty: GitHub takes an
// absent or empty one for everything that the App has.
type wanted struct {
	Repositories []string          `json:"repositories"`
	Permissions  map[string]string `json:"permissions"`
}

const allowedScope = `allowed is one detail of type github: locations (OWNER/REPOSITORY each, by name) and actions such as contents:read, issues:write`

// compile checks a scope and returns what to ask for. It is one detail, since a
// token has every permission on every repository of it: two would mix.
func (s *spec) compile(in scope.Scope) (wanted, error) {
	var w wanted
	n, err := in.Normalise()
	if err != nil {
		return w, err
	}
	if len(n) != 1 {
		return w, fmt.Errorf("%d details; %s; ask for one token each", len(n), allowedScope)
	}
	d := n[0]
	switch {
	case d.Type != scopeType:
		return w, fmt.Errorf("type: %q; %s", d.Type, allowedScope)
	case d.Identifier != "" || len(d.Datatypes) > 0 || len(d.Privileges) > 0 || len(d.Tables) > 0:
		return w, errors.New("identifier, datatypes, privileges and tables mean nothing here; " + allowedScope)
	case len(d.Locations) == 0 || len(d.Locations) > maxRepositories:
		return w, fmt.Errorf("locations: 1 to %d repositories are allowed, never all of them", maxRepositories)
	}
	for _, l := range d.Locations {
		name, err := s.repository(l)
		if err != nil {
			return w, fmt.Errorf("locations: %w", err)
		}
		if !s.within(l) {
			return w, fmt.Errorf("locations: %q is not among the target's repositories", l)
		}
		w.Repositories = append(w.Repositories, name)
	}
	w.Permissions, err = s.permit(d.Actions)
	return w, err
}

// permit returns the highest level of each permission that actions name. GitHub adds
// metadata:read to whatever a token may do; it is asked for, so that nothing comes
// that was not.
func (s *spec) permit(actions []string) (map[string]string, error) {
	out := map[string]string{"metadata": "read"}
	for _, a := range actions {
		name, level, _ := strings.Cut(a, ":")
		levels, known := permissions[name]
		switch {
		case !known:
			return nil, fmt.Errorf("actions: %q; allowed are PERMISSION:LEVEL of %s", a, strings.Join(slices.Sorted(maps.Keys(permissions)), ", "))
		case !slices.Contains(levels, level):
			return nil, fmt.Errorf("actions: %q; %s has the levels %s", a, name, strings.Join(levels, ", "))
		case slices.Contains(lasting, a) && !s.LastingPermissions:
			return nil, fmt.Errorf("actions: with %q one can make what outlasts the lease; the target allows it with lasting_permissions: true", a)
		}
		if order[level] > order[out[name]] {
			out[name] = level
		}
	}
	return out, nil
}

// exceeds says what an answer gives beyond what was asked; empty for nothing.
func (w wanted) exceeds(owner string, a answer) string {
	if a.RepositorySelection != "selected" || len(a.Repositories) == 0 {
		return "it is not limited to repositories"
	}
	for _, r := range a.Repositories {
		if !slices.ContainsFunc(w.Repositories, func(name string) bool { return strings.EqualFold(r.FullName, owner+"/"+name) }) {
			return "it reaches the repository " + oneLine(r.FullName)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Permissions)) {
		level := a.Permissions[name]
		if order[level] == 0 || order[level] > order[w.Permissions[name]] {
			return "it has the permission " + oneLine(name+":"+level)
		}
	}
	if len(a.Permissions) == 0 {
		return "it does not say what it permits"
	}
	return ""
}

// words are permissions as scopes write them.
func words(p map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p)) {
		out = append(out, name+":"+p[name])
	}
	return strings.Join(out, " ")
}
