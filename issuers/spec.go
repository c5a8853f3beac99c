package issuers

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// ReadableSpec says what encoding/json has to say of a Target's spec in the words of
// whoever wrote it: which key, what stands there, and what has to. Other errors stay
// as they are, nil too. No value is quoted.
func ReadableSpec(err error) error {
	var wrong *json.UnmarshalTypeError
	var form *json.SyntaxError
	switch {
	case errors.As(err, &wrong):
		key := wrong.Field
		if key == "" {
			key = "the spec"
		}
		is, _, _ := strings.Cut(wrong.Value, " ") // "number 5"
		if word, ok := jsonWords[is]; ok {
			is = word
		}
		return fmt.Errorf("%s: %s stands there; it has to be %s", key, is, wanted(wrong.Type))
	case errors.As(err, &form):
		return fmt.Errorf("the spec is not valid JSON, at byte %d", form.Offset)
	case err != nil && strings.HasPrefix(err.Error(), "json: unknown field "):
		return errors.New("there is no key " + strings.TrimPrefix(err.Error(), "json: unknown field "))
	}
	return err
}

var jsonWords = map[string]string{"string": "a text", "number": "a number", "bool": "true or false", "array": "a list", "object": "an object"}

// wanted is what a Go type is in a spec.
func wanted(t reflect.Type) string {
	if t == nil {
		return "something else"
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		if e := t.Elem(); e.Kind() == reflect.String {
			return `a list of texts, as in ["a", "b"]`
		}
		return "a list"
	case reflect.Map, reflect.Struct:
		return "an object"
	case reflect.Pointer:
		return wanted(t.Elem())
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number within bounds"
	}
	return "something else"
}
