// Package natstest starts private, real NATS servers for tests and benchmarks, in
// operator mode: with an operator, a system account and an account for users, and
// accounts kept by the servers themselves. Each has its own directory and ports on
// 127.0.0.1, runs as an ordinary user even when the caller is root, and is ended
// by its own process.
//
// It never skips: without an installed server it fails and says how to get one.
// It must know nothing of Mayfly, so that every room can use it.
package natstest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// startTimeout bounds a start; a loaded machine needs it.
const startTimeout = 30 * time.Second

// Server is one running nats-server. Its exported fields are set by the start and
// not changed afterwards.
type Server struct {
	*Trust
	Host  string // 127.0.0.1
	Port  int
	Dir   string // its configuration and data
	CAPEM string // the CA that signed the server's certificate; empty without TLS

	tls     *servertest.Authority // nil without TLS
	routes  int
	account servertest.Account
	proc    *servertest.Process
}

// Option changes how a server is started.
type Option func(*options)

type options struct {
	lines  []string
	tls    bool
	memory bool
	deaf   bool // the last server
}

// Config puts lines into the server's configuration.
func Config(lines ...string) Option { return func(o *options) { o.lines = append(o.lines, lines...) } }

// TLS gives the server a certificate for 127.0.0.1 and localhost from a CA of its
// own, and takes no clients without TLS.
func TLS() Option { return func(o *options) { o.tls = true } }

// Memory has the server know its accounts from its configuration alone.
func Memory() Option { return func(o *options) { o.memory = true } }

// LastIsDeaf has the last server of a cluster know its accounts from its
// configuration alone: it takes no push.
func LastIsDeaf() Option { return func(o *options) { o.deaf = true } }

// Start runs a server for one test and ends it with the test. A package that
// needs one server for all its tests uses [Run] in TestMain.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	return StartCluster(t, 1, opts...)[0]
}

// StartCluster runs servers that know each other and trust the same operator.
func StartCluster(t testing.TB, n int, opts ...Option) []*Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	servers, err := RunCluster(ctx, n, opts...)
	if err != nil {
		t.Fatalf("natstest: %v", err)
	}
	for _, s := range servers {
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Errorf("natstest: %v", err)
			}
		})
	}
	return servers
}

// Run starts a server. The caller ends it with [Server.Close]. ctx bounds the
// start alone.
func Run(ctx context.Context, opts ...Option) (*Server, error) {
	servers, err := RunCluster(ctx, 1, opts...)
	if err != nil {
		return nil, err
	}
	return servers[0], nil
}

// RunCluster starts servers that know each other. The caller ends each one.
func RunCluster(ctx context.Context, n int, opts ...Option) ([]*Server, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	trust, err := newTrust()
	if err != nil {
		return nil, err
	}
	ports := make([]int, n)
	for i := range ports {
		if ports[i], err = servertest.Port(); err != nil {
			return nil, err
		}
	}
	var out []*Server
	for i := range n {
		s := &Server{Trust: trust, Host: "127.0.0.1", routes: ports[i]}
		o.memory = o.memory || o.deaf && i == n-1
		if err = s.prepare(o, ports); err == nil {
			err = s.StartAgain(ctx)
		}
		out = append(out, s)
		if err != nil {
			break
		}
	}
	if err == nil {
		err = out[0].meet(ctx, n)
	}
	if err != nil {
		for _, s := range out {
			err = errors.Join(err, s.Close())
		}
		return nil, err
	}
	return out, nil
}

