package raftstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// JoinRequest is what a node that wants to join shows the leader.
type JoinRequest struct {
	Token  string `json:"token"` // one-time; OnJoin judges it. Never logged.
	NodeID string `json:"node_id"`
	Addr   string `json:"addr"` // where it will listen, host:port
}

// JoinResult is what a joiner gets.
type JoinResult struct {
	Payload []byte            // what OnJoin returned
	CA      *x509.Certificate // the cluster's, verified against the pinned hash
	Leader  string            // the address that admitted the node
}

// ErrRefused: the cluster said no to a joiner; it does not say why.
var ErrRefused = errors.New("raftstore: the cluster refused")

type joinAnswer struct {
	Payload []byte `json:"payload,omitempty"`
	Leader  string `json:"leader,omitempty"` // ask there
}

type voterRequest struct {
	Addr string `json:"addr"`
}

const (
	joinPath  = "/join"
	voterPath = "/voter"
	// joinCallTimeout bounds one call to one address.
	joinCallTimeout = 10 * time.Second
	// voterCallTimeout leaves time to ship a snapshot to the new node.
	voterCallTimeout = 10 * time.Minute
)

// door remembers whom OnJoin admitted, and slows strangers down.
type door struct {
	mu       sync.Mutex
	admitted map[string]time.Time
	limit    *rate.Limiter
}

const maxAdmitted = 64

func (d *door) admit(nodeID string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, at := range d.admitted {
		if time.Since(at) > JoinWindow {
			delete(d.admitted, id)
		}
	}
	if len(d.admitted) < maxAdmitted {
		d.admitted[nodeID] = time.Now()
	}
}

func (d *door) knows(nodeID string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.admitted[nodeID]
	return ok && time.Since(at) <= JoinWindow
}

// joinHandler serves the two calls of a joining node.
func (n *network) joinHandler() http.Handler {
	n.door = door{admitted: map[string]time.Time{}, limit: rate.NewLimiter(5, 20)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+joinPath, n.serveJoin)
	mux.HandleFunc("POST "+voterPath, n.serveVoter)
	return mux
}

// decodeBody reads a small JSON body strictly.
func decodeBody(r io.Reader, into any) error {
	d := json.NewDecoder(io.LimitReader(r, maxJoinBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: join body", ErrCorrupt)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: join body", ErrCorrupt)
	}
	return nil
}

func decodeJoin(r io.Reader) (req JoinRequest, err error) {
	if err := decodeBody(r, &req); err != nil {
		return req, err
	}
	if !nodeIDPattern.MatchString(req.NodeID) {
		return req, fmt.Errorf("%w: node id", ErrCorrupt)
	}
	return req, checkAddr(req.Addr)
}

func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || port == "" || len(addr) > 300 {
		return fmt.Errorf("%w: address", ErrCorrupt)
	}
	return nil
}

// inTime bounds the reading of a body, but not what is done afterwards: a
// server's ReadTimeout would cancel the request's context.
func inTime(w http.ResponseWriter, read func() error) error {
	c := http.NewResponseController(w)
	return errors.Join(c.SetReadDeadline(time.Now().Add(handshakeTimeout)), read(), c.SetReadDeadline(time.Time{}))
}

// redirect tells the caller where the leader is. It reports whether it did.
func (n *network) redirect(w http.ResponseWriter) bool {
	if n.s.IsLeader() {
		return false
	}
	_, addr, ok := n.s.Leader()
	if !ok || addr == n.s.parts.port.addr.String() {
		http.Error(w, "no leader", http.StatusServiceUnavailable)
		return true
	}
	w.WriteHeader(http.StatusMisdirectedRequest)
	_ = json.NewEncoder(w).Encode(joinAnswer{Leader: addr}) // a caller that is gone needs no answer
	return true
}

