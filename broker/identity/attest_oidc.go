package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

const discoveryPath = "/.well-known/openid-configuration"

// newOIDC attests by JWTs of an issuer that publishes its keys (OpenID Connect
// Discovery §4; RFC 8414 §3).
func newOIDC(m Method, deps Deps) (Attestor, error) {
	d, err := newDiscovery(m, deps)
	if err != nil {
		return nil, err
	}
	return &tokenAttestor{method: m, keys: newKeyCache(d.fetch), types: idTokenTypes}, nil
}

func newDiscovery(m Method, deps Deps) (*discovery, error) {
	if deps.HTTP == nil {
		return nil, unusable(m, "there is no HTTP client for discovery")
	}
	client, err := boundedClient(m, deps)
	if err != nil {
		return nil, err
	}
	d := &discovery{issuer: m.Issuer, client: client, timeout: deps.FetchTimeout}
	if d.timeout <= 0 {
		d.timeout = fetchTimeout
	}
	return d, nil
}

// boundedClient is the given client with redirects off, bounded headers, and
// the method's own roots where it has some (a cluster's issuer has its own CA).
func boundedClient(m Method, deps Deps) (*http.Client, error) {
	client := *deps.HTTP
	client.Jar = nil
	// An issuer that sends us elsewhere is not the issuer; ErrUseLastResponse
	// makes the redirect an answer that is not 200.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	roots, err := rootsOf(m, deps)
	if err != nil {
		return nil, err
	}
	base := client.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	plain, ok := base.(*http.Transport)
	if !ok {
		if len(roots) > 0 {
			return nil, unusable(m, "its ca needs an HTTP client with a plain transport")
		}
		return &client, nil
	}
	transport := plain.Clone()
	transport.MaxResponseHeaderBytes = maxDiscovery
	// Fetches are minutes apart; an idle connection would only be one more
	// thing to close.
	transport.DisableKeepAlives = true
	if len(roots) > 0 {
		if transport.TLSClientConfig == nil {
			transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		transport.TLSClientConfig.RootCAs = pool(roots)
	}
	client.Transport = transport
	return &client, nil
}

// rootsOf returns the method's CA certificates, inline or from its file.
func rootsOf(m Method, deps Deps) ([]*x509.Certificate, error) {
	if m.rootFile == "" {
		return m.roots, nil
	}
	if deps.ReadFile == nil {
		return nil, unusable(m, "ca_file is not read here; give ca inline")
	}
	data, err := deps.ReadFile(m.rootFile)
	if err != nil {
		return nil, unusable(m, "its ca_file cannot be read")
	}
	roots, err := parseRoots(data)
	if err != nil {
		return nil, unusable(m, "in its ca_file, "+err.Error())
	}
	return append(roots, m.roots...), nil
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// discovery fetches an issuer's keys, and keeps the document that led to them.
type discovery struct {
	issuer  string
	client  *http.Client
	timeout time.Duration
	latest  atomic.Pointer[object] // nil before the first success
}

// fetch reads the discovery document and the keys it points to.
func (d *discovery) fetch(ctx context.Context) ([]verificationKey, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	body, err := d.get(ctx, strings.TrimSuffix(d.issuer, "/")+discoveryPath, maxDiscovery)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	doc, err := decodeObject(body, maxClaimDepth, maxClaims)
	if err != nil {
		return nil, fmt.Errorf("discovery document: %w", err)
	}
	if doc["issuer"] != d.issuer {
		return nil, errors.New("discovery document: it is another issuer's")
	}
	where, err := doc.text("jwks_uri")
	if err != nil {
		return nil, fmt.Errorf("discovery document: %w", err)
	}
	if _, err := parseEndpoint(where); err != nil {
		return nil, fmt.Errorf("discovery document: jwks_uri: %w", err)
	}
	if body, err = d.get(ctx, where, maxKeySet); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	set, err := parseKeySet(body, false)
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if len(set.keys) == 0 {
		return nil, errors.New("keys: none that can verify a token")
	}
	d.latest.Store(&doc)
	return set.keys, nil
}

// get reads at most limit bytes of a 200 answer.
func (d *discovery) get(ctx context.Context, url string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	status, body, err := d.do(req, limit)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("the answer is %d, not 200", status)
	}
	return body, nil
}

// do sends a request and reads an answer of at most limit bytes.
func (d *discovery) do(req *http.Request, limit int64) (status int, body []byte, err error) {
	req.Header.Set("Accept", "application/json")
	resp, err := d.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return 0, nil, err
	}
	if int64(len(body)) > limit {
		return 0, nil, fmt.Errorf("the answer is longer than %d bytes", limit)
	}
	return resp.StatusCode, body, nil
}
