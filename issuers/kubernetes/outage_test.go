package kubernetes_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes/kubernetestest"
)

// An API server that hangs costs no more than the deadline; one that is killed and
// comes back finds its leases ended all the same.
func TestLaw8HangingAPIServerDelaysNoLongerThanTheDeadline(t *testing.T) {
	s := kubernetestest.Start(t)
	if err := furnish(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, s)
	is := f.open(1)
	warm := lease(rules("get", "configmaps", "shop/*"))
	c := f.mint(is, warm)
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l := lease(tokenFor("shop/deployer"))
	l.MintDeadline = time.Now().Add(1500 * time.Millisecond)
	start := time.Now()
	if _, err := is.Mint(t.Context(), l); issuers.KindOf(err) != issuers.Unknown {
		t.Errorf("a mint on a stopped server: %v; its request was sent, so nobody knows", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	if out := is.Withdraw(ctx, []issuers.Lease{warm}); out[0].Err == nil {
		t.Error("a withdrawal on a stopped server has a receipt")
	}
	if d := time.Since(start); d > 8*time.Second {
		t.Errorf("a stopped server held the caller up for %s", d)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	_, err := is.Mint(t.Context(), lease(tokenFor("shop/deployer")))
	wantKind(t, err, issuers.Unreachable)
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{warm})[0].Err, issuers.Unreachable)
	wantKind(t, is.Fence(t.Context()), issuers.Unreachable)
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status := f.try(c, http.MethodGet, core+"shop/configmaps/settings", nil); status != 200 {
		t.Errorf("after the restart a live lease is answered %d", status)
	}
	f.withdraw(is, warm, l)
	for _, x := range []issuers.Lease{warm, l} {
		if left := f.objects(x); len(left) > 0 {
			t.Errorf("left of the lease: %v", left)
		}
	}
}

// A token file is read anew for each request, as kubelet replaces it.
func TestTokenFileIsReadAnew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := newFixture(t, shared)
	good := f.secrets[kubernetes.SecretToken].Reveal()
	delete(f.secrets, kubernetes.SecretToken)
	f = f.with(map[string]any{"token_file": file})
	is := f.open(1)
	l := lease(tokenFor("shop/deployer"))
	for _, x := range []struct {
		text string
		kind issuers.ErrorKind
	}{{"old.old.old", issuers.Refused}, {"", issuers.Unreachable}, {"a\r\nX-Evil: b", issuers.Unreachable}} {
		write(x.text)
		_, err := is.Mint(t.Context(), l)
		wantKind(t, err, x.kind)
	}
	write(good)
	f.mint(is, l)
	f.withdraw(is, l)
}

// Lists are read page by page; what bears our label and not our mark is skipped.
func TestListReadsEveryPage(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	id := f.targetID(is)
	var leases []issuers.Lease
	for i := range 3 {
		l := lease(tokenFor("shop/deployer"))
		f.mint(is, l)
		leases = append(leases, l)
		for range 60 {
			x := lease(nil)
			labels := map[string]string{"mayfly-broker.github.io/target": id, "mayfly-broker.github.io/lease": x.ID}
			f.admin(http.MethodPost, core+"shop/secrets", map[string]any{"metadata": map[string]any{"name": x.Name, "labels": labels}}, nil)
		}
		found, err := is.List(t.Context())
		if err != nil || len(found) != i+1 {
			t.Fatalf("List shows %d of %d leases, %v", len(found), i+1, err)
		}
	}
	f.withdraw(is, leases...)
	f.admin(http.MethodDelete, core+"shop/secrets?labelSelector=mayfly-broker.github.io/target%3D"+id, nil, nil)
}
