package gcp_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// discovery is one of Google's own descriptions of an interface, as far as it is
// needed (Google API Discovery Service, "Discovery document").
type discovery struct {
	Schemas   map[string]property
	Resources map[string]resource
}

type resource struct {
	Methods   map[string]method
	Resources map[string]resource
}

type method struct {
	HTTPMethod        string
	Path              string
	Parameters        map[string]struct{ Pattern string }
	Request, Response struct {
		Ref string `json:"$ref"`
	}
}

type property struct {
	Ref        string `json:"$ref"`
	Type       string
	Format     string
	Items      *property
	Properties map[string]property
}

// discovered reads one that comes with Google's own module, of the version and hash
// that e2e/schemas/google pins.
func discovered(t *testing.T, file string) (d discovery) {
	t.Helper()
	get := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "google.golang.org/api")
	get.Dir, get.Env = filepath.Join("..", "..", "e2e", "schemas", "google"), append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := get.Output()
	var module struct{ Dir string }
	if err != nil || json.Unmarshal(out, &module) != nil || module.Dir == "" {
		t.Fatalf("Google's published schemas are needed, and cannot be had: %v: %s", err, out)
	}
	raw, err := os.ReadFile(filepath.Join(module.Dir, filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// differs returns where a value is not what a schema describes; empty: it is. Members
// that a schema does not know are refused, since Google refuses them or reads nothing
// into them.
func (d discovery) differs(at string, p property, v any) string {
	if p.Ref != "" {
		known, ok := d.Schemas[p.Ref]
		if !ok {
			return at + ": there is no schema " + p.Ref
		}
		return d.differs(at, known, v)
	}
	switch v := v.(type) {
	case map[string]any:
		if p.Type != "object" {
			return at + ": an object for " + p.Type
		}
		for name, member := range v {
			known, ok := p.Properties[name]
			if !ok {
				return at + "." + name + " is not in the schema"
			}
			if why := d.differs(at+"."+name, known, member); why != "" {
				return why
			}
		}
	case []any:
		if p.Type != "array" || p.Items == nil {
			return at + ": a list for " + p.Type
		}
		for n, item := range v {
			if why := d.differs(fmt.Sprintf("%s[%d]", at, n), *p.Items, item); why != "" {
				return why
			}
		}
	case string:
		_, unread := time.Parse(time.RFC3339, v)
		switch {
		case p.Type != "string":
			return at + ": a text for " + p.Type
		case p.Format == "google-duration" && !regexp.MustCompile(`^[0-9]+(\.[0-9]{1,9})?s$`).MatchString(v), p.Format == "google-datetime" && unread != nil:
			return at + ": " + v + " is no " + p.Format
		}
	case float64:
		if p.Type != "integer" || v != float64(int32(v)) {
			return at + ": a number for " + p.Type
		}
	default:
		return fmt.Sprintf("%s: %T", at, v)
	}
	return ""
}

// is fails where JSON is not what a schema describes.
func (d discovery) is(t *testing.T, schema string, raw []byte) {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	if why := d.differs(schema, property{Ref: schema}, v); why != "" {
		t.Errorf("%s\n%s", why, raw)
	}
}

// camel is the schema's name of a form's field: STS takes RFC 8693's own.
func camel(snake string) string {
	words := strings.Split(snake, "_")
	for i, w := range words[1:] {
		words[i+1] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, "")
}

// TestWireFormatIsGooglesPublishedOne: what is asked of Google, and what the stand-in
// answers, is held against the discovery documents of Google's two services.
func TestWireFormatIsGooglesPublishedOne(t *testing.T) {
	sts, iam := discovered(t, "sts/v1/sts-api.json"), discovered(t, "iamcredentials/v1/iamcredentials-api.json")
	exchange := sts.Resources["v1"].Methods["token"]
	generate := iam.Resources["projects"].Resources["serviceAccounts"].Methods["generateAccessToken"]
	if exchange.Path == "" || generate.Path == "" {
		t.Fatal("the discovery documents describe other methods")
	}
	g, s := google(t)
	mint(t, open(t, g, s), lease(theScope))
	asked := g.Asked()
	if len(asked) != 3 {
		t.Fatalf("%d requests", len(asked))
	}
	for n, a := range asked {
		d, m, body := sts, exchange, []byte(a.Body)
		path := "/" + m.Path
		if n == 1 {
			d, m = iam, generate
			name := strings.TrimSuffix(strings.TrimPrefix(a.Path, "/v1/"), ":generateAccessToken")
			if !regexp.MustCompile(m.Parameters["name"].Pattern).MatchString(name) {
				t.Errorf("%s is no name of a service account", name)
			}
			path = "/" + strings.Replace(m.Path, "{+name}", name, 1)
		} else {
			fields := map[string]string{}
			for name, values := range a.Form {
				fields[camel(name)] = values[0]
			}
			var err error
			if body, err = json.Marshal(fields); err != nil {
				t.Fatal(err)
			}
			if options := fields["options"]; n == 2 {
				d.is(t, "GoogleIdentityStsV1Options", []byte(options))
			}
		}
		d.is(t, m.Request.Ref, body)
		again := httptest.NewRequestWithContext(t.Context(), m.HTTPMethod, path, strings.NewReader(a.Body))
		again.Header = a.Header
		w := httptest.NewRecorder()
		if g.ServeHTTP(w, again); w.Code != http.StatusOK || a.Path != path {
			t.Fatalf("%s %s: %d %s", m.HTTPMethod, path, w.Code, w.Body)
		}
		d.is(t, m.Response.Ref, w.Body.Bytes())
	}
	for raw, schema := range map[string]string{ // the comparison can fail
		`{"accessBoundary":{"accessBoundaryRules":[{"availableRole":"x"}]}}`: "GoogleIdentityStsV1Options",
		`{"accessBoundary":{"accessBoundaryRules":{}}}`:                      "GoogleIdentityStsV1Options",
		`{"grantType":5}`: exchange.Request.Ref,
	} {
		var v any
		if json.Unmarshal([]byte(raw), &v) != nil || sts.differs(schema, property{Ref: schema}, v) == "" {
			t.Errorf("%s passes for a %s", raw, schema)
		}
	}
	if iam.differs("x", property{Ref: generate.Request.Ref}, map[string]any{"lifetime": "1h"}) == "" {
		t.Error("1h passes for a duration of Google's")
	}
}
