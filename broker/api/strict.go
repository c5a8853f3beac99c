package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// A shape is what a JSON value may have, as the Go type that it will be decoded
// into says. The nil shape is free: any value whose objects have no member twice.
//
// encoding/json alone would not do: it takes the last of two equal members, it
// matches names without regard to case, and it turns broken UTF-8 into U+FFFD.
type shape struct {
	members map[string]*shape // of an object; nil for an array
	element *shape            // of an array
}

var (
	typeUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	typeRaw         = reflect.TypeFor[json.RawMessage]()
)

// shapeOf returns t's shape. The types are package wire's: finite, without
// cycles.
func shapeOf(t reflect.Type) *shape {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == typeRaw || reflect.PointerTo(t).Implements(typeUnmarshaler) {
		return nil
	}
	switch t.Kind() {
	case reflect.Struct:
		s := &shape{members: map[string]*shape{}}
		for _, f := range reflect.VisibleFields(t) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.IsExported() || f.Anonymous || name == "-" {
				continue
			}
			if name == "" {
				name = f.Name
			}
			s.members[name] = shapeOf(f.Type)
		}
		return s
	case reflect.Slice:
		if e := shapeOf(t.Elem()); e != nil {
			return &shape{element: e}
		}
	}
	return nil
}

// scan reads a request's body once and refuses what is not one JSON object of
// this shape, before anything is decoded: broken UTF-8, nesting beyond
// maxDepth, members twice or unknown, and anything after the object.
func scan(data []byte, s *shape) error {
	if !utf8.Valid(data) {
		return invalid(CodeMalformed, "The body is not UTF-8.")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if first := bytes.TrimLeft(data, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		return invalid(CodeMalformed, "The body is not a JSON object.")
	}
	if err := scanValue(dec, s, "body", 1); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return invalid(CodeTrailing, "More follows after the body's JSON object.")
	}
	return nil
}

func scanValue(dec *json.Decoder, s *shape, where string, depth int) error {
	tok, err := dec.Token()
	if err != nil {
		return invalid(CodeMalformed, "The body is not JSON: it breaks at byte %d.", dec.InputOffset())
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	if depth > maxDepth {
		return invalid(CodeTooDeep, "The body nests deeper than %d levels.", maxDepth)
	}
	if delim == '{' {
		err = scanMembers(dec, s, where, depth)
	} else {
		err = scanElements(dec, s, where, depth)
	}
	if err != nil {
		return err
	}
	if _, err := dec.Token(); err != nil { // the closing bracket
		return invalid(CodeMalformed, "The body is not JSON: it breaks at byte %d.", dec.InputOffset())
	}
	return nil
}

func scanMembers(dec *json.Decoder, s *shape, where string, depth int) error {
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		name, ok := tok.(string)
		if err != nil || !ok {
			return invalid(CodeMalformed, "The body is not JSON: it breaks at byte %d.", dec.InputOffset())
		}
		if seen[name] {
			return invalid(CodeDuplicate, "%s has the member %s twice.", where, shown(name))
		}
		seen[name] = true
		var inner *shape
		if s != nil && s.members != nil {
			if inner, ok = s.members[name]; !ok {
				return invalid(CodeUnknown, "%s has no member %s; it may have %s.", where, shown(name), strings.Join(slices.Sorted(maps.Keys(s.members)), ", "))
			}
		}
		if err := scanValue(dec, inner, where+"."+clip(name), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func scanElements(dec *json.Decoder, s *shape, where string, depth int) error {
	var inner *shape
	if s != nil {
		inner = s.element
	}
	for dec.More() {
		if err := scanValue(dec, inner, where+"[]", depth+1); err != nil {
			return err
		}
	}
	return nil
}
