package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/servertest"
	"github.com/mayfly-broker/mayfly/issuers/azure/azuretest"
)

// azure is an Azurite and a stand-in for Entra, each behind a door, as a [Server].
type azure struct {
	world *azuretest.World
	// doors are Entra's and the storage's. Each outage takes the next: the first, the
	// second, both.
	doors [2]*servertest.Door
	turn  *int
}

func startAzure(ctx context.Context) (Server, error) {
	w, err := azuretest.NewWorld(ctx)
	if err != nil {
		return nil, err
	}
	a := azure{world: w, turn: new(int)}
	for i, at := range []string{w.Entra.URL, w.Blobs.URL} {
		if a.doors[i], err = doorBefore(at); err != nil {
			w.Close()
			return nil, err
		}
	}
	return a, nil
}

// Add has the application trust the target's identity.
func (a azure) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	ca := filepath.Join(dir, target+"-ca.pem")
	if err := os.WriteFile(ca, []byte(a.world.CAPEM), 0o600); err != nil {
		t.Fatal(err)
	}
	admin.Must(t, "target", "add", "azure", "--name", target, "--tls-ca-file", ca, "--set", "tenant="+azuretest.Tenant, "--set", "client_id="+azuretest.Client, "--set", "account="+azuretest.Account,
		"--set", "authority=https://"+a.doors[0].Address, "--set", "blob_endpoint=https://"+a.doors[1].Address+"/"+azuretest.Account, "--set", `resources=["az://orders/*"]`)
	issuer, keys := identityOf(t, admin, target)
	a.world.Entra.Trusted.Name(issuer, "target:"+target)
	if err := a.world.Entra.Trusted.Learn(keys); err != nil {
		t.Fatal(err)
	}
	return target + "/readonly"
}

// Name stands in the identity token for which the key was made that signed.
func (a azure) Name(credential map[string]string) string {
	q, err := url.ParseQuery(credential["sas_token"])
	if err != nil {
		return err.Error()
	}
	name, err := identified(a.world.Entra.Identity(q.Get("skoid")))
	if err != nil {
		return err.Error()
	}
	return name
}

// Login reads a blob.
func (a azure) Login(ctx context.Context, credential map[string]string) error {
	status, text, err := a.world.Blobs.Do(ctx, http.MethodGet, "orders/2026/a.txt", credential["sas_token"], "", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", status, text)
	}
	return err
}

// Ours is nothing: a storage account has no list of what was signed.
func (a azure) Ours(context.Context) ([]string, error) { return nil, nil }

// Contradicts implements [Witness]: the application was let in for nothing but
// leases.
func (a azure) Contradicts(leases []wire.Lease, _ []Given) (out []string) {
	known := byName(leases)
	for _, token := range a.world.Entra.Identities() {
		name, err := identified(token)
		if _, ok := known[generations(name)]; err != nil || !ok {
			out = append(out, fmt.Sprintf("Entra let the application in as %q, which no lease is called: %v", name, err))
		}
	}
	return out
}

// away are the doors of this outage.
func (a azure) away() []*servertest.Door {
	defer func() { *a.turn++ }()
	switch *a.turn % 3 {
	case 0:
		return a.doors[1:]
	case 1:
		return a.doors[:1]
	}
	return a.doors[:]
}

// Stop implements [Server].
func (a azure) Stop() error { return each(a.away(), (*servertest.Door).Stop) }

// Kill implements [Server].
func (a azure) Kill() error { return each(a.away(), (*servertest.Door).Kill) }

// StartAgain implements [Server].
func (a azure) StartAgain(ctx context.Context) error {
	return each(a.doors[:], func(d *servertest.Door) error { return d.Stop() }, func(d *servertest.Door) error { return d.StartAgain(ctx) })
}

// Signal implements [Server].
func (a azure) Signal(sig syscall.Signal) error {
	doors := a.doors[:]
	if sig == syscall.SIGSTOP {
		doors = a.away()
	}
	return each(doors, func(d *servertest.Door) error { return d.Signal(sig) })
}

// Close ends all.
func (a azure) Close() error {
	err := each(a.doors[:], (*servertest.Door).Close)
	a.world.Close()
	return err
}

// each does the steps at each door.
func each(doors []*servertest.Door, steps ...func(*servertest.Door) error) error {
	var all error
	for _, d := range doors {
		for _, step := range steps {
			all = errors.Join(all, step(d))
		}
	}
	return all
}

var _ Witness = azure{}
