// Package kubernetestest starts private, real Kubernetes API servers for tests:
// kube-apiserver as `make setup` builds it, and the etcd that it keeps its objects
// in. Each pair has its own directory and ports on 127.0.0.1, runs as an ordinary
// user even when the caller is root, and ends with its own process.
//
// There is no controller manager, scheduler or node: nothing runs pods or collects
// garbage. The rules of view, edit and admin, which a controller would put
// together, are put together once at the start. It never skips, and it must know
// nothing of Mayfly, so that every room can use it.
package kubernetestest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// startTimeout bounds a start; a loaded machine needs it.
const startTimeout = 3 * time.Minute

// Server is one running API server with its etcd. Its exported fields are set by
// the start and not changed afterwards.
type Server struct {
	Host  string // 127.0.0.1
	Port  int
	Dir   string // keys, certificates and etcd's data
	CAPEM string // the CA that signed the server's certificate
	Token string // of a member of system:masters

	account   servertest.Account
	authority *authority
	etcdPort  int
	peerPort  int
	flags     []string
	etcd, api *servertest.Process
	client    *http.Client
}

// Option changes how a server is started.
type Option func(*options)

type options struct{ flags []string }

// Flag adds arguments of kube-apiserver, as in --service-account-lookup=false.
func Flag(flags ...string) Option { return func(o *options) { o.flags = append(o.flags, flags...) } }

// Start runs a server for one test and ends it with the test. A package that
// needs one server for all its tests uses [Run] in TestMain.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	s, err := Run(context.Background(), opts...)
	if err != nil {
		t.Fatalf("kubernetestest: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("kubernetestest: %v", err)
		}
	})
	return s
}

// Run starts a server. The caller ends it with [Server.Close]. ctx bounds the
// start alone.
func Run(ctx context.Context, opts ...Option) (*Server, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	account, err := servertest.Choose("etcd")
	if err != nil {
		return nil, err
	}
	dir, err := account.Dir("kubernetestest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", Dir: dir, Token: rand.Text(), account: account, flags: o.flags}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.run(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) run(ctx context.Context) error {
	for _, p := range []*int{&s.Port, &s.etcdPort, &s.peerPort} {
		var err error
		if *p, err = servertest.Port(); err != nil {
			return err
		}
	}
	if err := s.writeFiles(); err != nil {
		return err
	}
	if err := s.startEtcd(); err != nil {
		return err
	}
	if err := s.StartAgain(ctx); err != nil {
		return err
	}
	return s.aggregate(ctx)
}

func (s *Server) writeFiles() error {
	var err error
	if s.authority, err = newAuthority(); err != nil {
		return err
	}
	s.CAPEM = s.authority.pem
	cert, key, err := s.authority.issue("kube-apiserver", nil)
	if err != nil {
		return err
	}
	signing, err := newKey()
	if err != nil {
		return err
	}
	s.client = s.authority.client()
	for name, text := range map[string]string{
		"ca.pem": s.CAPEM, "cert.pem": cert, "key.pem": key, "signing.pem": signing,
		"tokens.csv": s.Token + `,admin,admin,"system:masters"` + "\n",
	} {
		if err := s.account.WriteFile(s.file(name), []byte(text)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) file(name string) string { return filepath.Join(s.Dir, name) }

func (s *Server) startEtcd() error {
	path, err := servertest.Find("etcd-server", "etcd")
	if err != nil {
		return err
	}
	clients, peers := "http://127.0.0.1:"+strconv.Itoa(s.etcdPort), "http://127.0.0.1:"+strconv.Itoa(s.peerPort)
	s.etcd, err = servertest.Start(servertest.Command{
		Path: path, Dir: s.Dir, Account: s.account,
		Args: []string{
			"--name=default", "--data-dir=" + s.file("etcd"), "--unsafe-no-fsync", "--listen-client-urls=" + clients, "--advertise-client-urls=" + clients,
			"--listen-peer-urls=" + peers, "--initial-advertise-peer-urls=" + peers, "--initial-cluster=default=" + peers,
		},
	})
	return err
}

// StartAgain starts the API server after [Server.Stop] or [Server.Kill], on the
// same port, keys and data.
func (s *Server) StartAgain(ctx context.Context) error {
	path, err := servertest.Built("kube-apiserver")
	if err != nil {
		return err
	}
	args := append([]string{
		"--etcd-servers=http://127.0.0.1:" + strconv.Itoa(s.etcdPort), "--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(s.Port),
		"--tls-cert-file=" + s.file("cert.pem"), "--tls-private-key-file=" + s.file("key.pem"), "--client-ca-file=" + s.file("ca.pem"),
		"--service-account-issuer=https://kubernetes.test", "--api-audiences=https://kubernetes.test",
		"--service-account-key-file=" + s.file("signing.pem"), "--service-account-signing-key-file=" + s.file("signing.pem"),
		"--token-auth-file=" + s.file("tokens.csv"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/24",
		"--endpoint-reconciler-type=none", "--cert-dir=" + s.file("certs"), "--v=0",
	}, s.flags...)
	if s.api, err = servertest.Start(servertest.Command{Path: path, Args: args, Dir: s.Dir, Account: s.account}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.Admin(ctx, http.MethodGet, "/readyz", nil, nil)
		if err == nil {
			return nil
		}
		select {
		case <-s.api.Done():
			return fmt.Errorf("kube-apiserver ended while starting:\n%s", s.api.Output())
		case <-s.etcd.Done():
			return fmt.Errorf("etcd ended while starting:\n%s", s.etcd.Output())
		case <-ctx.Done():
			return fmt.Errorf("kube-apiserver did not become ready: %w\n%s", err, s.api.Output())
		case <-tick.C:
		}
	}
}

// Stop ends the API server; etcd goes on and keeps its objects.
func (s *Server) Stop() error { return s.api.Stop(syscall.SIGTERM) }

// Kill ends the API server without warning; etcd goes on.
func (s *Server) Kill() error { return s.api.Stop(syscall.SIGKILL) }

// Signal sends the API server a signal: SIGSTOP makes one that hangs rather than
// fails.
func (s *Server) Signal(sig syscall.Signal) error { return s.api.Signal(sig) }

// Close ends both servers and removes their files.
func (s *Server) Close() error {
	var errs []error
	for _, p := range []*servertest.Process{s.api, s.etcd} {
		if p != nil {
			errs = append(errs, p.Stop(syscall.SIGKILL)) // nothing of theirs is kept
		}
	}
	return errors.Join(append(errs, os.RemoveAll(s.Dir))...)
}

// Address returns host:port.
func (s *Server) Address() string { return s.Host + ":" + strconv.Itoa(s.Port) }
