package gcp

import (
	"encoding/json"
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
const scopeType = "gcp"

// Google's bounds of an access boundary.
const (
	maxRules      = 10   // AccessBoundary, accessBoundaryRules
	maxExpression = 2048 // AccessBoundaryRule, availabilityCondition: characters
)

// The actions that scopes may name: permissions of Cloud Storage, the one service
// whose tokens an access boundary can narrow.
const (
	actionGet    = "storage.objects.get"
	actionList   = "storage.objects.list"
	actionCreate = "storage.objects.create"
	actionDelete = "storage.objects.delete"
	actionUpdate = "storage.objects.update"
)

// action is how one is compiled: a boundary holds predefined roles, and the
// condition beside it leaves of each role what the action means.
type action struct {
	role string
	// listing narrows by the prefix that is listed, not by the object's name.
	listing bool
	// needs are what the role gives on an object besides: no scope gets more than
	// it names, so they must be named, too.
	needs []string
}

var actions = map[string]action{
	actionGet:    {role: "roles/storage.legacyObjectReader"},
	actionList:   {role: "roles/storage.objectViewer", listing: true},
	actionCreate: {role: "roles/storage.objectCreator"},
	actionDelete: {role: "roles/storage.legacyBucketWriter", needs: []string{actionCreate}},
	actionUpdate: {role: "roles/storage.objectUser", needs: []string{actionCreate, actionDelete, actionGet}},
}

const allowedActions = actionGet + ", " + actionList + ", " + actionCreate + ", " + actionDelete + ", " + actionUpdate

// boundary is the `options` of a token exchange (STS, AccessBoundary).
type boundary struct {
	AccessBoundary struct {
		Rules []*rule `json:"accessBoundaryRules"`
	} `json:"accessBoundary"`
}

type rule struct {
	Resource    string    `json:"availableResource"`
	Permissions []string  `json:"availablePermissions"`
	Condition   condition `json:"availabilityCondition"`
}

// condition is a CEL expression. No rule is without one.
type condition struct {
	Expression string `json:"expression"`
}

// place is a location taken apart: gs://bucket/object, or gs://bucket/prefix*.
type place struct {
	bucket, object string
	open           bool // object is a prefix
}

// bucketPattern is a bucket's name (Cloud Storage, "Bucket names").
var bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)

// parsePlace reads a location. A * may end it and stand nowhere else: then it
// means what scope.Covers compares, a prefix. What could end a string of CEL is
// refused.
func parsePlace(text string) (place, error) {
	rest, ok := strings.CutPrefix(text, "gs://")
	bucket, object, hasObject := strings.Cut(rest, "/")
	switch {
	case !ok || !hasObject || !bucketPattern.MatchString(bucket):
		return place{}, fmt.Errorf("%q must be objects of one bucket, as in gs://bucket/prefix/*, gs://bucket/* or gs://bucket/object", federation.Clip(text))
	case object == "":
		return place{}, fmt.Errorf("%q names no object; all of the bucket is gs://%s/*", federation.Clip(text), bucket)
	}
	p := place{bucket: bucket, object: object}
	p.object, p.open = strings.CutSuffix(object, "*")
	if strings.ContainsAny(p.object, "*?'\"\\`[]#") || !utf8.ValidString(text) {
		return place{}, fmt.Errorf("%q: a * may stand at the end alone, and ? ' \" \\ ` [ ] # nowhere", federation.Clip(text))
	}
	for _, r := range text {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) || r == utf8.RuneError {
			return place{}, fmt.Errorf("%q holds a control or formatting character", federation.Clip(text))
		}
	}
	return p, nil
}

func (p place) resource() string { return "projects/_/buckets/" + p.bucket }

// expression says when a rule of that action applies to the place.
func (p place) expression(a action) string {
	switch {
	case a.listing && p.object == "":
		return "resource.name == '" + p.resource() + "'" // the bucket alone: of the role it leaves the listing
	case a.listing:
		return "api.getAttribute('storage.googleapis.com/objectListPrefix', '').startsWith('" + p.object + "')"
	case p.open:
		return "resource.name.startsWith('" + p.resource() + "/objects/" + p.object + "')"
	default:
		return "resource.name == '" + p.resource() + "/objects/" + p.object + "'"
	}
}

