// Package rabbitmqtest starts private, real RabbitMQ servers for tests: own
// directory, own ports on 127.0.0.1, an epmd of its own, run as an ordinary user
// even when the caller is root, and ended by its own process. Management API and
// AMQP are served with and without TLS.
//
// A start takes 15 to 30 seconds, so a package starts one for all its tests. It
// never skips: without an installed server it fails and says how to get one. It
// must know nothing of Mayfly, so that every room can use it.
package rabbitmqtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// AdminUser is the administrator of every server. There is no user guest.
const AdminUser = "admin"

// startTimeout bounds a start; a loaded machine needs it.
const startTimeout = 4 * time.Minute

// Server is one running RabbitMQ node. Its exported fields are set by the start
// and not changed afterwards.
type Server struct {
	Password string // of AdminUser
	Dir      string // its configuration and data
	CAPEM    string // the CA of its certificate, which is for 127.0.0.1 and localhost

	API, APITLS   string // host:port of the management API
	AMQP, AMQPTLS string // host:port of AMQP 0-9-1

	dist, epmd int // ports
	account    servertest.Account
	names      *servertest.Process // epmd
	node       *servertest.Process
}

// programs are where systems put the server, before any wrapper that changes the
// user, and epmd.
var programs = map[string][]string{
	"rabbitmq-server": {"/usr/lib/rabbitmq/bin", "/usr/local/lib/rabbitmq/bin", "/usr/local/sbin", "/opt/rabbitmq/sbin"},
	"epmd":            {"/usr/bin", "/usr/local/bin", "/usr/lib/erlang/bin"},
}