func (n *network) serveJoin(w http.ResponseWriter, r *http.Request) {
	if !n.door.limit.Allow() {
		http.Error(w, "too many joiners", http.StatusTooManyRequests)
		return
	}
	if n.redirect(w) {
		return
	}
	var req JoinRequest
	if err := inTime(w, func() (err error) { req, err = decodeJoin(r.Body); return err }); err != nil {
		http.Error(w, "malformed request", http.StatusBadRequest)
		return
	}
	if n.s.cfg.OnJoin == nil {
		http.Error(w, "refused", http.StatusForbidden)
		return
	}
	payload, err := n.s.cfg.OnJoin(r.Context(), req)
	if err == nil && len(payload) > MaxJoinPayload {
		err = ErrTooLarge
	}
	if err != nil {
		n.s.log.Warn("joiner refused", "joiner", req.NodeID, "addr", req.Addr, "error", err)
		http.Error(w, "refused", http.StatusForbidden)
		return
	}
	n.door.admit(req.NodeID)
	n.s.log.Info("joiner admitted", "joiner", req.NodeID, "addr", req.Addr)
	_ = json.NewEncoder(w).Encode(joinAnswer{Payload: payload}) // a joiner that is gone will ask again
}

func (n *network) serveVoter(w http.ResponseWriter, r *http.Request) {
	id := PeerID(r)
	if id == "" {
		http.Error(w, "a node certificate is needed", http.StatusUnauthorized)
		return
	}
	if n.redirect(w) {
		return
	}
	var req voterRequest
	if err := inTime(w, func() error { return decodeBody(r.Body, &req) }); err != nil || checkAddr(req.Addr) != nil {
		http.Error(w, "malformed request", http.StatusBadRequest)
		return
	}
	if err := n.admitVoter(r.Context(), id, req.Addr); err != nil {
		n.s.log.Warn("node not made a voter", "joiner", id, "addr", req.Addr, "error", err)
		if errors.Is(err, ErrNotLeader) || errors.Is(err, ErrIndeterminate) {
			http.Error(w, "no leader", http.StatusServiceUnavailable) // it lost its office meanwhile; nobody said no
			return
		}
		http.Error(w, "refused", http.StatusForbidden)
		return
	}
	n.s.log.Info("node is a voter", "joiner", id, "addr", req.Addr)
	w.WriteHeader(http.StatusNoContent)
}

func (n *network) admitVoter(ctx context.Context, id, addr string) error {
	if n.s.cfg.OnVoter != nil {
		if err := n.s.cfg.OnVoter(ctx, id, addr); err != nil {
			return err
		}
	} else if !n.door.knows(id) && !n.isMember(id) {
		return errors.New("neither a member nor lately admitted")
	}
	// A voter that cannot be reached could cost the cluster its majority.
	conn, err := n.id.dial(ctx, addr, id, protoBeacon)
	if err != nil {
		return err
	}
	_ = conn.Close() // it answered; that was all
	ctx, cancel := context.WithTimeout(ctx, voterCallTimeout)
	defer cancel()
	return n.s.AddVoter(ctx, id, addr)
}

// Join asks the cluster, at whichever of addrs answers, to admit a node. It
// speaks only to a server whose certificate was issued by the CA whose SHA-256
// (see [CAHash]) is caHash, so that the token reaches nobody else. With the
// payload the node can open its [Store], and then call [Store.JoinCluster].
//
// Errors: [ErrRefused] when the leader said no; otherwise what kept every
// address from answering. While there is no leader it keeps asking, as long as ctx lives.
func Join(ctx context.Context, addrs []string, caHash [sha256.Size]byte, req JoinRequest) (JoinResult, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return JoinResult{}, fmt.Errorf("raftstore: join: %w", err)
	}
	var res JoinResult
	err = eachLeader(ctx, addrs, func(ctx context.Context, addr string) (string, error) {
		ca, err := fetchCA(ctx, addr, caHash)
		if err != nil {
			return "", err
		}
		pool := x509.NewCertPool()
		pool.AddCert(ca)
		client := joinClient(&tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{protoJoin}, ServerName: nodeServerName, RootCAs: pool,
		})
		defer client.CloseIdleConnections()
		ans, err := joinCall(ctx, client, addr, joinPath, body)
		if err != nil || ans.Leader != "" {
			return ans.Leader, err
		}
		res = JoinResult{Payload: ans.Payload, CA: ca, Leader: addr}
		return "", nil
	}, joinCallTimeout)
	return res, err
}

