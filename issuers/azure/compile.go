package azure

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/scope"
)

// scopeType is the `type` of the details that this kind compiles.
const scopeType = "azure"

// actionToken is the one action of way token.
const actionToken = "token"

// permissions are the actions of a SAS in the order in which a SAS must list them
// ("Create a user delegation SAS", Specify permissions).
var permissions = []struct{ action, letter string }{
	{"blobs.read", "r"}, {"blobs.add", "a"}, {"blobs.create", "c"}, {"blobs.write", "w"}, {"blobs.delete", "d"}, {"blobs.list", "l"},
}

const allowedActions = "blobs.read, blobs.add, blobs.create, blobs.write, blobs.delete, blobs.list"

// Kinds of signed resource (sr).
const (
	ofContainer = "c"
	ofDirectory = "d"
	ofBlob      = "b"
)

// grant is what a scope becomes: a SAS of one place, or a token for one resource.
type grant struct {
	place
	permissions string
	resource    string // with way token
}

// place is a location taken apart.
type place struct {
	kind, container, path string // path is of a directory or a blob
}

// depth is how many directories deep a directory's path is (sdd).
func (p place) depth() int { return strings.Count(p.path, "/") + 1 }

// containerPattern is a container's name, special ones ($web, $root) left out.
var containerPattern = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)

// parsePlace reads az://container/*, az://container/directory/* or
// az://container/blob. A SAS knows no prefixes: a * stands for all that a container
// or a directory holds, and nowhere else.
func (s *spec) parsePlace(text string) (place, error) {
	rest, ok := strings.CutPrefix(text, "az://")
	container, path, hasPath := strings.Cut(rest, "/")
	if !ok || !hasPath || path == "" || len(container) > 63 || !containerPattern.MatchString(container) {
		return place{}, fmt.Errorf("%q must be blobs of one container, as in az://container/* or az://container/blob", federation.Clip(text))
	}
	if path == "*" {
		return place{ofContainer, container, ""}, nil
	}
	p := place{ofBlob, container, path}
	if dir, ok := strings.CutSuffix(path, "/*"); ok {
		if !s.Hierarchical {
			return place{}, fmt.Errorf("%q: a directory has a SAS of its own only where the storage account has a hierarchical namespace, which the target says with hierarchical: true; without, name a container or one blob", federation.Clip(text))
		}
		p = place{ofDirectory, container, dir}
	}
	return p, checkPath(text, p.path)
}

// checkPath refuses what could end a line of the signed text, or what a URL's
// reader would take for another path.
func checkPath(text, path string) error {
	if strings.ContainsAny(path, `*?#\%`) || !utf8.ValidString(path) {
		return fmt.Errorf("%q: a * may stand at the end alone, after a slash, and ? # \\ %% nowhere", federation.Clip(text))
	}
	for _, r := range path {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) || r == utf8.RuneError {
			return fmt.Errorf("%q holds a control or formatting character", federation.Clip(text))
		}
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || strings.Trim(part, ".") == "" || strings.HasSuffix(part, ".") {
			return fmt.Errorf("%q: no part of a path may be empty or end in a dot", federation.Clip(text))
		}
	}
	return nil
}

// compile turns a scope into the one grant that a credential can be.
func (s *spec) compile(in scope.Scope) (grant, error) {
	var g grant
	n, err := in.Normalise()
	if err != nil {
		return g, err
	}
	if len(n) != 1 {
		return g, fmt.Errorf("scope: %d details; a credential of this kind is for one place: ask for one for each", len(n))
	}
	d := n[0]
	switch {
	case d.Type != scopeType:
		return g, fmt.Errorf("type: %q; allowed is %s", federation.Clip(d.Type), scopeType)
	case d.Identifier != "" || len(d.Datatypes) > 0 || len(d.Tables) > 0 || len(d.Privileges) > 0:
		return g, errors.New("identifier, datatypes, tables and privileges mean nothing here; allowed are actions, such as blobs.read, and one location, such as az://container/*")
	case len(d.Locations) != 1 || len(d.Actions) == 0:
		return g, fmt.Errorf("actions and exactly one location are needed, as in blobs.read and az://container/*; there are %d locations: ask for a credential for each", len(d.Locations))
	case !s.within(d.Locations[0]):
		return g, fmt.Errorf("locations: %q is not within the target's resources (%s)", federation.Clip(d.Locations[0]), federation.Clip(strings.Join(s.Resources, ", ")))
	}
	if s.Way == wayToken {
		if len(d.Actions) != 1 || d.Actions[0] != actionToken {
			return g, fmt.Errorf("actions: %q; allowed is token alone: a token cannot be narrowed", federation.Clip(strings.Join(d.Actions, " ")))
		}
		g.resource = d.Locations[0]
		return g, nil
	}
	if g.place, err = s.parsePlace(d.Locations[0]); err != nil {
		return g, fmt.Errorf("locations: %w", err)
	}
	for _, a := range d.Actions {
		if !slices.ContainsFunc(permissions, func(p struct{ action, letter string }) bool { return p.action == a }) {
			return g, fmt.Errorf("actions: %q; allowed are %s", federation.Clip(a), allowedActions)
		}
	}
	for _, p := range permissions {
		if slices.Contains(d.Actions, p.action) {
			g.permissions += p.letter
		}
	}
	if g.kind == ofBlob && strings.Contains(g.permissions, "l") {
		return g, errors.New("locations: blobs.list lists a container or a directory; one blob cannot be listed")
	}
	return g, nil
}