func find(program string) (string, error) {
	for _, dir := range programs[program] {
		path := filepath.Join(dir, program)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s is installed: apt-get update && apt-get install -y --no-install-recommends rabbitmq-server", program)
}

// Run starts a server. The caller ends it with [Server.Close]. ctx bounds the
// start alone.
func Run(ctx context.Context) (*Server, error) {
	account, err := servertest.Choose("rabbitmq")
	if err != nil {
		return nil, err
	}
	dir, err := account.Dir("rabbitmqtest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Password: rand.Text(), Dir: dir, account: account}
	if err := s.configure(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.StartAgain(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// configure chooses ports and writes the server's files.
func (s *Server) configure() error {
	for _, a := range []*string{&s.API, &s.APITLS, &s.AMQP, &s.AMQPTLS} {
		var err error
		if *a, err = servertest.Address(); err != nil {
			return err
		}
	}
	var err error
	if s.epmd, err = servertest.Port(); err != nil {
		return err
	}
	if s.dist, err = distPort(); err != nil {
		return err
	}
	ca, err := servertest.NewAuthority()
	if err != nil {
		return err
	}
	s.CAPEM = ca.PEM
	tls, err := ca.Write(s.account, s.Dir)
	if err != nil {
		return err
	}
	lines := []string{
		"listeners.tcp.1 = " + s.AMQP, "listeners.ssl.1 = " + s.AMQPTLS,
		"management.tcp.ip = 127.0.0.1", "management.tcp.port = " + port(s.API),
		"management.ssl.ip = 127.0.0.1", "management.ssl.port = " + port(s.APITLS),
		"default_user = " + AdminUser, "default_pass = " + s.Password, "default_user_tags.administrator = true",
		"log.file = false", "log.console = true", "log.console.level = warning",
	}
	for _, where := range []string{"ssl_options", "management.ssl"} {
		lines = append(lines, where+".cacertfile = "+tls.CA, where+".certfile = "+tls.Cert, where+".keyfile = "+tls.Key)
	}
	lines = append(lines, "ssl_options.verify = verify_none", "ssl_options.fail_if_no_peer_cert = false")
	if err := s.account.WriteFile(filepath.Join(s.Dir, "rabbitmq.conf"), []byte(strings.Join(lines, "\n")+"\n")); err != nil {
		return err
	}
	return s.account.WriteFile(filepath.Join(s.Dir, "enabled_plugins"), []byte("[rabbitmq_management].\n"))
}

// dists keeps each port that distPort gave: a UDP socket, where no server stands in
// the way of it, tells others who ask there that it is taken.
var dists struct {
	sync.Mutex
	held []net.PacketConn
}

// distPort chooses the port by which nodes of a cluster talk. The server tries it
// on every address before it starts, so [servertest.Port] does not serve: it holds
// its ports on another address. Its range is not used here. The port is this
// process's own until it ends, for a node binds it many seconds after its choice.
func distPort() (int, error) {
	const first, last = 15000, 19000
	dists.Lock()
	defer dists.Unlock()
	start := os.Getpid() * 31 % (last - first)
	for i := range last - first {
		n := first + (start+i)%(last-first)
		hold, err := net.ListenPacket("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(n)))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", ":"+strconv.Itoa(n))
		if err != nil {
			_ = hold.Close()
			continue
		}
		dists.held = append(dists.held, hold)
		return n, l.Close()
	}
	return 0, fmt.Errorf("no port from %d to %d is free", first, last)
}

func port(address string) string {
	_, p, _ := net.SplitHostPort(address) // made by servertest.Address
	return p
}

// StartAgain starts the server after [Server.Stop] or [Server.Kill], on the same ports,
// configuration and data.
func (s *Server) StartAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	epmd, err := find("epmd")
	if err != nil {
		return err
	}
	server, err := find("rabbitmq-server")
	if err != nil {
		return err
	}
	// The node would start an epmd that outlives it; this one ends with us.
	s.names, err = servertest.Start(servertest.Command{Path: epmd, Args: []string{"-port", strconv.Itoa(s.epmd), "-address", "127.0.0.1"}, Dir: s.Dir, Account: s.account})
	if err != nil {
		return err
	}
	if err := s.await(ctx, s.names, s.epmdAnswers); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(s.Dir, name) }
	s.node, err = servertest.Start(servertest.Command{Path: server, Dir: s.Dir, Account: s.account, Env: []string{
		"RABBITMQ_NODENAME=mayfly" + strconv.Itoa(s.dist) + "@localhost", "RABBITMQ_DIST_PORT=" + strconv.Itoa(s.dist),
		"ERL_EPMD_ADDRESS=127.0.0.1", "ERL_EPMD_PORT=" + strconv.Itoa(s.epmd),
		"RABBITMQ_CONF_ENV_FILE=/dev/null", "RABBITMQ_CONFIG_FILE=" + in("rabbitmq.conf"), "RABBITMQ_ENABLED_PLUGINS_FILE=" + in("enabled_plugins"),
		"RABBITMQ_MNESIA_BASE=" + in("data"), "RABBITMQ_LOG_BASE=" + in("log"), "RABBITMQ_PID_FILE=" + in("pid"),
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
		"RABBITMQ_SERVER_START_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
		"RUNNING_UNDER_SYSTEMD=true", // so that the script becomes the node, and signals reach it
	}})
	if err != nil {
		return err
	}
	return s.await(ctx, s.node, s.ready)
}

// await polls until what a process serves answers.
func (s *Server) await(ctx context.Context, p *servertest.Process, answers func(context.Context) bool) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !answers(ctx) {
		select {
		case <-tick.C:
		case <-p.Done():
			return errors.New("the server ended: " + p.Output())
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready: %w: %s", ctx.Err(), p.Output())
		}
	}
	return nil
}

func (s *Server) epmdAnswers(ctx context.Context) bool {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.epmd)))
	if err != nil {
		return false
	}
	return c.Close() == nil
}

func (s *Server) ready(ctx context.Context) bool {
	for _, a := range []string{s.AMQP, s.AMQPTLS, s.APITLS} {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", a)
		if err != nil {
			return false
		}
		_ = c.Close()
	}
	status, _, err := s.Call(ctx, http.MethodGet, "/api/overview", "")
	return err == nil && status == http.StatusOK
}

// Kill ends the server without warning and keeps its files.
func (s *Server) Kill() error {
	var errs []error
	for _, p := range []*servertest.Process{s.node, s.names} {
		if p != nil {
			errs = append(errs, p.Stop(syscall.SIGKILL))
		}
	}
	return errors.Join(errs...)
}

// Stop ends the server in order and keeps its files.
func (s *Server) Stop() error {
	return errors.Join(s.node.Stop(syscall.SIGTERM), s.names.Stop(syscall.SIGKILL))
}

// Signal sends the node a signal: SIGSTOP makes a server that hangs rather than
// fails.
func (s *Server) Signal(sig syscall.Signal) error { return s.node.Signal(sig) }

// Close ends the server and removes its files.
func (s *Server) Close() error { return errors.Join(s.Kill(), os.RemoveAll(s.Dir)) }
