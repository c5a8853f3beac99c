package api_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func (b *fakeBroker) Grants(_ context.Context, c broker.Caller, f broker.GrantFilter) ([]wire.Grant, error) {
	return nil, b.note(c, f)
}

func (b *fakeBroker) Grant(_ context.Context, c broker.Caller, id string) (wire.Grant, error) {
	return wire.Grant{ID: id}, b.note(c, id)
}

func (b *fakeBroker) AwaitGrant(_ context.Context, c broker.Caller, id string, version uint64, _ time.Duration) (wire.Grant, error) {
	return wire.Grant{ID: id, Version: version + 1}, b.note(c, id)
}

func (b *fakeBroker) ApproveGrant(_ context.Context, c broker.Caller, id string, in wire.ApproveRequest) (wire.Grant, error) {
	return wire.Grant{ID: id}, b.note(c, in)
}

func (b *fakeBroker) DenyGrant(_ context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return wire.Grant{ID: id, State: wire.GrantDenied}, b.note(c, in)
}

func (b *fakeBroker) CancelGrant(_ context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return wire.Grant{ID: id, State: wire.GrantCancelled}, b.note(c, in)
}

func (b *fakeBroker) RevokeGrant(_ context.Context, c broker.Caller, id string, in wire.EndGrantRequest) (wire.Grant, error) {
	return wire.Grant{ID: id, State: wire.GrantRevoked}, b.note(c, in)
}

func (b *fakeBroker) CollectGrant(_ context.Context, c broker.Caller, id string, in wire.CollectRequest) (wire.AccessAnswer, error) {
	status := "issued"
	if strings.HasSuffix(id, "_waits") {
		status = "waiting"
	}
	return wire.AccessAnswer{GrantID: id, Status: status}, b.note(c, in)
}

func (b *fakeBroker) PreviousAccess(_ context.Context, c broker.Caller, id string) (wire.PreviousAccess, error) {
	return wire.PreviousAccess{GrantID: id}, b.note(c, id)
}

func (b *fakeBroker) ReviewGrant(_ context.Context, c broker.Caller, id string, in wire.ReviewRequest) (wire.Grant, error) {
	return wire.Grant{ID: id}, b.note(c, in)
}

func (b *fakeBroker) KeyDocument(_ context.Context, c broker.Caller, principal string, in wire.ApproveKey) (wire.KeyDocument, error) {
	return wire.KeyDocument{Domain: principal}, b.note(c, in)
}

// What waits for people answers 202, so that no client takes it for a credential.
func TestWhatWaitsAnswers202(t *testing.T) {
	tc, n := one(t)
	cl := tc.newClient(t, "mfs_waits", "dpop")
	for path, want := range map[string]int{
		"/grants/grt_1/collect":                           http.StatusOK,
		"/grants/grt_waits/collect":                       http.StatusAccepted,
		"/grants/grt_1/deny":                              http.StatusOK,
		"/grants/grt_1/cancel":                            http.StatusOK,
		"/grants/grt_1/revoke":                            http.StatusOK,
		"/grants/grt_1/nonsense":                          http.StatusNotFound,
		"/grants/grt_1/collect?x=1":                       http.StatusBadRequest,
		"/grants/grt_1/approve":                           http.StatusBadRequest, // it needs a body
		"/keys/document":                                  http.StatusBadRequest,
		"/grants/" + strings.Repeat("x", 200) + "/cancel": http.StatusBadRequest,
	} {
		if got := cl.do(n, "POST", path, "").status; got != want {
			t.Errorf("%s: %d, wanted %d", path, got, want)
		}
	}
}

func (b *fakeBroker) PublishTarget(_ context.Context, name, document string) ([]byte, error) {
	return []byte(name + " " + document), nil
}

// A target's public documents are for whoever asks: its CA, what it has revoked.
func TestTargetsDocumentsArePublic(t *testing.T) {
	tc, n := one(t)
	for path, want := range map[string]struct{ body, media string }{
		"krl":                              {"web krl", "application/octet-stream"},
		"jwks.json":                        {"web jwks.json", "application/json"},
		".well-known/openid-configuration": {"web openid-configuration", "application/json"},
	} {
		cl := tc.newClient(t, "", "")
		r := cl.send(cl.request("GET", n.url+"/api/v1/public/targets/web/"+path, ""))
		if r.status != http.StatusOK || string(r.body) != want.body || r.header.Get("Content-Type") != want.media || r.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %q %v", path, r.status, r.body, r.header)
		}
	}
}
