// Package pgtest starts private, real PostgreSQL servers for tests, benchmarks
// and demonstrations: own data directory, own free port on 127.0.0.1, run as an
// ordinary user even when the caller is root, ended by its own process.
//
// It never skips: without an installed server it fails and says how to get one.
// It must know nothing of Mayfly, so that every room can use it.
package pgtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// AdminUser is the bootstrap superuser of every server.
const AdminUser = "admin"

// startTimeout bounds a start; a loaded machine needs it, a good one never comes
// near.
const startTimeout = 60 * time.Second

// Server is one running PostgreSQL. Its exported fields are set by [Run] and not
// changed afterwards.
type Server struct {
	Host     string // 127.0.0.1
	Port     int
	Password string // of AdminUser
	DataDir  string
	CAPEM    string // the CA that signed the server's certificate; empty without TLS

	bin    string // directory of the server's programs
	as     servertest.Account
	tls    *servertest.Authority // nil without TLS
	caFile string
	proc   *servertest.Process
	flags  []string
}

// Option changes how a server is started.
type Option func(*options)

type options struct {
	durable  bool
	tls      bool
	hba      []string
	settings map[string]string
}

// Durable leaves fsync on, for benchmarks. Without it a server's commits do not
// wait for the disk.
func Durable() Option { return func(o *options) { o.durable = true } }

// TLS gives the server a certificate for 127.0.0.1 and localhost from a CA of
// its own, and lets clients log in with a certificate of that CA when their
// account has no password: see [Server.ClientCertificate] and [HBA].
func TLS() Option { return func(o *options) { o.tls = true } }

// HBA puts lines before the default ones in pg_hba.conf.
func HBA(lines ...string) Option { return func(o *options) { o.hba = append(o.hba, lines...) } }

// Setting sets one server parameter.
func Setting(name, value string) Option { return func(o *options) { o.settings[name] = value } }

// Start runs a server for one test and ends it with the test. A package that
// needs one server for all its tests uses [Run] in TestMain.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := Run(ctx, "", opts...)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return s
}

