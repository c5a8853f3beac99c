package azure_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/azure"
	"github.com/mayfly-broker/mayfly/issuers/azure/azuretest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// What all tests share: an Azurite, and an Entra whose tokens it takes.
var (
	world *azuretest.World
	keys  map[string]secret.Text
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if world, err = azuretest.NewWorld(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "azure tests:", err)
			return 1
		}
		defer world.Close()
		if keys, err = (azure.Kind{}).MakeSecrets(nil); err != nil {
			fmt.Fprintln(os.Stderr, "azure tests:", err)
			return 1
		}
		return m.Run()
	}())
}

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

var plain = spec{"tenant": azuretest.Tenant, "client_id": azuretest.Client, "account": azuretest.Account}

func bySAS() spec {
	return plain.with(spec{"authority": world.Entra.URL, "blob_endpoint": world.Blobs.URL, "tls": spec{"ca": world.CAPEM}})
}

func target(t testing.TB, s spec) issuers.Target {
	t.Helper()
	return issuers.Target{Name: "prod", Spec: s.raw(t), Secrets: maps.Clone(keys), Issuer: "https://mayfly.example", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// published is the kind on a broker whose documents Entra has just fetched.
type published struct{ azure.Kind }

func (k published) Open(t issuers.Target) (issuers.Issuer, error) {
	is, err := k.Kind.Open(t)
	if err != nil {
		return nil, err
	}
	docs, err := is.(issuers.Publisher).Publish(context.Background())
	if err != nil {
		return nil, err
	}
	return is, world.Entra.Trusted.Learn(docs["jwks.json"])
}

func open(t testing.TB, s spec) issuers.Issuer {
	t.Helper()
	is, err := published{}.Open(target(t, s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = is.Close() })
	return is
}

// allow is a scope of one detail; its actions are the last words of blobs.x.
func allow(actions string, locations ...string) scope.Scope {
	d := scope.Detail{Type: "azure", Locations: locations}
	for _, a := range strings.Fields(actions) {
		d.Actions = append(d.Actions, "blobs."+a)
	}
	return scope.Scope{d}
}

var theScope = allow("read list", "az://orders/*")

func lease(s scope.Scope) issuers.Lease { return issuertest.NewLease(azure.Kind{}, s) }

func mint(t testing.TB, is issuers.Issuer, l issuers.Lease) issuers.Credential {
	t.Helper()
	c, err := is.Mint(t.Context(), l)
	if err != nil {
		t.Fatalf("Mint: %v", err)
	}
	return c
}

// status asks Azurite with a SAS as delivered.
func status(t testing.TB, sas, method, path, query string) int {
	t.Helper()
	var body []byte
	if method == http.MethodPut {
		body = []byte("x")
	}
	if query != "" {
		sas = query + "&" + sas
	}
	code, _, err := world.Blobs.Do(t.Context(), method, path, sas, "", body)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func sasOf(c issuers.Credential) string { return c.Secret["sas_token"].Reveal() }

func wantKind(t testing.TB, err error, kind issuers.ErrorKind) {
	t.Helper()
	if err == nil || issuers.KindOf(err) != kind {
		t.Fatalf("error %v; want one of kind %s", err, kind)
	}
}

// eventually polls until ok, and fails after a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("did not happen within a minute: %s", what)
		}
	}
}
