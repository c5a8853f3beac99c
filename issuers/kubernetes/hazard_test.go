package kubernetes_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/kubernetes"
)

// forms are the two that a lease can have.
var forms = map[string]func() issuers.Lease{
	"made":     func() issuers.Lease { return lease(rules("get list create", "configmaps", "shop/*")) },
	"existing": func() issuers.Lease { return lease(tokenFor("shop/deployer")) },
}

// A request for a token that is stuck on its way finds its anchor gone, however
// late it arrives: no deadline is needed for that.
func TestHazard8KubernetesLateTokenRequestIsRefused(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, shared)
			slow, g := newGate(t, f, http.MethodPost, "/token")
			old, successor := slow.open(1), f.open(2)
			l := form()
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				if c, err := old.Mint(ctx, l); err == nil {
					t.Errorf("the mint has a credential: %v", c.Public)
				}
			})
			g.waitHeld(t)
			if err := successor.Fence(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.withdraw(successor, l)
			g.release()
			if status := g.answer(t); status != http.StatusNotFound && status != http.StatusConflict {
				t.Errorf("hazard 8: a request for a token that came after the withdrawal was answered %d", status)
			}
			wg.Wait()
			cancel()
			eventually(t, "nothing is left", func() bool { return len(f.objects(l)) == 0 })
		})
	}
}

// An anchor that arrives after the fence and the last look is an empty Secret: its
// mint reads the fence before it asks for a token.
func TestHazard8KubernetesLateAnchorGetsNoToken(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, shared)
			slow, g := newGate(t, f, http.MethodPost, "/secrets")
			old, successor := slow.open(1), f.open(2)
			l := form()
			var wg sync.WaitGroup
			var err error
			wg.Go(func() { _, err = old.Mint(t.Context(), l) })
			g.waitHeld(t)
			if err := successor.Fence(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.withdraw(successor, l)
			g.release()
			if status := g.answer(t); status != http.StatusCreated {
				t.Fatalf("the anchor was answered %d: this test proves nothing", status)
			}
			wg.Wait()
			wantKind(t, err, issuers.Superseded)
			if n := g.requests(http.MethodPost, "/token"); n != 0 {
				t.Errorf("hazard 8: the older leader asked for %d tokens", n)
			}
			if left := f.objects(l); len(left) > 0 {
				t.Errorf("the older leader left %v", left)
			}
		})
	}
}

// Where there is no newer leader, the deadline alone stops a mint; what its stuck
// request leaves opens nothing, is listed, and is withdrawn.
func TestHazard8KubernetesMintPastItsDeadlineAsksForNoToken(t *testing.T) {
	f := newFixture(t, shared)
	slow, g := newGate(t, f, http.MethodPost, "/secrets")
	is := slow.open(1)
	l, like := lease(rules("get", "configmaps", "shop/*")), lease(rules("get", "configmaps", "shop/*"))
	direct := f.open(1)
	ample := issuertest.Ample(func() { f.mint(direct, like) })
	f.withdraw(direct, like)
	l.MintDeadline = time.Now().Add(ample)
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Unknown)
	g.release()
	if status := g.answer(t); status != http.StatusCreated {
		t.Fatalf("the anchor was answered %d", status)
	}
	found, err := is.List(t.Context())
	if err != nil || len(found) != 1 || found[0] != (issuers.Found{Name: l.Name, LeaseID: l.ID, Generation: 1}) {
		t.Errorf("List shows %+v, %v", found, err)
	}
	if n := g.requests(http.MethodPost, "/token"); n != 0 {
		t.Errorf("hazard 8: %d tokens were asked for past the deadline", n)
	}
	f.withdraw(is, l)
	if left := f.objects(l); len(left) > 0 {
		t.Errorf("left of the lease: %v", left)
	}
}

// The fence only rises, and an older leader's mints stop at it.
func TestHazard8KubernetesFenceStopsOlderTerms(t *testing.T) {
	f := newFixture(t, shared)
	old, successor := f.open(3), f.open(7)
	kept := lease(tokenFor("shop/deployer"))
	c := f.mint(old, kept)
	for _, is := range []*kubernetes.Issuer{old, successor, successor} {
		if err := is.Fence(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l := lease(rules("get", "configmaps", "shop/*"))
	_, err := old.Mint(t.Context(), l)
	wantKind(t, err, issuers.Superseded)
	wantKind(t, old.Fence(t.Context()), issuers.Superseded)
	if left := f.objects(l); len(left) > 0 {
		t.Errorf("the older leader left %v", left)
	}
	if status := f.try(c, http.MethodGet, "/api/v1/namespaces/shop/configmaps/settings", nil); status != 200 {
		t.Errorf("a lease that nobody withdrew is answered %d", status)
	}
	f.withdraw(successor, kept)
}

// A fence that somebody else wrote is no fence.
func TestHazard8KubernetesForeignFenceIsNotHeeded(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(5)
	if err := is.Fence(t.Context()); err != nil {
		t.Fatal(err)
	}
	const path = "/api/v1/namespaces/mayfly/configmaps"
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
		}
	}
	id := f.targetID(is)
	f.admin(http.MethodGet, path+"?labelSelector=mayfly-broker.github.io/target%3D"+id, nil, &list)
	if len(list.Items) != 1 {
		t.Fatalf("%d fences", len(list.Items))
	}
	forged := map[string]any{"metadata": map[string]any{"annotations": map[string]string{"mayfly-broker.github.io/term": "99"}}}
	f.admin(http.MethodPatch, path+"/"+list.Items[0].Metadata.Name, forged, nil)
	wantKind(t, is.Fence(t.Context()), issuers.Foreign)
	_, err := is.Mint(t.Context(), lease(tokenFor("shop/deployer")))
	wantKind(t, err, issuers.Foreign)
}

