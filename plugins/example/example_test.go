package main

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/plugins/example/htpasswd"
	"github.com/mayfly-broker/mayfly/plugins/sdk/plugintest"
	"github.com/mayfly-broker/mayfly/scope"
)

func realms(names ...string) scope.Scope {
	return scope.Scope{{Type: "htpasswd", Actions: []string{"login"}, Locations: names}}
}

// harness is the kind on a real nginx.
func harness(t *testing.T, kind issuers.Kind) issuertest.Harness {
	t.Helper()
	s := startSite(t)
	spec, err := json.Marshal(map[string]any{"realms": s.files})
	if err != nil {
		t.Fatal(err)
	}
	h := issuertest.Harness{
		Kind:         kind,
		Target:       issuers.Target{Name: "site", Spec: spec},
		Scope:        realms("intranet", "wiki"),
		Narrower:     realms("intranet"),
		Accepted:     []scope.Scope{realms(), append(realms("wiki"), realms("intranet")...)},
		Invalid:      []scope.Scope{realms("cellar"), realms("intra*"), realms("*"), {{Type: "htpasswd", Actions: []string{"login"}, Identifier: "x"}}},
		Use:          s.enter,
		Gone:         s.gone,
		Intact:       s.intact,
		RefusesOlder: true,
		Unreachable:  json.RawMessage(`{"realms":{"intranet":"/nonexistent/intranet","wiki":"/nonexistent/wiki"}}`),
	}
	for _, text := range issuertest.HostileStrings() {
		h.Hostile = append(h.Hostile, realms(text))
	}
	return h
}

// TestConformance is what an author runs: the built plugin, in a process of its
// own, against the real nginx.
func TestConformance(t *testing.T) {
	plugintest.Run(t, plugintest.Build(t, "."), harness(t, htpasswd.Kind{}))
}

// TestEndedIsPublished: by the built plugin, to whoever works with a copy of a file.
func TestEndedIsPublished(t *testing.T) {
	p := plugintest.Start(t, plugintest.Build(t, "."), "htpasswd")
	i, err := p.Kind.Open(issuers.Target{Name: "site", Spec: json.RawMessage(`{"realms":{"intranet":"/nonexistent/intranet"}}`)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = i.Close() }()
	lease := issuertest.NewLease(p.Kind, realms())
	docs, err := i.(issuers.RevocationPublisher).PublishRevoked(t.Context(), slices.Values([]issuers.Lease{lease}))
	if err != nil || string(docs["ended"]) != lease.Name+"\n" {
		t.Errorf("published: %q, %v", docs, err)
	}
}

// TestConformanceInProcess: what holds of the plugin holds of the kind by itself.
func TestConformanceInProcess(t *testing.T) {
	issuertest.Run(t, harness(t, htpasswd.Kind{}))
}
