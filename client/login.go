package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// Login opens a new session whether or not one is open, and keeps it.
func (c *Client) Login(ctx context.Context) (wire.LoginAnswer, error) {
	s := c.current()
	c.forget(s)
	deadline := time.Now().Add(c.cfg.Retry)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		_, err := c.session(ctx)
		if err == nil {
			a, _ := c.Session()
			return a, nil
		}
		var e *Error
		if !errors.As(err, &e) || !e.Retryable() || time.Now().Add(pause).After(deadline) {
			return wire.LoginAnswer{}, err
		}
		if c.cfg.OnRetry != nil {
			c.cfg.OnRetry(err, pause)
		}
		if !sleep(ctx, jitter(pause)) {
			return wire.LoginAnswer{}, err
		}
	}
}

// Logout ends the session and forgets it. Without a session it does nothing.
func (c *Client) Logout(ctx context.Context) error {
	s := c.current()
	if !s.usable(time.Now()) {
		return nil
	}
	again := true // a session that is refused is ended already
	err := c.round(ctx, &call{method: http.MethodPost, path: apiBase + "/logout"}, &again)
	c.forget(s)
	if KindOf(err) == KindUnauthenticated {
		return nil
	}
	return err
}

// login goes through the evidence once and opens a session with the first that
// is there. It falls through on absence, never on refusal.
func (c *Client) login(ctx context.Context) (session, error) {
	ev, err := c.evidence()
	if err != nil {
		return session{}, err
	}
	return c.present(ctx, func() ([]byte, error) {
		token, err := ev.token(ctx)
		if err != nil {
			return nil, err
		}
		return json.Marshal(wire.LoginRequest{Method: ev.method, Token: token.Reveal()})
	})
}

// present sends evidence, made anew for each attempt, to the first node that
// answers.
func (c *Client) present(ctx context.Context, body func() ([]byte, error)) (session, error) {
	var a wire.LoginAnswer
	again := true
	k := call{method: http.MethodPost, path: apiBase + "/login", auth: authProof, fresh: body, out: &a}
	if err := c.round(ctx, &k, &again); err != nil {
		return session{}, err
	}
	return opened(a, time.Now())
}

// issuer asks the cluster for its issuer identifier, the audience of assertions.
func (c *Client) issuer(ctx context.Context) (string, error) {
	var d struct {
		Issuer string `json:"issuer"`
	}
	again := true
	k := call{method: http.MethodGet, path: "/.well-known/openid-configuration", auth: authNone, out: &d}
	if err := c.round(ctx, &k, &again); err != nil {
		return "", err
	}
	if d.Issuer == "" {
		return "", newError(KindInternal, CodeBadAnswer, "The node's OpenID configuration names no issuer.")
	}
	return d.Issuer, nil
}

// ownCertificate returns the self-signed certificate of the home's key, a new
// one when the old one nears its end.
func (c *Client) ownCertificate(now time.Time) (tls.Certificate, error) {
	if c.home != nil {
		data, err := readBounded(c.home.Path(certName), maxHomeFile)
		if err == nil {
			if cert, ok := c.reuse(data, now); ok {
				return cert, nil
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return tls.Certificate{}, err
		}
	}
	fresh, err := c.key.Certificate("mayfly-client", now, certificateLife)
	if err != nil || c.home == nil {
		return fresh, err
	}
	return fresh, c.home.write(certName, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: fresh.Certificate[0]}))
}

// reuse takes up a stored certificate, if it is of our key and lives on for a
// while. The private key it needs comes out of a certificate made for it.
func (c *Client) reuse(data []byte, now time.Time) (tls.Certificate, bool) {
	block, _ := pem.Decode(data)
	if block == nil {
		return tls.Certificate{}, false
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || now.Add(certificateLife/12).After(leaf.NotAfter) {
		return tls.Certificate{}, false
	}
	made, err := c.key.Certificate("mayfly-client", now, certificateLife)
	if err != nil {
		return tls.Certificate{}, false
	}
	if !samePublicKey(leaf, made.Leaf) {
		return tls.Certificate{}, false
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: made.PrivateKey, Leaf: leaf}, true
}

func samePublicKey(a, b *x509.Certificate) bool {
	return string(a.RawSubjectPublicKeyInfo) == string(b.RawSubjectPublicKeyInfo)
}

// assertion signs a login with the home's registered key.
func (c *Client) assertion(ctx context.Context, principal string) (secret.Text, error) {
	issuer, err := c.issuer(ctx)
	if err != nil {
		return secret.Text{}, err
	}
	signed, err := c.key.Assertion(issuer, principal, c.key.Thumbprint(), time.Now())
	if errors.Is(err, keys.ErrInput) {
		e := newError(KindInvalid, CodeConfiguration, "%q cannot log in with a key.", principal)
		e.Err = err
		return secret.Text{}, e
	}
	return secret.New(signed), err
}
