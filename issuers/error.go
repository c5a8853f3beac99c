package issuers

import "errors"

// ErrorKind says what the broker may do about a target's failure.
type ErrorKind int

// The kinds. The zero value is the most cautious one.
const (
	// Unknown: the target may or may not have acted. The lease stays named and
	// is withdrawn.
	Unknown ErrorKind = iota
	// Unreachable: nothing was sent. Only this counts for a circuit breaker.
	Unreachable
	// Refused: the target said no and did nothing (a missing right, a bad scope).
	Refused
	// TooLate: the mint deadline had passed on the target's clock; nothing was done.
	TooLate
	// Superseded: a newer generation or term has been there (HAZARDS 9).
	Superseded
	// Foreign: the name exists on the target without our mark (HAZARDS 16).
	Foreign
	// Gone: the credential to extend no longer exists.
	Gone
	// Poison: this credential alone cannot be ended without a person; Detail
	// says why (a prepared transaction, an object in use).
	Poison
	// BadScope: the scope names something that the target does not have, such as
	// a table; nothing was done. Detail says what, and goes to the requester.
	BadScope
)

// String returns the kind's word for logs and records.
func (k ErrorKind) String() string {
	names := [...]string{"unknown", "unreachable", "refused", "too_late", "superseded", "foreign", "gone", "poison", "bad_scope"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// Error is a target's failure. Detail is for operators and holds no secret.
type Error struct {
	Kind   ErrorKind
	Detail string
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	s := e.Kind.String() + ": " + e.Detail
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the first *Error in err's chain; [Unknown] if none.
func KindOf(err error) ErrorKind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Unknown
}
