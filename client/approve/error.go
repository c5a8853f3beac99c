package approve

import "fmt"

// Codes of [Error].
const (
	CodeHashMismatch = "hash_mismatch"      // the document is not the one that the hash names
	CodeDocument     = "document_malformed" // this version cannot show all that the document says
	CodeKey          = "key_unusable"       // missing, malformed, protected, or of a kind that cannot approve
	CodeAgent        = "agent_unavailable"
)

// Error is why something was neither shown nor signed. Detail is a sentence for
// people; what it quotes of a document is escaped.
type Error struct {
	Code   string
	Detail string
	Err    error // the cause, where there is one
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Detail + ": " + e.Err.Error()
	}
	return e.Detail
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func refuse(code string, cause error, format string, args ...any) error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...), Err: cause}
}