// JoinCluster asks the cluster, at whichever of addrs answers, to make this
// node a voter, and returns when it is one and has caught up. Also for a member
// whose address changed.
func (s *Store) JoinCluster(ctx context.Context, addrs []string) error {
	body, err := json.Marshal(voterRequest{s.parts.port.addr.String()})
	if err != nil {
		return fmt.Errorf("raftstore: join: %w", err)
	}
	return eachLeader(ctx, addrs, func(ctx context.Context, addr string) (string, error) {
		client := joinClient(s.net.id.clientTLS(protoJoin, ""))
		defer client.CloseIdleConnections()
		ans, err := joinCall(ctx, client, addr, voterPath, body)
		return ans.Leader, err
	}, voterCallTimeout)
}

// errBusy: the cluster answered, but has no leader at the moment.
var errBusy = errors.New("raftstore: join: the cluster is busy")

// eachLeader calls the addresses in turn until one succeeds, and again, as long
// as ctx lives, while one of them says that the cluster is busy.
func eachLeader(ctx context.Context, addrs []string, call func(ctx context.Context, addr string) (leader string, err error), limit time.Duration) error {
	for {
		err := onceAround(ctx, addrs, call, limit)
		if err == nil || !errors.Is(err, errBusy) || errors.Is(err, ErrRefused) {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// onceAround follows the way to the leader that call returns a bounded number of times.
func onceAround(ctx context.Context, addrs []string, call func(ctx context.Context, addr string) (leader string, err error), limit time.Duration) error {
	errs := []error{errors.New("raftstore: no address led to a leader")}
	for _, addr := range addrs {
		for range maxJoinHops {
			callCtx, cancel := context.WithTimeout(ctx, limit)
			leader, err := call(callCtx, addr)
			cancel()
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", addr, err))
				break
			}
			if leader == "" {
				return nil
			}
			addr = leader
		}
	}
	return errors.Join(errs...)
}

func joinClient(cfg *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return (&tls.Dialer{Config: cfg}).DialContext(ctx, network, addr)
			},
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func joinCall(ctx context.Context, client *http.Client, addr, path string, body []byte) (ans joinAnswer, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return ans, fmt.Errorf("raftstore: join: %w", err)
	}
	resp, err := client.Do(r)
	if err != nil {
		return ans, fmt.Errorf("raftstore: join: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusNoContent:
		return ans, nil
	case http.StatusForbidden, http.StatusUnauthorized, http.StatusBadRequest:
		return ans, ErrRefused
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return ans, errBusy
	case http.StatusOK, http.StatusMisdirectedRequest:
		// base64 makes the payload a third longer
		if err := json.NewDecoder(io.LimitReader(resp.Body, MaxJoinPayload*4/3+maxJoinBody)).Decode(&ans); err != nil {
			return ans, fmt.Errorf("raftstore: join: answer: %w", err)
		}
		if resp.StatusCode == http.StatusMisdirectedRequest && checkAddr(ans.Leader) != nil {
			return ans, fmt.Errorf("%w: leader's address", ErrCorrupt)
		}
		return ans, nil
	}
	return ans, fmt.Errorf("raftstore: join: status %d", resp.StatusCode)
}

// fetchCA returns the CA certificate that the server at addr shows, if its hash
// is the pinned one. The connection that shows it trusts nobody and is
// abandoned: the one that carries the token is then verified in the ordinary way.
func fetchCA(ctx context.Context, addr string, caHash [sha256.Size]byte) (*x509.Certificate, error) {
	d := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protoJoin}, ServerName: nodeServerName, RootCAs: x509.NewCertPool(),
	}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		return nil, errors.Join(errors.New("raftstore: join: unverifiable server was accepted"), conn.Close())
	}
	var unverified *tls.CertificateVerificationError
	if !errors.As(err, &unverified) {
		return nil, fmt.Errorf("raftstore: join: %w", err)
	}
	for _, cert := range unverified.UnverifiedCertificates {
		if hash := CAHash(cert); cert.IsCA && subtle.ConstantTimeCompare(hash[:], caHash[:]) == 1 {
			return cert, nil
		}
	}
	return nil, errors.New("raftstore: join: the server is not of the cluster that the token names")
}
