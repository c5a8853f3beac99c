package api

import (
	"encoding/json"
	"reflect"
	"strings"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// detailRole is the type of the authorization detail that asks for a role. The
// other details beside it narrow the role's scope, in its own types.
const detailRole = "mayfly_role"

// maxDetails is more than the details that any scope may have.
const maxDetails = 64

// roleDetail asks for a role (RFC 9396 §2).
type roleDetail struct {
	Type       string `json:"type"`
	Identifier string `json:"identifier"`        // the role: orders/readonly
	Task       string `json:"task,omitempty"`    // id or name of an open task of the caller's
	Purpose    string `json:"purpose,omitempty"` // for a request without a task
	TTL        string `json:"ttl,omitempty"`     // such as 15m
	CSR        string `json:"csr,omitempty"`     // PEM PKCS#10, for certificates
}

var roleShape = shapeOf(reflect.TypeFor[roleDetail]())

// want is a role that is asked for.
type want struct{ wire.AccessRequest }

// wanted reads what the token is to be for: nil means a session.
func (s *Server) wanted(f form) (*want, error) {
	if f["scope"] != "" {
		return nil, oauthRefuse(oauthInvalidScope, "There are no scopes here. Ask for a role in authorization_details (RFC 9396).")
	}
	switch t := f["requested_token_type"]; t {
	case "", tokenAccess, tokenCredential:
	default:
		return nil, oauthRefuse(oauthInvalidRequest, "requested_token_type must be %s or %s, or be left out: what is issued is the role's target's to say.", tokenAccess, tokenCredential)
	}
	w, err := s.wantedRole(f)
	if err != nil {
		return nil, err
	}
	if r := f["resource"]; r != "" {
		if w != nil {
			return nil, oauthRefuse(oauthInvalidTarget, "A role names its target itself; leave out resource.")
		}
		if !s.isOurs(r) {
			return nil, oauthRefuse(oauthInvalidTarget, "resource is not this broker. For a session it is %s; for a credential name a role in authorization_details.", s.issuer())
		}
	}
	if w == nil && f["requested_token_type"] == tokenCredential {
		return nil, oauthRefuse(oauthInvalidRequest, "A credential needs a role: name it in authorization_details.")
	}
	return w, nil
}

// wantedRole reads the role from authorization_details or, in short, from
// audience.
func (s *Server) wantedRole(f form) (*want, error) {
	text, audience := f["authorization_details"], f["audience"]
	switch {
	case text != "" && audience != "":
		return nil, oauthRefuse(oauthInvalidRequest, "audience is short for authorization_details with nothing but a role; send one of them.")
	case text != "":
		return parseDetails(text)
	case audience == "", s.isOurs(audience):
		return nil, nil
	case strings.Contains(audience, "://"):
		return nil, oauthRefuse(oauthInvalidTarget, "audience must be this broker's issuer, for a session, or the name of a role, such as orders/readonly.")
	}
	return &want{wire.AccessRequest{Role: audience}}, nil
}

// isOurs reports whether a URI names this broker or something on it (RFC 8707 §2).
func (s *Server) isOurs(uri string) bool {
	for _, base := range s.cfg.ExternalURLs {
		base = strings.TrimSuffix(base, "/")
		if uri == base || strings.HasPrefix(uri, base+"/") {
			return true
		}
	}
	return false
}

func badDetails(detail string, args ...any) error {
	return oauthRefuse(oauthInvalidDetails, detail, args...)
}

// parseDetails reads authorization_details: one detail that names a role, and
// those that narrow it.
func parseDetails(text string) (*want, error) {
	var items []json.RawMessage
	if !utf8.ValidString(text) || !strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "[") || json.Unmarshal([]byte(text), &items) != nil {
		return nil, badDetails("authorization_details is not a JSON array.")
	}
	if len(items) > maxDetails {
		return nil, badDetails("authorization_details has more than %d details.", maxDetails)
	}
	var role *roleDetail
	var narrow []json.RawMessage
	for _, item := range items {
		typ, err := detailType(item)
		if err != nil {
			return nil, err
		}
		if typ != detailRole {
			narrow = append(narrow, item)
			continue
		}
		if role != nil {
			return nil, badDetails("authorization_details names two roles; ask for one at a time.")
		}
		role = &roleDetail{}
		if err := readDetail(item, roleShape, role); err != nil {
			return nil, err
		}
	}
	if role == nil || role.Identifier == "" {
		return nil, badDetails("authorization_details must have one detail of type %s whose identifier is the role, such as orders/readonly.", detailRole)
	}
	out := &want{wire.AccessRequest{Role: role.Identifier, Task: role.Task, Purpose: role.Purpose, TTL: role.TTL, CSR: role.CSR}}
	if len(narrow) > 0 {
		raw, err := json.Marshal(narrow)
		if err != nil {
			return nil, err
		}
		out.Scope = raw
	}
	return out, nil
}

// detailType reads a detail's type and sees to it that no member stands twice
// anywhere in it.
func detailType(item json.RawMessage) (string, error) {
	var head map[string]json.RawMessage
	var typ string
	if err := readDetail(item, nil, &head); err != nil {
		return "", err
	}
	if json.Unmarshal(head["type"], &typ) != nil || typ == "" {
		return "", badDetails("A detail of authorization_details lacks its type.")
	}
	return typ, nil
}

func readDetail(item json.RawMessage, s *shape, into any) error {
	if err := scan(item, s); err != nil {
		return badDetails("In a detail of authorization_details: %s", fault.As(err).Detail)
	}
	if json.Unmarshal(item, into) != nil {
		return badDetails("A detail of type %s has members that are all strings.", detailRole)
	}
	return nil
}

// grantedDetails says what was granted, in the form in which it is asked for.
func grantedDetails(a wire.AccessAnswer) ([]json.RawMessage, error) {
	details := make([]any, 0, 1+len(a.Scope))
	details = append(details, roleDetail{Type: detailRole, Identifier: a.Role})
	for _, d := range a.Scope {
		details = append(details, d)
	}
	out := make([]json.RawMessage, 0, len(details))
	for _, d := range details {
		raw, err := json.Marshal(d)
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}
