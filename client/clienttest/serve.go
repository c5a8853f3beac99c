package clienttest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/client/wire"
)

const base = "/api/v1"

// problem makes a problem document.
func problem(status int, kind, code, detail string) wire.Problem {
	return wire.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Kind: kind, Code: code, Detail: detail}
}

// Denied, Unavailable and their like are documents for [Failure].
func Denied(code, detail, decision string) wire.Problem {
	p := problem(http.StatusForbidden, "denied", code, detail)
	p.DecisionID = decision
	return p
}

// Unavailable is a 503 with a code such as sealed or no_leader.
func Unavailable(code string) wire.Problem {
	return problem(http.StatusServiceUnavailable, "unavailable", code, "The node cannot serve now.")
}

// serve is the outside of a node: failures, leadership, then authentication
// and the handler.
func (c *Cluster) serve(nd *node, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("DPoP-Nonce", nd.nonce)
	k := Call{Node: nd.n, Method: r.Method, Path: r.URL.RequestURI(), Idem: r.Header.Get("Idempotency-Key"), Reason: r.Header.Get("Mayfly-Reason"), Body: body,
		Proofs: r.Header.Get("DPoP") != "", ClientCert: len(r.TLS.PeerCertificates) > 0}
	f := c.failing(k)
	if f != nil && !f.After {
		c.failed++
		fail(w, f)
		return
	}
	if c.leader != 0 && c.leader != nd.n && !strings.Contains(k.Path, "/sys/status") {
		at := c.lie
		if c.leader > 0 {
			at = "https://" + c.Node(c.leader)
		}
		w.Header().Set("Location", at+k.Path)
		answer(w, http.StatusMisdirectedRequest, problem(http.StatusMisdirectedRequest, "unavailable", "not_leader", "Another node leads."))
		return
	}
	status, doc := c.handle(nd, r, &k)
	if p, ok := doc.(wire.Problem); !ok || p.Code != "use_dpop_nonce" { // the way to a nonce is no call yet
		c.calls = append(c.calls, k)
	}
	if f != nil {
		fail(w, f)
		return
	}
	answer(w, status, doc)
}

func (c *Cluster) failing(k Call) *Failure {
	for i, f := range c.failures {
		if (f.Node == 0 || f.Node == k.Node) && (f.Method == "" || f.Method == k.Method) && strings.HasPrefix(k.Path, f.Prefix) {
			if f.Times == 1 {
				c.failures = append(c.failures[:i], c.failures[i+1:]...)
			} else if f.Times > 1 {
				f.Times--
			}
			return f
		}
	}
	return nil
}

func fail(w http.ResponseWriter, f *Failure) {
	if f.Problem.Status == 0 {
		panic(http.ErrAbortHandler)
	}
	answer(w, f.Problem.Status, f.Problem)
}

func answer(w http.ResponseWriter, status int, doc any) {
	w.Header().Set("Content-Type", "application/json")
	if p, ok := doc.(wire.Problem); ok {
		w.Header().Set("Content-Type", "application/problem+json")
		if p.Code == "use_dpop_nonce" {
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
		}
		if p.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
		}
	}
	if lines, ok := doc.(string); ok {
		w.Header().Set("Content-Type", "application/x-ndjson")
		_, _ = io.WriteString(w, lines)
		return
	}
	if doc == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // a signed document's bytes stay as they are
	_ = enc.Encode(doc)
}

// handle authenticates and dispatches. The lock is held.
func (c *Cluster) handle(nd *node, r *http.Request, k *Call) (int, any) {
	path := r.URL.EscapedPath()
	if path == "/.well-known/openid-configuration" {
		return 200, map[string]string{"issuer": Issuer}
	}
	if path == base+"/login" {
		return c.login(nd, r, k)
	}
	if !strings.HasPrefix(path, base+"/sys/") || path == base+"/sys/seal" || path == base+"/sys/join-token" || path == base+"/sys/peers" || path == base+"/sys/plugins" || path == base+"/sys/remove-peer" || path == base+"/sys/step-down" {
		s, p := c.authenticate(nd, r)
		if p != nil {
			return p.Status, *p
		}
		k.Principal = s.Principal
	}
	if fn := c.routes[k.Method+" "+path]; fn != nil {
		return fn(*k)
	}
	return c.work(r, k)
}

func (c *Cluster) authenticate(nd *node, r *http.Request) (session, *wire.Problem) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	unauth := func(code string) *wire.Problem {
		p := problem(http.StatusUnauthorized, "unauthenticated", code, "Log in.")
		return &p
	}
	jkt, x5t := "", peer(r)
	if scheme == "DPoP" {
		var code string
		if jkt, code = nd.checkProof(r, token); code != "" {
			return session{}, unauth(code)
		}
	}
	s, ok := c.state.sessions[token]
	if !ok || time.Now().After(s.ExpiresAt) || s.Type != scheme || (scheme == "DPoP" && s.key != jkt) || (scheme == "mTLS" && (x5t == "" || s.key != x5t)) {
		return s, unauth("session_unknown")
	}
	return s, nil
}

func peer(r *http.Request) string {
	if len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	sum := sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// login opens a session on a proven key.
func (c *Cluster) login(nd *node, r *http.Request, k *Call) (int, any) {
	refuse := func(code string) (int, any) {
		return 401, problem(401, "unauthenticated", code, "The evidence does not stand.")
	}
	var in wire.LoginRequest
	if json.Unmarshal(k.Body, &in) != nil {
		return 400, problem(400, "invalid", "malformed", "Not a login.")
	}
	s := session{Type: "DPoP", ID: "s_" + word(), Method: in.Method, ExpiresAt: time.Now().Add(c.SessionTTL)}
	jkt := ""
	if k.Proofs {
		var code string
		if jkt, code = nd.checkProof(r, ""); code != "" {
			return refuse(code)
		}
		s.key = jkt
	} else if s.key = peer(r); s.key != "" {
		s.Type = "mTLS"
		jkt = thumbprint(jose.JSONWebKey{Key: r.TLS.PeerCertificates[0].PublicKey})
	} else {
		return refuse("proof_missing")
	}
	switch {
	case in.EnrolmentToken != "":
		s.Principal = c.state.enrolments[in.EnrolmentToken]
		if s.Principal == "" || c.state.spent[in.EnrolmentToken] != "" && c.state.spent[in.EnrolmentToken] != jkt {
			return refuse("enrolment_spent")
		}
		c.state.spent[in.EnrolmentToken] = jkt
		c.state.keys[jkt] = s.Principal
		s.Method = "enroll"
	case in.Method == "":
		signer, principal, ok := assertion(in.Token)
		if !ok || c.state.keys[signer] != principal || signer != jkt {
			return refuse("principal_mismatch")
		}
		s.Principal, s.Method = principal, "key"
	default:
		if s.Principal = c.state.evidence[in.Method+" "+in.Token]; s.Principal == "" {
			return refuse("token_audience")
		}
	}
	token := "mfs_" + word()
	c.state.sessions[token] = s
	return 200, wire.LoginAnswer{SessionToken: token, TokenType: s.Type, SessionID: s.ID, Principal: s.Principal, Method: s.Method, ExpiresAt: s.ExpiresAt}
}
