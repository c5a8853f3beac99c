package azure_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/azure"
	"github.com/mayfly-broker/mayfly/scope"
)

// answering plays Entra and the storage account.
type answering struct {
	entra, storage    int
	token, delegation []byte
}

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := a.entra, a.token
	if r.URL.Query().Get("comp") == "userdelegationkey" {
		status, body = a.storage, a.delegation
	}
	return &http.Response{StatusCode: 100 + max(0, status)%500, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
}

const someToken = `{"token_type":"Bearer","expires_in":60,"ext_expires_in":60,"access_token":"eyJ0eXAi.eyJhdWQi.c2ln"}`

// FuzzAnswer: whatever Entra and the storage account say, it is a whole credential
// that ends with its lease, or an error of a kind, in one line.
func FuzzAnswer(f *testing.F) {
	f.Add(100, []byte(someToken), 100, []byte(someKey))
	f.Add(100, []byte(`{"token_type":"Bearer","expires_in":-1,"access_token":"x y"}`), 100, []byte(`<UserDelegationKey/>`))
	f.Add(301, []byte(`{"error":"invalid_client","error_description":"AADSTS70021\r\n\u202e"}`), 100, []byte(``))
	f.Add(403, []byte(`{"error":"temporarily_unavailable"}`), 0, []byte(`null`))
	f.Add(100, []byte(someToken), 303, []byte("\ufeff<?xml version=\"1.0\"?><Error><Code>AuthorizationPermissionMismatch</Code><Message>no\nRequestId:1</Message></Error>"))
	f.Add(100, []byte(someToken), 100, []byte(strings.Replace(someKey, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "AA==", 1)))
	f.Add(100, []byte(`null`), 403, []byte(`<a><b/></a>`))
	sas, err := azure.Kind{}.Open(target(f, plain))
	if err != nil {
		f.Fatal(err)
	}
	tokens, err := azure.Kind{}.Open(target(f, spec{"way": "token", "tenant": plain["tenant"], "client_id": plain["client_id"], "resources": []string{"https://management.azure.com"}}))
	if err != nil {
		f.Fatal(err)
	}
	byToken := scope.Scope{{Type: "azure", Actions: []string{"token"}, Locations: []string{"https://management.azure.com"}}}
	f.Fuzz(func(t *testing.T, entra int, token []byte, storage int, delegation []byte) {
		for is, s := range map[issuers.Issuer]scope.Scope{sas: theScope, tokens: byToken} {
			azure.Through(is, answering{entra, storage, token, delegation})
			l := lease(s)
			c, err := is.Mint(t.Context(), l)
			if err != nil {
				wholeError(t, c, err)
				continue
			}
			end, err := time.Parse(time.RFC3339, c.Public["expiration"])
			if err != nil || end.After(l.NotAfter) || len(c.Secret) == 0 {
				t.Fatalf("%v %v", c.Public, err)
			}
			if text, ok := c.Secret["sas_token"]; ok {
				wholeSAS(t, text.Reveal(), l.NotAfter)
			} else if n := len(c.Secret["access_token"].Reveal()); n < 8 {
				t.Fatalf("a token of %d bytes", n)
			}
		}
	})
}

func wholeError(t *testing.T, c issuers.Credential, err error) {
	t.Helper()
	var typed *issuers.Error
	if !errors.As(err, &typed) || len(c.Secret) > 0 || strings.ContainsAny(err.Error(), "\r\n\x00\u202e") {
		t.Fatalf("%T %q", err, err)
	}
}

// wholeSAS: nothing that the account answers adds a parameter, or is left out.
func wholeSAS(t *testing.T, text string, end time.Time) {
	t.Helper()
	q, err := url.ParseQuery(text)
	if err != nil || len(q) != 13 || q.Get("sp") != "rl" || q.Get("sr") != "c" || q.Get("spr") != "https" {
		t.Fatalf("%q: %v", text, err)
	}
	for name, values := range q {
		if len(values) != 1 || values[0] == "" {
			t.Fatalf("%s is %q", name, values)
		}
	}
	if se, err := time.Parse(time.RFC3339, q.Get("se")); err != nil || se.After(end) {
		t.Fatalf("it ends at %s, after %s: %v", se, end, err)
	}
}
