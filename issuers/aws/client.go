package aws

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
	"os"
	"sync/atomic"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/mayfly-broker/mayfly/secret"
)

// Bounds of what is asked and answered.
const (
	maxConnections = 16
	dialTimeout    = 5 * time.Second
	callTimeout    = 20 * time.Second // besides the mint deadline; STS answers within one
	maxAnswerBytes = 64 << 10         // a session's token takes about 1 KiB
	idleTimeout    = time.Minute
)

// client asks one STS. It knows no credentials but those of the target: the SDK's
// ambient chain (environment, files, instance metadata) is in another package,
// which is not imported.
type client struct {
	sts  *sts.Client
	http *http.Client
}

func newClient(sp spec, key secret.Text) (*client, error) {
	hc, err := newHTTP(sp)
	if err != nil {
		return nil, err
	}
	o := sts.Options{
		Region: sp.Region, HTTPClient: hc,
		// One attempt: whether anything was sent, and by when, is ours to say.
		Retryer: sdk.NopRetryer{}, RetryMaxAttempts: 1,
		Credentials: sdk.AnonymousCredentials{},
	}
	if sp.Way != wayWebIdentity {
		o.Credentials = static(sdk.Credentials{AccessKeyID: sp.Admin.Username, SecretAccessKey: key.Reveal()})
	}
	if sp.Endpoint != "" {
		o.BaseEndpoint = sdk.String(sp.Endpoint)
	}
	if sp.FIPS {
		o.EndpointOptions.UseFIPSEndpoint = sdk.FIPSEndpointStateEnabled
	}
	return &client{sts: sts.New(o), http: hc}, nil
}

func static(c sdk.Credentials) sdk.CredentialsProvider {
	return sdk.CredentialsProviderFunc(func(context.Context) (sdk.Credentials, error) { return c, nil })
}

// newHTTP makes the client that all requests go through. A proxy of the node's
// environment is used as everywhere: it forwards TLS and sees no secret.
func newHTTP(sp spec) (*http.Client, error) {
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if sp.TLS != (tlsSpec{}) {
		roots, err := rootsOf(sp.TLS)
		if err != nil {
			return nil, err
		}
		trust.RootCAs = roots // and no longer the system's
	}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        trust,
		TLSHandshakeTimeout:    dialTimeout,
		MaxConnsPerHost:        maxConnections,
		MaxIdleConnsPerHost:    maxConnections,
		IdleConnTimeout:        idleTimeout,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: maxAnswerBytes,
	}
	return &http.Client{
		Transport: watched{t},
		// A signed request, or a token, is for the one it was made for.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

func rootsOf(t tlsSpec) (*x509.CertPool, error) {
	pem := []byte(t.CA)
	if t.CAFile != "" {
		var err error
		if pem, err = os.ReadFile(t.CAFile); err != nil {
			return nil, fmt.Errorf("aws: tls.ca_file: %w", err)
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("aws: tls: no certificate can be read from the CA's PEM")
	}
	return pool, nil
}

// journey is what became of one request on the wire.
type journey struct {
	sent atomic.Bool // a connection stood, and bytes may have left
	// ahead is how far the answering clock is ahead of ours, give or take unsure;
	// valid once dated.
	ahead, unsure time.Duration
	dated         bool
}

type journeyKey struct{}

// travel returns a context that reports on the request made with it.
func travel(ctx context.Context) (context.Context, *journey) {
	j := &journey{}
	return context.WithValue(ctx, journeyKey{}, j), j
}

// watched reports on each request and bounds its answer.
type watched struct{ next http.RoundTripper }

func (w watched) RoundTrip(r *http.Request) (*http.Response, error) {
	j, _ := r.Context().Value(journeyKey{}).(*journey)
	if j != nil {
		trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { j.sent.Store(true) }}
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
	}
	began := time.Now()
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil && j != nil {
		// Their clock was read somewhere between our two looks, and cut to a second.
		half := time.Since(began) / 2
		j.ahead, j.unsure, j.dated = at.Add(time.Second/2).Sub(began.Add(half)), half+time.Second/2, true
	}
	resp.Body = &bounded{resp.Body, maxAnswerBytes}
	return resp, nil
}

// CloseIdleConnections passes http.Client's call on.
func (w watched) CloseIdleConnections() {
	if t, ok := w.next.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

var errTooLong = fmt.Errorf("the answer is longer than %d bytes", maxAnswerBytes)

// bounded fails a read past its bound, where a cut would look like the end.
type bounded struct {
	io.ReadCloser
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		if n, err := b.ReadCloser.Read(p[:min(len(p), 1)]); n == 0 {
			return 0, err
		}
		return 0, errTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
