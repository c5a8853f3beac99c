package api

import (
	"fmt"
	"net/http"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// The codes of the refusals that are made here. They are stable: clients branch
// on them. Proofs have package identity's codes, everything else the engine's.
const (
	// Who calls. Kind unauthenticated.
	CodeNoCredentials = "authorization_missing"
	CodeCredentials   = "authorization_malformed" // header, scheme or token cannot be read
	CodeBearer        = "bearer_refused"          // a token without a proof of its key opens nothing (law 7)
	CodeBinding       = "binding_mismatch"        // the session is bound by another means
	CodeWrongKey      = "key_mismatch"            // the proof is of another key than the session's
	CodeNoProof       = "proof_missing"           // no DPoP header, or no client certificate

	// Where it is asked.
	CodeForeignHost   = "foreign_host"
	CodeForeignOrigin = "foreign_origin"
	CodeNotLeader     = "not_leader" // 421: ask at Location
	CodeNoLeader      = "no_leader"
	CodeHops          = "forwarded_twice"

	// What is asked. Kind invalid unless said otherwise.
	CodeNoRoute     = "no_such_path" // not_found
	CodeMethod      = "method_not_allowed"
	CodeRequest     = "invalid_request"
	CodeParameter   = "invalid_parameter"
	CodeHeaders     = "too_many_headers"
	CodeMediaType   = "media_type_refused"
	CodeTooLarge    = "body_too_large"
	CodeBodyNeeded  = "body_missing"
	CodeBodyExtra   = "body_not_expected"
	CodeBodyRead    = "body_not_read"
	CodeMalformed   = "malformed_json"
	CodeTooDeep     = "json_too_deep"
	CodeDuplicate   = "duplicate_member"
	CodeUnknown     = "unknown_member"
	CodeTrailing    = "trailing_data"
	CodeIdemKey     = "idempotency_key_invalid"
	CodeRateLimited = "rate_limited"
	CodeOverloaded  = "overloaded" // unavailable
	CodeTimeout     = "timeout"    // unavailable, or indeterminate for what changes something
	CodeDraining    = "draining"   // unavailable
)

// refusal is an error whose HTTP status is HTTP's own (405, 413, 415, 421 …)
// rather than its kind's.
type refusal struct {
	cause  *fault.Error
	status int
	header http.Header
}

// Error implements error.
func (r *refusal) Error() string { return r.cause.Error() }

// Unwrap makes the cause's kind and code findable.
func (r *refusal) Unwrap() error { return r.cause }

func refuse(status int, kind fault.Kind, code, detail string, args ...any) *refusal {
	return &refusal{cause: fault.New(kind, code, detail, args...), status: status, header: http.Header{}}
}

func invalid(code, detail string, args ...any) error {
	return fault.New(fault.Invalid, code, detail, args...)
}

func unauthenticated(code, detail string, args ...any) error {
	return fault.New(fault.Unauthenticated, code, detail, args...)
}

// shown quotes a caller's own word so that it can stand in an answer.
func shown(s string) string {
	if len(s) > shownName {
		s = s[:shownName] + "…"
	}
	return fmt.Sprintf("%q", s)
}
