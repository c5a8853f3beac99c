package approve

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

// Domains of signed documents: what stands before a NUL and the document under
// the hash, the namespace of an SSH signature, and with +jws the type of a JWS.
const (
	DomainGrant  = "mayfly.grant.v1"
	DomainChange = "mayfly.change.v1"
	DomainKey    = "mayfly.key.v1"
	DomainReview = "mayfly.review.v1"
)

// Sum hashes a document's bytes under a domain: what is signed.
func Sum(domain string, document []byte) [32]byte {
	return sha256.Sum256(slices.Concat([]byte(domain), []byte{0}, document))
}

// canonical writes v by RFC 8785.
func canonical(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return canonicalJSON(b.Bytes())
}

// canonicalJSON is [canonical] of one JSON value. Its numbers are integers, as in
// every document, and stay as they are written.
func canonicalJSON(raw []byte) ([]byte, error) {
	if len(raw) > maxDocument {
		return nil, errTooLong
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var doc any
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errMore
	}
	return appendCanonical(nil, doc), nil
}

func appendCanonical(out []byte, v any) []byte {
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		// RFC 8785 §3.2.3 orders by UTF-16 units, which Go's order of strings is
		// not beyond the Basic Multilingual Plane.
		slices.SortFunc(names, func(a, b string) int { return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b))) })
		out = append(out, '{')
		for i, name := range names {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendCanonical(append(appendText(out, name), ':'), v[name])
		}
		return append(out, '}')
	case []any:
		out = append(out, '[')
		for i, x := range v {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendCanonical(out, x)
		}
		return append(out, ']')
	case string:
		return appendText(out, v)
	case json.Number:
		return append(out, v.String()...)
	default: // true, false, null
		return fmt.Appendf(out, "%v", map[any]string{nil: "null", true: "true", false: "false"}[v])
	}
}

// appendText writes a string with the escapes of RFC 8785 §3.2.2.2 alone.
func appendText(out []byte, s string) []byte {
	short := strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\b", `\b`, "\f", `\f`, "\n", `\n`, "\r", `\r`, "\t", `\t`)
	out = append(out, '"')
	for _, r := range short.Replace(s) {
		if r < 0x20 {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = append(out, string(r)...)
		}
	}
	return append(out, '"')
}
