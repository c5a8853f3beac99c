// Package vaulttest starts private, real Vault servers for tests, initialised and
// unsealed: the core that scripts/setup builds from e2e/servers/vault. Each has its
// own directory and port on 127.0.0.1, runs as an ordinary user, and is ended by
// its own process.
//
// It never skips: without the built server it fails and says how to get it. It must
// know nothing of Mayfly, so that every room can use it.
package vaulttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// startTimeout bounds a start; a loaded machine needs it.
const startTimeout = time.Minute

// Server is one running Vault. Its exported fields are set by the start and not
// changed afterwards.
type Server struct {
	Address string // https://127.0.0.1:port, or http://…
	CAPEM   string // the CA that signed the server's certificate; empty without TLS
	Root    string // a root token
	Dir     string

	account servertest.Account
	args    []string
	unseal  string
	pki     *authority
	proc    *servertest.Process
	client  *http.Client
}

// Option changes how a server is started.
type Option func(*options)

type options struct{ tls, clients bool }

// TLS gives the server a certificate for 127.0.0.1 and localhost from a CA of its
// own.
func TLS() Option { return func(o *options) { o.tls = true } }

// ClientCertificates is [TLS], and only clients with a certificate of the server's
// CA may connect.
func ClientCertificates() Option { return func(o *options) { o.tls, o.clients = true, true } }

// Start runs a server for one test and ends it with the test. A package that
// needs one server for all its tests uses [Run] in TestMain.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := Run(ctx, opts...)
	if err != nil {
		t.Fatalf("vaulttest: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("vaulttest: %v", err)
		}
	})
	return s
}

// Run starts a server, initialises and unseals it. The caller ends it with
// [Server.Close]. ctx bounds the start alone.
func Run(ctx context.Context, opts ...Option) (*Server, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	account, err := servertest.Choose()
	if err != nil {
		return nil, err
	}
	dir, err := account.Dir("vaulttest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Dir: dir, account: account}
	if err := s.create(ctx, o); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) create(ctx context.Context, o options) error {
	address, err := servertest.Address()
	if err != nil {
		return err
	}
	data := filepath.Join(s.Dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := s.account.Own(data); err != nil {
		return err
	}
	s.args = []string{"-listen", address, "-data", data}
	s.Address = "http://" + address
	transport := &http.Transport{}
	if o.tls {
		s.Address = "https://" + address
		if s.pki, err = newAuthority(s.Dir, s.account); err != nil {
			return err
		}
		s.CAPEM = s.pki.pem
		s.args = append(s.args, "-cert", s.pki.cert, "-key", s.pki.key)
		if o.clients {
			s.args = append(s.args, "-client-ca", s.pki.ca)
		}
		if transport.TLSClientConfig, err = s.pki.client(); err != nil {
			return err
		}
	}
	s.client = &http.Client{Transport: transport, Timeout: startTimeout}
	if err := s.start(ctx); err != nil {
		return err
	}
	var keys struct {
		Keys []string `json:"keys"`
		Root string   `json:"root_token"`
	}
	if err := s.Call(ctx, http.MethodPut, "sys/init", "", map[string]any{"secret_shares": 1, "secret_threshold": 1}, &keys); err != nil {
		return err
	}
	if len(keys.Keys) == 0 || keys.Root == "" {
		return errors.New("the server initialised itself without keys")
	}
	s.unseal, s.Root = keys.Keys[0], keys.Root
	return s.Unseal(ctx)
}

func (s *Server) start(ctx context.Context) error {
	path, err := servertest.Built("vault")
	if err != nil {
		return err
	}
	s.proc, err = servertest.Start(servertest.Command{Path: path, Args: s.args, Dir: s.Dir, Account: s.account})
	if err != nil {
		return err
	}
	return s.poll(ctx, "listen", func() error {
		return s.Call(ctx, http.MethodGet, "sys/seal-status", "", nil, nil)
	})
}

func (s *Server) poll(ctx context.Context, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-s.proc.Done():
			return fmt.Errorf("vault ended while it was to %s:\n%s", what, s.proc.Output())
		case <-ctx.Done():
			return fmt.Errorf("vault does not %s: %w\n%s", what, err, s.proc.Output())
		case <-tick.C:
		}
	}
}

