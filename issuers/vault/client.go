package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/mayfly-broker/mayfly/secret"
)

// Limits of the conversation with Vault.
const (
	// maxAnswer bounds every answer; a list of tokens is the longest.
	maxAnswer    = 16 << 20
	dialTimeout  = 5 * time.Second
	callTimeout  = 15 * time.Second // of what Vault answers by itself
	slowTimeout  = 45 * time.Second // of what Vault does on a system behind it
	idleTimeout  = 30 * time.Second
	upkeepConns  = 2 * endLanes // to each server, beside those for mints (HAZARDS 17)
	maxCAFile    = 256 << 10
	maxLoginFile = 64 << 10
)

// fleet is the servers of one Vault: any of them answers for all.
type fleet struct {
	hosts   []*api.Logical
	first   atomic.Int32 // the host that answered last
	mints   *http.Transport
	upkeep  *http.Transport // withdrawals and all else: mints that wait on Vault take none of it
	closed  atomic.Bool
	secrets string // namespace of what leases read; tokens are the root namespace's
}

// request is one call's own part: what must not be kept in the library's client,
// which all calls share.
type request struct {
	token     secret.Text
	namespace string
	upkeep    bool
	sent      atomic.Bool
}

type (
	requestKey struct{}
	laneKey    struct{}
)

// upkeep has a context's calls take the connections that mints never take.
func upkeep(ctx context.Context) context.Context { return context.WithValue(ctx, laneKey{}, true) }

func newFleet(sp spec, secrets map[string]secret.Text) (*fleet, error) {
	config, err := tlsConfig(sp, secrets[SecretClientKey])
	if err != nil {
		return nil, err
	}
	f := &fleet{secrets: sp.Namespace, mints: pool(config, sp.MaxConns), upkeep: pool(config.Clone(), upkeepConns)}
	for _, seed := range sp.seeds {
		c, err := f.client(seed)
		if err != nil {
			return nil, fmt.Errorf("vault: %s: %w", seed, err)
		}
		f.hosts = append(f.hosts, c.Logical())
	}
	return f, nil
}

func pool(config *tls.Config, conns int) *http.Transport {
	return &http.Transport{
		Proxy:               nil, // the environment's proxy would see where secrets come from
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: dialTimeout,
		MaxConnsPerHost:     conns,
		MaxIdleConnsPerHost: conns,
		IdleConnTimeout:     idleTimeout,
	}
}

