package harness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
)

// apart is the part of a [Server] of which the broker knows nothing: it cannot be
// away.
type apart struct{}

var errApart = errors.New("the broker does not connect to it: it cannot be away")

// Stop implements [Server].
func (apart) Stop() error { return errApart }

// Kill implements [Server].
func (apart) Kill() error { return errApart }

// StartAgain implements [Server].
func (apart) StartAgain(context.Context) error { return errApart }

// Signal implements [Server].
func (apart) Signal(syscall.Signal) error { return errApart }

// Close implements [Server].
func (apart) Close() error { return nil }

// public fetches what one target publishes, as a verifier does: without a session,
// from whichever node answers.
type public struct {
	nodes  []string
	target string
	http   *http.Client
}

const (
	fetchTimeout = 5 * time.Second
	maxPublic    = 16 << 20
)

func newPublic(t testing.TB, admin CLI, target string) *public {
	t.Helper()
	ca, err := os.ReadFile(admin.Getenv("MAYFLY_CACERT"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("MAYFLY_CACERT holds no certificate")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	return &public{client.SplitAddresses(admin.Getenv("MAYFLY_ADDR")), target, &http.Client{Transport: transport, Timeout: fetchTimeout}}
}

// fetch returns a document from the first node that has it; its errors are those
// of all.
func (p *public) fetch(ctx context.Context, document string) ([]byte, error) {
	var all error
	for _, node := range p.nodes {
		body, err := p.from(ctx, node, document)
		if err == nil {
			return body, nil
		}
		all = errors.Join(all, err)
	}
	return nil, all
}

func (p *public) from(ctx context.Context, node, document string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(node, "/")+"/api/v1/public/targets/"+p.target+"/"+document, nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPublic))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d: %.200s", document, resp.StatusCode, body)
	}
	return body, err
}

// must is fetch for the beginning of a test.
func (p *public) must(t testing.TB, document string) []byte {
	t.Helper()
	var body []byte
	Within(t, electionTimeout, p.target+" publishes "+document, func() (err error) {
		body, err = p.fetch(t.Context(), document)
		return err
	})
	return body
}

// unchanged says whether a target still publishes what it did: its keys are in the
// ledger, and survive any node. What is new is returned as something that is left.
func (p *public) unchanged(ctx context.Context, document string, before []byte) ([]string, error) {
	now, err := p.fetch(ctx, document)
	if err != nil || string(now) == string(before) {
		return nil, err
	}
	return []string{document + " is another one than when the target was written"}, nil
}