// Run starts a server whose data lies in dir, which must not exist yet or be
// empty; an empty dir means a new temporary directory. The caller ends it with
// [Server.Close]. ctx bounds the start alone.
func Run(ctx context.Context, dir string, opts ...Option) (*Server, error) {
	o := options{settings: map[string]string{}}
	for _, f := range opts {
		f(&o)
	}
	bin, err := findServer()
	if err != nil {
		return nil, err
	}
	as, err := servertest.Choose("postgres")
	if err != nil {
		return nil, err
	}
	if dir, err = prepareDir(dir, as); err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", DataDir: filepath.Join(dir, "data"), bin: bin, as: as}
	if s.Port, err = servertest.Port(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.create(ctx, dir, o); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.StartAgain(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// create runs initdb and writes the configuration.
func (s *Server) create(ctx context.Context, dir string, o options) error {
	var random [12]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	s.Password = hex.EncodeToString(random[:])
	pwfile := filepath.Join(dir, "pw")
	if err := s.as.WriteFile(pwfile, []byte(s.Password+"\n")); err != nil {
		return err
	}
	defer func() { _ = os.Remove(pwfile) }()
	initdb := s.program("initdb", "-D", s.DataDir, "-U", AdminUser, "-A", "scram-sha-256", "--pwfile", pwfile, "--no-locale", "-E", "UTF8", "--no-sync")
	if out, err := initdb.Run(ctx); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	hba := append([]string{}, o.hba...)
	settings := map[string]string{
		"listen_addresses": "127.0.0.1", "unix_socket_directories": dir, "max_connections": "120", "shared_buffers": "64MB",
		"max_prepared_transactions": "10", "log_min_messages": "warning", "autovacuum_naptime": "10s",
	}
	if !o.durable {
		settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"] = "off", "off", "off"
	}
	if o.tls {
		if err := s.enableTLS(settings); err != nil {
			return err
		}
		hba = append(hba, "hostssl all all 127.0.0.1/32 scram-sha-256")
	} else {
		hba = append(hba, "host all all 127.0.0.1/32 scram-sha-256")
	}
	for k, v := range o.settings {
		settings[k] = v
	}
	for k, v := range settings {
		s.flags = append(s.flags, "-c", k+"="+v)
	}
	return s.as.WriteFile(filepath.Join(s.DataDir, "pg_hba.conf"), []byte(strings.Join(hba, "\n")+"\n"))
}

// program is one of the server's programs, to run beside its data.
func (s *Server) program(name string, args ...string) servertest.Command {
	return servertest.Command{Path: filepath.Join(s.bin, name), Args: args, Dir: filepath.Dir(s.DataDir), Account: s.as}
}

// StartAgain starts the server after [Server.Stop], on the same port and data.
func (s *Server) StartAgain(ctx context.Context) error {
	args := append([]string{"-D", s.DataDir, "-p", strconv.Itoa(s.Port)}, s.flags...)
	c := s.program("postgres", args...)
	c.Orphaned = immediate
	p, err := servertest.Start(c)
	if err != nil {
		return err
	}
	s.proc = p
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.waitReady(ctx); err != nil {
		return errors.Join(err, p.Stop(immediate))
	}
	return nil
}

func (s *Server) waitReady(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.URL(AdminUser, s.Password, "postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-s.proc.Done():
			return fmt.Errorf("postgres ended while starting:\n%s", s.proc.Output())
		case <-ctx.Done():
			return fmt.Errorf("postgres did not become ready: %w\n%s", err, s.proc.Output())
		case <-tick.C:
		}
	}
}

// Stop ends the server, sessions and all, and keeps its data.
func (s *Server) Stop() error { return s.proc.Stop(fast) }

// Kill ends the server as a crash would, and keeps its data.
func (s *Server) Kill() error { return s.proc.Stop(immediate) }

// Signal sends the server a signal: SIGSTOP makes a target that hangs rather than
// fails.
func (s *Server) Signal(sig syscall.Signal) error { return s.proc.Signal(sig) }

// Close ends the server and removes its data.
func (s *Server) Close() error {
	return errors.Join(s.Stop(), os.RemoveAll(filepath.Dir(s.DataDir)))
}

// Door is what [Server.Door] puts before the server.
type Door = servertest.Door

// Door opens a door before the server, for one test: what comes through it can be
// held.
func (s *Server) Door(t testing.TB) *Door {
	t.Helper()
	return servertest.DoorFor(t, s.Address())
}

// Address returns host:port.
func (s *Server) Address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// URL returns a connection string for an account. With TLS it verifies the
// server's certificate.
func (s *Server) URL(user, password, database string) string {
	q := url.Values{"sslmode": {"disable"}}
	if s.tls != nil {
		q = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {s.caFile}}
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: s.Address(), Path: "/" + database, RawQuery: q.Encode()}
	return u.String()
}

// Exec runs SQL as the superuser, several statements at once if need be, and
// fails the test on an error.
func (s *Server) Exec(t testing.TB, database, sql string) {
	t.Helper()
	if err := s.Do(t.Context(), database, sql); err != nil {
		t.Fatalf("pgtest: %v\n%s", err, sql)
	}
}

// Do runs SQL as the superuser.
func (s *Server) Do(ctx context.Context, database, sql string) error {
	conn, err := pgx.Connect(ctx, s.URL(AdminUser, s.Password, database))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

// Connect opens a connection that ends with the test.
func (s *Server) Connect(t testing.TB, user, password, database string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL(user, password, database))
	if err != nil {
		t.Fatalf("pgtest: connect as %s: %v", user, err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Admin opens a superuser's connection that ends with the test.
func (s *Server) Admin(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	return s.Connect(t, AdminUser, s.Password, database)
}
