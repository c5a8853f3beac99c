package vault

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

// scopeType is the type of every detail of a scope for this kind.
const scopeType = "vault"

// maxItems is how many secrets one lease may read.
const maxItems = 8

// Actions of a scope.
const (
	actionRead   = "read"   // GET; the answer has a lease
	actionWrite  = "write"  // POST with the location's parameters; the answer has a lease
	actionIssue  = "issue"  // POST with ttl set to the lease's end; the answer may have no lease
	actionStatic = "static" // GET of what is stored; there is no lease
)

var actions = []string{actionRead, actionWrite, actionIssue, actionStatic}

// own are the parts of Vault that hold no secrets but rule over them. They are
// refused wherever they stand in a path: before them may stand a namespace.
var own = []string{"sys", "auth", "identity", "cubbyhole"}

// segmentPattern is what stands between two slashes of a path.
var segmentPattern = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// parameterPattern is a parameter's name.
var parameterPattern = regexp.MustCompile(`^[a-z0-9_]{1,64}$`)

// otherRequest are parameters by which Vault and OpenBao take a read for something
// else: a list, or a page of help.
var otherRequest = []string{"list", "scan", "help"}

// item is one secret that a lease reads.
type item struct {
	action string
	path   string
	params url.Values
	field  string // before its fields' names where the lease reads several
	open   string // the wildcard that a request must narrow; empty for what can be read
}

// leased says whether the secret is one that Vault revokes.
func (i item) leased() bool { return i.action == actionRead || i.action == actionWrite }

// location is one location of a scope, taken apart.
type location struct {
	path   string
	params url.Values
	open   bool // ends in /* or ?*
}

// compile makes the list of what a lease reads.
func compile(sp spec, s scope.Scope) ([]item, error) {
	s, err := s.Normalise()
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	var out []item
	for _, d := range s {
		items, err := compileDetail(sp, d)
		if err != nil {
			return nil, fmt.Errorf("vault: scope: %w", err)
		}
		out = append(out, items...)
	}
	return out, nil
}

func compileDetail(sp spec, d scope.Detail) ([]item, error) {
	switch {
	case d.Type != scopeType:
		return nil, fmt.Errorf("type %q; this target knows %s", d.Type, scopeType)
	case d.Identifier != "" || len(d.Tables) > 0 || len(d.Datatypes) > 0 || len(d.Privileges) > 0:
		return nil, errors.New("identifier, tables, datatypes and privileges mean nothing to Vault; paths stand in locations")
	case len(d.Locations) == 0:
		return nil, errors.New("locations: the paths to read are needed, as in database/creds/app-readonly")
	}
	var out []item
	for _, action := range d.Actions {
		if !slices.Contains(actions, action) {
			return nil, fmt.Errorf("action %q; allowed are %s", action, strings.Join(actions, ", "))
		}
		for _, text := range d.Locations {
			l, err := parseLocation(text)
			if err != nil {
				return nil, err
			}
			if !sp.allows(text) {
				return nil, fmt.Errorf("location %q is outside the target's paths (%s)", text, strings.Join(sp.Paths, ", "))
			}
			if action == actionIssue && (l.params.Has("ttl") || l.params.Has("not_after")) {
				return nil, fmt.Errorf("location %q: issue sets ttl to the lease's end; leave ttl and not_after out, or use write", text)
			}
			i := item{action: action, path: l.path, params: l.params}
			if l.open {
				i.open = text
			}
			out = append(out, i)
		}
	}
	return out, nil
}

// parseLocation reads path, path?name=value&…, prefix/* or path?*. There is one
// way to write each: scopes are compared as text.
func parseLocation(text string) (location, error) {
	bad := func(why string) (location, error) {
		return location{}, fmt.Errorf("location %q: %s; write a path like database/creds/app, pki/issue/web?common_name=a.example, or database/creds/*", text, why)
	}
	if text == "" || len(text) > scope.MaxName {
		return bad(fmt.Sprintf("1 to %d characters are needed", scope.MaxName))
	}
	path, query, hasQuery := strings.Cut(text, "?")
	var l location
	if !hasQuery {
		path, l.open = strings.CutSuffix(path, "/*")
	}
	for _, segment := range strings.Split(path, "/") {
		switch {
		case strings.Trim(segment, ".") == "" || !segmentPattern.MatchString(segment):
			return bad("between slashes stand A-Z, a-z, 0-9, . _ and -, and not dots alone")
		case slices.Contains(own, strings.ToLower(segment)):
			return bad("sys, auth, identity and cubbyhole are Vault's own, and never read for a lease")
		}
	}
	if !l.open && !strings.Contains(path, "/") {
		return bad("a mount alone is no secret")
	}
	l.path = path
	if !hasQuery {
		return l, nil
	}
	if query == "*" {
		l.open = true
		return l, nil
	}
	values, err := url.ParseQuery(query)
	if err != nil || len(values) == 0 || values.Encode() != query {
		return bad("parameters are sorted by name and escaped as in a URL")
	}
	for name, v := range values {
		if slices.Contains(otherRequest, name) {
			return bad("a parameter " + name + " would make it another request than a read")
		}
		if len(v) != 1 || !parameterPattern.MatchString(name) {
			return bad("each parameter stands once, its name of a-z, 0-9 and _")
		}
		if strings.ContainsFunc(v[0], func(r rune) bool { return r < ' ' || r == 0x7f || r == '*' }) {
			return bad("a parameter's value holds no control character and no *")
		}
	}
	l.params = values
	return l, nil
}

// readable refuses what a role may say and a mint cannot do, and gives the fields
// of several secrets names that do not meet.
func readable(items []item) ([]item, error) {
	for _, i := range items {
		if i.open != "" {
			return nil, fmt.Errorf("the role allows %s; say which secret is wanted, with a scope whose locations name it", i.open)
		}
	}
	if len(items) > maxItems {
		return nil, fmt.Errorf("the scope names %d secrets; one lease reads %d at most: ask for fewer, with a scope whose locations name them", len(items), maxItems)
	}
	if len(items) == 1 {
		return items, nil
	}
	seen := map[string]bool{}
	for n := range items {
		f := strings.ToLower(strings.NewReplacer("/", "_", "-", "_", ".", "_").Replace(items[n].path))
		if seen[f] {
			return nil, fmt.Errorf("the scope reads %s twice, or another path that looks like it: ask for one of them", items[n].path)
		}
		seen[f] = true
		items[n].field = f + "_"
	}
	return items, nil
}
