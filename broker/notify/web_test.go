package notify_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/notify"
	"github.com/mayfly-broker/mayfly/secret"
)

// authority is a CA of the test's own and a certificate of its for a host.
func authority(t *testing.T, host string) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	make := func(name string, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
		if parent == nil {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
			parent, by = c, key
		} else if ip := net.ParseIP(host); ip != nil {
			c.IPAddresses = []net.IP{ip}
		} else {
			c.DNSNames = []string{host}
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
		if err != nil {
			t.Fatal(err)
		}
		out, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return out, key
	}
	ca, caKey := make("test CA", nil, nil)
	leaf, key := make(host, ca, caKey)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool, tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
}

// receive starts a receiver with TLS of the test's own CA.
func receive(t *testing.T, h http.HandlerFunc) (notify.Options, string) {
	t.Helper()
	roots, cert := authority(t, "127.0.0.1")
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return notify.Options{Roots: roots}, s.URL
}

func to(url string) notify.Sink {
	return sink("chat", func(s *notify.Sink) { s.URL = secret.New(url + "/services/hidden") })
}

func once(t *testing.T, o notify.Options, s notify.Sink) notify.Answer {
	t.Helper()
	return notify.SendOnce(t.Context(), o, s, "evt_1", []byte(`{"id":"evt_1"}`))
}

// TestSignedMessagesOverTLS: the whole way, with a receiver that verifies as the
// page says and fails at first.
func TestSignedMessagesOverTLS(t *testing.T) {
	var mu sync.Mutex
	var took []got
	fails := 2
	done := make(chan struct{})
	o, url := receive(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, err := verify(r, []byte("0123456789abcdef0123456789abcdef"))
		var g got
		if err == nil {
			err = json.Unmarshal(body, &g)
		}
		if err != nil || g.ID != r.Header.Get("Mayfly-Event-Id") || r.Header.Get("Content-Type") != "application/json" || r.Method != http.MethodPost {
			t.Errorf("%s %v %v: %v", r.Method, r.Header, g, err)
		}
		if fails > 0 {
			fails--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		took = append(took, g)
		if len(took) == 3 {
			close(done)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	var logged bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	b := newBook(to(url))
	teller := notify.New(b, o)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { defer close(over); teller.Run(ctx) }()
	for _, id := range []string{"a", "b", "c"} {
		b.request(id)
	}
	teller.Wake()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("not all messages came")
	}
	cancel()
	<-over
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(took) != "[grant.waiting a grant.waiting b grant.waiting c]" {
		t.Errorf("took %v", took)
	}
	if s := logged.String(); strings.Contains(s, "hidden") || strings.Contains(s, "0123456789") || !strings.Contains(s, "status 503") {
		t.Errorf("the log says\n%s", s)
	}
}

// TestOnlyVerifiedReceivers: no certificate, no message.
func TestOnlyVerifiedReceivers(t *testing.T) {
	reached := false
	o, url := receive(t, func(http.ResponseWriter, *http.Request) { reached = true })
	others, _ := authority(t, "127.0.0.1")
	for name, c := range map[string]struct {
		o   notify.Options
		url string
	}{
		"another CA":   {notify.Options{Roots: others}, url},
		"the system's": {notify.Options{}, url},
		"another name": {o, strings.Replace(url, "127.0.0.1", "localhost", 1)},
	} {
		if a := once(t, c.o, to(c.url)); !strings.Contains(a.Problem, "certificate") {
			t.Errorf("%s: %q", name, a.Problem)
		}
	}
	if reached {
		t.Error("a message was sent to a receiver that nobody vouches for")
	}
	if a := once(t, o, to(url)); a.Problem != "" {
		t.Errorf("the right CA: %q", a.Problem)
	}
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(plain.Close)
	if a := once(t, o, to(strings.Replace(plain.URL, "http:", "https:", 1))); a.Problem != "it does not speak TLS as it should" {
		t.Errorf("https to a server without TLS: %q", a.Problem)
	}
	if a := once(t, o, to(plain.URL)); a.Problem != "" {
		t.Errorf("http to this host: %q", a.Problem)
	}
}

// TestAnswersAreNotBelieved: nothing of an answer is followed, kept or quoted.
func TestAnswersAreNotBelieved(t *testing.T) {
	followed := false
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed = true }))
	t.Cleanup(plain.Close)
	o, url := receive(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect/services/hidden":
			http.Redirect(w, r, plain.URL, http.StatusTemporaryRedirect)
		case "/large/services/hidden":
			w.WriteHeader(http.StatusOK)
			for range 1 << 10 {
				if _, err := io.WriteString(w, strings.Repeat("x", 1<<10)); err != nil {
					return // nobody reads so much
				}
			}
		case "/headers/services/hidden":
			for i := range 1000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("y", 100))
			}
		case "/later/services/hidden":
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusTooManyRequests)
		case "/never/services/hidden":
			w.Header().Set("Retry-After", "99999999999")
			w.WriteHeader(http.StatusTooManyRequests)
		case "/much/services/hidden":
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/wrong/services/hidden":
			http.Error(w, "SECRET-ANSWER", http.StatusBadRequest)
		case "/garbage/services/hidden":
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(c, "SECRET-ANSWER is not HTTP\r\n\r\n")
				_ = c.Close()
			}
		}
	})
	for path, want := range map[string]notify.Answer{
		"/redirect": {Problem: "status 307: redirects are not followed; configure where they lead"},
		"/large":    {},
		"/headers":  {Problem: "the connection broke, or the answer was not HTTP"},
		"/later":    {Problem: "status 429", After: 2 * time.Minute},
		"/never":    {Problem: "status 429", After: notify.MaxBackoff},
		"/much":     {Problem: "status 503", After: notify.MaxBackoff},
		"/wrong":    {Problem: "status 400", Refused: true},
		"/garbage":  {Problem: "the connection broke, or the answer was not HTTP"},
	} {
		if a := once(t, o, to(url+path)); a != want {
			t.Errorf("%s: %+v, wanted %+v", path, a, want)
		}
	}
	if followed {
		t.Error("a redirect was followed")
	}
}

