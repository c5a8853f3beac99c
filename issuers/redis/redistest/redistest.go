// Package redistest starts private, real Redis servers for tests and
// benchmarks: alone, watched by Sentinels, or as a cluster. Each has its own
// directory and free port on 127.0.0.1, runs as an ordinary user even when the
// caller is root, and is ended by its own process.
//
// It never skips: without an installed server it fails and says how to get one.
// It must know nothing of Mayfly, so that every room can use it.
package redistest

import (
	"context"
	"crypto/rand"
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

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// AdminUser is the user with every right on every server. The user default is off.
const AdminUser = "admin"

// startTimeout bounds a start; a loaded machine needs it.
const startTimeout = 60 * time.Second

// Server is one running redis-server or redis-sentinel. Its exported fields are
// set by the start and not changed afterwards.
type Server struct {
	Host     string // 127.0.0.1
	Port     int
	Password string // of AdminUser
	Dir      string // its configuration, ACL file and data
	CAPEM    string // the CA that signed the server's certificate; empty without TLS

	program string
	busPort int // of a cluster
	as      servertest.Account
	tls     *servertest.Authority // nil without TLS
	proc    *servertest.Process
}

// Option changes how a server is started.
type Option func(*options)

type options struct {
	lines    []string
	tls      bool
	aclFile  bool
	password string
	cluster  bool
}

// Config puts lines into redis.conf.
func Config(lines ...string) Option { return func(o *options) { o.lines = append(o.lines, lines...) } }

// TLS gives the server a certificate for 127.0.0.1 and localhost from a CA of its
// own, and no port without TLS.
func TLS() Option { return func(o *options) { o.tls = true } }

// ACLFile keeps the server's users in a file of their own, users.acl.
func ACLFile() Option { return func(o *options) { o.aclFile = true } }

// Start runs a server for one test and ends it with the test. A package that
// needs one server for all its tests uses [Run] in TestMain.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := Run(ctx, opts...)
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	s.closeWith(t)
	return s
}

func (s *Server) closeWith(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("redistest: %v", err)
		}
	})
}

// Run starts a server. The caller ends it with [Server.Close]. ctx bounds the
// start alone.
func Run(ctx context.Context, opts ...Option) (*Server, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	if o.password == "" {
		o.password = rand.Text()
	}
	s, err := prepare("redis-server")
	if err != nil {
		return nil, err
	}
	s.Password = o.password
	if err = s.configure(o); err == nil {
		err = s.StartAgain(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.Dir))
	}
	return s, nil
}

// prepare gives a server its place: a directory and a port.
func prepare(program string) (*Server, error) {
	as, err := servertest.Choose("redis")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", program: program, as: as}
	if s.Port, err = servertest.Port(); err != nil {
		return nil, err
	}
	s.Dir, err = as.Dir("redistest-")
	return s, err
}

// configure writes redis.conf.
func (s *Server) configure(o options) error {
	lines := []string{"bind 127.0.0.1", "protected-mode no", "dir " + s.Dir, `save ""`, "appendonly no", "databases 4"}
	if o.tls {
		var err error
		if s.tls, err = servertest.NewAuthority(); err != nil {
			return err
		}
		files, err := s.tls.Write(s.as, s.Dir)
		if err != nil {
			return err
		}
		s.CAPEM = s.tls.PEM
		lines = append(lines, "port 0", "tls-port "+strconv.Itoa(s.Port), "tls-auth-clients no", "tls-cert-file "+files.Cert, "tls-key-file "+files.Key, "tls-ca-cert-file "+files.CA)
	} else {
		lines = append(lines, "port "+strconv.Itoa(s.Port))
	}
	if o.cluster {
		var err error
		if s.busPort, err = servertest.Port(); err != nil {
			return err
		}
		lines = append(lines, "cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 10000", "cluster-port "+strconv.Itoa(s.busPort))
	}
	users := []string{"user default off", "user " + AdminUser + " on >" + s.Password + " ~* &* +@all"}
	if o.aclFile {
		file := filepath.Join(s.Dir, "users.acl")
		if err := s.as.WriteFile(file, []byte(strings.Join(users, "\n")+"\n")); err != nil {
			return err
		}
		users = []string{"aclfile " + file}
	}
	lines = append(append(lines, users...), o.lines...)
	return s.write(lines)
}

// write writes the configuration file.
func (s *Server) write(lines []string) error {
	return s.as.WriteFile(s.config(), []byte(strings.Join(lines, "\n")+"\n"))
}

func (s *Server) config() string { return filepath.Join(s.Dir, "redis.conf") }

// StartAgain starts the server after [Server.Stop] or [Server.Kill], on the same
// port, configuration and data.
func (s *Server) StartAgain(ctx context.Context) error {
	path, err := servertest.Find("redis-server redis-sentinel", s.program)
	if err != nil {
		return err
	}
	p, err := servertest.Start(servertest.Command{Path: path, Args: []string{s.config()}, Dir: s.Dir, Account: s.as})
	if err != nil {
		return err
	}
	s.proc = p
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.waitReady(ctx); err != nil {
		return errors.Join(err, p.Stop(syscall.SIGKILL))
	}
	return nil
}

func (s *Server) waitReady(ctx context.Context) error {
	c := s.Client()
	defer func() { _ = c.Close() }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := c.Ping(ctx).Err()
		if err == nil {
			return nil
		}
		select {
		case <-s.proc.Done():
			return fmt.Errorf("%s ended while starting:\n%s", s.program, s.proc.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s did not become ready: %w\n%s", s.program, err, s.proc.Output())
		case <-tick.C:
		}
	}
}

// Stop ends the server and keeps its files.
func (s *Server) Stop() error { return s.proc.Stop(syscall.SIGTERM) }

// Kill ends the server without warning and keeps its files.
func (s *Server) Kill() error { return s.proc.Stop(syscall.SIGKILL) }

// Signal sends a signal: SIGSTOP makes a server that hangs rather than fails.
func (s *Server) Signal(sig syscall.Signal) error { return s.proc.Signal(sig) }

// Close ends the server and removes its files.
func (s *Server) Close() error { return errors.Join(s.Stop(), os.RemoveAll(s.Dir)) }

// Address returns host:port.
func (s *Server) Address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// Options are those of a client that logs in as a user; it neither retries nor
// asks for more than the server's own version has.
func (s *Server) Options(user, password string) *goredis.Options {
	o := &goredis.Options{
		Addr: s.Address(), Username: user, Password: password, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1,
		PoolSize: 4, PipelinePoolSize: -1, ContextTimeoutEnabled: true, DialTimeout: 2 * time.Second,
	}
	if s.tls != nil {
		o.TLSConfig = s.tls.Client()
	}
	return o
}

// As returns a user's client; the caller closes it.
func (s *Server) As(user, password string) *goredis.Client {
	return goredis.NewClient(s.Options(user, password))
}

// Client returns the admin's client; the caller closes it.
func (s *Server) Client() *goredis.Client {
	user := AdminUser
	password := s.Password
	if s.program != "redis-server" {
		user, password = "", ""
	}
	return goredis.NewClient(s.Options(user, password))
}

// Admin returns the admin's client, closed with the test.
func (s *Server) Admin(t testing.TB) *goredis.Client {
	t.Helper()
	c := s.Client()
	t.Cleanup(func() { _ = c.Close() })
	return c
}
