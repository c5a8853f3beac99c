package aws_test

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
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/aws/awstest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// What all tests share: a MinIO under TLS that trusts the target's own identity
// provider, which is served under the same CA.
var (
	shared     *awstest.Server
	ca         *awstest.CA
	identity   map[string]secret.Text // the provider's keys
	issuerURL  string
	targetName = "prod"
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		stop, err := setUp(context.Background())
		if err != nil {
			fmt.Fprintln(os.Stderr, "aws tests:", err)
			return 1
		}
		defer stop()
		return m.Run()
	}())
}

// setUp starts the provider first, since MinIO reads its documents as it starts.
func setUp(ctx context.Context) (stop func(), err error) {
	if ca, err = awstest.NewCA(); err != nil {
		return nil, err
	}
	if identity, err = (aws.Kind{}).MakeSecrets(nil); err != nil {
		return nil, err
	}
	var documents http.Handler
	base, closeProvider, err := ca.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { documents.ServeHTTP(w, r) }))
	if err != nil {
		return nil, err
	}
	issuerURL = base + "/api/v1/public/targets/" + targetName
	if documents, err = provider(base); err != nil {
		return nil, err
	}
	shared, err = awstest.Run(ctx, ca, &awstest.Provider{ConfigURL: issuerURL + "/.well-known/openid-configuration"})
	if err != nil {
		return nil, err
	}
	stop = func() {
		if err := shared.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "aws tests:", err)
		}
		closeProvider()
	}
	return stop, shared.Put(ctx, "orders/2026/a.txt", "orders/2026/b.txt", "orders/2025/a.txt", "orders/top.txt", "other/2026/a.txt", "orders-eu/2026/a.txt")
}

// provider serves what the target publishes, where the broker would.
func provider(base string) (http.Handler, error) {
	is, err := aws.Kind{}.Open(issuers.Target{Name: targetName, Issuer: base, Secrets: identity,
		Spec: json.RawMessage(`{"way":"web_identity","region":"us-east-1","role_arn":"` + awstest.WebRoleARN() + `"}`)})
	if err != nil {
		return nil, err
	}
	defer func() { _ = is.Close() }()
	docs, err := is.(issuers.Publisher).Publish(context.Background())
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	for path, name := range map[string]string{"/.well-known/openid-configuration": "openid-configuration", "/jwks.json": "jwks.json"} {
		mux.HandleFunc("GET /api/v1/public/targets/"+targetName+path, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(docs[name]) })
	}
	return mux, nil
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

// byRole is a target that uses a key; byIdentity one that has none.
func byRole() spec {
	return spec{"way": "assume_role", "region": awstest.Region, "role_arn": awstest.RoleARN, "endpoint": shared.URL, "tls": spec{"ca": ca.PEM}, "admin": spec{"username": shared.Root.ID}}
}

func byIdentity() spec {
	return spec{"way": "web_identity", "region": awstest.Region, "role_arn": awstest.WebRoleARN(), "endpoint": shared.URL, "tls": spec{"ca": ca.PEM}, "web_identity": spec{"issuer": issuerURL}}
}

func target(t testing.TB, s spec) issuers.Target {
	t.Helper()
	secrets := maps.Clone(identity)
	if s["way"] != "web_identity" {
		secrets[aws.SecretKey] = secret.New(shared.Root.Secret)
	}
	return issuers.Target{Name: targetName, Spec: s.raw(t), Secrets: secrets, Issuer: "https://mayfly.example", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func open(t testing.TB, tg issuers.Target) issuers.Issuer {
	t.Helper()
	is, err := aws.Kind{}.Open(tg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = is.Close() })
	return is
}

// allow is a scope of one detail.
func allow(actions string, locations ...string) scope.Scope {
	return scope.Scope{{Type: "aws", Actions: strings.Fields(actions), Locations: locations}}
}

func s3(path string) string { return "arn:aws:s3:::" + path }

func lease(s scope.Scope) issuers.Lease { return issuertest.NewLease(aws.Kind{}, s) }

func mint(t testing.TB, is issuers.Issuer, l issuers.Lease) issuers.Credential {
	t.Helper()
	c, err := is.Mint(t.Context(), l)
	if err != nil {
		t.Fatalf("Mint: %v", err)
	}
	return c
}

func keys(c issuers.Credential) awstest.Keys {
	return awstest.Keys{ID: c.Public["access_key_id"], Secret: c.Secret["secret_access_key"].Reveal(), Token: c.Secret["session_token"].Reveal()}
}

// status asks S3 with a credential as delivered.
func status(t testing.TB, c issuers.Credential, method, path, query string) int {
	t.Helper()
	var body []byte
	if method == http.MethodPut && strings.Contains(path, "/") {
		body = []byte("x")
	}
	code, _, err := shared.Do(t.Context(), keys(c), method, path, query, body)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

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
