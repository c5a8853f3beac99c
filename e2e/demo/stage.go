package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

const (
	readyTimeout = 60 * time.Second
	stopTimeout  = 20 * time.Second
)

// stage is everything that the demo starts: a database server, a dev node, and
// a directory with their homes.
type stage struct {
	*teller
	dir    string
	binary string
	db     *pgtest.Server
	node   *exec.Cmd
	nodeAt *bytes.Buffer // what the node said
	ended  chan struct{} // closed once the node's process was waited for
	people map[string]string
	agent  string // who uses the credential
	addr   string
}

// build makes bin/mayfly if it is not there.
func build(ctx context.Context, t *teller) (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(root, "bin", "mayfly")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	t.say("Building bin/mayfly …")
	return binary, compile(ctx, root, binary)
}

func compile(ctx context.Context, root, binary string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "./cmd/mayfly")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// open starts the database server and the dev node side by side.
func open(ctx context.Context, binary string, t *teller) (_ *stage, err error) {
	s := &stage{teller: t, binary: binary, people: map[string]string{}, agent: "billing-bot"}
	if s.dir, err = os.MkdirTemp("", "mayfly-demo-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.db, err = pgtest.Run(ctx, ""); err != nil {
		return nil, err
	}
	if err = s.fill(ctx); err != nil {
		return nil, err
	}
	if err = s.startNode(ctx); err != nil {
		return nil, err
	}
	s.people["operator"] = filepath.Join(s.dir, "dev", "client")
	s.people["billing-bot"] = filepath.Join(s.dir, "billing-bot")
	return s, nil
}

// tables is a small shop. The last part is what docs/issuers/postgres.md asks
// for: an admin account that is no superuser.
const tables = `
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, card_number text NOT NULL);
CREATE TABLE orders (id int PRIMARY KEY, customer_id int REFERENCES customers, total numeric(9,2), placed date);
INSERT INTO customers VALUES (1, 'Ada Lovelace', '4111 1111 1111 1111'), (2, 'Alan Turing', '5500 0000 0000 0004'), (3, 'Grace Hopper', '3400 000000 00009');
INSERT INTO orders SELECT n, 1 + mod(n, 3), mod(n * 7919, 20000) / 100.0, date '2026-10-01' + mod(n, 31) FROM generate_series(1, 90) n;
CREATE ROLE mayfly LOGIN CREATEROLE PASSWORD '%s';
GRANT pg_signal_backend TO mayfly;
GRANT CREATE, USAGE ON SCHEMA public TO mayfly WITH GRANT OPTION;
GRANT ALL ON ALL TABLES IN SCHEMA public TO mayfly WITH GRANT OPTION;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;`

// fill makes the orders database and leaves its admin's password in a file.
func (s *stage) fill(ctx context.Context) error {
	if err := s.db.Do(ctx, "postgres", "CREATE DATABASE orders"); err != nil {
		return err
	}
	password := s.db.Password // random, of this server alone
	if err := s.db.Do(ctx, "orders", fmt.Sprintf(tables, password)); err != nil {
		return err
	}
	return s.write("orders.pw", password+"\n")
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

func (s *stage) write(name, text string) error {
	return os.WriteFile(s.path(name), []byte(text), 0o600)
}

// startNode runs `mayfly dev` on a free port and waits until it is ready.
func (s *stage) startNode(ctx context.Context) error {
	s.nodeAt, s.ended = &bytes.Buffer{}, make(chan struct{})
	s.node = exec.Command(s.binary, "dev", "--home", s.path("dev"), "--listen", "127.0.0.1:0", "--log-level", "error")
	s.node.Dir, s.node.Env = s.dir, environment()
	s.node.Stdout, s.node.Stderr = s.nodeAt, s.nodeAt
	// A Ctrl-C at the terminal is the demo's to hear; it then ends the node. If
	// the demo itself is killed, the kernel ends it.
	s.node.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	go s.ownNode(s.node, started)
	if err := <-started; err != nil {
		s.node = nil
		return err
	}
	return s.awaitNode(ctx)
}

// ownNode starts the node and waits for its end on one thread: the kernel's
// parent-death signal belongs to the thread that forked.
func (s *stage) ownNode(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(s.ended)
	err := cmd.Start()
	started <- err
	if err == nil {
		_ = cmd.Wait() // how it ended shows in what it said
	}
}

// awaitNode waits for the env file, which the node renames into place when it
// is ready.
func (s *stage) awaitNode(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		env, err := os.ReadFile(s.path("dev/env"))
		if err == nil {
			s.addr = addressIn(string(env))
			return nil
		}
		select {
		case <-s.ended:
			return fmt.Errorf("mayfly dev ended while starting:\n%s", s.nodeAt)
		case <-ctx.Done():
			return fmt.Errorf("mayfly dev is not ready after %s", readyTimeout)
		case <-tick.C:
		}
	}
}

// addressIn reads MAYFLY_ADDR out of the env file.
func addressIn(env string) string {
	for _, line := range strings.Split(env, "\n") {
		if v, ok := strings.CutPrefix(line, "export MAYFLY_ADDR="); ok {
			return strings.Trim(v, "'")
		}
	}
	return ""
}

// stopNode ends the dev node by its pid and waits for it.
func (s *stage) stopNode() error {
	if s.node == nil {
		return nil
	}
	pid := s.node.Process.Pid
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := s.node.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		timer := time.NewTimer(stopTimeout)
		select {
		case <-s.ended:
			timer.Stop()
			s.node = nil
			return nil
		case <-timer.C:
		}
	}
	return fmt.Errorf("mayfly dev (pid %d) does not end", pid)
}

// close ends what was started and removes the directory.
func (s *stage) close() error {
	err := s.stopNode()
	if s.db != nil {
		err = errors.Join(err, s.db.Close())
		s.db = nil
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// environment is the caller's without anything that would lead a command
// elsewhere than to the demo's own node and database.
func environment() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "MAYFLY_") && !strings.HasPrefix(kv, "PG") {
			out = append(out, kv)
		}
	}
	return out
}
