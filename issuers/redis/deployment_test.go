package redis_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
)

func addresses(servers []*redistest.Server) []string {
	var out []string
	for _, s := range servers {
		out = append(out, s.Address())
	}
	return out
}

// watched is a fixture for a master, replicas and Sentinels.
func watched(t *testing.T, replicas int, opts ...redistest.Option) (*fixture, *redistest.Watched) {
	t.Helper()
	w := redistest.StartWatched(t, replicas, opts...)
	f := newFixture(t, w.Servers[0])
	sentinels := addresses(w.Sentinels)
	f.spec["address"], f.spec["addresses"], f.spec["topology"], f.spec["master_name"] = sentinels[0], sentinels[1:], "sentinel", w.MasterName
	f.fill()
	return f, w
}

func everyNode(ctx context.Context, t *testing.T, servers []*redistest.Server, l issuers.Lease) error {
	t.Helper()
	for _, s := range servers {
		c := s.Client()
		err := errors.Join(gone(ctx, c, l), c.Close())
		if err != nil {
			return fmt.Errorf("%s: %w", s.Address(), err)
		}
	}
	return nil
}

func TestConformanceWithSentinels(t *testing.T) {
	f, w := watched(t, 1)
	f.spec["persist"] = "config"
	h := f.harness()
	h.Rotation = f.rotation(w.Servers...)
	h.Gone = func(ctx context.Context, l issuers.Lease) error { return everyNode(ctx, t, w.Servers, l) }
	h.Hostile = h.Hostile[:20]
	issuertest.Run(t, h)
}

