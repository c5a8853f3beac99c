package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	apiBase        = "/api/v1"
	attemptTimeout = 30 * time.Second // above the broker's own limits on one request
	maxAnswer      = 32 << 20         // a page of the ledger with full commands
	maxProblem     = 64 << 10
	maxHops        = 3 // 421 answers that one call follows
	firstPause     = 100 * time.Millisecond
	lastPause      = 2 * time.Second
	maxNonce       = 128
)

// authentication of a call.
type authMode int

const (
	authSession authMode = iota // session token and proof
	authProof                   // proof only: logging in
	authNone                    // neither: status, unsealing
)

// call is one request to the cluster, however many attempts it takes.
type call struct {
	method string
	path   string // escaped, with query; under the node's base URL
	body   []byte
	out    any       // decoded from the answer, unless nil
	stream io.Writer // takes the answer instead of out
	auth   authMode
	// idem is the Idempotency-Key that all attempts share; with "" a call that
	// changes something is not sent again once it may have arrived.
	idem string
	// node, where given, is the only node to ask.
	node string
	// extra is added to the time-out of an attempt: a wait that was asked for.
	extra time.Duration
	// fresh, where given, makes the body of each attempt: evidence is one-shot.
	fresh  func() ([]byte, error)
	reason string
}

func newIdempotencyKey() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// do runs a call to its end: nonces, logging in again, other nodes, retries.
func (c *Client) do(ctx context.Context, k call) error {
	deadline := time.Now().Add(c.cfg.Retry)
	if k.auth == authSession && k.method != http.MethodGet && k.idem == "" {
		k.idem = newIdempotencyKey()
	}
	again := false // logged in anew already
	pause := firstPause
	for {
		err := c.round(ctx, &k, &again)
		if err == nil {
			return nil
		}
		var e *Error
		if !errors.As(err, &e) || !e.Retryable() || !k.repeatable(e) {
			return err
		}
		wait := max(jitter(pause), time.Duration(e.Problem.RetryAfter)*time.Second)
		if time.Now().Add(wait).After(deadline) || ctx.Err() != nil {
			return err
		}
		if c.cfg.OnRetry != nil {
			c.cfg.OnRetry(err, wait)
		}
		if !sleep(ctx, wait) {
			return err
		}
		pause = min(2*pause, lastPause)
	}
}

// round asks every node once, until one gives an answer that another would not
// better.
func (c *Client) round(ctx context.Context, k *call, again *bool) error {
	nodes := c.nodes.order()
	if k.node != "" {
		nodes = []string{k.node}
	}
	var last error
	for hops := 0; len(nodes) > 0; {
		live, err := c.sessionFor(ctx, k)
		if err != nil {
			return err
		}
		node := nodes[0]
		nodes = nodes[1:]
		err = c.attempt(ctx, node, k, live)
		var e *Error
		switch {
		case err == nil:
			if k.node == "" {
				c.nodes.prefer(node)
			}
			return nil
		case !errors.As(err, &e):
			return err
		case e.Problem.Status == http.StatusUnauthorized && k.auth == authSession && !*again:
			// The session ended early: contained and released, or the cluster
			// forgot it. Logging in says which.
			*again = true
			c.forget(live)
			nodes = append([]string{node}, nodes...)
			continue
		case e.Problem.Code == CodeNotLeader && hops < maxHops:
			if leader := c.leader(e, k.path); leader != "" {
				hops++
				nodes = append([]string{leader}, slices.DeleteFunc(nodes, func(n string) bool { return n == leader })...)
			}
		}
		if !e.Retryable() || !k.repeatable(e) || ctx.Err() != nil {
			return err
		}
		// What a node said weighs more than that another one is silent.
		if last == nil || e.Problem.Code != CodeUnreachable {
			last = err
		}
	}
	return last
}

// sessionFor returns the session that the call needs; the zero one if none.
func (c *Client) sessionFor(ctx context.Context, k *call) (session, error) {
	if k.auth != authSession {
		return session{}, nil
	}
	return c.session(ctx)
}

// repeatable reports whether the call may be sent again after e.
func (k *call) repeatable(e *Error) bool {
	if k.method == http.MethodGet || k.idem != "" || k.fresh != nil {
		return k.stream == nil || !errors.Is(e, errPartial)
	}
	return e.Problem.Kind != KindIndeterminate // it was refused, or never sent
}

var errPartial = errors.New("the answer broke off")

// leader reads the address that a 421 answer pointed to. With a private CA any
// host will do, since the handshake proves that the CA vouches for it; the
// system's CAs vouch for the whole world, so there it must be a node we know.
func (c *Client) leader(e *Error, path string) string {
	var at *location
	if !errors.As(e.Err, &at) {
		return ""
	}
	u, err := url.Parse(at.url)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return ""
	}
	for _, n := range c.nodes.configured {
		if b, err := url.Parse(n); err == nil && b.Host == u.Host {
			return n
		}
	}
	if !c.privateCA {
		return ""
	}
	// The same path at the leader: what stands before it is the leader's base.
	if base, ok := strings.CutSuffix(at.url, path); ok {
		return base
	}
	return "https://" + u.Host
}

// location carries a 421's Location header.
type location struct{ url string }

func (l *location) Error() string { return "the leader is elsewhere" }

// maxProofs bounds how often a call is signed anew for one node.
const maxProofs = 3

