package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
	"github.com/mayfly-broker/mayfly/issuers/azure/azuretest"
	"github.com/mayfly-broker/mayfly/issuers/federation/federationtest"
	"github.com/mayfly-broker/mayfly/issuers/gcp/gcptest"
)

// cloud is a kind whose page somebody follows who has never seen it: no server of it
// can be had, so its endpoints are a stand-in's.
type cloud struct {
	kind    string
	trusted *federationtest.Verifier
	caPEM   string // of the stand-in
	more    string // for target add: where the stand-in is
	tool    string // the program that the page runs by a lease, and what of its environment it prints
	prints  string
	fix     string // of the check, before the cloud knows the target
	tries   string // what target add says to try
	// use asks the cloud with what the tool printed; within is what the role allows.
	use func(ctx context.Context, printed string, within bool) (int, error)
}

func TestGCPPageForANewUser(t *testing.T) {
	g, stop, err := gcptest.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	g.Put("orders", "2026/a.txt", "ours")
	g.Put("other", "2026/a.txt", "not ours")
	client := trusting(t, g.CAPEM)
	walk(t, cloud{
		kind: "gcp", trusted: g.Trusted, caPEM: g.CAPEM, more: fmt.Sprintf("--set sts_endpoint=%[1]s --set iam_endpoint=%[1]s", g.URL),
		tool: "gcloud", prints: "$CLOUDSDK_AUTH_ACCESS_TOKEN", fix: "providers update-oidc prod ", tries: "mayfly exec prod/readonly -- gcloud storage ls gs://orders/\n",
		use: func(ctx context.Context, printed string, within bool) (int, error) {
			bucket := map[bool]string{true: "orders", false: "other"}[within]
			return get(ctx, client, g.URL+"/storage/v1/b/"+bucket+"/o/2026%2Fa.txt?alt=media", printed)
		},
	})
}

func TestAzurePageForANewUser(t *testing.T) {
	w, err := azuretest.NewWorld(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	client := trusting(t, w.CAPEM)
	walk(t, cloud{
		kind: "azure", trusted: w.Entra.Trusted, caPEM: w.CAPEM, more: fmt.Sprintf("--set account=%s --set authority=%s --set blob_endpoint=%s", azuretest.Account, w.Entra.URL, w.Blobs.URL),
		tool: "az", prints: "$AZURE_STORAGE_SAS_TOKEN", fix: "az ad app federated-credential create ", tries: "mayfly exec prod/readonly -- az storage blob list --container-name orders\n",
		use: func(ctx context.Context, printed string, within bool) (int, error) {
			container := map[bool]string{true: "orders", false: "other"}[within]
			return get(ctx, client, w.Blobs.URL+"/"+container+"/2026/a.txt?"+printed, "")
		},
	})
}

// walk follows the page from the first command to the end of a lease.
func walk(t *testing.T, c cloud) {
	t.Helper()
	dev := harness.StartDev(t)
	devCA, err := os.ReadFile(dev.Operator.Getenv("MAYFLY_CACERT"))
	if err != nil {
		t.Fatal(err)
	}
	cas := filepath.Join(dev.Dir, "cas.pem") // the check reads the broker's own documents, too
	tools := filepath.Join(dev.Dir, "tools")
	for file, text := range map[string]string{cas: c.caPEM + string(devCA), filepath.Join(tools, c.tool): "#!/bin/sh\nprintf %s \"" + c.prints + "\"\n"} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// The cloud fetches the documents of a target that is not there yet.
	c.trusted.Fetch(dev.URL+"/api/v1/public/targets/prod", trusting(t, string(devCA)))
	added := dev.Operator.Follow(t, c.kind, "add", tools, c.more+" --tls-ca-file "+cas)
	for _, says := range []string{"a target that is not written yet publishes nothing", c.fix, "ok    clock"} {
		if added.Code != 0 || !strings.Contains(added.Stderr, says) {
			t.Fatalf("target add: exit code %d, without %q:\n%s%s", added.Code, says, added.Stderr, added.Stdout)
		}
	}
	if !strings.Contains(added.Stdout, "roles prod/readonly, prod/readwrite") || !strings.Contains(added.Stdout, c.tries) {
		t.Errorf("target add says\n%s", added.Stdout)
	}
	if checked := dev.Operator.Must(t, "target", "check", "prod"); strings.Contains(checked, "warn") || strings.Contains(checked, "FAIL") || !strings.Contains(checked, "publishes this target's key") {
		t.Errorf("target check says\n%s", checked)
	}
	used := dev.Operator.Follow(t, c.kind, "use", tools, "")
	if used.Code != 0 || used.Stdout == "" {
		t.Fatalf("exec: exit code %d\n%s", used.Code, used.Stderr)
	}
	c.tryOut(t, used.Stdout)
	c.end(t, dev.Operator)
}

// tryOut uses a credential within what its role allows, and without.
func (c cloud) tryOut(t *testing.T, printed string) {
	t.Helper()
	for within, want := range map[bool]int{true: http.StatusOK, false: http.StatusForbidden} {
		if got, err := c.use(t.Context(), printed, within); err != nil || got != want {
			t.Errorf("within the role's scope %t: status %d, want %d: %v", within, got, want, err)
		}
	}
}

// end ends a lease before its time: its credential works on until the first end, and
// the receipt says so, as the page does.
func (c cloud) end(t *testing.T, as harness.CLI) {
	t.Helper()
	var got wire.AccessAnswer
	as.JSON(t, &got, "request", "prod/readonly", "--purpose", "trying it out")
	printed := got.Credential["access_token"] + got.Credential["sas_token"]
	as.Must(t, "lease", "revoke", got.LeaseID)
	var lease wire.Lease
	as.JSON(t, &lease, "lease", "show", got.LeaseID)
	until := got.ExpiresAt.UTC().Truncate(time.Second).Format(time.RFC3339)
	if receipt := string(lease.Receipt); lease.State != "ended" || !strings.Contains(receipt, `"expires-only"`) || !strings.Contains(receipt, until) {
		t.Errorf("the lease is %s, its receipt %s; want it to say %s", lease.State, receipt, until)
	}
	c.tryOut(t, printed)
	var found wire.Whohas
	as.JSON(t, &found, "whohas", lease.Username)
	if found.LeaseID != lease.ID {
		t.Errorf("whohas %s finds %q", lease.Username, found.LeaseID)
	}
}

// trusting is a client of servers whose authority it is given.
func trusting(t *testing.T, pem string) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		t.Fatal("no certificate")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func get(ctx context.Context, client *http.Client, where, bearer string) (int, error) {
	if _, err := url.Parse(where); err != nil {
		return 0, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return 0, err
	}
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, err
}
