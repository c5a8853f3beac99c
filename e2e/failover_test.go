package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/e2e/harness"
)

// zone writes a small object through one node.
func zone(t *testing.T, c *harness.Cluster, n *harness.Node, name string) harness.Result {
	t.Helper()
	return c.Admin.With("MAYFLY_ADDR", n.URL).Feed(t, "kind: Zone\nname: "+name+"\nspec: {}\n", "apply", "-f", "-")
}

func TestJoinAndFailover(t *testing.T) {
	c := harness.StartCluster(t, harness.ClusterConfig{})
	var peers []wire.Peer
	c.Admin.JSON(t, &peers, "operator", "peers")
	if len(peers) != 3 {
		t.Fatalf("peers: %+v", peers)
	}
	t.Run("a spent token is refused", func(t *testing.T) {
		token, err := os.ReadFile(filepath.Join(c.Dir, "n2.join"))
		if err != nil {
			t.Fatal(err)
		}
		n := c.Stranger(t, "n4", string(token))
		n.Start(t)
		if code := n.Process().Wait(t); code == 0 {
			t.Errorf("a node with a spent token ends with %d:\n%s", code, n.Process().Tail())
		}
		if log := n.Process().Tail(); strings.Contains(log, strings.TrimSpace(string(token))) {
			t.Error("the join token stands in the node's log")
		}
		c.Admin.JSON(t, &peers, "operator", "peers")
		if len(peers) != 3 {
			t.Errorf("peers: %+v", peers)
		}
	})
	t.Run("any node takes a write", func(t *testing.T) {
		for _, n := range c.Nodes {
			if r := zone(t, c, n, "by-"+n.ID); r.Code != 0 {
				t.Errorf("through %s: %s", n.ID, r.Stderr)
			}
		}
	})
	t.Run("the leader dies and two go on", func(t *testing.T) {
		old, _ := c.Leader(t)
		old.Kill(t)
		began := time.Now()
		c.Admin.Apply(t, "kind: Zone\nname: after\nspec: {}\n")
		t.Logf("first write %s after the leader's death, CLI's start included", time.Since(began).Round(time.Millisecond))
		old.Start(t)
		harness.Within(t, 30*time.Second, "the old leader follows", func() error {
			st, err := c.Status(t, old)
			if err == nil && (st.Role != "follower" || !st.Fresh) {
				err = fmt.Errorf("%+v", st)
			}
			return err
		})
	})
	t.Run("everything restarts", func(t *testing.T) {
		for _, n := range c.Nodes {
			n.Kill(t)
		}
		for _, n := range c.Nodes {
			n.Start(t)
		}
		c.Leader(t)
		for _, name := range []string{"by-n1", "by-n2", "by-n3", "after"} {
			c.Admin.Must(t, "get", "Zone", name)
		}
		c.Admin.Must(t, "audit", "verify")
	})
}

// A follower that hears of nobody must not go on vouching for sessions that
// may have ended: 503 no later than 500 ms after it was cut off.
func TestHazard5FollowerCutOffStopsAnswering(t *testing.T) {
	c := harness.StartCluster(t, harness.ClusterConfig{})
	leader, others := c.Leader(t)
	follower := others[0]
	cl := c.Admin.With("MAYFLY_ADDR", follower.URL).Client(t, 0)
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatalf("before: %v", err)
	}
	cut := time.Now()
	for _, n := range []*harness.Node{leader, others[1]} {
		n.Process().Signal(t, syscall.SIGSTOP)
	}
	const allowed = 500 * time.Millisecond
	var last time.Duration // when the last call began that was still answered
	var slowest time.Duration
	for time.Since(cut) < 3*time.Second {
		began := time.Since(cut)
		_, err := cl.Whoami(t.Context())
		took := time.Since(cut) - began
		var e *client.Error
		switch {
		case err == nil:
			last = began
		case !errors.As(err, &e) || e.Problem.Status != 503:
			t.Fatalf("cut off since %s: %v", began, err)
		}
		// A refusal must come at once, too: behind it a client tries another node.
		if slowest = max(slowest, took); took > 2*allowed {
			t.Errorf("the call that began %s after the cut took %s: %v", began, took, err)
		}
	}
	t.Logf("the last call that was answered began %s after the cut; the slowest took %s", last, slowest)
	if last > allowed {
		t.Errorf("a follower that was cut off still answered after %s", last)
	}
	for _, n := range []*harness.Node{leader, others[1]} {
		n.Process().Signal(t, syscall.SIGCONT)
	}
	harness.Within(t, 30*time.Second, "the follower serves again", func() error {
		_, err := cl.Whoami(t.Context())
		return err
	})
}