// A lease works on the replicas as on the master, outlives a failover, and is
// withdrawn everywhere, on the old master too.
func TestFailoverKeepsLeasesAndTheirEnd(t *testing.T) {
	f, w := watched(t, 2)
	is := f.open(1)
	l := lease(allow([]string{"read", "write"}))
	c := f.mint(is, l)
	for _, s := range w.Servers {
		if !userExists(t, s.Admin(t), l.Name) {
			t.Errorf("%s has not got the user", s.Address())
		}
	}
	w.Failover(t)
	master, err := w.Master(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.Index(addresses(w.Servers), master)
	r := goredis.NewClient(w.Servers[i].Options(c.Public["username"], c.Secret["password"].Reveal()))
	defer func() { _ = r.Close() }()
	eventually(t, "the lease writes on the new master", func() bool { return r.Set(t.Context(), "orders:9", "x", 0).Err() == nil })
	f.withdraw(is, l)
	eventually(t, "every node can be asked", func() bool { // one that is made a replica cuts its clients off
		err := everyNode(t.Context(), t, w.Servers, l)
		var cut net.Error
		if err != nil && !errors.As(err, &cut) && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return err == nil
	})
	next := lease(allow([]string{"read"}))
	var got map[string]string
	eventually(t, "a mint once the failover is through", func() bool {
		c, err := is.Mint(t.Context(), next)
		if err != nil {
			wantKind(t, err, issuers.Unreachable)
		}
		got = c.Public
		return err == nil
	})
	if got["host"]+":"+got["port"] != master {
		t.Errorf("after the failover a mint names %s; the master is %s", got["host"]+":"+got["port"], master)
	}
	f.withdraw(is, next)
}

// A node that cannot be asked may come back with the user: no receipt without it.
func TestWithdrawalWaitsForEveryKnownNode(t *testing.T) {
	f, w := watched(t, 1, redistest.ACLFile())
	f.spec["persist"] = "aclfile"
	is := f.open(1)
	l := lease(allow([]string{"read"}))
	f.mint(is, l)
	replica := w.Servers[1]
	if err := replica.Admin(t).Do(t.Context(), "ACL", "SAVE").Err(); err != nil {
		t.Fatal(err)
	}
	if err := replica.Kill(); err != nil {
		t.Fatal(err)
	}
	out := is.Withdraw(t.Context(), []issuers.Lease{l})
	wantKind(t, out[0].Err, issuers.Unreachable)
	if f.exists(l.Name) {
		t.Error("the master kept the user because a replica is dead")
	}
	if _, err := is.Mint(t.Context(), lease(allow([]string{"read"}))); err != nil {
		t.Errorf("a dead replica keeps the deployment from minting: %v", err)
	}
	if err := replica.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !userExists(t, replica.Admin(t), l.Name) {
		t.Fatal("the replica came back without the user: this test proves nothing")
	}
	eventually(t, "the replica is back and the withdrawal proven", func() bool {
		return is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err == nil
	})
	if err := everyNode(t.Context(), t, w.Servers, l); err != nil {
		t.Fatal(err)
	}
}

func cluster(t *testing.T, replicas bool) (*fixture, []*redistest.Server) {
	t.Helper()
	nodes := redistest.StartCluster(t, replicas)
	f := newFixture(t, nodes[0])
	all := addresses(nodes)
	f.spec["address"], f.spec["addresses"], f.spec["topology"] = all[0], all[1:], "cluster"
	return f, nodes
}

func clusterClient(nodes []*redistest.Server, user, password string) *goredis.ClusterClient {
	return goredis.NewClusterClient(&goredis.ClusterOptions{
		Addrs: addresses(nodes), Username: user, Password: password, Protocol: 2, DisableIdentity: true, MaxRedirects: 3,
	})
}

func TestConformanceWithACluster(t *testing.T) {
	f, nodes := cluster(t, false)
	admin := clusterClient(nodes, redistest.AdminUser, f.server.Password)
	defer func() { _ = admin.Close() }()
	for _, k := range []string{"orders:1", "orders:2", "secret:1"} {
		if err := admin.Set(t.Context(), k, "value", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	f.spec["persist"] = "config"
	h := f.harness()
	h.Rotation = f.rotation(nodes...)
	h.Gone = func(ctx context.Context, l issuers.Lease) error { return everyNode(ctx, t, nodes, l) }
	h.Use = func(ctx context.Context, c issuers.Credential) error {
		r := clusterClient(nodes, c.Public["username"], c.Secret["password"].Reveal())
		return errors.Join(r.Get(ctx, "orders:1").Err(), r.Close())
	}
	h.Intact = func(ctx context.Context) error {
		for _, k := range []string{"orders:1", "orders:2", "secret:1"} {
			if err := admin.Get(ctx, k).Err(); err != nil {
				return err
			}
		}
		return nil
	}
	h.Hostile = h.Hostile[:20]
	issuertest.Run(t, h)
}

func TestClusterReplicasHaveTheUser(t *testing.T) {
	f, nodes := cluster(t, true)
	is := f.open(1)
	l := lease(allow([]string{"read", "write"}))
	c := f.mint(is, l)
	for _, s := range nodes {
		if !userExists(t, s.Admin(t), l.Name) {
			t.Errorf("%s has not got the user", s.Address())
		}
	}
	r := clusterClient(nodes, c.Public["username"], c.Secret["password"].Reveal())
	defer func() { _ = r.Close() }()
	for i := range 30 { // keys in slots of every master
		if err := r.Set(t.Context(), fmt.Sprintf("orders:%d", i), "x", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	findings, err := is.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range findings {
		if !x.OK && !x.Warning {
			t.Errorf("%+v", x)
		}
	}
	f.withdraw(is, l)
	if err := everyNode(t.Context(), t, nodes, l); err != nil {
		t.Fatal(err)
	}
	for _, s := range nodes { // the gates do not stay among the data
		if keys, err := s.Admin(t).Do(t.Context(), "KEYS", "mayfly:*").StringSlice(); err != nil || len(keys) != 0 {
			t.Errorf("%s holds %s: %v", s.Address(), strings.Join(keys, " "), err)
		}
	}
}
