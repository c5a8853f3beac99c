package redistest

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Watched is a master with replicas and the Sentinels that watch them.
type Watched struct {
	MasterName string
	Servers    []*Server // the first one is the first master
	Sentinels  []*Server
}

// StartWatched runs a master, replicas and three Sentinels for one test.
func StartWatched(t testing.TB, replicas int, opts ...Option) *Watched {
	t.Helper()
	w := &Watched{MasterName: "mymaster"}
	opts = append(opts, Password(rand.Text()))
	for i := range replicas + 1 {
		o := opts
		if i > 0 {
			o = append(append([]Option{}, opts...), Config("replicaof 127.0.0.1 "+strconv.Itoa(w.Servers[0].Port)))
		}
		// each may become master or replica of another
		o = append(append([]Option{}, o...), masterAuth(), Config("repl-diskless-sync-delay 0", "repl-ping-replica-period 1"))
		w.Servers = append(w.Servers, Start(t, o...))
	}
	for range 3 {
		w.Sentinels = append(w.Sentinels, startSentinel(t, w))
	}
	wait(t, "the Sentinels know all replicas and each other", func(ctx context.Context) bool {
		for _, s := range w.Sentinels {
			c := s.Client()
			m, err := c.Do(ctx, "SENTINEL", "MASTER", w.MasterName).StringSlice()
			_ = c.Close()
			text := strings.Join(m, " ") + " "
			if err != nil || !strings.Contains(text, fmt.Sprintf(" num-slaves %d ", replicas)) || !strings.Contains(text, " num-other-sentinels 2 ") {
				return false
			}
		}
		return true
	})
	return w
}

// Password fixes the admin's password, so that several servers share it.
func Password(p string) Option { return func(o *options) { o.password = p } }

// masterAuth lets a server log in to its master as the admin.
func masterAuth() Option {
	return func(o *options) { o.lines = append(o.lines, "masteruser "+AdminUser, "masterauth "+o.password) }
}

func startSentinel(t testing.TB, w *Watched) *Server {
	t.Helper()
	s, err := prepare("redis-sentinel")
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	m := w.Servers[0]
	lines := []string{
		"bind 127.0.0.1", "port " + strconv.Itoa(s.Port), "dir " + s.Dir,
		fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d 2", w.MasterName, m.Port),
		fmt.Sprintf("sentinel auth-user %s %s", w.MasterName, AdminUser), fmt.Sprintf("sentinel auth-pass %s %s", w.MasterName, m.Password),
		fmt.Sprintf("sentinel down-after-milliseconds %s 10000", w.MasterName), fmt.Sprintf("sentinel failover-timeout %s 5000", w.MasterName),
	}
	if err := s.write(lines); err != nil {
		t.Fatalf("redistest: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := s.StartAgain(ctx); err != nil {
		t.Fatalf("redistest: %v", err)
	}
	s.closeWith(t)
	return s
}

// Master returns the address that the first Sentinel gives for the master.
func (w *Watched) Master(ctx context.Context) (string, error) {
	c := w.Sentinels[0].Client()
	defer func() { _ = c.Close() }()
	a, err := c.Do(ctx, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", w.MasterName).StringSlice()
	if err != nil || len(a) != 2 {
		return "", fmt.Errorf("the Sentinel names %v: %w", a, err)
	}
	return a[0] + ":" + a[1], nil
}

// Failover has the Sentinels make a replica the master, and waits for it.
func (w *Watched) Failover(t testing.TB) {
	t.Helper()
	old, err := w.Master(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := w.Sentinels[0].Client()
	defer func() { _ = c.Close() }()
	if err := c.Do(t.Context(), "SENTINEL", "FAILOVER", w.MasterName).Err(); err != nil {
		t.Fatal(err)
	}
	wait(t, "a failover", func(ctx context.Context) bool {
		now, err := w.Master(ctx)
		return err == nil && now != old
	})
}

// StartCluster runs a cluster of three masters for one test, with one replica
// each if asked.
func StartCluster(t testing.TB, replicas bool, opts ...Option) []*Server {
	t.Helper()
	opts = append(opts, Password(rand.Text()), masterAuth(), func(o *options) { o.cluster = true })
	n := 3
	if replicas {
		n = 6
	}
	nodes := make([]*Server, n)
	for i := range nodes {
		nodes[i] = Start(t, opts...)
	}
	ctx := t.Context()
	for i, s := range nodes {
		c := s.Admin(t)
		if i < 3 {
			if err := c.Do(ctx, "CLUSTER", "ADDSLOTSRANGE", i*16384/3, (i+1)*16384/3-1).Err(); err != nil {
				t.Fatalf("redistest: %v", err)
			}
		}
		if err := c.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
			t.Fatalf("redistest: %v", err)
		}
		if i > 0 {
			if err := nodes[0].Admin(t).Do(ctx, "CLUSTER", "MEET", s.Host, s.Port, s.busPort).Err(); err != nil {
				t.Fatalf("redistest: %v", err)
			}
		}
	}
	everywhere := func(what, word string) {
		wait(t, what, func(ctx context.Context) bool {
			for _, s := range nodes {
				info, err := s.Admin(t).ClusterInfo(ctx).Result()
				if err != nil || !strings.Contains(info, word+"\r\n") {
					return false
				}
			}
			return true
		})
	}
	everywhere("all nodes know each other", fmt.Sprintf("cluster_known_nodes:%d", n))
	for i := 3; i < n; i++ {
		id, err := nodes[i-3].Admin(t).Do(ctx, "CLUSTER", "MYID").Text()
		if err != nil {
			t.Fatalf("redistest: %v", err)
		}
		wait(t, "a replica may follow its master", func(ctx context.Context) bool {
			return nodes[i].Admin(t).Do(ctx, "CLUSTER", "REPLICATE", id).Err() == nil
		})
	}
	everywhere("the cluster is whole", "cluster_state:ok")
	// gossip: until a node has heard of it, a replica is a master without slots to it
	wait(t, "all nodes know who is a replica", func(ctx context.Context) bool {
		for _, s := range nodes {
			text, err := s.Admin(t).ClusterNodes(ctx).Result()
			if err != nil || strings.Count(text, "slave ") != n-3 {
				return false
			}
		}
		return true
	})
	for i := 3; i < n; i++ {
		wait(t, "a replica has its master's data", func(ctx context.Context) bool {
			role, err := nodes[i].Admin(t).Do(ctx, "ROLE").Slice()
			return err == nil && len(role) > 3 && role[0] == "slave" && role[3] == "connected"
		})
	}
	return nodes
}

// wait polls until ok, and fails after startTimeout.
func wait(t testing.TB, what string, ok func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("redistest: did not happen within %s: %s", startTimeout, what)
		}
	}
}
