package kv

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of a target and its values.
const (
	maxSpecBytes  = 64 << 10 // the broker's own bound on a spec
	maxEntries    = 256
	maxNameBytes  = 64
	maxOwnerBytes = 128
	maxValueBytes = 32 << 10 // a certificate with its chain and key; four of them are what a command line takes
	// What cannot be taken back is short (HAZARDS 18): the bound is on how long a
	// lease may claim to speak for it.
	defaultMaxTTL = time.Hour
	minMaxTTL     = time.Minute
	longestMaxTTL = 24 * time.Hour
	// remindBefore is when Check begins to warn of an expiry that has no `remind`.
	remindBefore = 14 * 24 * time.Hour
)

// How an entry's value is written.
const (
	encodingText   = "text"
	encodingBase64 = "base64"
)

// entry is one secret, but for its value.
type entry struct {
	// Owner says who changes it at its source; people and logs see it.
	Owner string `json:"owner"`
	// Expires is when the secret ends at its source; zero where nobody knows. From
	// then on nothing is delivered.
	Expires time.Time `json:"expires"`
	// Remind is when Check begins to warn that it is to be changed.
	Remind time.Time `json:"remind"`
	// Encoding is text (also when empty) or base64.
	Encoding string `json:"encoding"`
}

// spec is a Target's spec.
type spec struct {
	Entries map[string]*entry `json:"entries"`
	MaxTTL  string            `json:"max_ttl"`

	maxTTL time.Duration
	names  []string // of the entries, sorted
}

const allowedKeys = "allowed keys are entries and max_ttl; of an entry owner, expires, remind, encoding (text or base64) and, in its document, value: {from_file: FILE}"

// namePattern has neither "_" nor ".": one stands for "." in the name of the sealed
// value, the other for "/" in the name of the delivered field.
var namePattern = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*(/[a-z0-9]+(-[a-z0-9]+)*)*$`)

// taken are variables that decide what runs, and not with which secret.
var taken = []string{"PATH", "HOME", "SHELL", "IFS", "ENV", "PWD", "TERM", "USER", "LOGNAME", "TMPDIR", "EDITOR", "PAGER", "PS4", "BASH_ENV", "PROMPT_COMMAND",
	"NODE_OPTIONS", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PERL5OPT", "PERL5LIB", "RUBYOPT", "RUBYLIB", "JAVA_TOOL_OPTIONS", "CLASSPATH",
	"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"}

// reserved are names of a credential's public fields.
var reserved = []string{"version", "notice"}

// takenPrefixes begin variables of the loader's, of git's programs, and of ours.
var takenPrefixes = []string{"LD_", "DYLD_", "MAYFLY_", "GIT_"}

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("kv: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return s, readable(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("kv: more follows after the spec's object")
	}
	s.maxTTL = defaultMaxTTL
	if s.MaxTTL != "" {
		var err error
		if s.maxTTL, err = time.ParseDuration(s.MaxTTL); err != nil {
			return s, fmt.Errorf("kv: max_ttl: %q is not a duration such as 15m", s.MaxTTL)
		}
	}
	if s.maxTTL < minMaxTTL || s.maxTTL > longestMaxTTL {
		return s, fmt.Errorf("kv: max_ttl: %s; allowed are 1m to 24h, since nobody forgets what they have read", s.maxTTL)
	}
	if len(s.Entries) == 0 || len(s.Entries) > maxEntries {
		return s, fmt.Errorf("kv: entries: 1 to %d are allowed; %s", maxEntries, allowedKeys)
	}
	s.names = slices.Sorted(maps.Keys(s.Entries))
	return s, s.checkEntries()
}

// readable explains a decoder's error without quoting a value: somebody may have
// written a secret where none belongs.
func readable(err error) error {
	var wrong *json.UnmarshalTypeError
	var form *json.SyntaxError
	var at *time.ParseError
	switch {
	case errors.As(err, &wrong):
		return fmt.Errorf("kv: %s: a JSON %s cannot stand there; %s", or(wrong.Field, "spec"), strings.Fields(wrong.Value + " ")[0], allowedKeys)
	case errors.As(err, &form):
		return fmt.Errorf("kv: the spec is not valid JSON, at byte %d; %s", form.Offset, allowedKeys)
	case errors.As(err, &at):
		return errors.New("kv: expires and remind are instants such as 2030-01-31T00:00:00Z")
	}
	return fmt.Errorf("kv: the spec has a key, or a value, that means nothing here; %s", allowedKeys)
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func (s *spec) checkEntries() error {
	variables := map[string]string{}
	for _, name := range s.names {
		e := s.Entries[name]
		if len(name) > maxNameBytes || !namePattern.MatchString(name) {
			return errors.New("kv: entries: a name is up to 64 characters: words of a-z, 0-9 and single hyphens, joined by / and beginning with a letter, as in billing/stripe-key")
		}
		v := variable(name)
		if other, twice := variables[v]; twice {
			return fmt.Errorf("kv: entries %s and %s would both be the variable %s", other, name, v)
		}
		variables[v] = name
		if slices.Contains(taken, v) || slices.ContainsFunc(takenPrefixes, func(p string) bool { return strings.HasPrefix(v, p) }) {
			return fmt.Errorf("kv: entry %s would be the variable %s, which decides what runs; name it otherwise", name, v)
		}
		if slices.Contains(reserved, name) {
			return fmt.Errorf("kv: entry %s: the answer has a field of that name; name it otherwise", name)
		}
		if e == nil {
			return fmt.Errorf("kv: entry %s: owner is needed: who changes it at its source?", name)
		}
		if err := e.check(); err != nil {
			return fmt.Errorf("kv: entry %s: %w", name, err)
		}
	}
	return nil
}

func (e *entry) check() error {
	switch {
	case e.Owner == "" || len(e.Owner) > maxOwnerBytes || !plain(e.Owner):
		return fmt.Errorf("owner is needed, 1 to %d printable characters: who changes it at its source?", maxOwnerBytes)
	case e.Encoding == "":
		e.Encoding = encodingText
	case e.Encoding != encodingText && e.Encoding != encodingBase64:
		return errors.New("encoding: allowed are text and base64")
	}
	if e.Remind.IsZero() && !e.Expires.IsZero() {
		e.Remind = e.Expires.Add(-remindBefore)
	}
	if !e.Expires.IsZero() && e.Remind.After(e.Expires) {
		return errors.New("remind lies after expires")
	}
	return nil
}

// plain says whether people, logs and consoles read the same.
func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
	})
}

// sealedName is the name of an entry's value among the target's secrets: what apply
// makes of its place in the document, entries.NAME.value.
func sealedName(name string) string { return "entries_" + name + "_value" }

// field is the name of an entry's value in a credential. It can be a file's name.
func field(name string) string { return strings.ReplaceAll(name, "/", ".") }

// variable is an entry's environment variable.
func variable(name string) string {
	return strings.ToUpper(strings.NewReplacer("/", "_", "-", "_").Replace(name))
}