// TestSilentReceiverIsLeft: an attempt ends with its context, whatever the receiver does.
func TestSilentReceiverIsLeft(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if a := notify.SendOnce(ctx, notify.Options{}, to("https://"+l.Addr().String()), "evt_1", nil); !strings.HasPrefix(a.Problem, "no answer within") {
		t.Errorf("%q", a.Problem)
	}
}

// TestNeverDialled: where machines are told their own secrets, nothing is sent,
// by whatever name; and without TLS nothing leaves this host.
func TestNeverDialled(t *testing.T) {
	for _, a := range []string{
		"169.254.169.254", "169.254.0.1", "::ffff:169.254.169.254", "::169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
		"fe80::1", "fe80::a9fe:a9fe%eth0", "febf::1", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
		"0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:0.0.0.0",
	} {
		if notify.MayDial(netip.MustParseAddr(a), true) == nil {
			t.Errorf("%s may be dialled", a)
		}
	}
	for _, a := range []string{"10.0.0.1", "192.168.1.1", "172.16.0.1", "fd12:3456::1", "203.0.113.9", "2001:db8::1", "127.0.0.1", "::1", "100.64.0.1"} {
		if err := notify.MayDial(netip.MustParseAddr(a), true); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		if local := netip.MustParseAddr(a).IsLoopback(); (notify.MayDial(netip.MustParseAddr(a), false) == nil) != local {
			t.Errorf("%s without TLS", a)
		}
	}
	for _, url := range []string{"https://169.254.169.254", "https://[fe80::1]", "https://[::ffff:a9fe:a9fe]", "http://169.254.169.254", "http://10.0.0.1", "https://0.0.0.0"} {
		if a := once(t, notify.Options{}, to(url)); !strings.HasPrefix(a.Problem, "the address is refused") {
			t.Errorf("%s: %q", url, a.Problem)
		}
	}
	for _, url := range []string{"ftp://127.0.0.1", "file:///etc/passwd", "https://u:p@127.0.0.1", "https://%zz", "://"} {
		if a := once(t, notify.Options{}, to(url)); !strings.HasPrefix(a.Problem, "the url") {
			t.Errorf("%s: %q", url, a.Problem)
		}
	}
}

// TestUnsignedOnlyWithoutASecret: Slack's webhooks have none.
func TestUnsignedOnlyWithoutASecret(t *testing.T) {
	var header http.Header
	o, url := receive(t, func(_ http.ResponseWriter, r *http.Request) { header = r.Header })
	s := to(url)
	s.Secret = secret.Text{}
	if a := once(t, o, s); a.Problem != "" || header.Get(notify.HeaderSignature) != "" || header.Get(notify.HeaderEventID) != "evt_1" {
		t.Errorf("%q %v", a.Problem, header)
	}
}
