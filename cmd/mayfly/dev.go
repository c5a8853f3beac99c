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

// devOperator is who the dev node's CLI acts as; devApprover is the second
// person, without whom co-signing could not be tried.
const (
	devOperator = "human:operator"
	devApprover = "human:approver"
)

func devCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "dev", Category: forCluster,
		Usage: "run one real node on this machine, to try things out",
		Description: `Starts a node with the code of a cluster of five: TLS with its own CA, a sealed
ledger, policies, audit. When it is ready it prints one line to paste, after
which the CLI acts as human:operator, who may do everything but approve its own
grants. The file approver.env beside it makes a shell a second person's,
human:approver, of group approvers, with a key to approve with. Data stays in
--home; start it again and it goes on where it was.

With --plugins, registered plugins run from that directory, as your own user
unless they have one of their own.

With --dual-control, from the first start on, every change of what decides who may
get what waits for human:approver.

Examples:
  mayfly dev
  mayfly dev --home ./scratch --listen 127.0.0.1:9700
  mayfly dev --home ./two --dual-control`,
		Flags: []cli.Flag{
			// No twins in the environment: MAYFLY_HOME may be production's.
			&cli.StringFlag{Name: "home", Usage: "where everything is kept (`DIR`)", DefaultText: "~/.mayfly/dev"},
			&cli.StringFlag{Name: "listen", Value: devListen, Usage: "loopback address to listen on (`ADDR`)"},
			&cli.BoolFlag{Name: "dual-control", Usage: "a new node's changes need a second person"},
			&cli.StringFlag{Name: "plugins", Usage: "where plugins' files are (`DIR`)"},
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
			return runDev(c.Context, devNode{home: home, dual: c.Bool("dual-control"), plugins: c.String("plugins"), out: s.out}, c.String("listen"), c.String("log-level"))
		},
	}
}

// devNode is a dev node's directory.
type devNode struct {
	home string
	url  string
	dual bool // two people, from the first start on
	// plugins is the plugin directory; empty for none.
	plugins string
	out     io.Writer
}

func (d devNode) path(elem ...string) string {
	return filepath.Join(append([]string{d.home}, elem...)...)
}

