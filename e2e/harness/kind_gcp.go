package harness

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/servertest"
	"github.com/mayfly-broker/mayfly/issuers/gcp/gcptest"
)

// google is a stand-in for Google's token services behind a door, as a [Server].
type google struct {
	*servertest.Door
	google *gcptest.StandIn
	close  func()
}

func startGoogle(context.Context) (Server, error) {
	g, stop, err := gcptest.New()
	if err != nil {
		return nil, err
	}
	door, err := doorBefore(g.URL)
	if err != nil {
		stop()
		return nil, err
	}
	return google{door, g, stop}, nil
}

// Close ends both.
func (g google) Close() error {
	err := g.Door.Close()
	g.close()
	return err
}

// Add has the provider take the target's identity.
func (g google) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	ca, at := filepath.Join(dir, target+"-ca.pem"), "https://"+g.Address
	if err := os.WriteFile(ca, []byte(g.google.CAPEM), 0o600); err != nil {
		t.Fatal(err)
	}
	admin.Must(t, "target", "add", "gcp", "--name", target, "--tls-ca-file", ca, "--set", "service_account="+gcptest.Account, "--set", "provider="+gcptest.Provider,
		"--set", "sts_endpoint="+at, "--set", "iam_endpoint="+at, "--set", `resources=["gs://orders/*"]`)
	issuer, keys := identityOf(t, admin, target)
	g.google.Trusted.Name(issuer, "target:"+target)
	if err := g.google.Trusted.Learn(keys); err != nil {
		t.Fatal(err)
	}
	return target + "/readonly"
}

// identityOf fetches what clouds fetch of a target that is an identity provider.
func identityOf(t testing.TB, admin CLI, target string) (issuer string, keys []byte) {
	t.Helper()
	p := newPublic(t, admin, target)
	var discovery struct{ Issuer string }
	if err := json.Unmarshal(p.must(t, ".well-known/openid-configuration"), &discovery); err != nil {
		t.Fatal(err)
	}
	return discovery.Issuer, p.must(t, "jwks.json")
}

// identified is the name in an identity token.
func identified(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", errors.New("it was made for no identity token")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", err
	}
	var claims struct {
		ID string `json:"jti"`
	}
	return claims.ID, json.Unmarshal(raw, &claims)
}

// Name stands in the identity token that a token began with.
func (g google) Name(credential map[string]string) string {
	name, err := identified(g.google.Identity(credential["access_token"]))
	if err != nil {
		return err.Error()
	}
	return name
}

// Login reads an object.
func (g google) Login(_ context.Context, credential map[string]string) error {
	if !g.google.Allowed(credential["access_token"], "get", "orders", "2026/a.txt") {
		return errors.New("Google refuses it")
	}
	return nil
}

// Ours is nothing, since Google has no list of tokens. [google.Contradicts] looks
// into the stand-in's own.
func (g google) Ours(context.Context) ([]string, error) { return nil, nil }

// Contradicts implements [Witness]: each token that was ever made, also if nobody
// received it, was made for a lease, and ends with it. An account's token alone may
// end later, if Google was asked for it long before it answered: then it must have
// gone no further, and no narrowed token was made of it.
func (g google) Contradicts(leases []wire.Lease, _ []Given) (out []string) {
	known := byName(leases)
	made := g.google.Made()
	narrowed := map[string]bool{}
	for _, token := range made {
		narrowed[token.Identity] = narrowed[token.Identity] || token.Kind == "narrowed"
	}
	for _, token := range made {
		name, err := identified(token.Identity)
		if err != nil {
			out = append(out, fmt.Sprintf("a %s token: %v", token.Kind, err))
			continue
		}
		l, ok := known[generations(name)]
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("a %s token was made for %s, which no lease is called", token.Kind, name))
		case token.Expires.After(l.ExpiresAt) && narrowed[token.Identity]:
			out = append(out, fmt.Sprintf("a %s token for %s ends %s after its lease", token.Kind, name, token.Expires.Sub(l.ExpiresAt).Round(time.Millisecond)))
		}
	}
	return out
}

// byName finds leases by their names without the generation.
func byName(leases []wire.Lease) map[string]wire.Lease {
	out := map[string]wire.Lease{}
	for _, l := range leases {
		out[generations(l.Username)] = l
	}
	return out
}

// generations is what the names of one lease have in common: all before the number
// at the end.
func generations(name string) string {
	return name[:max(0, strings.LastIndexByte(name, '-'))]
}

var _ Witness = google{}
