package federation_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
)

const place = "https://mayfly.example/api/v1/public/targets/prod"

// provider is that of a target called prod.
func provider(t testing.TB) *federation.Provider {
	t.Helper()
	secrets, err := federation.MakeSecrets(jose.ES256)
	if err != nil {
		t.Fatal(err)
	}
	p, err := federation.Open(issuers.Target{Name: "prod", Issuer: "https://mayfly.example", Secrets: secrets}, jose.ES256, "", "aud")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// documents answers by the last part of a path.
type documents map[string][]byte

func (d documents) RoundTrip(r *http.Request) (*http.Response, error) {
	status := http.StatusOK
	body, ok := d[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]
	if !ok {
		status = http.StatusNotFound
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
}

func check(t testing.TB, p *federation.Provider, d documents) issuers.Finding {
	t.Helper()
	return p.CheckDocuments(t.Context(), &http.Client{Transport: federation.Watch(d)}, "Google", "identity.issuer", true)
}

func TestDocuments(t *testing.T) {
	p := provider(t)
	published, keys := p.Documents(), federation.DocKeys
	for what, x := range map[string]struct {
		there   documents
		ok      bool
		warning bool
		says    string
	}{
		"as published":          {documents(published), true, false, "publishes this target's key"},
		"none":                  {documents{}, false, true, "status 404; a target that is not written yet"},
		"no keys":               {documents{federation.DocDiscovery: published[federation.DocDiscovery]}, false, true, "jwks.json: status 404"},
		"somebody else's keys":  {documents{federation.DocDiscovery: published[federation.DocDiscovery], keys: provider(t).Documents()[keys]}, false, true, "lacks this target's key"},
		"a page":                {documents{federation.DocDiscovery: []byte("<html>")}, false, true, "not the JSON document"},
		"another issuer":        {documents{federation.DocDiscovery: []byte(`{"issuer":"https://x\n.example"}`)}, false, false, "names the issuer"},
		"keys at a stranger's":  {documents{federation.DocDiscovery: []byte(`{"issuer":"` + place + `","jwks_uri":"https://127.0.0.1/keys"}`)}, false, false, "names the keys"},
		"an answer without end": {documents{federation.DocDiscovery: bytes.Repeat([]byte(" "), 1<<20)}, false, true, "longer than"},
		"a document that nests": {documents{federation.DocDiscovery: bytes.Repeat([]byte("["), 60<<10)}, false, true, "not the JSON document"},
	} {
		f := check(t, p, x.there)
		if f.OK != x.ok || f.Warning != x.warning || !strings.Contains(f.Detail, x.says) || strings.ContainsAny(f.Detail, "\r\n") {
			t.Errorf("%s: %+v", what, f)
		}
	}
}

// A finding says what it is about once.
func TestFindingsSayTheirNameOnce(t *testing.T) {
	f := federation.Failed("token exchange", &issuers.Error{Kind: issuers.Refused, Detail: "token exchange: no\nsuch provider"}, "mend it")
	if f.OK || f.Warning || f.Detail != "no such provider" || f.Fix != "mend it" {
		t.Errorf("%+v", f)
	}
	if got := federation.Quote("it's"); got != `'it'\''s'` {
		t.Error(got)
	}
}

// FuzzDocuments: whatever stands where the documents should, the finding is one
// line, and good only for this target's own key.
func FuzzDocuments(f *testing.F) {
	p := provider(f)
	published := p.Documents()
	f.Add(published[federation.DocDiscovery], published[federation.DocKeys])
	f.Add([]byte(`{"issuer":"`+place+`","jwks_uri":"`+place+`/jwks.json"}`), []byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"x"}]}`))
	f.Add([]byte(`{"issuer":"x\u202e"}`), []byte(`null`))
	f.Add([]byte(`null`), []byte(`[]`))
	kid := string(published[federation.DocKeys])
	_, kid, _ = strings.Cut(kid, `"kid":"`)
	kid, _, _ = strings.Cut(kid, `"`)
	f.Fuzz(func(t *testing.T, discovery, keys []byte) {
		got := check(t, p, documents{federation.DocDiscovery: discovery, federation.DocKeys: keys})
		if strings.ContainsAny(got.Detail, "\r\n\x00\u202e") || got.OK && !bytes.Contains(keys, []byte(kid)) && !bytes.Contains(keys, []byte(`\u`)) {
			t.Fatalf("%+v of %q and %q", got, discovery, keys)
		}
	})
}
