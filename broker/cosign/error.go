package cosign

import "fmt"

// Error says which rule a value breaks. It is the only error that this package
// returns. Its text is as frozen as the verdict, so replicas may keep it.
type Error struct {
	// Rule names the rule, stable and machine-readable: "json", "key", "passkey" …
	Rule string
	// Detail is a sentence for a person. It holds at most 80 bytes of input.
	Detail string
}

// Error is the rule and the sentence.
func (e *Error) Error() string { return e.Rule + ": " + e.Detail }

// The rules.
const (
	ruleJSON    = "json"
	ruleKey     = "key"
	ruleSigned  = "signature"
	rulePasskey = "passkey"
	ruleSSH     = "ssh"
	ruleJWS     = "jws"
)

// maxEcho bounds what an error repeats of its input, in bytes before quoting.
const maxEcho = 40

func refuse(rule, detail string, args ...any) error {
	if len(args) > 0 {
		detail = fmt.Sprintf(detail, args...)
	}
	return &Error{Rule: rule, Detail: detail}
}

// echo quotes the beginning of what came from outside: printable ASCII alone, so
// that it can neither move a terminal's cursor nor grow when it is quoted.
func echo[T ~string | ~[]byte](input T) string { return clip(input, "'") }

// echoJSON is [echo] of a member's canonical form, which has its own quotes.
func echoJSON(form string) string {
	if form == "" {
		return "missing"
	}
	return clip(form, "")
}

func clip[T ~string | ~[]byte](input T, quote string) string {
	more := ""
	if len(input) > maxEcho {
		input, more = input[:maxEcho], "..."
	}
	out := []byte(quote)
	for _, c := range []byte(input) {
		if c < 0x20 || c > 0x7e || c == '\'' {
			c = '?'
		}
		out = append(out, c)
	}
	return string(out) + quote + more
}