// targetID is the label of a target's objects.
func (f *fixture) targetID(is issuers.Issuer) string {
	f.t.Helper()
	l := lease(tokenFor("shop/deployer"))
	f.mint(is, l)
	var anchor struct {
		Metadata struct{ Labels map[string]string }
	}
	f.admin(http.MethodGet, "/api/v1/namespaces/shop/secrets/"+l.Name, nil, &anchor)
	f.withdraw(is, l)
	return anchor.Metadata.Labels["mayfly-broker.github.io/target"]
}

// A deposed leader's late re-mint takes nothing from the newer generation.
func TestHazard9KubernetesOlderTermDoesNotReplace(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, shared)
			old, successor := f.open(1), f.open(2)
			l := form()
			newer := issuertest.Regenerate(kubernetes.Kind{}, l)
			c := f.mint(successor, newer)
			for _, late := range []issuers.Lease{l, newer, issuertest.Regenerate(kubernetes.Kind{}, newer)} {
				_, err := old.Mint(t.Context(), late)
				wantKind(t, err, issuers.Superseded)
			}
			wantKind(t, successor.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Superseded)
			if status := f.try(c, http.MethodGet, "/api/v1/namespaces/shop/configmaps/settings", nil); status != 200 {
				t.Errorf("the newer generation is answered %d", status)
			}
			f.withdraw(successor, newer)
		})
	}
}

// Nor does the late withdrawal of an older generation, where both were minted.
func TestHazard9KubernetesOlderWithdrawalDoesNotReach(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	for name, form := range forms {
		l := form()
		older := f.mint(is, l)
		next := issuertest.Regenerate(kubernetes.Kind{}, l)
		c := f.mint(is, next)
		wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Superseded)
		if status := f.try(c, http.MethodGet, "/api/v1/namespaces/shop/configmaps/settings", nil); status != 200 {
			t.Errorf("%s: the newer generation is answered %d", name, status)
		}
		if status := f.try(older, http.MethodGet, "/api/v1/namespaces/shop/configmaps/settings", nil); status != http.StatusUnauthorized {
			t.Errorf("%s: the older generation is answered %d", name, status)
		}
		f.withdraw(is, next)
	}
}

// What an older leader still has on its way names the uid that it has seen: a
// request for a token, and a deletion, do nothing to the anchor of a newer
// generation, which has the same name.
func TestHazard9KubernetesLateRequestsMeetTheNewerAnchor(t *testing.T) {
	const settings = "/api/v1/namespaces/shop/configmaps/settings"
	for what, x := range map[string]struct {
		method, suffix string
		late           func(ctx context.Context, is issuers.Issuer, l issuers.Lease)
	}{
		"a request for a token": {http.MethodPost, "/token", func(ctx context.Context, is issuers.Issuer, l issuers.Lease) { _, _ = is.Mint(ctx, l) }},
		"a deletion":            {http.MethodDelete, "", func(ctx context.Context, is issuers.Issuer, l issuers.Lease) { is.Withdraw(ctx, []issuers.Lease{l}) }},
	} {
		f := newFixture(t, shared)
		l := lease(tokenFor("shop/deployer"))
		if x.suffix == "" {
			x.suffix = "/secrets/" + l.Name
			f.mint(f.open(1), l)
		}
		slow, g := newGate(t, f, x.method, x.suffix)
		old, successor := slow.open(1), f.open(2)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { x.late(ctx, old, l) })
		g.waitHeld(t)
		next := issuertest.Regenerate(kubernetes.Kind{}, l)
		c := f.mint(successor, next)
		cancel() // the older leader is dead; what it sent is not
		g.release()
		if status := g.answer(t); status != http.StatusConflict {
			t.Errorf("hazard 9: %s that came late was answered %d", what, status)
		}
		wg.Wait()
		if status := f.try(c, http.MethodGet, settings, nil); status != 200 {
			t.Errorf("hazard 9: after %s that came late, the newer generation is answered %d", what, status)
		}
		f.withdraw(successor, next)
	}
}

