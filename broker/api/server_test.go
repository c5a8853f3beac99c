package api_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

func TestConfigurationIsChecked(t *testing.T) {
	node := &fakeNode{c: &cluster{}}
	engine := func() (api.Broker, error) { return nil, nil }
	for name, cfg := range map[string]api.Config{
		"nothing":     {},
		"no engine":   {Node: node, ExternalURLs: []string{"https://a.example"}},
		"no URL":      {Node: node, Engine: engine},
		"clear text":  {Node: node, Engine: engine, ExternalURLs: []string{"http://a.example"}},
		"with a user": {Node: node, Engine: engine, ExternalURLs: []string{"https://u:p@a.example"}},
		"with a path": {Node: node, Engine: engine, ExternalURLs: []string{"https://a.example/mayfly"}},
	} {
		if _, err := api.New(cfg); !errors.Is(err, &fault.Error{Kind: fault.Invalid}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := api.New(api.Config{Node: node, Engine: engine, ExternalURLs: []string{"https://a.example"}})
	must(t, err)
	if err := s.Serve(nil); !errors.Is(err, &fault.Error{Kind: fault.Invalid}) {
		t.Errorf("served without a certificate: %v", err)
	}
}

func TestCertificateIsReloadedWhileServing(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	put := func(c tls.Certificate) {
		der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		must(t, err)
		must(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600))
		must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	}
	first, _ := serverCert(t)
	second, roots := serverCert(t)
	put(first)
	certs, err := api.CertificateFiles(certFile, keyFile)
	must(t, err)
	tc, n := one(t, func(c *api.Config) { c.Certificates = certs })
	tc.roots = roots // only the second is trusted
	c := tc.newClient(t, "", "")
	if _, err := c.http.Get(n.url + "/healthz"); err == nil {
		t.Fatal("the first certificate was not the one served")
	}
	must(t, os.WriteFile(certFile, []byte("rubbish"), 0o600))
	if err := certs.Reload(); err == nil {
		t.Fatal("rubbish was loaded")
	}
	put(second)
	must(t, certs.Reload())
	okay(t, c.send(c.request("GET", n.url+"/healthz", "")), nil)
}

func TestOldTLSIsRefused(t *testing.T) {
	tc, n := one(t)
	conn, err := tls.Dial("tcp", n.addr, &tls.Config{RootCAs: tc.roots, MaxVersion: tls.VersionTLS12})
	if err == nil {
		_ = conn.Close()
		t.Fatal("TLS 1.2 was accepted")
	}
}

func TestSpansCarryTheRouteAndNoSecret(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(spans))
	tc, n := one(t, func(c *api.Config) { c.Tracer = provider })
	c := tc.newClient(t, sesame, "dpop")
	okay(t, c.do(n, "GET", "/leases/lease_1", ""), nil)
	must(t, provider.ForceFlush(context.Background()))
	found := false
	for _, s := range spans.GetSpans() {
		found = found || s.Name == "GET /api/v1/leases/{id}"
		for _, a := range s.Attributes {
			if v := a.Value.String(); len(v) > 200 || v == sesame {
				t.Errorf("%s = %q", a.Key, v)
			}
		}
	}
	if !found {
		t.Fatalf("no span of the route in %d", len(spans.GetSpans()))
	}
}

func TestNodeTakesOnlySoMuchAtOnce(t *testing.T) {
	tc, n := one(t, func(c *api.Config) { c.Limits.InFlight = 1 })
	c := tc.newClient(t, sesame, "dpop").fresh(n)
	entered, leave := make(chan struct{}), make(chan struct{})
	n.broker.set(func(b *fakeBroker) {
		b.hold = func(context.Context) error { close(entered); <-leave; return nil }
	})
	r := c.sign(c.request("POST", n.url+"/api/v1/tasks/t/end", ""))
	answered := make(chan reply, 1)
	go func() { answered <- c.send(r) }()
	<-entered
	refused(t, c.send(c.request("GET", n.url+"/api/v1/sys/status", "")), http.StatusServiceUnavailable, api.CodeOverloaded)
	close(leave)
	okay(t, <-answered, nil)
	okay(t, c.send(c.request("GET", n.url+"/api/v1/sys/status", "")), nil)
}

