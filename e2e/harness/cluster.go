package harness

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// electionTimeout is for a cluster to find a leader on a busy machine.
const electionTimeout = 30 * time.Second

// adminPolicy is what the cluster begins with.
const adminPolicy = `@id("admin")
permit (principal == Human::"ann", action, resource);
`

// ClusterConfig says what kind of cluster to start. The zero value is sealed
// with a local key file that all nodes share.
type ClusterConfig struct {
	// Shares and Threshold, where given, seal it with Shamir shares instead.
	Shares, Threshold int
	// Nodes is how many; 0 means three.
	Nodes int
	// Extra is added to each node's configuration: members of a JSON object.
	Extra string
}

// Cluster is nodes run by `mayfly server`.
type Cluster struct {
	// Admin is the command line as human:ann, with every node's address.
	Admin CLI
	Nodes []*Node
	Dir   string
	CA    *CA
	// Shares are the unseal shares, where there are any.
	Shares []string
	cfg    ClusterConfig
}

// Node is one node of a cluster.
type Node struct {
	ID      string
	URL     string
	Dir     string // its data directory
	Log     string
	config  string // file
	cluster string // cluster port
	proc    *Process
}

// StartCluster starts nodes, initialises the first and joins the others, each
// by a one-time token.
func StartCluster(t testing.TB, cfg ClusterConfig) *Cluster {
	t.Helper()
	if cfg.Nodes == 0 {
		cfg.Nodes = 3
	}
	dir := t.TempDir()
	c := &Cluster{Dir: dir, CA: NewCA(t, dir), cfg: cfg}
	for i := range cfg.Nodes {
		id := fmt.Sprintf("n%d", i+1)
		c.Nodes = append(c.Nodes, &Node{ID: id, URL: "https://" + freeAddress(t), cluster: freeAddress(t),
			Dir: filepath.Join(dir, id), Log: filepath.Join(dir, id+".log"), config: filepath.Join(dir, id+".yaml")})
	}
	if err := os.WriteFile(filepath.Join(dir, "first.cedar"), []byte(adminPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, n := range c.Nodes {
		c.configure(t, n)
		if i == 0 {
			n.Start(t)
			c.initialise(t, n)
			continue
		}
		c.Join(t, n)
	}
	c.Admin = c.Admin.With("MAYFLY_ADDR", c.Addresses())
	return c
}

// Addresses is the nodes' addresses as MAYFLY_ADDR takes them.
func (c *Cluster) Addresses() string {
	var urls []string
	for _, n := range c.Nodes {
		urls = append(urls, n.URL)
	}
	return strings.Join(urls, ",")
}

// configure writes a node's configuration. The token file is named once it is
// there.
func (c *Cluster) configure(t testing.TB, n *Node) {
	t.Helper()
	cert, key := c.CA.Issue(t, c.Dir, n.ID)
	var peers []string
	for _, p := range c.Nodes {
		if p != n {
			peers = append(peers, p.URL)
		}
	}
	seal := map[string]any{"type": "local", "key_file": filepath.Join(c.Dir, "seal.key")}
	if c.cfg.Shares > 0 {
		seal = map[string]any{"type": "shamir"}
	}
	doc := map[string]any{
		"node_id": n.ID, "data_dir": n.Dir, "listen": strings.TrimPrefix(n.URL, "https://"),
		"external_url": c.Nodes[0].URL, "node_url": n.URL, "peer_urls": peers,
		"tls":     map[string]any{"cert_file": cert, "key_file": key, "ca_file": c.CA.File},
		"cluster": map[string]any{"listen": n.cluster}, "seal": seal,
		"policy": map[string]any{"file": filepath.Join(c.Dir, "first.cedar")},
		"log":    map[string]any{"level": "warn"},
	}
	if _, err := os.Stat(c.tokenFile(n)); err == nil {
		doc["join"] = map[string]any{"token_file": c.tokenFile(n)}
	}
	text, err := json.MarshalIndent(doc, "", "  ") // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	if c.cfg.Extra != "" {
		text = []byte(strings.TrimSuffix(string(text), "\n}") + ",\n" + c.cfg.Extra + "\n}")
	}
	if err := os.WriteFile(n.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) tokenFile(n *Node) string { return filepath.Join(c.Dir, n.ID+".join") }

// initialise makes a cluster of the first node, and human:ann its administrator.
func (c *Cluster) initialise(t testing.TB, n *Node) {
	t.Helper()
	c.Admin = NewCLI(t, map[string]string{"MAYFLY_ADDR": n.URL, "MAYFLY_CACERT": c.CA.File, "MAYFLY_HOME": filepath.Join(c.Dir, "home-nobody")})
	args := []string{"operator", "init", "--admin", "human:ann"}
	if c.cfg.Shares > 0 {
		args = append(args, "--shares", fmt.Sprint(c.cfg.Shares), "--threshold", fmt.Sprint(c.cfg.Threshold))
	}
	var answer wire.InitAnswer
	c.Admin.JSON(t, &answer, args...)
	if len(answer.Admins) != 1 || len(answer.Shares) != c.cfg.Shares {
		t.Fatalf("operator init: %d admins, %d shares", len(answer.Admins), len(answer.Shares))
	}
	c.Shares = answer.Shares
	c.Admin = c.Admin.Redeem(t, c.Dir, "human:ann", answer.Admins[0].Token).With("MAYFLY_CACERT", c.CA.File)
}

// Reconfigure writes every node's configuration anew with more members, for its
// next start.
func (c *Cluster) Reconfigure(t testing.TB, extra string) {
	t.Helper()
	c.cfg.Extra = extra
	for _, n := range c.Nodes {
		c.configure(t, n)
	}
}

// Join starts a node with a fresh join token and waits until it is a voter.
func (c *Cluster) Join(t testing.TB, n *Node) {
	t.Helper()
	if err := os.WriteFile(c.tokenFile(n), []byte(c.Admin.Must(t, "operator", "join-token", "--field", "token")), 0o600); err != nil {
		t.Fatal(err)
	}
	c.configure(t, n)
	n.Start(t)
	if c.cfg.Shares > 0 {
		c.Unseal(t, n, c.Shares[:c.cfg.Threshold])
	}
	Within(t, readyTimeout, n.ID+" becomes a voter", func() error {
		var peers []wire.Peer
		c.Admin.JSON(t, &peers, "operator", "peers")
		for _, p := range peers {
			if p.ID == n.ID && p.Voter {
				return nil
			}
		}
		return fmt.Errorf("peers: %+v\n%s", peers, n.proc.Tail())
	})
}

// Stranger configures a node that is not of the cluster, with a join token of
// the test's choosing. It is not started.
func (c *Cluster) Stranger(t testing.TB, id, token string) *Node {
	t.Helper()
	n := &Node{ID: id, URL: "https://" + freeAddress(t), cluster: freeAddress(t),
		Dir: filepath.Join(c.Dir, id), Log: filepath.Join(c.Dir, id+".log"), config: filepath.Join(c.Dir, id+".yaml")}
	if err := os.WriteFile(c.tokenFile(n), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	c.configure(t, n)
	return n
}

// Unseal gives shares to one node, one after the other.
func (c *Cluster) Unseal(t testing.TB, n *Node, shares []string) {
	t.Helper()
	at := c.Admin.With("MAYFLY_ADDR", n.URL)
	Within(t, readyTimeout, n.ID+" takes shares", func() error {
		st, err := c.Status(t, n)
		switch {
		case err != nil:
			return err
		case !st.Initialised:
			return errors.New("uninitialised")
		}
		return nil
	})
	at.Feed(t, strings.Join(shares, "\n"), "operator", "unseal", "--share-file", "-").mustBe(t, 0)
	Within(t, readyTimeout, n.ID+" is unsealed", func() error {
		st, err := c.Status(t, n)
		if err == nil && st.Sealed {
			err = fmt.Errorf("%d of %d shares", st.Have, st.Threshold)
		}
		return err
	})
}

// Start starts the node's process, again if it ran before.
func (n *Node) Start(t testing.TB) {
	t.Helper()
	env := []string{"PATH=/usr/bin:/bin", "HOME=" + n.Dir, "TZ=UTC"}
	n.proc = start(t, n.Log, env, Binary(t), "server", "--config", n.config)
}

// Process is the node as it runs now.
func (n *Node) Process() *Process { return n.proc }

// Kill ends the node with SIGKILL.
func (n *Node) Kill(t testing.TB) {
	t.Helper()
	n.proc.Kill(t)
}

// Status asks one node for its state.
func (c *Cluster) Status(t testing.TB, n *Node) (wire.Status, error) {
	t.Helper()
	var st wire.Status
	r := c.Admin.With("MAYFLY_ADDR", n.URL).Run(t, "operator", "status", "-o", "json", "--retry", "0")
	if r.Code != 0 {
		return st, fmt.Errorf("%s: exit code %d: %s", n.ID, r.Code, strings.TrimSpace(r.Stderr))
	}
	return st, json.Unmarshal([]byte(r.Stdout), &st)
}

// Leader waits for a leader that can serve, and returns it with the others.
func (c *Cluster) Leader(t testing.TB) (leader *Node, others []*Node) {
	t.Helper()
	Within(t, electionTimeout, "a leader", func() error {
		leader, others = nil, nil
		var problems []error
		for _, n := range c.Nodes {
			st, err := c.Status(t, n)
			switch {
			case err != nil:
				problems = append(problems, err)
			case st.Role == "leader" && st.Fresh && leader == nil:
				leader = n
				continue
			}
			others = append(others, n)
		}
		if leader == nil {
			return fmt.Errorf("no node leads: %w", errors.Join(problems...))
		}
		return nil
	})
	return leader, others
}