func runDev(ctx context.Context, d devNode, listen, level string) error {
	var err error
	if d.home, err = filepath.Abs(d.home); err != nil {
		return err
	}
	if d.plugins != "" {
		if d.plugins, err = filepath.Abs(d.plugins); err != nil {
			return err
		}
	}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("dev listens on loopback only, not on %s; a node for others is run with: mayfly server", host)
	}
	if err := os.MkdirAll(d.home, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"env", "approver.env"} {
		if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
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

// console is where browsers go: they make passkeys for names only.
func (d devNode) console() string {
	return "https://localhost" + d.url[strings.LastIndexByte(d.url, ':'):]
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
	named := d.console()
	return newService(ctx, serviceConfig{
		listener: l, certs: certs, log: log,
		plugins: pluginConfig{Dir: d.plugins, SameUser: true}, // one person's machine, one person's trial
		hosts:   []string{"localhost", strings.TrimPrefix(named, "https://")},
		node: node.Config{
			ID: "dev", Dir: d.path("node"), ClusterListen: "127.0.0.1:0", Issuer: d.url, URL: d.url, URLs: []string{d.url, named},
			Hint: h, LocalKey: d.path("seal.key"), FirstPolicy: policy.DevPolicy().Text, HTTP: outbound(),
			// A laptop's disk is often nearly full; a dev node takes little.
			Disk: node.Disk{ReserveMiB: 64, FloorMiB: 16},
		},
	})
}

// ready initialises a new node, enrols the two people's keys, and leaves the
// environments to paste.
func (d devNode) ready(ctx context.Context, svc *service) error {
	if !svc.node.Status().Initialised {
		in := wire.InitRequest{Admins: []string{devOperator}}
		if d.dual {
			in.Approvers = []string{devApprover}
		}
		answer, err := svc.node.Init(ctx, in)
		if err != nil {
			return err
		}
		if d.dual { // this token alone vouches for the approver's key
			if err := d.redeem(ctx, "approver", answer.Approvers[0].Token); err != nil {
				return err
			}
		}
	}
	if err := svc.node.AwaitLeader(ctx); err != nil {
		return err
	}
	if err := d.enrol(ctx, svc, devOperator, "client"); err != nil {
		return err
	}
	second := d.secondPerson(ctx, svc)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if second == nil {
		second = d.writeEnv("approver.env", "approver")
	}
	if err := d.writeEnv("env", "client"); err != nil {
		return err
	}
	if second != nil { // deleted, contained, refused by policy: whose node it is may do that
		if _, err := fmt.Fprintf(d.out, "There is no second person, so nobody can approve as %s: %v\n", devApprover, second); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(d.out, "mayfly dev is ready on %s\nIn a browser, open %s\nPaste this in another terminal to use it as %s:\n\n    . %s\n\n", d.url, d.console(), devOperator, shellQuote(d.path("env")))
	return err
}

// secondPerson makes sure of somebody who can approve, with a key of their own.
func (d devNode) secondPerson(ctx context.Context, svc *service) error {
	if err := d.newcomer(ctx); err != nil {
		return err
	}
	if err := d.enrol(ctx, svc, devApprover, "approver"); err != nil {
		return err
	}
	them, err := d.as("approver")
	if err != nil {
		return err
	}
	defer them.Close()
	return registerApproveKey(ctx, them)
}

// newcomer makes the second person, in a group that roles and policies may name.
// Whoever had a key once was there: if they are gone, somebody wanted that.
func (d devNode) newcomer(ctx context.Context) error {
	if d.enrolled(devApprover, "approver") {
		return nil
	}
	cl, err := d.as("client")
	if err != nil {
		return err
	}
	defer cl.Close()
	if _, err := cl.Object(ctx, "Principal", devApprover); err == nil {
		return nil
	}
	_, err = cl.Apply(ctx, wire.ApplyRequest{Objects: []wire.Object{
		{Kind: "Principal", Name: devApprover, Spec: []byte(`{}`)},
		{Kind: "Group", Name: "approvers", Spec: []byte(`{"members":[{"name":"` + devApprover + `"}]}`)},
	}})
	return err
}

func (d devNode) config(home string) client.Config {
	return client.Config{Home: d.path(home), CAFile: d.path("tls", "ca.pem"), Addresses: []string{d.url}, Retry: client.DefaultRetry}
}

// as is the client of one of the two people.
func (d devNode) as(home string) (*client.Client, error) {
	cfg := d.config(home)
	cfg.Method = "key"
	return client.New(cfg)
}

// enrol gives a person's home a key that the node knows.
func (d devNode) enrol(ctx context.Context, svc *service, principal, home string) error {
	if d.enrolled(principal, home) {
		return nil
	}
	e, err := svc.node.Engine()
	if err != nil {
		return err
	}
	tok, err := e.EnrolByQuorum(ctx, principal, "dev")
	if err != nil {
		return err
	}
	return d.redeem(ctx, home, tok.Token)
}

func (d devNode) enrolled(principal, home string) bool {
	h, err := client.OpenHome(d.path(home))
	if err != nil {
		return false // whoever enrols hears of it
	}
	id, err := h.Identity()
	return err == nil && id.Principal == principal
}

func (d devNode) redeem(ctx context.Context, home, token string) error {
	_, err := client.Enrol(ctx, d.config(home), secret.New(token))
	return err
}

// writeEnv renames the exports into place, so that whoever waits for the file
// finds it whole.
func (d devNode) writeEnv(name, home string) error {
	var b strings.Builder
	for _, kv := range [][2]string{{"MAYFLY_ADDR", d.url}, {"MAYFLY_CACERT", d.path("tls", "ca.pem")}, {"MAYFLY_HOME", d.path(home)}, {"MAYFLY_METHOD", "key"}} {
		fmt.Fprintf(&b, "export %s=%s\n", kv[0], shellQuote(kv[1]))
	}
	tmp := d.path(name + ".tmp")
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, d.path(name))
}

// shellQuote quotes a word for a POSIX shell.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+=,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
