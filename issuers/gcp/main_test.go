package gcp_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/gcp"
	"github.com/mayfly-broker/mayfly/issuers/gcp/gcptest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
)

type spec map[string]any

func (s spec) with(more spec) spec {
	out := maps.Clone(s)
	maps.Copy(out, more)
	return out
}

func (s spec) raw(t testing.TB) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// google starts a stand-in, and returns the spec of a target that it trusts.
func google(t testing.TB) (*gcptest.StandIn, spec) {
	t.Helper()
	g, stop, err := gcptest.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return g, spec{"service_account": gcptest.Account, "provider": gcptest.Provider, "sts_endpoint": g.URL, "iam_endpoint": g.URL, "tls": spec{"ca": g.CAPEM}}
}

func target(t testing.TB, s spec) issuers.Target {
	t.Helper()
	secrets, err := gcp.Kind{}.MakeSecrets(nil)
	if err != nil {
		t.Fatal(err)
	}
	return issuers.Target{Name: "prod", Spec: s.raw(t), Secrets: secrets, Issuer: "https://mayfly.example", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// published is the kind on a broker whose documents Google has just fetched.
type published struct {
	gcp.Kind
	google *gcptest.StandIn
}

func (k published) Open(t issuers.Target) (issuers.Issuer, error) {
	is, err := k.Kind.Open(t)
	if err != nil {
		return nil, err
	}
	docs, err := is.(issuers.Publisher).Publish(context.Background())
	if err != nil {
		return nil, err
	}
	return is, k.google.Trusted.Learn(docs["jwks.json"])
}

func open(t testing.TB, g *gcptest.StandIn, s spec) issuers.Issuer {
	t.Helper()
	is, err := published{google: g}.Open(target(t, s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = is.Close() })
	return is
}

// allow is a scope of one detail; its actions are the last words of storage.objects.x.
func allow(actions string, locations ...string) scope.Scope {
	d := scope.Detail{Type: "gcp", Locations: locations}
	for _, a := range strings.Fields(actions) {
		d.Actions = append(d.Actions, "storage.objects."+a)
	}
	return scope.Scope{d}
}

var theScope = allow("get list", "gs://orders/2026/*")

func lease(s scope.Scope) issuers.Lease { return issuertest.NewLease(gcp.Kind{}, s) }

func mint(t testing.TB, is issuers.Issuer, l issuers.Lease) issuers.Credential {
	t.Helper()
	c, err := is.Mint(t.Context(), l)
	if err != nil {
		t.Fatalf("Mint: %v", err)
	}
	return c
}

func wantKind(t testing.TB, err error, kind issuers.ErrorKind) {
	t.Helper()
	if err == nil || issuers.KindOf(err) != kind {
		t.Fatalf("error %v; want one of kind %s", err, kind)
	}
}
