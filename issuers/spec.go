package issuers

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ReadableSpec says what encoding/json has to say of a Target's spec in the words of
// whoever wrote it: which key, what stands there, and what has to. Other errors stay
// as they are, that of an unknown key too, and nil. No value is quoted.
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
		return fmt.Errorf("%s: %s stands there; it has to be %s", key, is, wanted(wrong.Type.Kind().String(), wrong.Type))
	case errors.As(err, &form):
		return fmt.Errorf("the spec is not valid JSON, at byte %d", form.Offset)
	}
	return err
}

var jsonWords = map[string]string{"string": "a text", "number": "a number", "bool": "true or false", "array": "a list", "object": "an object"}

// wanted is what a value of a Go kind is in a spec; of a list also what it is of.
func wanted(kind string, of fmt.Stringer) string {
	switch kind {
	case "slice", "array":
		if of.String() == "[]string" {
			return `a list of texts, as in ["a", "b"]`
		}
		return "a list"
	case "map", "struct", "ptr":
		return "an object"
	case "string":
		return "a text"
	case "bool":
		return "true or false"
	}
	if strings.HasPrefix(kind, "int") || strings.HasPrefix(kind, "uint") {
		return "a whole number within bounds"
	}
	return "something else"
}