// Shares: what a quorum of people can do, and what fewer cannot.
func TestShamirUnsealRekeyRecover(t *testing.T) {
	c := harness.StartCluster(t, harness.ClusterConfig{Shares: 3, Threshold: 2})
	restart := func() {
		for _, n := range c.Nodes {
			n.Kill(t)
		}
		for _, n := range c.Nodes {
			n.Start(t)
			harness.Within(t, 30*time.Second, n.ID+" answers", func() error { _, err := c.Status(t, n); return err })
		}
	}
	restart()
	first := c.Nodes[0]
	c.Admin.With("MAYFLY_RETRY", "0").Refused(t, 5, "sealed", "whoami")

	// One share is too few, a mangled one none at all.
	unseal := func(n *harness.Node, share string) harness.Result {
		return c.Admin.With("MAYFLY_ADDR", n.URL).Feed(t, share, "operator", "unseal", "--share-file", "-", "-o", "json")
	}
	bad := c.Shares[0][:len(c.Shares[0])-4] + flipped(c.Shares[0][len(c.Shares[0])-4:])
	if r := unseal(first, bad); r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "share") {
		t.Errorf("a mangled share: exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	unseal(first, c.Shares[2])
	if st, err := c.Status(t, first); err != nil || !st.Sealed || st.Have != 1 {
		t.Errorf("after one share: %+v, %v", st, err)
	}
	unseal(first, c.Shares[2]) // the same again counts once
	if st, err := c.Status(t, first); err != nil || !st.Sealed || st.Have != 1 {
		t.Errorf("after the same share twice: %+v, %v", st, err)
	}
	unseal(first, c.Shares[0])
	for _, n := range c.Nodes[1:] {
		c.Unseal(t, n, c.Shares[1:])
	}
	c.Leader(t)
	c.Admin.Must(t, "whoami")

	t.Run("rekey", func(t *testing.T) { rekey(t, c, restart) })
	t.Run("recover", func(t *testing.T) { recoverAdmin(t, c) })
}

// flipped changes every character of a word for another of base64url.
func flipped(s string) string {
	return strings.Map(func(r rune) rune {
		if r == 'A' {
			return 'B'
		}
		return 'A'
	}, s)
}

func rekey(t *testing.T, c *harness.Cluster, restart func()) {
	var answer struct{ Shares []string }
	r := c.Admin.Feed(t, c.Shares[0]+"\n", "operator", "rekey", "--shares", "5", "--threshold", "3", "--share-file", "-", "-o", "json")
	if r.Code == 0 {
		t.Fatal("one of two shares was enough to rekey")
	}
	r = c.Admin.Feed(t, strings.Join(c.Shares[:2], "\n"), "operator", "rekey", "--shares", "5", "--threshold", "3", "--share-file", "-", "-o", "json")
	if r.Code != 0 {
		t.Fatalf("rekey: %s", r.Stderr)
	}
	decode(t, r.Stdout, &answer)
	if len(answer.Shares) != 5 {
		t.Fatalf("rekey made %d shares", len(answer.Shares))
	}
	// Followers take the new shares over by themselves.
	harness.Within(t, 60*time.Second, "every node knows of the new threshold", func() error {
		for _, n := range c.Nodes {
			if st, err := c.Status(t, n); err != nil || st.Threshold != 3 || st.Total != 5 {
				return fmt.Errorf("%s: %d of %d, %w", n.ID, st.Threshold, st.Total, err)
			}
		}
		return nil
	})
	old := c.Shares
	c.Shares = answer.Shares
	restart()
	for _, n := range c.Nodes {
		r := c.Admin.With("MAYFLY_ADDR", n.URL).Feed(t, strings.Join(old, "\n"), "operator", "unseal", "--share-file", "-", "-o", "json")
		if st, err := c.Status(t, n); err != nil || !st.Sealed {
			t.Fatalf("the old shares open %s: %+v, %v\n%s", n.ID, st, err, r.Stderr)
		}
		c.Admin.With("MAYFLY_ADDR", n.URL).Must(t, "operator", "unseal", "--reset")
		c.Unseal(t, n, c.Shares[1:4])
	}
	c.Leader(t)
	c.Admin.Must(t, "whoami")
}

func recoverAdmin(t *testing.T, c *harness.Cluster) {
	r := c.Admin.Feed(t, strings.Join(c.Shares[:2], "\n"), "operator", "recover", "human:ann", "--share-file", "-", "-o", "json")
	if r.Code == 0 {
		t.Fatal("two of three shares were enough to recover an administrator")
	}
	r = c.Admin.Feed(t, strings.Join(c.Shares[:3], "\n"), "operator", "recover", "human:ann", "--share-file", "-", "-o", "json")
	if r.Code != 0 {
		t.Fatalf("recover: %s", r.Stderr)
	}
	var token wire.EnrolAnswer
	decode(t, r.Stdout, &token)
	ann := c.Admin.Redeem(t, t.TempDir(), "human:ann", token.Token)
	ann.Must(t, "get", "Zone")
	var me wire.Whoami
	ann.JSON(t, &me, "whoami")
	if me.Principal != "human:ann" {
		t.Errorf("recovered %s", me.Principal)
	}
	var tail []wire.AuditEntry
	ann.JSON(t, &tail, "audit", "tail", "--lines", "20")
	for _, e := range tail {
		if e.Actor == "quorum:unseal-shares" && strings.Contains(string(e.Command), "human:ann") {
			return
		}
	}
	t.Error("the record does not say that an administrator was recovered")
}
