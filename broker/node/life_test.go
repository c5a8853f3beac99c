package node_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/node"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func TestInitShowsSharesOnceAndARestartIsSealed(t *testing.T) {
	cfg := config(t, "n1", t.TempDir())
	n := start(t, cfg)
	if s := n.Status(); s.Initialised || s.Sealed || s.Role != "uninitialised" || s.Cluster != "" || s.Node != "n1" || s.Version != "test" {
		t.Fatalf("an empty node: %+v", s)
	}
	_, err := n.Engine()
	refused(t, err, "uninitialised")
	_, err = n.Unseal(t.Context(), wire.UnsealRequest{Share: "x"})
	refused(t, err, "uninitialised")

	a := initialise(t, n)
	if len(a.Shares) != 3 || len(slices.Compact(slices.Sorted(slices.Values(a.Shares)))) != 3 {
		t.Fatalf("%d shares, some alike", len(a.Shares))
	}
	if len(a.Admins) != 1 || a.Admins[0].Principal != ann || a.Admins[0].Token == "" || a.Cluster == "" {
		t.Fatalf("cluster %q, administrators %d", a.Cluster, len(a.Admins))
	}
	if s := n.Status(); !s.Initialised || s.Sealed || s.Role != "leader" || s.Leader != "n1" || s.Cluster != a.Cluster || !s.Fresh || s.Size == 0 || s.Threshold != 2 || s.Total != 3 {
		t.Fatalf("a running node: %+v", s)
	}
	write(t, n, "workload:before")
	before := n.Digest()

	n = restart(t, n, cfg)
	if s := n.Status(); !s.Initialised || !s.Sealed || s.Role != "sealed" || s.Cluster != a.Cluster || s.Have != 0 || s.Threshold != 2 || s.Fresh {
		t.Fatalf("a restarted node: %+v", s)
	}
	_, err = n.Engine()
	refused(t, err, "sealed")
	noSecretIn(t, cfg.Dir, append(a.Shares, a.Admins[0].Token)...)

	unseal(t, n, a.Shares[2], a.Shares[0])
	if after := n.Digest(); string(after) != string(before) {
		t.Error("the ledger is not what it was before the restart")
	}
	write(t, n, "workload:after")
}

// noSecretIn reads every file under dir (law 6).
func noSecretIn(t *testing.T, dir string, secrets ...string) {
	t.Helper()
	files := 0
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		for _, s := range secrets {
			if strings.Contains(string(b), s) {
				t.Errorf("%s holds a secret in the clear", path)
			}
		}
		return err
	}))
	if files < 2 {
		t.Errorf("only %d files in the data directory", files)
	}
}

func TestUnsealCountsSharesAndForgetsThemOnReset(t *testing.T) {
	cfg := config(t, "n1", t.TempDir())
	n := start(t, cfg)
	shares := initialise(t, n).Shares
	other := initialise(t, start(t, config(t, "n2", t.TempDir()))).Shares
	n = restart(t, n, cfg)

	give := func(share string, have int) {
		t.Helper()
		s, err := n.Unseal(t.Context(), wire.UnsealRequest{Share: share})
		must(t, err)
		if s.Have != have || !s.Sealed {
			t.Fatalf("after a share: %+v; wanted %d of 2", s, have)
		}
	}
	give(shares[0], 1)
	give(shares[0], 1) // the same again is no second one
	for _, wrong := range []string{"", "not a share", other[1], shares[1][:len(shares[1])-1]} {
		_, err := n.Unseal(t.Context(), wire.UnsealRequest{Share: wrong})
		refused(t, err, "bad_share")
	}
	if s := n.Status(); s.Have != 1 {
		t.Fatalf("a wrong share cost a right one: %+v", s)
	}
	s, err := n.Unseal(t.Context(), wire.UnsealRequest{Reset: true})
	must(t, err)
	if s.Have != 0 {
		t.Fatalf("after a reset: %+v", s)
	}
	give(shares[1], 1)
	unseal(t, n, shares[2])
	s, err = n.Unseal(t.Context(), wire.UnsealRequest{Share: "anything"})
	if err != nil || s.Sealed {
		t.Fatalf("unsealing an open node: %+v, %v", s, err)
	}
}

func TestGuessingAtSharesIsBounded(t *testing.T) {
	cfg := config(t, "n1", t.TempDir())
	n := start(t, cfg)
	initialise(t, n)
	n = restart(t, n, cfg)
	for i := range 100 {
		_, err := n.Unseal(t.Context(), wire.UnsealRequest{Share: "guess"})
		if i == 0 {
			refused(t, err, "bad_share")
		}
	}
	_, err := n.Unseal(t.Context(), wire.UnsealRequest{Share: "guess"})
	refused(t, err, "rate_limited")
}