// prepare writes the server's configuration, and the accounts that it knows.
func (s *Server) prepare(o options, routes []int) (err error) {
	if s.account, err = servertest.Choose("nats"); err != nil {
		return err
	}
	if s.Dir, err = s.account.Dir("natstest-"); err != nil {
		return err
	}
	if s.Port, err = servertest.Port(); err != nil {
		return err
	}
	store := filepath.Join(s.Dir, "accounts")
	if err := errors.Join(os.Mkdir(store, 0o700), s.account.Own(store)); err != nil {
		return err
	}
	lines := []string{"host: 127.0.0.1", "port: " + strconv.Itoa(s.Port), "server_name: s" + strconv.Itoa(s.Port), "operator: " + s.OperatorJWT, "system_account: " + s.System}
	preload := map[string]string{s.System: s.systemJWT, s.Account: s.accountJWT}
	if o.memory {
		lines = append(lines, "resolver: MEMORY", "resolver_preload {")
		for k, v := range preload {
			lines = append(lines, k+": "+v)
		}
		lines = append(lines, "}")
	} else {
		lines = append(lines, fmt.Sprintf(`resolver { type: full, dir: %q, allow_delete: false, interval: "2s" }`, store))
		for k, v := range preload {
			if err := s.account.WriteFile(filepath.Join(store, k+".jwt"), []byte(v)); err != nil {
				return err
			}
		}
	}
	if len(routes) > 1 {
		var urls []string
		for _, p := range routes {
			urls = append(urls, fmt.Sprintf("nats-route://127.0.0.1:%d", p))
		}
		lines = append(lines, fmt.Sprintf("cluster { name: test, listen: \"127.0.0.1:%d\", routes: [%s] }", s.routes, strings.Join(urls, ", ")))
	}
	if o.tls {
		if s.tls, err = servertest.NewAuthority(); err != nil {
			return err
		}
		files, err := s.tls.Write(s.account, s.Dir)
		if err != nil {
			return err
		}
		s.CAPEM = s.tls.PEM
		lines = append(lines, fmt.Sprintf("tls { cert_file: %q, key_file: %q }", files.Cert, files.Key))
	}
	return s.account.WriteFile(filepath.Join(s.Dir, "nats.conf"), []byte(strings.Join(append(lines, o.lines...), "\n")+"\n"))
}

// StartAgain starts the server after [Server.Stop] or [Server.Kill], on the same
// port, configuration and data.
func (s *Server) StartAgain(ctx context.Context) error {
	path, err := servertest.Find("nats-server", "nats-server")
	if err != nil {
		return err
	}
	p, err := servertest.Start(servertest.Command{Path: path, Args: []string{"-c", filepath.Join(s.Dir, "nats.conf")}, Dir: s.Dir, Account: s.account})
	s.proc = p
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return s.wait(ctx, "it did not become ready", func() error {
		nc, err := s.SystemUser()
		if err == nil {
			nc.Close()
		}
		return err
	})
}

// wait polls until ok says nil.
func (s *Server) wait(ctx context.Context, what string, ok func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-s.proc.Done():
			return fmt.Errorf("nats-server ended:\n%s", s.proc.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s: %w\n%s", what, err, s.proc.Output())
		case <-tick.C:
		}
	}
}

// meet waits until n servers know each other.
func (s *Server) meet(ctx context.Context, n int) error {
	if n == 1 {
		return nil
	}
	return s.wait(ctx, "the servers do not meet", func() error {
		nc, err := s.SystemUser()
		if err != nil {
			return err
		}
		defer nc.Close()
		m, err := nc.Request("$SYS.REQ.SERVER.PING", nil, time.Second)
		if err != nil {
			return err
		}
		if !strings.Contains(string(m.Data), fmt.Sprintf(`"active_servers":%d`, n)) {
			return errors.New("one is missing")
		}
		return nil
	})
}

// Stop ends the server and keeps its files.
func (s *Server) Stop() error { return s.proc.Stop(syscall.SIGTERM) }

// Kill ends the server without warning and keeps its files.
func (s *Server) Kill() error { return s.proc.Stop(syscall.SIGKILL) }

// Signal sends a signal: SIGSTOP makes a server that hangs rather than fails.
func (s *Server) Signal(sig syscall.Signal) error { return s.proc.Signal(sig) }

// Close ends the server and removes its files.
func (s *Server) Close() error {
	if s.proc == nil {
		return os.RemoveAll(s.Dir)
	}
	return errors.Join(s.Stop(), os.RemoveAll(s.Dir))
}

// Address returns host:port.
func (s *Server) Address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// Dial opens a client's connection that neither comes back by itself nor says
// anything on stderr.
func (s *Server) Dial(opts ...natsgo.Option) (*natsgo.Conn, error) {
	all := []natsgo.Option{natsgo.NoReconnect(), natsgo.Timeout(5 * time.Second), natsgo.ErrorHandler(func(*natsgo.Conn, *natsgo.Subscription, error) {})}
	url := "nats://" + s.Address()
	if s.tls != nil {
		all, url = append(all, natsgo.Secure(s.tls.Client())), "tls://"+s.Address()
	}
	return natsgo.Connect(url, append(all, opts...)...)
}
