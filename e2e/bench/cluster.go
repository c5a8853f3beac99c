package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/servertest"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	admin        = "human:ann"
	readyTimeout = 60 * time.Second
	retry        = 10 * time.Second
)

// policies: the administrator may do everything, the load what it needs.
const policies = `@id("admin")
permit (principal == Human::"ann", action, resource);
@id("load")
permit (principal in Group::"load", action in [Action::"request", Action::"renew"], resource)
when { context.session.bound };
`

// cluster is nodes of the built binary, and the administrator's client.
type cluster struct {
	b     *bench
	dir   string
	ca    *authority
	nodes []*node
	admin *client.Client
}

// node is one of them.
type node struct {
	id, url, cluster, config, log string
	proc                          *process
}

// startCluster starts the nodes, initialises the first, joins the others.
func startCluster(ctx context.Context, b *bench, size int) (_ *cluster, err error) {
	c := &cluster{b: b}
	if c.dir, err = os.MkdirTemp(b.dir, "cluster-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.ca, err = newAuthority(c.dir); err != nil {
		return nil, err
	}
	if err = os.WriteFile(c.path("first.cedar"), []byte(policies), 0o600); err != nil {
		return nil, err
	}
	if err = c.name(size); err != nil {
		return nil, err
	}
	for i, n := range c.nodes {
		if i == 0 {
			err = c.first(ctx, n)
		} else {
			err = c.join(ctx, n)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n.id, err)
		}
	}
	c.admin, err = client.New(client.Config{Home: c.path("ann"), Addresses: c.urls(), Retry: retry})
	return c, err
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

// name gives the nodes ids and addresses.
func (c *cluster) name(size int) error {
	for i := range size {
		api, err := servertest.Address()
		if err != nil {
			return err
		}
		port, err := servertest.Address()
		if err != nil {
			return err
		}
		id := fmt.Sprintf("n%d", i+1)
		c.nodes = append(c.nodes, &node{id: id, url: "https://" + api, cluster: port, config: c.path(id + ".yaml"), log: c.path(id + ".log")})
	}
	return nil
}

func (c *cluster) urls() []string {
	var out []string
	for _, n := range c.nodes {
		out = append(out, n.url)
	}
	return out
}

// configure writes a node's configuration; JSON is YAML.
func (c *cluster) configure(n *node, joining bool) error {
	chain, key, err := c.ca.issue(c.dir, n.id)
	if err != nil {
		return err
	}
	var peers []string
	for _, p := range c.nodes {
		if p != n {
			peers = append(peers, p.url)
		}
	}
	doc := map[string]any{
		"node_id": n.id, "data_dir": c.path(n.id), "listen": strings.TrimPrefix(n.url, "https://"),
		"external_url": c.nodes[0].url, "node_url": n.url, "peer_urls": peers,
		"tls":     map[string]any{"cert_file": chain, "key_file": key, "ca_file": c.ca.file},
		"cluster": map[string]any{"listen": n.cluster},
		"seal":    map[string]any{"type": "local", "key_file": c.path("seal.key")},
		"policy":  map[string]any{"file": c.path("first.cedar")},
		"log":     map[string]any{"level": "warn"},
	}
	if joining {
		doc["join"] = map[string]any{"token_file": c.path(n.id + ".join")}
	}
	text, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return os.WriteFile(n.config, text, 0o600)
}

func (c *cluster) start(n *node) (err error) {
	n.proc, err = start(n.log, c.b.binary, "server", "--config", n.config)
	return err
}

// first initialises the cluster and enrols its administrator.
func (c *cluster) first(ctx context.Context, n *node) error {
	if err := errors.Join(c.configure(n, false), c.start(n)); err != nil {
		return err
	}
	stranger, err := client.New(client.Config{CAFile: c.ca.file, Addresses: []string{n.url}, Retry: readyTimeout})
	if err != nil {
		return err
	}
	defer stranger.Close()
	var answer wire.InitAnswer
	err = poll(ctx, readyTimeout, func(ctx context.Context) (err error) {
		answer, err = stranger.Init(ctx, n.url, wire.InitRequest{Admins: []string{admin}})
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, n.proc.tail())
	}
	_, err = client.Enrol(ctx, client.Config{Home: c.path("ann"), Addresses: []string{n.url}, Retry: retry}, secret.New(answer.Admins[0].Token))
	return err
}

// join starts a further node with a one-time token and waits until it votes.
func (c *cluster) join(ctx context.Context, n *node) error {
	ann, err := client.New(client.Config{Home: c.path("ann"), Addresses: []string{c.nodes[0].url}, Retry: retry})
	if err != nil {
		return err
	}
	defer ann.Close()
	token, err := ann.JoinToken(ctx)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.path(n.id+".join"), []byte(token.Token), 0o600); err != nil {
		return err
	}
	if err := errors.Join(c.configure(n, true), c.start(n)); err != nil {
		return err
	}
	err = poll(ctx, readyTimeout, func(ctx context.Context) error {
		peers, err := ann.Peers(ctx)
		if err != nil {
			return err
		}
		for _, p := range peers {
			if p.ID == n.id && p.Voter {
				return nil
			}
		}
		return errors.New("it is not a voter yet")
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, n.proc.tail())
	}
	return nil
}

// leader waits until one node leads and every other is in contact with it.
func (c *cluster) leader(ctx context.Context) (leader *node, followers []*node, err error) {
	err = poll(ctx, readyTimeout, func(ctx context.Context) error {
		leader, followers = nil, nil
		for _, n := range c.nodes {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			st, err := c.admin.Status(ctx, n.url)
			cancel()
			switch {
			case err != nil:
				return err
			case !st.Fresh:
				return fmt.Errorf("%s is not in contact with a quorum", n.id)
			case st.Role == "leader":
				leader = n
			default:
				followers = append(followers, n)
			}
		}
		if leader == nil || len(followers) != len(c.nodes)-1 {
			return errors.New("no single leader")
		}
		return nil
	})
	return leader, followers, err
}

// close ends the nodes.
func (c *cluster) close() error {
	var err error
	if c.admin != nil {
		c.admin.Close()
	}
	for _, n := range c.nodes {
		if n.proc != nil {
			err = errors.Join(err, n.proc.kill())
		}
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}
