package cosign

import (
	"bytes"
	"encoding/json"
)

// Bounds of a document: what a person could ever read, with room to spare, and
// what every replica is willing to hash for each signature.
const (
	MaxDocument = 1 << 20 // bytes, of the JSON as it comes
	MaxDepth    = 64      // objects and arrays within one another
)

// Canonical returns the one form of v that is hashed and signed: RFC 8785, for
// JSON whose numbers are integers of at most 2^53-1. v is encoded by
// encoding/json, so names, omissions and [json.RawMessage] are as there.
//
// It refuses, with an [*Error] of rule "json", what two readers could take for
// two things: other numbers, names that come twice, text that is not Unicode;
// and what is larger than [MaxDocument] or deeper than [MaxDepth].
func Canonical(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, refuse(ruleJSON, "the value cannot be written as JSON")
	}
	// encoding/json writes this escape for bytes that are not UTF-8, and U+FFFD
	// itself as it is. Two texts would otherwise become one.
	if escaped(b.Bytes(), "ufffd") {
		return nil, refuse(ruleJSON, "a text is not UTF-8, or writes U+FFFD as an escape; only valid UTF-8 can be signed")
	}
	return CanonicalJSON(b.Bytes())
}

// escaped says whether the escape stands in JSON, rather than the same letters
// after a backslash that is itself escaped.
func escaped(raw []byte, escape string) bool {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		if bytes.HasPrefix(raw[i+1:], []byte(escape)) {
			return true
		}
		i++
	}
	return false
}

// CanonicalJSON is [Canonical] of JSON as it came from outside: one value, with
// nothing but white space around it. The form of a canonical value is itself.
func CanonicalJSON(raw []byte) ([]byte, error) {
	if len(raw) > MaxDocument {
		return nil, refuse(ruleJSON, "the document has %d bytes; at most %d are allowed", len(raw), MaxDocument)
	}
	r := reader{in: raw}
	// The form is never longer than what it was made of.
	out, err := r.value(make([]byte, 0, len(raw)))
	if err != nil {
		return nil, err
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return out, nil
}
