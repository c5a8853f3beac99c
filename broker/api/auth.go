package api

import (
	"crypto/x509"
	"net/http"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/secret"
)

// The schemes of the Authorization header, in lower case.
const (
	schemeDPoP   = "dpop"
	schemeMTLS   = "mtls"
	schemeBearer = "bearer"
)

// authenticate proves who calls: for login whose key or certificate the
// connection holds, for everything else that the session's key is held too. A
// stolen token alone opens nothing (law 7).
func (s *Server) authenticate(c *call, r *http.Request) error {
	c.caller.Address = c.address
	switch c.route.access {
	case needSession:
		return s.authenticateSession(c, r)
	case needKey:
		return s.proveKey(c, r)
	case needClient:
		if len(r.Header.Values("Authorization")) > 0 {
			return s.authenticateSession(c, r)
		}
		return s.proveKey(c, r)
	}
	return nil
}

func (s *Server) authenticateSession(c *call, r *http.Request) error {
	scheme, token, err := credentials(r.Header)
	if err != nil {
		return err
	}
	c.scheme = scheme
	ses, err := c.broker.Session(r.Context(), token.Reveal())
	if err != nil {
		if s.mayBeNew(c, err) {
			return s.vouch(c, r, token)
		}
		return err
	}
	if ses.Binding != scheme {
		return unauthenticated(CodeBinding, "This session is not bound by %s. Use the scheme that login named in token_type.", shownScheme(scheme))
	}
	if scheme == schemeMTLS {
		err = s.checkCertificate(c, r, ses)
	} else {
		err = s.checkProof(c, r, token, ses.Thumbprint)
	}
	if err != nil {
		return err
	}
	c.caller.Session = ses
	return nil
}

// credentials reads the Authorization header (RFC 9449 §7.1).
func credentials(h http.Header) (scheme string, token secret.Text, err error) {
	values := h.Values("Authorization")
	if len(values) == 0 {
		return "", secret.Text{}, unauthenticated(CodeNoCredentials, "This call needs a session. Log in, and send Authorization: DPoP TOKEN with a DPoP proof, or mTLS TOKEN on a connection with your client certificate.")
	}
	scheme, text, ok := strings.Cut(values[0], " ")
	if len(values) > 1 || !ok || text == "" || len(text) > maxToken || strings.ContainsAny(text, " ,\t") {
		return "", secret.Text{}, unauthenticated(CodeCredentials, "The Authorization header must be one scheme and one token.")
	}
	switch scheme = strings.ToLower(scheme); scheme {
	case schemeDPoP, schemeMTLS:
		return scheme, secret.New(text), nil
	case schemeBearer:
		return "", secret.Text{}, unauthenticated(CodeBearer, "Bearer tokens open nothing here. Send Authorization: DPoP TOKEN with a proof of the session's key, or mTLS TOKEN.")
	}
	return "", secret.Text{}, unauthenticated(CodeCredentials, "The Authorization scheme must be DPoP or mTLS.")
}

func shownScheme(scheme string) string {
	if scheme == schemeMTLS {
		return "a client certificate"
	}
	return "DPoP"
}

// checkCertificate compares the connection's certificate, whose key TLS has
// proven, with the session's (RFC 8705 §3).
func (s *Server) checkCertificate(c *call, r *http.Request, ses ledger.Session) error {
	peers := peerCerts(c, r)
	if len(peers) == 0 {
		return unauthenticated(CodeNoProof, "This session is bound to a client certificate, and the connection has none.")
	}
	if !identity.CertMatches(peers, ses.Thumbprint) {
		return unauthenticated(CodeWrongKey, "The connection's client certificate is not the one that this session is bound to.")
	}
	return nil
}

// peerCerts returns the client's certificates. On the cluster port they are the
// other node's, and prove nothing about the client.
func peerCerts(c *call, r *http.Request) []*x509.Certificate {
	if c.forwarded || r.TLS == nil {
		return nil
	}
	return r.TLS.PeerCertificates
}

func (s *Server) checkProof(c *call, r *http.Request, token secret.Text, thumbprint string) error {
	jkt, err := s.verify(c, r, token)
	if err != nil {
		return err
	}
	if !identity.SameThumbprint(jkt, thumbprint) {
		return unauthenticated(CodeWrongKey, "The proof is of another key than the one that this session is bound to.")
	}
	return nil
}

// verify checks the request's one DPoP proof and returns its key's thumbprint.
// What another node passed on is checked again in full, but for the nonce,
// which only that node's process can know (HAZARDS 4).
func (s *Server) verify(c *call, r *http.Request, token secret.Text) (jkt string, err error) {
	proof, err := identity.ProofFromHeader(r.Header)
	if err != nil {
		return "", err
	}
	if proof == "" {
		return "", unauthenticated(CodeNoProof, "The request lacks the DPoP header: a proof of the session's key for this very request.")
	}
	check := c.broker.Verifier().Verify
	if c.forwarded {
		check = c.broker.Verifier().VerifyForwarded
	}
	return check(proof, r.Method, r.URL.EscapedPath(), token, s.clock())
}

// proveKey finds out what key the client that logs in holds. What it may be
// used for is the engine's business.
func (s *Server) proveKey(c *call, r *http.Request) error {
	c.login.Address = c.address
	c.login.PeerCerts = peerCerts(c, r)
	if len(c.login.PeerCerts) > 0 {
		c.login.X5T = identity.CertThumbprint(c.login.PeerCerts[0])
	}
	if len(r.Header.Values("DPoP")) == 0 && c.login.X5T != "" {
		return nil
	}
	var err error
	c.login.JKT, err = s.verify(c, r, secret.Text{})
	return err
}

// mayBeNew reports whether err may only mean that this follower has not heard
// yet of a session that the leader has just opened.
func (s *Server) mayBeNew(c *call, err error) bool {
	e := fault.As(err)
	return e.Kind == fault.Unauthenticated && e.Code != identity.CodeSessionToken &&
		!c.forwarded && c.route.place != hereOnly && !s.node.IsLeader()
}

// vouch lets the leader decide on a session that this node does not know: the
// proof must be good for this request and token, and the leader compares its
// key with the session's. Guesses are slowed as if they had been refused here.
func (s *Server) vouch(c *call, r *http.Request, token secret.Text) error {
	if s.throttle.failures.spent(c.address) {
		return tooFast(0)
	}
	if c.scheme == schemeMTLS {
		if len(peerCerts(c, r)) == 0 {
			return unauthenticated(CodeNoProof, "A session bound to a client certificate needs a connection that has one.")
		}
		// The client asks the leader itself. To find the leader may cost a call.
		_, _ = s.throttle.failures.take(c.address)
	} else if _, err := s.verify(c, r, token); err != nil {
		return err
	}
	c.elsewhere = true
	return nil
}