func TestLocalKeyRestartsUnattended(t *testing.T) {
	cfg := config(t, "n1", t.TempDir())
	cfg.LocalKey = filepath.Join(t.TempDir(), "seal.key")
	n := start(t, cfg)
	_, err := n.Init(t.Context(), wire.InitRequest{Shares: 3, Threshold: 2, Admins: []string{ann}})
	refused(t, err, "seal_is_local")
	a, err := n.Init(t.Context(), wire.InitRequest{Admins: []string{ann}})
	must(t, err)
	if len(a.Shares) != 0 {
		t.Fatalf("%d shares of a node that has a key file", len(a.Shares))
	}
	n = restart(t, n, cfg)
	ready(t, n)
	write(t, n, "workload:after")

	must(t, n.Seal(t.Context(), as(ann)))
	_, err = n.Unseal(t.Context(), wire.UnsealRequest{Share: "x"})
	refused(t, err, "seal_is_local")
	must(t, n.Close())
	must(t, os.Remove(cfg.LocalKey))
	m, err := node.New(cfg)
	must(t, err)
	if err := m.Start(t.Context()); err == nil {
		t.Fatal("started without its key file")
	}
}

func TestInitThatWasCutShortStartsOver(t *testing.T) {
	cfg := config(t, "n1", t.TempDir())
	n := start(t, cfg)
	first := initialise(t, n)
	must(t, n.Close())
	// As a crash before the last step leaves it.
	must(t, os.WriteFile(filepath.Join(cfg.Dir, node.PendingFile), nil, 0o600))
	n = start(t, cfg)
	if s := n.Status(); s.Initialised || s.Role != "uninitialised" {
		t.Fatalf("after an unfinished initialisation: %+v", s)
	}
	second := initialise(t, n)
	if second.Cluster == first.Cluster || slices.Contains(second.Shares, first.Shares[0]) {
		t.Error("the second initialisation is the first one")
	}
	n = restart(t, n, cfg)
	_, err := n.Unseal(t.Context(), wire.UnsealRequest{Share: first.Shares[0]})
	refused(t, err, "bad_share")
	unseal(t, n, second.Shares[0], second.Shares[1])
}

func TestInitThatFailsLeavesNothing(t *testing.T) {
	cfg := config(t, "n1", t.TempDir())
	n := start(t, cfg)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Init(gone, wire.InitRequest{Shares: 3, Threshold: 2, Admins: []string{ann}}); err == nil {
		t.Fatal("initialised for a caller who had gone")
	}
	left, err := os.ReadDir(cfg.Dir)
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	for code, in := range map[string]wire.InitRequest{
		"admins_missing":   {Shares: 3, Threshold: 2},
		"admins_malformed": {Shares: 3, Threshold: 2, Admins: []string{"workload:ci"}},
		"seal_parameters":  {Shares: 2, Threshold: 3, Admins: []string{ann}},
	} {
		_, err := n.Init(t.Context(), in)
		refused(t, err, code)
	}
	initialise(t, n)
	write(t, n, "workload:after")
}

func TestSecondInitIsRefused(t *testing.T) {
	cfg := config(t, "n1", t.TempDir())
	n := start(t, cfg)
	a := initialise(t, n)
	again := wire.InitRequest{Shares: 1, Threshold: 1, Admins: []string{"human:mallory"}}
	_, err := n.Init(t.Context(), again)
	refused(t, err, "already_initialised")
	n = restart(t, n, cfg)
	_, err = n.Init(t.Context(), again)
	refused(t, err, "already_initialised")
	unseal(t, n, a.Shares[0], a.Shares[1])
	write(t, n, "workload:after")
}

func TestSealAndUnsealAgain(t *testing.T) {
	n := start(t, config(t, "n1", t.TempDir()))
	a := initialise(t, n)
	refused(t, n.Seal(t.Context(), as("human:mallory")), "denied")
	if n.Status().Sealed {
		t.Fatal("sealed by somebody who may not")
	}
	size := n.Status().Size
	must(t, n.Seal(t.Context(), as(ann)))
	if s := n.Status(); !s.Sealed || s.Role != "sealed" {
		t.Fatalf("after sealing: %+v", s)
	}
	refused(t, n.Seal(t.Context(), as(ann)), "sealed")
	refused(t, n.AwaitLeader(t.Context()), "sealed")
	unseal(t, n, a.Shares[0], a.Shares[1])
	if after := n.Status().Size; after <= size {
		t.Errorf("the ledger holds %d entries, %d before sealing: the decision is not in it (law 5)", after, size)
	}
	write(t, n, "workload:after")
	select {
	case err := <-n.Failed():
		t.Errorf("sealing counted as a failure: %v", err)
	default:
	}
}
