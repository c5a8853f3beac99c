// Package mysqltest starts private, real MariaDB servers for tests, benchmarks
// and demonstrations: own data directory, own free port on 127.0.0.1, run as an
// ordinary user even when the caller is root, ended by its own process.
//
// It never skips: without an installed server it fails and says how to get one.
// It must know nothing of Mayfly, so that every room can use it.
package mysqltest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// AdminUser is an account with all rights on every server.
const AdminUser = "admin"

// startTimeout bounds a start; a loaded machine needs it, a good one never comes
// near.
const startTimeout = 60 * time.Second

// Server is one running MariaDB. Its exported fields are set by [Run] and not
// changed afterwards.
type Server struct {
	Host     string // 127.0.0.1
	Port     int
	Password string // of AdminUser
	DataDir  string
	CAPEM    string // the CA that signed the server's certificate; empty without TLS

	bin   string
	as    servertest.Account
	proc  *servertest.Process
	flags []string
	tls   *servertest.Authority // nil without TLS
}

// Option changes how a server is started.
type Option func(*options)

type options struct {
	durable bool
	tls     bool
	flags   []string
}

// Durable leaves syncing on, for benchmarks.
func Durable() Option { return func(o *options) { o.durable = true } }

// TLS gives the server a certificate for 127.0.0.1 and localhost from a CA of
// its own.
func TLS() Option { return func(o *options) { o.tls = true } }

// Flag adds one argument of the server, as in "--skip-name-resolve".
func Flag(f string) Option { return func(o *options) { o.flags = append(o.flags, f) } }

// Start runs a server for one test and ends it with the test. A package that
// needs one server for all its tests uses [Run] in TestMain.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := Run(ctx, opts...)
	if err != nil {
		t.Fatalf("mysqltest: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("mysqltest: %v", err)
		}
	})
	return s
}

// Run starts a server with a new temporary directory. The caller ends it with
// [Server.Close]. ctx bounds the start alone.
func Run(ctx context.Context, opts ...Option) (*Server, error) {
	var o options
	for _, f := range opts {
		f(&o)
	}
	bin, err := servertest.Find("mariadb-server", "mariadbd")
	if err != nil {
		return nil, err
	}
	as, err := servertest.Choose("mysql")
	if err != nil {
		return nil, err
	}
	dir, err := as.Dir("mysqltest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", DataDir: filepath.Join(dir, "data"), bin: bin, as: as}
	s.Port, err = servertest.Port()
	if err == nil {
		err = s.create(ctx, dir, o)
	}
	if err == nil {
		err = s.StartAgain(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

// create makes the data directory and the server's arguments.
func (s *Server) create(ctx context.Context, dir string, o options) error {
	var random [12]byte
	_, _ = rand.Read(random[:]) // never fails
	s.Password = hex.EncodeToString(random[:])
	initFile := filepath.Join(dir, "init.sql")
	script := fmt.Sprintf("CREATE USER IF NOT EXISTS %s@'127.0.0.1' IDENTIFIED BY '%s';\nGRANT ALL ON *.* TO %[1]s@'127.0.0.1' WITH GRANT OPTION;\n", AdminUser, s.Password)
	if err := s.as.WriteFile(initFile, []byte(script)); err != nil {
		return err
	}
	installer, err := servertest.Find("mariadb-server", "mariadb-install-db")
	if err != nil {
		return err
	}
	install := servertest.Command{Path: installer, Dir: dir, Account: s.as,
		Args: []string{"--no-defaults", "--datadir=" + s.DataDir, "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"}}
	if out, err := install.Run(ctx); err != nil {
		return fmt.Errorf("mariadb-install-db: %w\n%s", err, out)
	}
	s.flags = []string{
		"--no-defaults", "--datadir=" + s.DataDir, "--socket=" + filepath.Join(dir, "s"), "--pid-file=" + filepath.Join(dir, "pid"), "--bind-address=127.0.0.1",
		"--port=" + strconv.Itoa(s.Port), "--init-file=" + initFile, "--innodb-buffer-pool-size=32M", "--max-connections=150", "--skip-log-bin", "--plugin-load-add=auth_ed25519",
	}
	if !o.durable {
		s.flags = append(s.flags, "--innodb-flush-log-at-trx-commit=0", "--sync-frm=OFF")
	}
	if o.tls {
		if s.tls, err = servertest.NewAuthority(); err != nil {
			return err
		}
		files, err := s.tls.Write(s.as, dir)
		if err != nil {
			return err
		}
		s.CAPEM = s.tls.PEM
		s.flags = append(s.flags, "--ssl-ca="+files.CA, "--ssl-cert="+files.Cert, "--ssl-key="+files.Key)
	}
	s.flags = append(s.flags, o.flags...)
	return nil
}

// StartAgain starts the server after [Server.Stop], on the same port and data.
func (s *Server) StartAgain(ctx context.Context) error {
	p, err := servertest.Start(servertest.Command{Path: s.bin, Args: s.flags, Dir: filepath.Dir(s.DataDir), Account: s.as})
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
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := s.Do(ctx, "DO 1")
		if err == nil {
			return nil
		}
		select {
		case <-s.proc.Done():
			return fmt.Errorf("mariadbd ended while starting:\n%s", s.proc.Output())
		case <-ctx.Done():
			return fmt.Errorf("mariadbd did not become ready: %w\n%s", err, s.proc.Output())
		case <-tick.C:
		}
	}
}

// Stop ends the server, sessions and all, and keeps its data.
func (s *Server) Stop() error { return s.proc.Stop(syscall.SIGTERM) }

// Kill ends the server without warning and keeps its data.
func (s *Server) Kill() error { return s.proc.Stop(syscall.SIGKILL) }

// Signal sends the server a signal: SIGSTOP makes it a target that hangs rather
// than fails, SIGCONT ends that.
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

// Open returns a pool of connections for an account, several statements in one
// call allowed. With TLS it verifies the server's certificate. It connects when
// first used.
func (s *Server) Open(user, password, database string) (*sql.DB, error) {
	c := mysql.NewConfig()
	c.User, c.Passwd, c.Net, c.Addr, c.DBName, c.MultiStatements, c.InterpolateParams = user, password, "tcp", s.Address(), database, true, true
	c.Logger = &mysql.NopLogger{}
	if s.tls != nil {
		c.TLS = s.tls.Client()
	}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// Do runs SQL as the administrator, several statements at once if need be.
func (s *Server) Do(ctx context.Context, text string) error {
	db, err := s.Open(AdminUser, s.Password, "")
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, text)
	return errors.Join(err, db.Close())
}

// Exec runs SQL as the administrator and fails the test on an error.
func (s *Server) Exec(t testing.TB, text string) {
	t.Helper()
	if err := s.Do(t.Context(), text); err != nil {
		t.Fatalf("mysqltest: %v\n%s", err, text)
	}
}

// Admin opens an administrator's connection that ends with the test.
func (s *Server) Admin(t testing.TB) *sql.Conn {
	t.Helper()
	db, err := s.Open(AdminUser, s.Password, "")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatalf("mysqltest: connect: %v", err)
	}
	t.Cleanup(func() { _ = errors.Join(conn.Close(), db.Close()) })
	return conn
}
