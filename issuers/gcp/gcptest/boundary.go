package gcptest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// roles are what predefined roles of Cloud Storage allow on objects and, by
// "list", on a bucket's listing (Cloud Storage, "IAM roles for Cloud Storage").
var roles = map[string][]string{
	"roles/storage.legacyObjectReader": {"get"},
	"roles/storage.objectViewer":       {"get", "list"},
	"roles/storage.objectCreator":      {"create"},
	"roles/storage.legacyBucketWriter": {"create", "delete", "list"},
	"roles/storage.objectUser":         {"get", "list", "create", "delete", "update"},
}

var bucketResource = regexp.MustCompile(`^//storage\.googleapis\.com/(projects/_/buckets/[a-z0-9._-]{3,222})$`)

// ReadBoundary reads an access boundary, and refuses what STS would.
func ReadBoundary(options string) ([]Rule, error) {
	var in struct {
		AccessBoundary struct {
			Rules []Rule `json:"accessBoundaryRules"`
		} `json:"accessBoundary"`
	}
	dec := json.NewDecoder(strings.NewReader(options))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return nil, err
	}
	rules := in.AccessBoundary.Rules
	if len(rules) == 0 || len(rules) > 10 {
		return nil, fmt.Errorf("%d rules", len(rules))
	}
	for _, r := range rules {
		if !bucketResource.MatchString(r.Resource) || len(r.Permissions) == 0 {
			return nil, fmt.Errorf("the resource %q, or no permissions", r.Resource)
		}
		for _, p := range r.Permissions {
			if role, ok := strings.CutPrefix(p, "inRole:"); !ok || roles[role] == nil {
				return nil, fmt.Errorf("the permission %q", p)
			}
		}
		if len(r.Condition.Expression) > 2048 {
			return nil, fmt.Errorf("a condition of %d characters", len(r.Condition.Expression))
		}
		if _, err := evaluate(r.Condition.Expression, "", ""); err != nil {
			return nil, err
		}
	}
	return rules, nil
}

// term is one comparison of CEL's: the three that access boundaries of objects use.
var term = regexp.MustCompile(`^(?:(resource\.name) == '([^'"\\]*)'|(resource\.name)\.startsWith\('([^'"\\]*)'\)|(api\.getAttribute\('storage\.googleapis\.com/objectListPrefix', ''\))\.startsWith\('([^'"\\]*)'\))(?: \|\| |$)`)

// evaluate reads a condition to its end.
func evaluate(expression, resource, listed string) (bool, error) {
	holds := false
	for rest := expression; ; {
		m := term.FindStringSubmatch(rest)
		if m == nil {
			return false, fmt.Errorf("the condition %q cannot be compiled", expression)
		}
		holds = holds || m[1] != "" && resource == m[2] || m[3] != "" && strings.HasPrefix(resource, m[4]) || m[5] != "" && strings.HasPrefix(listed, m[6])
		rest = rest[len(m[0]):]
		if rest == "" {
			if strings.HasSuffix(m[0], " || ") {
				return false, fmt.Errorf("the condition %q breaks off", expression)
			}
			return holds, nil
		}
	}
}

func (s *StandIn) narrow(w http.ResponseWriter, r *http.Request, form url.Values) {
	t, ok := s.token(form.Get("subject_token"), "account")
	switch {
	case !ok: // also of one that is narrowed already
		STSRefusal(http.StatusBadRequest, "invalid_grant", "Invalid subject token")(w, r)
		return
	case form.Has("audience"), form.Has("scope"):
		STSRefusal(http.StatusBadRequest, "invalid_request", "audience and scope have no meaning here")(w, r)
		return
	}
	rules, err := ReadBoundary(form.Get("options"))
	if err != nil {
		STSRefusal(http.StatusBadRequest, "invalid_request", "Invalid access boundary: "+err.Error())(w, r)
		return
	}
	answer(http.StatusOK, map[string]any{"access_token": s.issue(issued{kind: "narrowed", expires: t.expires, rules: rules, jwt: t.jwt}),
		"issued_token_type": prefix + "token-type:access_token", "token_type": "Bearer", "expires_in": int(time.Until(t.expires).Seconds())})(w, r)
}

// Allowed judges an operation as Cloud Storage would: what is get, create, delete
// or update of an object, or list, whose object is the prefix that is listed.
func (s *StandIn) Allowed(token, what, bucket, object string) bool {
	t, ok := s.token(token, "narrowed")
	return ok && Allowed(t.rules, what, bucket, object)
}

// Allowed judges an operation by the rules of an access boundary.
func Allowed(rules []Rule, what, bucket, object string) bool {
	resource, listed := "projects/_/buckets/"+bucket, ""
	if what == "list" {
		listed = object
	} else {
		resource += "/objects/" + object
	}
	return slices.ContainsFunc(rules, func(r Rule) bool {
		holds, err := evaluate(r.Condition.Expression, resource, listed)
		return err == nil && holds && r.Resource == "//storage.googleapis.com/projects/_/buckets/"+bucket &&
			slices.ContainsFunc(r.Permissions, func(p string) bool { return slices.Contains(roles[strings.TrimPrefix(p, "inRole:")], what) })
	})
}
