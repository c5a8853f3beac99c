package api

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

const mediaForm = "application/x-www-form-urlencoded"

// maxParameters is three times what any call here takes.
const maxParameters = 32

// form holds the parameters of an OAuth call, each once. A parameter without a
// value is as if it had been left out (RFC 6749 §3.2).
type form map[string]string

// readForm reads the body of an OAuth endpoint. The query stays empty: what
// stands there ends up in logs (RFC 6749 §2.3.1).
func readForm(c *call, w http.ResponseWriter, r *http.Request) error {
	if r.URL.RawQuery != "" {
		return invalid(CodeParameter, "Parameters belong into the body, not into the query.")
	}
	body, err := readLimited(w, r, c.route.limit())
	if err != nil {
		return err
	}
	if err := checkFormMedia(r.Header); err != nil {
		return err
	}
	c.body = body
	c.form, err = parseForm(string(body))
	return err
}

func checkFormMedia(h http.Header) error {
	media, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset := strings.ToLower(params["charset"])
	if err != nil || media != mediaForm || len(h.Values("Content-Type")) > 1 || charset != "" && charset != "utf-8" || h.Get("Content-Encoding") != "" {
		return refuse(http.StatusUnsupportedMediaType, fault.Invalid, CodeMediaType, "The body must be %s, in UTF-8 and not compressed.", mediaForm)
	}
	return nil
}

// parseForm reads a form that any two readers read the same way: a parameter
// twice, or bytes that are no text, are refused. Its errors repeat no value.
func parseForm(body string) (form, error) {
	out := form{}
	for pair := range strings.SplitSeq(body, "&") {
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(rawName)
		if err != nil || name == "" || !utf8.ValidString(name) {
			return nil, invalid(CodeRequest, "The body is not a form: a parameter's name cannot be read.")
		}
		value, err := url.QueryUnescape(rawValue)
		if err != nil || !utf8.ValidString(value) {
			return nil, invalid(CodeRequest, "The value of %s cannot be read.", shown(name))
		}
		if _, twice := out[name]; twice {
			return nil, invalid(CodeParameter, "The parameter %s stands in the body twice.", shown(name))
		}
		if len(out) == maxParameters {
			return nil, invalid(CodeParameter, "The body has more than %d parameters.", maxParameters)
		}
		out[name] = value
	}
	maps.DeleteFunc(out, func(_, value string) bool { return value == "" })
	return out, nil
}

// first returns the first of names that the form has.
func (f form) first(names ...string) (name string, ok bool) {
	for _, name := range names {
		if f[name] != "" {
			return name, true
		}
	}
	return "", false
}

// identifying are the parameters that prove who calls. They differ from one
// attempt to the next, so they are no part of what an Idempotency-Key stands for.
var identifying = []string{"client_assertion", "client_assertion_type", "subject_token"}

// hash covers what the call asks for, whoever proves to be asking.
func (f form) hash(path string) string {
	h := sha256.New()
	_, _ = io.WriteString(h, http.MethodPost+"\n"+path+"\n")
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if slices.Contains(identifying, name) {
			continue
		}
		for _, part := range []string{name, f[name]} {
			sum := sha256.Sum256([]byte(part)) // fixed size, so that parts cannot run together
			_, _ = h.Write(sum[:])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
