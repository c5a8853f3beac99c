package azure_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/azure"
)

// FuzzToken: whatever Entra says, it is a token that can stand in a header and has
// an end, or an error of a kind, in one line.
func FuzzToken(f *testing.F) {
	f.Add(200, []byte(`{"token_type":"Bearer","expires_in":60,"ext_expires_in":60,"access_token":"eyJ0eXAi.eyJhdWQi.c2ln"}`), true)
	f.Add(200, []byte(`{"token_type":"Bearer","expires_in":-1,"access_token":"x y"}`), true)
	f.Add(200, []byte(`{"token_type":"Bearer","expires_in":9223372036854775807,"access_token":"eyJ0eXAi.eyJhdWQi.c2ln"}`), true)
	f.Add(401, []byte(`{"error":"invalid_client","error_description":"AADSTS70021\r\n\u202e"}`), false)
	f.Add(503, []byte(`{"error":"temporarily_unavailable"}`), true)
	f.Add(200, []byte(`null`), false)
	f.Fuzz(func(t *testing.T, status int, body []byte, inTime bool) {
		now := time.Now()
		deadline := now.Add(time.Minute)
		if !inTime {
			deadline = now
		}
		token, expires, err := azure.ReadToken(status, body, deadline)
		if err != nil {
			wholeError(t, token, err)
			if issuers.KindOf(err) == issuers.TooLate && inTime {
				t.Fatalf("%v, a minute before the deadline", err)
			}
			return
		}
		if status != 200 || len(token) < 8 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) || !expires.After(now) || expires.After(now.Add(20*24*time.Hour)) {
			t.Fatalf("%d %q, until %s", status, token, expires)
		}
	})
}

// FuzzDelegation: whatever the storage account says, it makes a SAS that says what
// the scope does and no more, or an error of a kind, in one line.
func FuzzDelegation(f *testing.F) {
	f.Add(200, []byte(someKey))
	f.Add(200, []byte(`<UserDelegationKey/>`))
	f.Add(200, []byte(strings.Replace(someKey, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "AA==", 1)))
	f.Add(200, []byte(strings.Replace(someKey, "2022-11-02", "2022-11-02&amp;sp=racwdl", 1)))
	f.Add(403, []byte("\ufeff<?xml version=\"1.0\"?><Error><Code>AuthorizationPermissionMismatch</Code><Message>no\nRequestId:1</Message></Error>"))
	f.Add(503, []byte(`<Error><Code>ServerBusy</Code></Error>`))
	f.Add(500, []byte(`<a><b/></a>`))
	sp := plain.raw(f)
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		sas, err := azure.SignBy(sp, theScope, status, body, start, start.Add(time.Hour))
		if err != nil {
			wholeError(t, sas, err)
			return
		}
		q, err := url.ParseQuery(sas)
		if err != nil || status != 200 || len(q) != 13 || q.Get("sp") != "rl" || q.Get("sr") != "c" || q.Get("spr") != "https" || q.Get("se") != "2026-01-01T01:00:00Z" {
			t.Fatalf("%q: %v", sas, err)
		}
		for name, values := range q {
			if len(values) != 1 || values[0] == "" {
				t.Fatalf("%s is %q", name, values)
			}
		}
	})
}

func wholeError(t *testing.T, made string, err error) {
	t.Helper()
	var typed *issuers.Error
	if !errors.As(err, &typed) || made != "" || strings.ContainsAny(err.Error(), "\r\n\x00\u202e") {
		t.Fatalf("%T %q, with %q", err, err, made)
	}
}