// However far a request gets, a body that never arrives holds nothing: neither
// where the body is read, nor where the call was refused before that.
func TestBodyThatDoesNotArriveIsGivenUp(t *testing.T) {
	tc, n := one(t, func(c *api.Config) { c.Limits.BodyWait = 20 * time.Millisecond })
	for path, status := range map[string]int{"/api/v1/sys/unseal": http.StatusRequestTimeout, "/api/v1/requests": http.StatusUnauthorized, "/nowhere": http.StatusNotFound} {
		conn, err := tls.Dial("tcp", n.addr, &tls.Config{RootCAs: tc.roots, MinVersion: tls.VersionTLS13})
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{", path, n.addr)
		must(t, err)
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		must(t, err)
		if resp.StatusCode != status {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		must(t, err)
		must(t, resp.Body.Close())
		if _, err := in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection was not closed: %v", path, err)
		}
		must(t, conn.Close())
	}
}

// deadlines remembers by when the connection was to be read.
type deadlines struct {
	*httptest.ResponseRecorder
	last time.Time
	set  int
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	d.last, d.set = at, d.set+1
	return nil
}

// A deadline that outlives the reading of the body would cancel the call's context
// when it passes, however long the call may take.
func TestNoDeadlineOfABodyEndsTheCall(t *testing.T) {
	tc, n := one(t)
	c := tc.newClient(t, "mfs_dpop", "dpop").fresh(n)
	for path, body := range map[string]string{"/target-preview": `{"name":"t","spec":{}}`, "/tasks": `{"name":"t","purpose":"p"}`, "/sys/unseal": `{"share":"x"}`} {
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest(http.MethodPost, "/api/v1"+path, strings.NewReader(body))
		r.Host, r.TLS = n.addr, &tls.ConnectionState{}
		r.Header = c.sign(c.request(http.MethodPost, n.url+"/api/v1"+path, body)).Header
		n.server.Handler().ServeHTTP(w, r)
		if w.Code == http.StatusUnauthorized || w.set < 2 || !w.last.IsZero() {
			t.Errorf("%s: status %d; of %d deadlines the last is %s: %s", path, w.Code, w.set, w.last, w.Body)
		}
	}
}

func TestOddRequestLinesAreRefused(t *testing.T) {
	tc, n := one(t)
	for _, line := range []string{"OPTIONS *", "GET https://" + n.addr + "/healthz", "CONNECT " + n.addr} {
		conn, err := tls.Dial("tcp", n.addr, &tls.Config{RootCAs: tc.roots, MinVersion: tls.VersionTLS13})
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		_, err = fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: %s\r\n\r\n", line, n.addr)
		must(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		must(t, err)
		if resp.StatusCode != 400 || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %v", line, resp.StatusCode, resp.Header)
		}
		must(t, resp.Body.Close())
		must(t, conn.Close())
	}
}

func TestHTTP2ServesBothBindings(t *testing.T) {
	tc, n := one(t)
	for _, binding := range []string{"dpop", "mtls"} {
		c := tc.newClient(t, "mfs_"+binding, binding)
		tr, ok := c.http.Transport.(*http.Transport)
		if !ok {
			t.Fatal("another transport than expected")
		}
		tr.ForceAttemptHTTP2 = true
		c.fresh(n)
		r := c.request("POST", n.url+"/api/v1/requests", `{"role":"a/b"}`)
		if binding == "mtls" {
			r.Header.Set("Authorization", "mTLS "+c.token)
		} else {
			c.sign(r)
		}
		resp, err := c.http.Do(r)
		must(t, err)
		if resp.ProtoMajor != 2 || resp.StatusCode != 200 {
			t.Errorf("%s: HTTP/%d %d", binding, resp.ProtoMajor, resp.StatusCode)
		}
		must(t, resp.Body.Close())
	}
}
