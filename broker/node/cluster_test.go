package node_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/node"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/raftstore"
	"github.com/mayfly-broker/mayfly/secret"
)

// join adds a node by a token and unseals it.
func join(t *testing.T, cfg node.Config, token string, shares []string) *node.Node {
	t.Helper()
	cfg.Join = &node.Join{Token: token}
	n := start(t, cfg)
	if s := n.Status(); !s.Initialised || !s.Sealed {
		t.Fatalf("joined, and has the keyring, and is sealed? %+v", s)
	}
	unseal(t, n, shares[0], shares[2])
	return n
}

// token has the cluster issue a join token.
func token(t *testing.T, leader *node.Node) string {
	t.Helper()
	a, err := leader.JoinToken(t.Context(), as(ann))
	must(t, err)
	return a.Token
}

// voters counts the voters that a node knows of.
func voters(t *testing.T, n *node.Node) (count int) {
	t.Helper()
	peers, err := n.Peers(t.Context(), as(ann))
	must(t, err)
	for _, p := range peers {
		if p.Voter {
			count++
		}
	}
	return count
}

// member is config for a node of several.
func member(t *testing.T, id, dir string) node.Config {
	t.Helper()
	cfg := config(t, id, dir)
	cfg.Steady()
	return cfg
}

// three makes a cluster of three in this process; the first leads.
func three(t *testing.T) (nodes []*node.Node, shares []string) {
	t.Helper()
	dir := t.TempDir()
	leader := start(t, member(t, "n1", dir))
	shares = initialise(t, leader).Shares
	nodes = []*node.Node{leader}
	for _, id := range []string{"n2", "n3"} {
		nodes = append(nodes, join(t, member(t, id, dir), token(t, leader), shares))
		eventually(t, id+" is a voter", func() bool { return voters(t, leader) == len(nodes) })
	}
	return nodes, shares
}

// sameRoot waits until all have the first one's Merkle root.
func sameRoot(t *testing.T, nodes ...*node.Node) {
	t.Helper()
	eventually(t, "all replicas have one Merkle root", func() bool {
		want := nodes[0].Digest()
		for _, n := range nodes {
			if want == nil || !bytes.Equal(n.Digest(), want) {
				return false
			}
		}
		return true
	})
}

func TestThreeNodesAgreeAndSurviveTheirLeader(t *testing.T) {
	t.Parallel()
	nodes, shares := three(t)
	write(t, nodes[0], "workload:one")
	sameRoot(t, nodes...)
	for _, n := range nodes {
		s := n.Status()
		role := "follower"
		if n == nodes[0] {
			role = "leader"
		}
		if s.Role != role || s.Leader != "n1" || n.IsLeader() != (role == "leader") {
			t.Errorf("%+v", s)
		}
		if url, err := n.LeaderURL(t.Context()); err != nil || url != "https://n1.example" {
			t.Errorf("%s finds the leader at %q, %v", s.Node, url, err)
		}
		if n.Diverged() {
			t.Errorf("%s sees a replica diverge", s.Node)
		}
	}
	// A follower leaves writing to the leader, and has its own sealing recorded there.
	refused(t, tryWrite(t.Context(), nodes[1], wire.Object{Kind: "Principal", Name: "workload:lost", Spec: []byte(`{}`)}), "no_leader")
	size := nodes[0].Status().Size
	must(t, nodes[1].Seal(t.Context(), as(ann)))
	if now := nodes[0].Status().Size; now != size+1 {
		t.Errorf("%d entries, %d before a follower was sealed", now, size)
	}
	unseal(t, nodes[1], shares[1], shares[0])

	must(t, nodes[0].Close())
	rest := nodes[1:]
	var next *node.Node
	eventually(t, "another node leads", func() bool {
		for _, n := range rest {
			if n.IsLeader() {
				next = n
			}
		}
		return next != nil
	})
	ready(t, next)
	write(t, next, "workload:two")
	sameRoot(t, rest...)

	// The old leader comes back as one among others.
	unseal(t, nodes[0], shares[0], shares[1])
	sameRoot(t, nodes...)
	must(t, next.StepDown(t.Context(), as(ann)))
	eventually(t, "some other node leads", func() bool {
		for _, n := range nodes {
			if n != next && n.IsLeader() {
				return true
			}
		}
		return false
	})
}

func TestJoinTokenServesOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	leader := start(t, member(t, "n1", dir))
	shares := initialise(t, leader).Shares
	_, err := leader.JoinToken(t.Context(), as("human:mallory"))
	refused(t, err, "denied")
	tok := token(t, leader)
	n2 := join(t, member(t, "n2", dir), tok, shares)
	eventually(t, "n2 is a voter", func() bool { return voters(t, leader) == 2 })

	for id, bad := range map[string]string{"n3": tok, "n4": forged(t, tok)} {
		cfg := config(t, id, dir)
		cfg.Join = &node.Join{Token: bad}
		n, err := node.New(cfg)
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err = n.Start(ctx)
		cancel()
		if !errors.Is(err, raftstore.ErrRefused) {
			t.Errorf("%s joined with a token that is not good: %v", id, err)
		}
		if s := n.Status(); s.Initialised {
			t.Errorf("%s got the keyring: %+v", id, s)
		}
	}
	if got := voters(t, leader); got != 2 {
		t.Errorf("%d voters", got)
	}

	// Gone is gone, and the last one stays.
	refused(t, leader.RemovePeer(t.Context(), as(ann), "n9"), "not_found")
	must(t, leader.RemovePeer(t.Context(), as(ann), "n2"))
	must(t, n2.Close())
	eventually(t, "n2 is no voter", func() bool { return voters(t, leader) == 1 })
	refused(t, leader.RemovePeer(t.Context(), as(ann), "n1"), "last_node")
	write(t, leader, "workload:after")
}

func TestRekeyReachesTheFollowers(t *testing.T) {
	t.Parallel()
	nodes, old := three(t)
	_, err := nodes[1].Rekey(t.Context(), wire.RekeyRequest{Shares: old[:2], Count: 5, Threshold: 3})
	refused(t, err, "no_leader")
	// A node whose keyring cannot be stored says nothing of it, and stores it later:
	// after a crash it would open by the old shares.
	stuck := nodes[2].KeyringFile()
	must(t, os.Rename(stuck, stuck+".aside"))
	must(t, os.MkdirAll(filepath.Join(stuck, "in the way"), 0o700))
	fresh, err := nodes[0].Rekey(t.Context(), wire.RekeyRequest{Shares: old[:2], Count: 5, Threshold: 3})
	must(t, err)
	eventually(t, "a follower has the new keyring", func() bool {
		if s := nodes[2].Status(); s.Threshold != 2 {
			t.Fatalf("a threshold of %d that is stored nowhere", s.Threshold)
		}
		return nodes[1].Status().Threshold == 3
	})
	must(t, os.RemoveAll(stuck))
	must(t, os.Rename(stuck+".aside", stuck))
	for _, n := range nodes[1:] {
		eventually(t, "a follower has the new keyring", func() bool { return n.Status().Threshold == 3 })
	}
	must(t, nodes[2].Seal(t.Context(), as(ann)))
	_, err = nodes[2].Unseal(t.Context(), wire.UnsealRequest{Share: old[0]})
	refused(t, err, "bad_share")
	unseal(t, nodes[2], fresh[1:4]...)
	sameRoot(t, nodes...)
}

// TestRekeyOutlivesItsLeadersOffice: the leader that made new shares leads no more
// before anybody heard of them. The next one, which asks no leader, takes them too.
func TestRekeyOutlivesItsLeadersOffice(t *testing.T) {
	t.Parallel()
	nodes, old := three(t)
	fresh, err := nodes[0].Rekey(t.Context(), wire.RekeyRequest{Shares: old[:2], Count: 5, Threshold: 3})
	must(t, err)
	must(t, nodes[0].StepDown(t.Context(), as(ann)))
	for _, n := range nodes[1:] {
		eventually(t, "each has the new keyring", func() bool { return n.Status().Threshold == 3 })
	}
	must(t, nodes[1].Seal(t.Context(), as(ann)))
	_, err = nodes[1].Unseal(t.Context(), wire.UnsealRequest{Share: old[0]})
	refused(t, err, "bad_share")
	unseal(t, nodes[1], fresh[1:4]...)
	sameRoot(t, nodes...)
}

// logged collects a node's log.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) count(level, word string) (count int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, "level="+level) && strings.Contains(line, word) {
			count++
		}
	}
	return count
}

func TestHazard2AReplicaWithAnotherRootIsNoticed(t *testing.T) {
	t.Parallel()
	var log logged
	cfg := config(t, "n1", t.TempDir())
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	n := start(t, cfg)
	initialise(t, n)
	older := n.Digest()
	write(t, n, "workload:one")
	ahead := bytes.Clone(n.Digest())
	ahead[7]++ // a size that this node has not reached: nothing to compare yet
	for name, same := range map[string][]byte{"this one": n.Digest(), "one behind": older, "one ahead": ahead, "no answer": nil, "cut short": older[:20], "empty": make([]byte, 40)} {
		must(t, n.Compare("n2", same))
		if n.Diverged() {
			t.Fatalf("%s counts as diverged", name)
		}
	}
	other := bytes.Clone(older)
	other[len(other)-1] ^= 1
	must(t, n.Compare("n2", other))
	must(t, n.Compare("n2", other))
	if !n.Diverged() || log.count("ERROR", "node=n2") != 1 {
		t.Errorf("diverged %v, said %d times; wanted once", n.Diverged(), log.count("ERROR", "node=n2"))
	}
}

// forged is a token that knows the cluster, and that nobody has issued.
func forged(t *testing.T, like string) string {
	t.Helper()
	real, err := identity.ParseEnrolToken(secret.New(like))
	must(t, err)
	tok, err := identity.NewEnrolToken(real.CAHash, real.Addresses)
	must(t, err)
	return tok.Encode().Reveal()
}