// attempt sends the call to one node, and again where only its proof was not taken:
// the nonce was missing, or connections broke on the way and the same proof came
// twice (RFC 9449 §11.1). The idempotency key keeps what it does to once.
func (c *Client) attempt(ctx context.Context, node string, k *call, live session) error {
	var cancel context.CancelFunc
	if k.stream != nil { // an export takes as long as it takes
		ctx, cancel = context.WithCancel(ctx)
	} else {
		ctx, cancel = context.WithTimeout(ctx, attemptTimeout+k.extra)
	}
	defer cancel()
	var err error
	for range maxProofs {
		var e *Error
		err = c.exchange(ctx, node, k, live)
		if !errors.As(err, &e) || e.Problem.Code != CodeUseNonce && e.Problem.Code != CodeProofReplayed {
			return err
		}
	}
	return err
}

// exchange is one HTTP request and its answer.
func (c *Client) exchange(ctx context.Context, node string, k *call, live session) error {
	req, err := c.request(ctx, node, k, live)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return connectionError(node, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if nonce := resp.Header.Get("DPoP-Nonce"); nonce != "" && len(nonce) <= maxNonce {
		c.mu.Lock()
		c.nonces[node] = nonce
		c.mu.Unlock()
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return c.refusal(node, resp)
	}
	if k.stream != nil {
		if _, err := io.Copy(k.stream, resp.Body); err != nil {
			e := newError(KindIndeterminate, CodeIndeterminate, "The answer broke off before its end.")
			e.Node, e.Err = node, errors.Join(errPartial, err)
			return e
		}
		return nil
	}
	body, err := readAnswer(resp.Body, maxAnswer)
	if err != nil {
		e := newError(KindIndeterminate, CodeIndeterminate, "The answer broke off before its end.")
		e.Node, e.Err = node, err
		return e
	}
	return decode(node, body, k.out)
}

func decode(node string, body []byte, out any) error {
	if out == nil {
		return nil
	}
	if raw, ok := out.(*json.RawMessage); ok {
		*raw = body
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		e := newError(KindInternal, CodeBadAnswer, "The node's answer is not what this client expects; do their versions differ?")
		e.Node, e.Err = node, err
		return e
	}
	return nil
}

func (c *Client) request(ctx context.Context, node string, k *call, live session) (*http.Request, error) {
	body := k.body
	if k.fresh != nil {
		var err error
		if body, err = k.fresh(); err != nil {
			return nil, err
		}
	}
	target := node + k.path
	req, err := http.NewRequestWithContext(ctx, k.method, target, bytes.NewReader(body))
	if err != nil {
		e := newError(KindInvalid, CodeConfiguration, "The request cannot be formed; is the path right?")
		e.Err = err
		return nil, e
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	if k.stream == nil {
		req.Header.Set("Accept", "application/json, application/problem+json")
	}
	req.Header.Set("User-Agent", "mayfly-client")
	if k.idem != "" && k.method != http.MethodGet {
		req.Header.Set("Idempotency-Key", k.idem)
	}
	if k.reason != "" {
		req.Header.Set("Mayfly-Reason", url.QueryEscape(k.reason))
	}
	if k.auth == authSession {
		req.Header.Set("Authorization", live.Type+" "+live.token.Reveal())
	}
	if k.auth != authNone && c.cfg.Binding != BindMTLS {
		c.mu.Lock()
		nonce := c.nonces[node]
		c.mu.Unlock()
		proof, err := c.key.DPoP(k.method, target, nonce, live.token.Reveal(), time.Now())
		if err != nil {
			return nil, err
		}
		req.Header.Set("DPoP", proof)
	}
	return req, nil
}

// refusal turns an answer that is no success into an *Error.
func (c *Client) refusal(node string, resp *http.Response) error {
	body, _ := readAnswer(resp.Body, maxProblem) // what there is of it
	e := problemOf(node, resp, body)
	if resp.StatusCode == http.StatusMisdirectedRequest {
		e.Problem.Code, e.Problem.Kind = CodeNotLeader, KindUnavailable
		e.Err = &location{resp.Header.Get("Location")}
	}
	if resp.StatusCode == http.StatusUnauthorized && strings.Contains(resp.Header.Get("WWW-Authenticate"), `"`+CodeUseNonce+`"`) {
		e.Problem.Code = CodeUseNonce
	}
	return e
}

func readAnswer(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return body, err
}

// connectionError classifies what kept an answer from coming.
func connectionError(node string, err error) error {
	var untrusted *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var dial *net.OpError
	var plain tls.RecordHeaderError
	var e *Error
	switch {
	case errors.As(err, &untrusted), errors.As(err, &unknown):
		e = newError(KindInternal, "untrusted", "The node's certificate is not from the cluster's CA. Is MAYFLY_CACERT the right file, and MAYFLY_ADDR the right cluster?")
	case errors.Is(err, context.Canceled):
		e = newError(KindInternal, "cancelled", "The call was cancelled.")
	case errors.As(err, &plain):
		e = newError(KindInvalid, CodeConfiguration, "The address does not speak TLS; is it a Mayfly node's?")
	case errors.As(err, &dial) && dial.Op == "dial":
		e = newError(KindUnavailable, CodeUnreachable, "The node cannot be reached.")
	default:
		e = newError(KindIndeterminate, CodeIndeterminate, "The request was sent, but no answer came. It may have had its effect; the same call with the same idempotency key tells.")
	}
	// A *url.Error repeats the URL, which is known; its cause is enough.
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	e.Node, e.Err = node, err
	return e
}

// jitter spreads d over its upper half, so that clients that failed together
// do not come back together.
func jitter(d time.Duration) time.Duration {
	var b [1]byte
	_, _ = rand.Read(b[:])
	return d/2 + d*time.Duration(b[0])/510
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
