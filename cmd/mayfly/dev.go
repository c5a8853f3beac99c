package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/node"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// devListen is where `mayfly dev` listens where nothing else is said.
const devListen = "127.0.0.1:8700"

// devOperator is who the dev node's CLI acts as.
const devOperator = "human:operator"

func devCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "dev", Category: forCluster,
		Usage: "run one real node on this machine, to try things out",
		Description: `Starts a node with the code of a cluster of five: TLS with its own CA, a sealed
ledger, policies, audit. When it is ready it prints one line to paste, after
which the CLI acts as human:operator, who may do everything but approve its own
grants. Data stays in --home; start it again and it goes on where it was.

Examples:
  mayfly dev
  mayfly dev --home ./scratch --listen 127.0.0.1:9700`,
		Flags: []cli.Flag{
			// No twins in the environment: MAYFLY_HOME may be production's.
			&cli.StringFlag{Name: "home", Usage: "where everything is kept (`DIR`)", DefaultText: "~/.mayfly/dev"},
			&cli.StringFlag{Name: "listen", Value: devListen, Usage: "loopback address to listen on (`ADDR`)"},
			&cli.StringFlag{Name: "log-level", Value: "warn", Usage: "debug, info, warn or error"},
		},
		Action: func(c *cli.Context) error {
			home := c.String("home")
			if home == "" || !c.IsSet("home") {
				user, err := os.UserHomeDir()
				if err != nil {
					return err
				}
				home = filepath.Join(user, ".mayfly", "dev")
			}
			return runDev(c.Context, home, c.String("listen"), c.String("log-level"), s.out)
		},
	}
}

// devNode is a dev node's directory.
type devNode struct {
	home string
	url  string
	out  io.Writer
}

func (d devNode) path(elem ...string) string {
	return filepath.Join(append([]string{d.home}, elem...)...)
}

func runDev(ctx context.Context, home, listen, level string, out io.Writer) error {
	home, err := filepath.Abs(home)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("dev listens on loopback only, not on %s; a node for others is run with: mayfly server", host)
	}
	d := devNode{home: home, out: out}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	if err := os.Remove(d.path("env")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	d.url = "https://" + net.JoinHostPort(host, fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
	svc, err := d.service(ctx, l, level)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return svc.run(ctx, func() error { return d.ready(ctx, svc) })
}

func (d devNode) service(ctx context.Context, l net.Listener, level string) (*service, error) {
	log, err := newLogger(level, "text")
	if err != nil {
		return nil, err
	}
	ca, err := openDevCA(d.path("tls"))
	if err != nil {
		return nil, err
	}
	certs, err := api.NewCertificates(ca.serverCertificate)
	if err != nil {
		return nil, err
	}
	h, err := hint(ca.pem, d.url)
	if err != nil {
		return nil, err
	}
	return newService(ctx, serviceConfig{
		listener: l, certs: certs, log: log,
		hosts: []string{"localhost", fmt.Sprintf("localhost:%d", l.Addr().(*net.TCPAddr).Port)},
		node: node.Config{
			ID: "dev", Dir: d.path("node"), ClusterListen: "127.0.0.1:0", Issuer: d.url, URL: d.url, URLs: []string{d.url},
			Hint: h, LocalKey: d.path("seal.key"), FirstPolicy: policy.DevPolicy().Text, HTTP: outbound(),
			// A laptop's disk is often nearly full; a dev node takes little.
			Disk: node.Disk{ReserveMiB: 64, FloorMiB: 16},
		},
	})
}

// ready initialises a new node, enrols the operator's key, and leaves the
// environment to paste.
func (d devNode) ready(ctx context.Context, svc *service) error {
	if !svc.node.Status().Initialised {
		if _, err := svc.node.Init(ctx, wire.InitRequest{Admins: []string{devOperator}}); err != nil {
			return err
		}
	}
	if err := svc.node.AwaitLeader(ctx); err != nil {
		return err
	}
	if err := d.enrol(ctx, svc); err != nil {
		return err
	}
	if err := d.writeEnv(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(d.out, "mayfly dev is ready on %s\nPaste this in another terminal to use it as %s:\n\n    . %s\n\n", d.url, devOperator, shellQuote(d.path("env")))
	return err
}

// enrol gives the operator's home a key that the node knows.
func (d devNode) enrol(ctx context.Context, svc *service) error {
	home, err := client.OpenHome(d.path("client"))
	if err != nil {
		return err
	}
	if id, err := home.Identity(); err == nil && id.Principal == devOperator {
		return nil
	}
	e, err := svc.node.Engine()
	if err != nil {
		return err
	}
	tok, err := e.EnrolByQuorum(ctx, devOperator, "dev")
	if err != nil {
		return err
	}
	_, err = client.Enrol(ctx, client.Config{Home: d.path("client"), CAFile: d.path("tls", "ca.pem"), Addresses: []string{d.url}, Retry: client.DefaultRetry}, secret.New(tok.Token))
	return err
}

// writeEnv renames the exports into place, so that whoever waits for the file
// finds it whole.
func (d devNode) writeEnv() error {
	var b strings.Builder
	for _, kv := range [][2]string{{"MAYFLY_ADDR", d.url}, {"MAYFLY_CACERT", d.path("tls", "ca.pem")}, {"MAYFLY_HOME", d.path("client")}, {"MAYFLY_METHOD", "key"}} {
		fmt.Fprintf(&b, "export %s=%s\n", kv[0], shellQuote(kv[1]))
	}
	tmp := d.path("env.tmp")
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, d.path("env"))
}

// shellQuote quotes a word for a POSIX shell.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+=,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
