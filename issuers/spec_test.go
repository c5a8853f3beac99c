package issuers_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
)

// TestReadableSpec: a spec's mistakes are told by its keys, not by Go's types, and
// with no value, which may be a secret in the wrong place.
func TestReadableSpec(t *testing.T) {
	type spec struct {
		Address string   `json:"address"`
		Hosts   []string `json:"hosts"`
		Lanes   int      `json:"lanes"`
		On      bool     `json:"on"`
		TLS     struct {
			Mode string `json:"mode"`
		} `json:"tls"`
		Sets []map[string]int `json:"sets"`
	}
	for raw, want := range map[string]string{
		`{"hosts":"swordfish"}`:         `hosts: a text stands there; it has to be a list of texts, as in ["a", "b"]`,
		`{"address":["swordfish"]}`:     "address: a list stands there; it has to be a text",
		`{"lanes":"swordfish"}`:         "lanes: a text stands there; it has to be a whole number within bounds",
		`{"lanes":1.5}`:                 "lanes: a number stands there; it has to be a whole number within bounds",
		`{"on":"yes"}`:                  "on: a text stands there; it has to be true or false",
		`{"tls":"swordfish"}`:           "tls: a text stands there; it has to be an object",
		`{"tls":{"mode":true}}`:         "tls.mode: true or false stands there; it has to be a text",
		`{"sets":{"a":"swordfish"}}`:    "sets: an object stands there; it has to be a list",
		`["swordfish"]`:                 "the spec: a list stands there; it has to be an object",
		`{"colour":"swordfish"}`:        `json: unknown field "colour"`,
		`{"address":"swordfish",}`:      "the spec is not valid JSON, at byte 24",
		`{"address":"db","hosts":null}`: "",
	} {
		dec := json.NewDecoder(bytes.NewReader([]byte(raw)))
		dec.DisallowUnknownFields()
		var s spec
		got := ""
		if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
			got = err.Error()
		}
		if got != want || strings.Contains(got, "swordfish") {
			t.Errorf("%s: %q; want %q", raw, got, want)
		}
	}
}
