package harness

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/servertest"
	"github.com/mayfly-broker/mayfly/issuers/github/githubtest"
)

// gitHub is a stand-in for GitHub behind a door, as a [Server].
type gitHub struct {
	*servertest.Door
	github *githubtest.StandIn
}

func startGitHub(context.Context) (Server, error) {
	g, err := githubtest.New()
	if err != nil {
		return nil, err
	}
	door, err := doorBefore(g.URL)
	if err != nil {
		g.Close()
		return nil, err
	}
	return gitHub{door, g}, nil
}

// doorBefore is a door before the server at a URL.
func doorBefore(at string) (*servertest.Door, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	return servertest.NewDoor(u.Host)
}

// Close ends both.
func (g gitHub) Close() error {
	err := g.Door.Close()
	g.github.Close()
	return err
}

// Add lets the broker in as the App.
func (g gitHub) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	ca := filepath.Join(dir, target+"-ca.pem")
	if err := os.WriteFile(ca, []byte(g.github.CA), 0o600); err != nil {
		t.Fatal(err)
	}
	addTarget(t, admin, dir, g.github.Key, "github", "https://"+g.Address+"/api/v3", "--name", target, "--tls-ca-file", ca,
		"--set", "client_id="+githubtest.ClientID, "--set", "owner="+githubtest.Owner, "--set", `repositories=["`+githubtest.Owner+`/orders"]`)
	return target + "/readonly"
}

// Name is empty: a token says nothing of a lease.
func (g gitHub) Name(map[string]string) string { return "" }

// Login reads a file of the repository.
func (g gitHub) Login(_ context.Context, credential map[string]string) error {
	return g.github.Read(credential["token"], "orders")
}

// Ours is nothing, since GitHub has no list of tokens. [gitHub.Contradicts] looks
// into the stand-in's own.
func (g gitHub) Ours(context.Context) ([]string, error) { return nil, nil }

// stuckAtGitHub: only the process that minted a token can revoke it, and what is
// lost with it ends after an hour. Its lease must not end before, and must say so.
func stuckAtGitHub(l wire.Lease) bool {
	return l.State == "ending" && strings.Contains(l.Problem, "GitHub ends it by itself, at ")
}

// Contradicts implements [Witness]. A token that is accepted belongs to a lease that
// says so. Of one that nobody received the stand-in was told no name: so such tokens
// are counted, and there must be as many mints of such leases.
func (g gitHub) Contradicts(leases []wire.Lease, given []Given) (out []string) {
	stuck, mints := map[string]bool{}, 0
	for _, l := range leases {
		if stuckAtGitHub(l) {
			stuck[l.ID] = true
			mints += int(l.Generation)
		}
	}
	holder := map[string]string{}
	for _, x := range given {
		holder[x.Credential["token"]] = x.Lease
	}
	accepted := g.github.Accepted()
	unreceived := 0
	for _, token := range accepted {
		lease, received := holder[token]
		switch {
		case !received:
			unreceived++
		case !stuck[lease]:
			out = append(out, "the token of "+lease+" is accepted")
		default:
			mints--
		}
	}
	if unreceived > mints {
		out = append(out, fmt.Sprintf("%d tokens that nobody received are accepted; the ledger knows of %d", unreceived, mints))
	}
	return out
}

var _ Witness = gitHub{}