// compile turns a scope into an access boundary, in JSON.
func (sp *spec) compile(in scope.Scope) (string, error) {
	s, err := in.Normalise()
	if err != nil {
		return "", err
	}
	var b boundary
	for _, d := range s {
		if err := sp.compileDetail(&b, d); err != nil {
			return "", err
		}
	}
	rules := b.AccessBoundary.Rules
	if len(rules) == 0 || len(rules) > maxRules {
		return "", fmt.Errorf("scope: its access boundary has %d rules; Google takes 1 to %d: name fewer buckets and actions, or ask for two credentials", len(rules), maxRules)
	}
	for _, r := range rules {
		if n := len(r.Condition.Expression); n > maxExpression {
			return "", fmt.Errorf("scope: a condition of its access boundary has %d characters; Google takes at most %d: name fewer locations of one bucket, or ask for two credentials", n, maxExpression)
		}
	}
	text, err := json.Marshal(b)
	return string(text), err
}

func (sp *spec) compileDetail(b *boundary, d scope.Detail) error {
	switch {
	case d.Type != scopeType:
		return fmt.Errorf("type: %q; allowed is %s", federation.Clip(d.Type), scopeType)
	case d.Identifier != "" || len(d.Datatypes) > 0 || len(d.Tables) > 0 || len(d.Privileges) > 0:
		return errors.New("identifier, datatypes, tables and privileges mean nothing here; allowed are actions, such as storage.objects.get, and locations, such as gs://bucket/prefix/*")
	case len(d.Locations) == 0 || len(d.Actions) == 0:
		return errors.New("actions and locations are both needed, as in storage.objects.get and gs://bucket/prefix/*; nothing is meant by leaving them out")
	}
	var places []place
	for _, l := range d.Locations {
		p, err := parsePlace(l)
		if err != nil {
			return fmt.Errorf("locations: %w", err)
		}
		if !sp.within(l) {
			return fmt.Errorf("locations: %q is not within the target's resources (%s)", federation.Clip(l), federation.Clip(strings.Join(sp.Resources, ", ")))
		}
		places = append(places, p)
	}
	for _, name := range d.Actions {
		a, ok := actions[name]
		if !ok {
			return fmt.Errorf("actions: %q; allowed are %s", federation.Clip(name), allowedActions)
		}
		for _, n := range a.needs {
			if !slices.Contains(d.Actions, n) {
				return fmt.Errorf("actions: %s is given with %s or not at all: Google has no smaller role", name, strings.Join(a.needs, ", "))
			}
		}
		if err := b.allow(name, a, places); err != nil {
			return err
		}
	}
	return nil
}

// allow adds what lets an action act on the places: one rule for each bucket and role.
func (b *boundary) allow(name string, a action, places []place) error {
	some := false
	for _, p := range places {
		if a.listing && !p.open {
			continue // beside it stands what can be listed, or there is an error
		}
		some = true
		resource, role, e := "//storage.googleapis.com/"+p.resource(), "inRole:"+a.role, p.expression(a)
		i := slices.IndexFunc(b.AccessBoundary.Rules, func(r *rule) bool { return r.Resource == resource && r.Permissions[0] == role })
		switch {
		case i < 0:
			b.AccessBoundary.Rules = append(b.AccessBoundary.Rules, &rule{resource, []string{role}, condition{e}})
		case !slices.Contains(strings.Split(b.AccessBoundary.Rules[i].Condition.Expression, " || "), e):
			b.AccessBoundary.Rules[i].Condition.Expression += " || " + e
		}
	}
	if !some {
		return fmt.Errorf("locations: %s lists what begins with a prefix, as in gs://bucket/prefix/*; one object cannot be listed", name)
	}
	return nil
}