// client makes the library's client of one server, and takes back whatever the
// library took from the broker's environment: VAULT_TOKEN, VAULT_NAMESPACE,
// VAULT_HEADERS. The other variables are read into a configuration that is not
// used; one that cannot be read is still an error.
func (f *fleet) client(address string) (*api.Client, error) {
	c, err := api.NewClient(&api.Config{
		Address:          address,
		HttpClient:       &http.Client{Transport: f, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		MaxRetries:       0, // a mint that is tried again is the broker's to decide
		DisableRedirects: true,
	})
	if err != nil {
		return nil, err
	}
	c.ClearToken()
	c.ClearNamespace()
	c.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	c.SetWrappingLookupFunc(func(string, string) string { return "" })
	return c, nil
}

func tlsConfig(sp spec, key secret.Text) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: sp.TLS.ServerName}
	bundle := sp.TLS.CA
	if sp.TLS.CAFile != "" {
		b, err := readBounded(sp.TLS.CAFile, maxCAFile)
		if err != nil {
			return nil, fmt.Errorf("vault: tls.ca_file: %w", err)
		}
		bundle = string(b)
	}
	if bundle != "" {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM([]byte(bundle)) {
			return nil, errors.New("vault: tls.ca holds no certificate in PEM")
		}
	}
	if sp.TLS.ClientCert != "" {
		pair, err := tls.X509KeyPair([]byte(sp.TLS.ClientCert), []byte(key.Reveal()))
		if err != nil { // its text may quote neither, but need not
			return nil, errors.New("vault: tls.client_cert and its secret tls.client_key are no pair in PEM")
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func readBounded(path string, most int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	return b, err
}

// Errors of the road to Vault, before an answer of its own.
var (
	errRedirect = errors.New("the server is a standby that sends its clients elsewhere; let standbys forward requests, or name the active server")
	errTooLong  = fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	errClosed   = errors.New("the target is closed")
)

// RoundTrip implements [http.RoundTripper] for the library's clients. It gives the
// request its token, notes whether anything was sent, and bounds the answer.
func (f *fleet) RoundTrip(r *http.Request) (*http.Response, error) {
	if f.closed.Load() {
		return nil, errClosed
	}
	own, ok := r.Context().Value(requestKey{}).(*request)
	if !ok {
		return nil, errors.New("a request that nobody here made")
	}
	trace := &httptrace.ClientTrace{WroteHeaders: func() { own.sent.Store(true) }}
	r = r.Clone(httptrace.WithClientTrace(r.Context(), trace))
	if !own.token.IsZero() {
		r.Header.Set("X-Vault-Token", own.token.Reveal())
	}
	if own.namespace != "" {
		r.Header.Set("X-Vault-Namespace", own.namespace)
	}
	if r.Body == nil || r.Body == http.NoBody {
		r.Body = io.NopCloser(noBody{}) // or the transport would read a secret a second time by itself
	}
	r.GetBody = nil
	lane := f.mints
	if own.upkeep {
		lane = f.upkeep
	}
	resp, err := lane.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		_ = resp.Body.Close()
		return nil, errRedirect
	}
	resp.Body = &boundedBody{inner: resp.Body, left: maxAnswer}
	return resp, nil
}

type noBody struct{}

func (noBody) Read([]byte) (int, error) { return 0, io.EOF }

// boundedBody fails rather than ending early: half an answer is none.
type boundedBody struct {
	inner io.ReadCloser
	left  int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.inner.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

func (b *boundedBody) Close() error { return b.inner.Close() }

// op is one call of Vault's API.
type op struct {
	method    string // http.MethodGet, http.MethodPut, or "LIST"
	path      string
	query     url.Values
	body      map[string]any
	token     secret.Text
	namespace string
	timeout   time.Duration // callTimeout when 0
}

// call asks Vault. Of several servers the next is asked where one cannot be
// reached or says that it does not serve now: then nothing was done. The error is
// a *failure. A 404 without an answer is no error, and no secret.
func (f *fleet) call(ctx context.Context, o op) (*api.Secret, error) {
	if o.timeout == 0 {
		o.timeout = callTimeout
	}
	var last *failure
	first := int(f.first.Load())
	for i := range f.hosts {
		n := (first + i) % len(f.hosts)
		s, err := f.ask(ctx, f.hosts[n], o)
		if err == nil {
			f.first.Store(int32(n))
			return s, nil
		}
		last = err
		if !err.nothingDone() || ctx.Err() != nil {
			f.first.Store(int32(n))
			break
		}
	}
	return nil, last
}

func (f *fleet) ask(ctx context.Context, host *api.Logical, o op) (s *api.Secret, failed *failure) {
	own := &request{token: o.token, namespace: o.namespace}
	own.upkeep, _ = ctx.Value(laneKey{}).(bool)
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, requestKey{}, own), o.timeout)
	defer cancel()
	var err error
	switch o.method {
	case http.MethodGet:
		s, err = host.ReadWithDataWithContext(ctx, o.path, o.query)
	case "LIST":
		s, err = host.ListWithContext(ctx, o.path)
	default:
		s, err = host.WriteWithContext(ctx, o.path, o.body)
	}
	if err != nil {
		return nil, newFailure(o, own, err)
	}
	return s, nil
}

func (f *fleet) close() {
	f.closed.Store(true)
	f.mints.CloseIdleConnections()
	f.upkeep.CloseIdleConnections()
}