// Objects of our names without our mark are left alone, whoever made them; so are
// those of another target on the same cluster.
func TestHazard16KubernetesForeignObjectsAreLeftAlone(t *testing.T) {
	f, other := newFixture(t, shared), newFixture(t, shared)
	is, theirs := f.open(1), other.open(1)
	const rbac = "/apis/rbac.authorization.k8s.io/v1"
	view := map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
	for path, body := range map[string]map[string]any{
		"/api/v1/namespaces/mayfly/secrets":         {},
		"/api/v1/namespaces/mayfly/serviceaccounts": {},
		rbac + "/namespaces/shop/roles":             {"rules": []any{}},
		rbac + "/namespaces/shop/rolebindings":      {"roleRef": view, "subjects": []any{}},
	} {
		l := lease(rules("get", "configmaps", "shop/*"))
		labels := map[string]string{"app.kubernetes.io/managed-by": "mayfly", "mayfly-broker.github.io/lease": l.ID}
		body["metadata"] = map[string]any{"name": l.Name, "labels": labels, "annotations": map[string]string{"mayfly-broker.github.io/generation": "1", "mayfly-broker.github.io/term": "1"}}
		f.admin(http.MethodPost, path, body, nil)
		_, err := is.Mint(t.Context(), l)
		wantKind(t, err, issuers.Foreign)
		wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err, issuers.Foreign)
		if left := f.objects(l); len(left) != 1 || !strings.HasPrefix(path, "/api") {
			t.Errorf("%s: after a mint and a withdrawal there is %v; want the foreign object alone", path, left)
		}
		f.admin(http.MethodDelete, path+"/"+l.Name, nil, nil)
	}
	m := lease(tokenFor("shop/deployer"))
	c := other.mint(theirs, m)
	_, err := is.Mint(t.Context(), m)
	wantKind(t, err, issuers.Foreign)
	wantKind(t, is.Withdraw(t.Context(), []issuers.Lease{m})[0].Err, issuers.Foreign)
	if found, err := is.List(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("List claims %+v, %v", found, err)
	}
	if status := f.try(c, http.MethodGet, "/api/v1/namespaces/shop/configmaps/settings", nil); status != 200 {
		t.Errorf("the other target's lease is answered %d", status)
	}
	other.withdraw(theirs, m)
}

// A mark is good for its own place alone: copied to another object it is none.
func TestHazard16KubernetesCopiedMarkIsForeign(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l, m := lease(tokenFor("shop/deployer")), lease(tokenFor("shop/deployer"))
	f.mint(is, l)
	var anchor struct {
		Metadata struct{ Labels, Annotations map[string]string }
	}
	f.admin(http.MethodGet, "/api/v1/namespaces/shop/secrets/"+l.Name, nil, &anchor)
	f.admin(http.MethodPost, "/api/v1/namespaces/shop/secrets", map[string]any{
		"metadata": map[string]any{"name": m.Name, "labels": anchor.Metadata.Labels, "annotations": anchor.Metadata.Annotations},
	}, nil)
	_, err := is.Mint(t.Context(), m)
	wantKind(t, err, issuers.Foreign)
	f.admin(http.MethodDelete, "/api/v1/namespaces/shop/secrets/"+m.Name, nil, nil)
	f.withdraw(is, l)
}

// A finalizer holds one lease and no other, and what gives rights goes all the
// same.
func TestHazard12KubernetesFinalizerIsPoison(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	for name, form := range forms {
		l, next := form(), form()
		f.mint(is, l)
		f.mint(is, next)
		at := map[string]string{"made": "mayfly", "existing": "shop"}[name]
		free, err := f.hold(t.Context(), "/api/v1/namespaces/"+at+"/secrets/"+l.Name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = free() })
		out := is.Withdraw(t.Context(), []issuers.Lease{l, next})
		wantKind(t, out[0].Err, issuers.Poison)
		if out[1].Err != nil || !strings.Contains(out[0].Err.Error(), "example.com/hold") {
			t.Errorf("%+v", out)
		}
		if left := f.objects(l); len(left) != 1 {
			t.Errorf("besides the anchor there is left %v", left)
		}
		// nor is a held anchor taken for one that a token can be bound to
		_, err = is.Mint(t.Context(), issuertest.Regenerate(kubernetes.Kind{}, shortly(l)))
		wantKind(t, err, issuers.Unknown)
		if err := free(); err != nil {
			t.Fatal(err)
		}
		f.withdraw(is, l)
	}
}

// shortly is a lease that must be minted within two seconds.
func shortly(l issuers.Lease) issuers.Lease {
	l.NotAfter = time.Now().Add(2 * time.Second)
	return l
}
