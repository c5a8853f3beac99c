// Command screens shows the console in a real browser: it takes pictures of every
// page, in light, in dark and on a phone, and its tests sign in and approve with
// a passkey as a person would.
//
// It needs Chromium. The pictures, and the tests of single pages, are of a broker
// in memory; the tests of approvals start a real node and a real database. It must
// know nothing of clusters: those are the other tests' of e2e.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"

	"github.com/mayfly-broker/mayfly/broker/api/console"
	"github.com/mayfly-broker/mayfly/broker/api/console/consoletest"
)

// Stage is a console that a browser can open: pages, the broker behind them, and
// the certificate to trust.
type Stage struct {
	URL    string
	Engine *consoletest.Engine
	spki   string // SHA-256 of the server's public key, base64; with those of Trust
	server *http.Server
}

// NewStage serves the console on a port of its own. clock is the broker's.
func NewStage(clock func() time.Time) (*Stage, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	s := &Stage{URL: "https://localhost:" + port}
	s.Engine = consoletest.New(s.URL, clock)
	pages, err := console.New(console.Config{
		Engine: func() (console.Engine, error) { return s.Engine, nil }, Node: s.Engine, ExternalURLs: []string{s.URL}, Clock: clock,
	})
	if err != nil {
		return nil, err
	}
	cert, err := s.certificate()
	if err != nil {
		return nil, err
	}
	s.server = &http.Server{Handler: pages, ReadHeaderTimeout: 10 * time.Second, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}}
	go func() { _ = s.server.ServeTLS(l, "", "") }() // ends with Close
	return s, nil
}

// Close stops the server.
func (s *Stage) Close() { _ = s.server.Close() }

// Trust has browsers take another server's public key, too: its SHA-256 in base64.
func (s *Stage) Trust(spki string) { s.spki += "," + spki }

// certificate makes one for localhost, which nobody but this browser trusts.
func (s *Stage) certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	sum := sha256.Sum256(parsed.RawSubjectPublicKeyInfo)
	s.spki = base64.StdEncoding.EncodeToString(sum[:])
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Browse starts a browser that trusts the stage, with one open page. The
// function ends it.
func (s *Stage) Browse(ctx context.Context) (context.Context, func(), error) {
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.Flag("ignore-certificate-errors-spki-list", s.spki),
		chromedp.Flag("font-render-hinting", "none"),
		chromedp.NoSandbox, // in a container there is no user namespace to make one of
	)
	alloc, stop := chromedp.NewExecAllocator(ctx, options...)
	page, leave := chromedp.NewContext(alloc)
	end := func() { leave(); stop() }
	if err := chromedp.Do(page); err != nil {
		end()
		return nil, nil, fmt.Errorf("a browser is needed; get one with make setup: %w", err)
	}
	return page, end, nil
}

// step is one thing done in the browser.
type step = chromedp.Action[chromedp.Void]

// call sends the browser one command of the DevTools protocol.
func call[P, R any](command cdp.Command[P, R], params P) step {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, command, params)
		return err
	})
}

// Authenticator plugs an authenticator into the page's browser: one that keeps
// passkeys, verifies its holder and always finds a finger.
func Authenticator() step {
	return chromedp.Steps(call(webauthn.Enable, webauthn.EnableParams{}), call(webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{
		Options: &webauthn.VirtualAuthenticatorOptions{
			Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal,
			HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true,
		}}))
}