// Unseal opens the seal and waits until the server serves.
func (s *Server) Unseal(ctx context.Context) error {
	if err := s.Call(ctx, http.MethodPut, "sys/unseal", "", map[string]any{"key": s.unseal}, nil); err != nil {
		return err
	}
	return s.poll(ctx, "serve", func() error {
		return s.Call(ctx, http.MethodGet, "auth/token/lookup-self", s.Root, nil, nil)
	})
}

// Seal closes the seal: the server answers 503 until [Server.Unseal].
func (s *Server) Seal(ctx context.Context) error {
	return s.Call(ctx, http.MethodPut, "sys/seal", s.Root, nil, nil)
}

// StartAgain starts the server after [Server.Stop] or [Server.Kill], on the same port and storage,
// and unseals it.
func (s *Server) StartAgain(ctx context.Context) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	return s.Unseal(ctx)
}

// Stop ends the server in order and keeps its storage.
func (s *Server) Stop() error { return s.proc.Stop(syscall.SIGTERM) }

// Kill ends the server without warning and keeps its storage.
func (s *Server) Kill() error { return s.proc.Stop(syscall.SIGKILL) }

// Signal sends a signal: SIGSTOP makes a server that hangs rather than fails.
func (s *Server) Signal(sig syscall.Signal) error { return s.proc.Signal(sig) }

// Output is the beginning of what the server printed.
func (s *Server) Output() string { return s.proc.Output() }

// Close ends the server and removes its files.
func (s *Server) Close() error {
	var err error
	if s.proc != nil {
		err = s.proc.Stop(syscall.SIGTERM)
	}
	return errors.Join(err, os.RemoveAll(s.Dir))
}

// ClientCertificate makes a client's certificate and key in PEM, signed by the
// server's CA.
func (s *Server) ClientCertificate(commonName string) (cert, key string, err error) {
	if s.pki == nil {
		return "", "", errors.New("the server has no CA")
	}
	return s.pki.issue(commonName)
}

// Status is the answer that [Server.Call] did not like.
type Status struct {
	Code int
	Text string
}

// Error implements error.
func (e *Status) Error() string { return fmt.Sprintf("status %d: %s", e.Code, e.Text) }

// Call asks the server's API by its own way: no client library, nothing of the
// environment. body and answer are JSON and may be nil; a status of 300 or more is
// a *[Status].
func (s *Server) Call(ctx context.Context, method, path, token string, body, answer any) error {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, s.Address+"/v1/"+path, in)
	if err != nil {
		return err
	}
	r.Header.Set("X-Vault-Request", "true")
	if token != "" {
		r.Header.Set("X-Vault-Token", token)
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return &Status{resp.StatusCode, strings.TrimSpace(string(text))}
	}
	if answer == nil || len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// Do is [Server.Call] as root; the test ends if it fails. It returns the answer's
// data.
func (s *Server) Do(t testing.TB, method, path string, body any) map[string]any {
	t.Helper()
	var answer struct {
		Data map[string]any `json:"data"`
	}
	if err := s.Call(context.Background(), method, path, s.Root, body, &answer); err != nil {
		t.Fatalf("vaulttest: %s %s: %v", method, path, err)
	}
	return answer.Data
}

// Policy writes an ACL policy.
func (s *Server) Policy(ctx context.Context, name, hcl string) error {
	return s.Call(ctx, http.MethodPut, "sys/policies/acl/"+name, s.Root, map[string]any{"policy": hcl}, nil)
}

// Token makes an orphan token with policies, and not default. More are further members of the call:
// period, ttl.
func (s *Server) Token(ctx context.Context, policies []string, more map[string]any) (string, error) {
	body := map[string]any{"policies": policies, "no_parent": true, "no_default_policy": true}
	for k, v := range more {
		body[k] = v
	}
	var answer struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	err := s.Call(ctx, http.MethodPost, "auth/token/create", s.Root, body, &answer)
	return answer.Auth.Token, err
}
