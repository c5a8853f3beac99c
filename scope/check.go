package scope

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxDepth of nested JSON; a scope needs seven.
const maxDepth = 8

// checkName accepts any printable UTF-8 string that may be an identifier on a
// target; quoting is the issuer's work. Control and format characters (bidi
// overrides among them) are refused, since people read scopes to approve them.
func checkName(field, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s: an empty string is not allowed", field)
	case len(s) > MaxName:
		return fmt.Errorf("%s: a string of %d bytes; at most %d are allowed", field, len(s), MaxName)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s: not valid UTF-8", field)
	}
	for _, r := range s {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError {
			return fmt.Errorf("%s: %q holds a control or formatting character", field, s)
		}
	}
	return nil
}

// checkWord accepts the plain words of types, actions and privileges.
func checkWord(field, s string) error {
	if err := checkName(field, s); err != nil {
		return err
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("_-.:/", r) {
			return fmt.Errorf("%s: %q may hold only a-z, 0-9 and _ - . : /", field, s)
		}
	}
	return nil
}

// checkPattern accepts a name that may end in one "*".
func checkPattern(field, s string) error {
	if err := checkName(field, s); err != nil {
		return err
	}
	if i := strings.IndexByte(s, '*'); i >= 0 && i != len(s)-1 {
		return fmt.Errorf("%s: in %q a * may only stand at the end", field, s)
	}
	return nil
}

// sortedSet returns items checked, sorted and without duplicates, in a new slice.
func sortedSet(field string, items []string, check func(field, s string) error) ([]string, error) {
	if len(items) > MaxMembers {
		return nil, fmt.Errorf("%s: %d entries; at most %d are allowed", field, len(items), MaxMembers)
	}
	for _, s := range items {
		if err := check(field, s); err != nil {
			return nil, err
		}
	}
	out := slices.Clone(items)
	slices.Sort(out)
	return slices.Compact(out), nil
}

func compareTables(a, b Table) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), slices.Compare(a.Columns, b.Columns), slices.CompareFunc(a.Rows, b.Rows, compareConditions))
}

func compareDetails(a, b Detail) int {
	return cmp.Or(
		strings.Compare(a.Type, b.Type),
		strings.Compare(a.Identifier, b.Identifier),
		slices.Compare(a.Locations, b.Locations),
		slices.Compare(a.Actions, b.Actions),
		slices.Compare(a.Datatypes, b.Datatypes),
		slices.Compare(a.Privileges, b.Privileges),
		slices.CompareFunc(a.Tables, b.Tables, compareTables),
	)
}

// refuseDuplicates walks raw once and refuses an object that names a member
// twice (also in another case, which encoding/json would fold) and JSON that is
// nested too deeply: two readers must never see two scopes in one text.
func refuseDuplicates(raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	type frame struct {
		object  bool
		wantKey bool
		keys    map[string]bool
	}
	var stack []frame
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("scope: not valid JSON: %w", err)
		}
		top := len(stack) - 1
		if top >= 0 && stack[top].object && stack[top].wantKey {
			if key, ok := tok.(string); ok {
				if folded := strings.ToLower(key); stack[top].keys[folded] {
					return fmt.Errorf("scope: member %q stands twice", key)
				} else if folded != key || strings.ContainsFunc(key, func(r rune) bool { return r > unicode.MaxASCII }) {
					// Also the long s, which encoding/json takes for an s.
					return fmt.Errorf("scope: unknown member %q; members are lower-case", key)
				}
				stack[top].keys[key] = true
				stack[top].wantKey = false
				continue
			}
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			if len(stack) == maxDepth {
				return fmt.Errorf("scope: nested more than %d deep", maxDepth)
			}
			object := tok == json.Delim('{')
			stack = append(stack, frame{object: object, wantKey: object, keys: map[string]bool{}})
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
			top--
		}
		if top >= 0 && stack[top].object {
			stack[top].wantKey = true
		}
	}
}
