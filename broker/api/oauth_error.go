package api

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
)

// The words of OAuth errors. RFC 6749 §5.2 unless said otherwise.
const (
	oauthInvalidRequest = "invalid_request"
	oauthInvalidClient  = "invalid_client"
	oauthInvalidGrant   = "invalid_grant"
	oauthInvalidScope   = "invalid_scope"
	oauthUnsupported    = "unsupported_grant_type"
	oauthBadTokenType   = "unsupported_token_type" // RFC 7009 §2.2.1
	oauthInvalidTarget  = "invalid_target"         // RFC 8707 §2
	oauthInvalidDetails = "invalid_authorization_details"
	oauthBadProof       = "invalid_dpop_proof" // RFC 9449 §5
	oauthUseNonce       = "use_dpop_nonce"     // RFC 9449 §8
	oauthDenied         = "access_denied"
	oauthUnavailable    = "temporarily_unavailable"
	oauthServerError    = "server_error"
	// Of a deferred token response, as in RFC 8628 §3.5.
	oauthPending     = "authorization_pending"
	oauthInteraction = "interaction_required"
	oauthSlowDown    = "slow_down"
	oauthExpired     = "expired_token"
)

// oauthError is an error whose OAuth word is not the one of its kind and code.
type oauthError struct {
	cause *fault.Error
	word  string
	extra map[string]any // further members of the answer
}

// Error implements error.
func (e *oauthError) Error() string { return e.cause.Error() }

// Unwrap makes the cause's kind and code findable.
func (e *oauthError) Unwrap() error { return e.cause }

func oauthRefuse(word, detail string, args ...any) *oauthError {
	return &oauthError{cause: fault.New(fault.Invalid, word, detail, args...), word: word}
}

// oauthWords are the errors that have a word of their own; the others have that
// of their kind.
var oauthWords = map[string]string{
	identity.CodeProofNonce:    oauthUseNonce,
	identity.CodeProofInvalid:  oauthBadProof,
	identity.CodeProofReplayed: oauthBadProof,
	CodeNoProof:                oauthBadProof,
	oauthInvalidDetails:        oauthInvalidDetails,
	"role_not_found":           oauthInvalidDetails,
	"target_not_found":         oauthInvalidDetails,
	"role_missing":             oauthInvalidDetails,
}

var oauthKinds = map[fault.Kind]string{
	fault.Invalid:          oauthInvalidRequest,
	fault.Unauthenticated:  oauthInvalidClient,
	fault.Denied:           oauthDenied,
	fault.ApprovalRequired: oauthDenied,
	fault.NotFound:         oauthInvalidRequest,
	fault.Conflict:         oauthInvalidRequest,
	fault.RateLimited:      oauthUnavailable,
	fault.Unavailable:      oauthUnavailable,
	fault.Upstream:         oauthUnavailable,
	fault.Indeterminate:    oauthUnavailable,
}

// wordOf is the one table from what went wrong to OAuth's words.
func wordOf(err error, p *problem) string {
	var e *oauthError
	if errors.As(err, &e) && p.Status != http.StatusTooManyRequests {
		return e.word
	}
	if word, ok := oauthWords[p.Code]; ok {
		return word
	}
	if word, ok := oauthKinds[fault.Kind(p.Kind)]; ok {
		return word
	}
	return oauthServerError
}

// statusOf is 400 for whatever the client can mend in its request, as RFC 6749
// §5.2 has it, 401 for a client that is not who it says, and otherwise as in
// the native API.
func statusOf(word string, p *problem) int {
	switch word {
	case oauthInvalidClient:
		return http.StatusUnauthorized
	case oauthUnavailable, oauthServerError:
		return p.Status
	}
	switch p.Status {
	case http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusRequestTimeout:
		return p.Status
	}
	return http.StatusBadRequest
}

// writeOAuth answers an OAuth call with p as RFC 6749 §5.2 has it. The stable
// code and the decision stand beside, as in a problem document.
func writeOAuth(w http.ResponseWriter, err error, p *problem) {
	word := wordOf(err, p)
	status := statusOf(word, p)
	out := map[string]any{"code": p.Code}
	if p.DecisionID != "" {
		out["decision_id"] = p.DecisionID
	}
	var e *oauthError
	if errors.As(err, &e) {
		maps.Copy(out, e.extra)
	}
	out["error"], out["error_description"] = word, plainText(p.Detail)
	h := w.Header()
	for k, v := range p.header {
		h[k] = v
	}
	if status != http.StatusUnauthorized {
		h.Del("WWW-Authenticate")
	}
	body, jerr := json.Marshal(out)
	if jerr != nil { // strings and numbers: cannot happen
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	h.Set("Content-Type", mediaJSON)
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// plainText brings a sentence into the characters that error_description may
// have (RFC 6749 §5.2): ASCII without the double quote and the backslash.
func plainText(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"' || r == '“' || r == '”':
			return '\''
		case r == '\\':
			return '/'
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, strings.ReplaceAll(s, "…", "..."))
}
