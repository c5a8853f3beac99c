package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// object is a decoded JSON object. Values are string, json.Number, bool, nil,
// []any and object.
type object map[string]any

// decodeObject reads one JSON object strictly: valid UTF-8, no duplicate
// member at any level, nothing after it, at most depth levels and nodes values.
//
// encoding/json keeps the last of duplicate members and other parsers the
// first; a token that two parsers read differently proves nothing.
func decodeObject(data []byte, depth, nodes int) (object, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("it is not valid UTF-8")
	}
	if !json.Valid(data) { // Decoder.Token alone accepts some malformed input
		return nil, errors.New("it is not valid JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	r := &strictReader{dec: dec, depth: depth, nodes: nodes}
	value, err := r.value(0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	obj, ok := value.(object)
	if !ok {
		return nil, errors.New("it is not a JSON object")
	}
	return obj, nil
}

type strictReader struct {
	dec          *json.Decoder
	depth, nodes int
}

func (r *strictReader) value(level int) (any, error) {
	if r.nodes--; r.nodes < 0 {
		return nil, errors.New("it has too many values")
	}
	tok, err := r.dec.Token()
	if err != nil {
		return nil, errors.New("it is not valid JSON")
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if level++; level > r.depth {
		return nil, fmt.Errorf("it nests deeper than %d levels", r.depth)
	}
	if delim == '{' {
		return r.members(level)
	}
	list := []any{}
	for r.dec.More() {
		v, err := r.value(level)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err = r.dec.Token()
	return list, err
}

func (r *strictReader) members(level int) (any, error) {
	obj := object{}
	for r.dec.More() {
		tok, err := r.dec.Token()
		if err != nil {
			return nil, errors.New("it is not valid JSON")
		}
		name, _ := tok.(string)
		if _, dup := obj[name]; dup {
			return nil, fmt.Errorf("the member %q appears twice", clip(name))
		}
		if obj[name], err = r.value(level); err != nil {
			return nil, err
		}
	}
	_, err := r.dec.Token()
	return obj, err
}

// text returns the string member name; absent is "", another type an error.
func (o object) text(name string) (string, error) {
	switch v := o[name].(type) {
	case nil:
		if _, there := o[name]; there {
			return "", fmt.Errorf("%s is null", name)
		}
		return "", nil
	case string:
		return v, nil
	default:
		return "", fmt.Errorf("%s is not a string", name)
	}
}

// seconds returns the NumericDate member name (RFC 7519 §2) in Unix seconds,
// fractions dropped. Absent gives ok false.
func (o object) seconds(name string) (unix int64, ok bool, err error) {
	v, there := o[name]
	if !there {
		return 0, false, nil
	}
	n, isNumber := v.(json.Number)
	if !isNumber {
		return 0, false, fmt.Errorf("%s is not a number", name)
	}
	unix, err = n.Int64()
	if err != nil {
		// Some issuers write fractions. Bound the value before converting.
		f, ferr := n.Float64()
		if ferr != nil || f < 0 || f > maxUnix {
			return 0, false, fmt.Errorf("%s is not a time", name)
		}
		unix = int64(f)
	}
	if unix < 0 || unix > maxUnix {
		return 0, false, fmt.Errorf("%s is not a time", name)
	}
	return unix, true, nil
}

// maxUnix is the year 9999: later times are mistakes, and overflow arithmetic.
const maxUnix = 253402300799

// lookup finds the claim at a dotted path. A member's own name may hold dots
// (Kubernetes has "kubernetes.io"), so every way to read the path is tried, and
// a path that can be read in two ways finds nothing: whoever can add a claim
// must not be able to shadow another.
func (o object) lookup(path string) (any, bool) {
	found, n := o.resolve(path, 0)
	return found, n == 1
}

func (o object) resolve(path string, dots int) (found any, n int) {
	if v, ok := o[path]; ok {
		found, n = v, 1
	}
	if dots >= maxPathDots {
		return found, n
	}
	for i := range len(path) {
		if path[i] != '.' {
			continue
		}
		inner, ok := o[path[:i]].(object)
		if !ok {
			continue
		}
		if v, m := inner.resolve(path[i+1:], dots+1); m > 0 {
			found, n = v, n+m
		}
	}
	return found, n
}

// scalar renders a claim that names something: a string or an integer.
func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, v != ""
	case json.Number:
		n, err := v.Int64()
		return strconv.FormatInt(n, 10), err == nil
	default:
		return "", false
	}
}

// printable reports whether s has no control, format or broken characters:
// what goes to an audit line must look like what it is.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r == utf8.RuneError || !strconv.IsPrint(r)
	})
}

// clip shortens outside text for an error message and makes it printable.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
