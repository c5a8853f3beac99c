package raftstore

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

func (n *node) editState(edit func(b *bbolt.Tx) error) {
	n.t.Helper()
	if err := n.parts.state.db.Update(edit); err != nil {
		n.t.Fatal(err)
	}
}

func TestHazard21SealedValueMovedToAnotherKeyIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.set("poor", "1")
	c.set("rich", "1000")
	n.editState(func(b *bbolt.Tx) error {
		kv := b.Bucket([]byte("kv"))
		return kv.Put([]byte("poor"), bytes.Clone(kv.Get([]byte("rich"))))
	})
	var seen []string
	err := n.View(func(tx *Tx) error {
		seen = append(seen, string(tx.Get("kv", []byte("poor"))), string(tx.Get("kv", []byte("rich"))))
		tx.Scan("kv", nil, nil, func(k, v []byte) bool { seen = append(seen, string(v)); return true })
		return nil
	})
	if !errors.Is(err, ErrSealBroken) {
		t.Fatalf("view: %v", err)
	}
	for _, v := range seen {
		if v != "" {
			t.Fatalf("something was read after the broken seal: %q", seen)
		}
	}
	// The same in Apply stops the node.
	if _, err := n.Propose(testCtx(t), Proposal{Command: []byte("get poor")}); !errors.Is(err, ErrIndeterminate) {
		t.Fatalf("apply: %v", err)
	}
	<-n.Done()
	if !errors.Is(n.Err(), ErrSealBroken) {
		t.Fatalf("stopped because of %v", n.Err())
	}
}

func TestHazard21SealedValueMovedToAnotherBucketIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.set("k", "v")
	n.editState(func(b *bbolt.Tx) error {
		other, err := b.CreateBucketIfNotExists([]byte("vk"))
		if err != nil {
			return err
		}
		return other.Put([]byte("k"), bytes.Clone(b.Bucket([]byte("kv")).Get([]byte("k"))))
	})
	err := n.View(func(tx *Tx) error { tx.Get("vk", []byte("k")); return nil })
	if !errors.Is(err, ErrSealBroken) {
		t.Fatal(err)
	}
}

func TestHazard21PlacesAreUnambiguous(t *testing.T) {
	tx := newTx(nil, nil)
	seen := map[string]string{}
	for _, p := range []struct{ bucket, key string }{{"a", "bc"}, {"ab", "c"}, {"a", "\x00bc"}, {"a", "b\x00c"}} {
		place := string(tx.statePlace(p.bucket, []byte(p.key)))
		if other, ok := seen[place]; ok {
			t.Fatalf("%q and %q share a place", p, other)
		}
		seen[place] = p.bucket + "|" + p.key
	}
	for name, err := range map[string]error{
		"a NUL in a bucket's name": checkEntry("a\x00", 1, 0), "no bucket": checkEntry("", 1, 0), "no key": checkEntry("a", 0, 0),
		"long key": checkEntry("a", MaxKeySize+1, 0), "long value": checkEntry("a", 1, MaxValueSize+1),
	} {
		if !errors.Is(err, ErrMisuse) {
			t.Errorf("%s is accepted", name)
		}
	}
}

// An entry put in another's place, under another term, or from a term that was
// rolled back does not open; the node refuses to start, and says which.
func TestHazard21SealedLogEntryMovedOrRolledIsRefused(t *testing.T) {
	dir, sealer := t.TempDir(), newTestSealer(t, 1)
	var failed error
	l, err := openLog(dir, sealer, newHCLog(nopLogger()), func(err error) { failed = err })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.close() }()
	entries := []*raft.Log{
		{Index: 1, Term: 1, Type: raft.LogCommand, Data: []byte("one"), Extensions: []byte("x")},
		{Index: 2, Term: 1, Type: raft.LogCommand, Data: []byte("two")},
		{Index: 3, Term: 1, Type: raft.LogNoop},
	}
	if err := l.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	clear(l.recent[:])
	for i, want := range entries {
		var got raft.Log
		if err := l.GetLog(uint64(i+1), &got); err != nil || !bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) || got.Type != want.Type {
			t.Fatalf("entry %d: %+v, %v", i+1, got, err)
		}
	}
	if err := l.check(0, 0); err != nil {
		t.Fatal(err)
	}
	raw := func(index uint64) raft.Log {
		var e raft.Log
		if err := l.wal.GetLog(index, &e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	one := raw(1)
	if bytes.Contains(one.Data, []byte("one")) {
		t.Fatal("the entry is in the clear")
	}
	for name, tamper := range map[string]func(e *raft.Log){
		"moved":        func(e *raft.Log) { e.Data = one.Data },
		"another term": func(e *raft.Log) { e.Term = 2 },
		"flipped":      func(e *raft.Log) { e.Data[30] ^= 1 },
		"emptied":      func(e *raft.Log) { e.Data = nil },
	} {
		bad := raw(2)
		bad.Data = bytes.Clone(bad.Data)
		tamper(&bad)
		if err := l.unseal(2, &bad); !errors.Is(err, ErrSealBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	noop := raw(3) // the type is sealed too: a command cannot be made a no-op
	noop.Type = raft.LogCommand
	if err := l.unseal(3, &noop); err != nil || noop.Type != raft.LogNoop {
		t.Fatalf("type %v, %v", noop.Type, err)
	}
	bad := one
	bad.Index = 4
	if err := l.wal.StoreLog(&bad); err != nil {
		t.Fatal(err)
	}
	if err := l.check(0, 0); !errors.Is(err, ErrSealBroken) || failed != nil {
		t.Fatalf("check: %v", err)
	}
}

func TestHazard21SnapshotChunksStayInPlace(t *testing.T) {
	sealer := newTestSealer(t, 1)
	stream := func(value string) []byte {
		var buf bytes.Buffer
		w, err := newStreamWriter(&buf, sealer, position{7, 2}, 0, []byte("pre"))
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range []string{"a", "b", "c"} {
			if err := errors.Join(w.put("kv", []byte(k), []byte(value)), w.flush(false)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.finish(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	split := func(raw []byte) (parts [][]byte) { // header, chunks
		r := bytes.NewReader(raw[:len(raw)-sha256.Size])
		head := make([]byte, streamHeaderSize+3)
		_, _ = io.ReadFull(r, head)
		parts = append(parts, head)
		for r.Len() > 0 {
			length := make([]byte, 4)
			_, _ = io.ReadFull(r, length)
			chunk := make([]byte, int(length[2])<<8|int(length[3]))
			_, _ = io.ReadFull(r, chunk)
			parts = append(parts, append(length, chunk...))
		}
		return parts
	}
	joined := func(parts ...[]byte) []byte {
		raw := bytes.Join(parts, nil)
		sum := sha256.Sum256(raw)
		return append(raw, sum[:]...)
	}
	a, b := split(stream("1")), split(stream("2"))
	rehead := bytes.Clone(a[0])
	rehead[31]++ // another index
	for name, raw := range map[string][]byte{
		"swapped":        joined(a[0], a[2], a[1], a[3], a[4]),
		"left out":       joined(a[0], a[1], a[2], a[4]),
		"cut":            joined(a[0], a[1], a[2], a[3]),
		"repeated":       joined(a[0], a[1], a[1], a[2], a[3], a[4]),
		"of another":     joined(a[0], a[1], b[2], a[3], a[4]),
		"other header":   joined(b[0], a[1], a[2], a[3], a[4]),
		"edited header":  joined(rehead, a[1], a[2], a[3], a[4]),
		"something more": append(joined(a...), 0),
	} {
		_, err := readStream(bytes.NewReader(raw), sealer, func(streamHeader) error { return nil }, func(string, []byte, []byte) error { return nil })
		if !errors.Is(err, ErrSealBroken) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n := 0
	if _, err := readStream(bytes.NewReader(joined(a...)), sealer, func(streamHeader) error { return nil },
		func(string, []byte, []byte) error { n++; return nil }); err != nil || n != 3 {
		t.Fatalf("untouched: %d records, %v", n, err)
	}
}

func TestHazard21SnapshotMetadataCannotBeEdited(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.set("a", "1")
	n.takeSnapshot()
	n.close()
	metas, err := filepath.Glob(filepath.Join(n.cfg.Dir, snapshotDir, "*", "meta.json"))
	if err != nil || len(metas) != 1 {
		t.Fatal(metas, err)
	}
	raw, err := os.ReadFile(metas[0])
	if err != nil {
		t.Fatal(err)
	}
	var meta map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&meta); err != nil {
		t.Fatal(err)
	}
	meta["Index"] = json.Number("1000")
	if raw, err = json.Marshal(meta); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(metas[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(n.cfg, n.machine); err == nil {
		_ = s.Close()
		t.Fatal("a snapshot with an edited index was accepted")
	}
}

func TestLaw6NothingButKeysIsInTheClear(t *testing.T) {
	const secret = "correct-horse-battery-staple"
	c := newCluster(t, 1, nil)
	n := c.nodes[0]
	c.set("visible-key", secret)
	n.takeSnapshot()
	if bytes.Contains(n.backup(), []byte(secret)) {
		t.Fatal("the backup holds it in the clear")
	}
	n.close()
	keys := 0
	err := filepath.Walk(n.cfg.Dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("%s holds it in the clear", path)
		}
		if bytes.Contains(raw, []byte("visible-key")) {
			keys++
		}
		return err
	})
	if err != nil || keys == 0 {
		t.Fatalf("the search would not have found it: %d, %v", keys, err)
	}
}

func TestHazard5FollowerThatIsCutOffIsStale(t *testing.T) {
	c := newCluster(t, 3, nil)
	for _, n := range c.nodes {
		eventually(t, "fresh", func() bool { return n.Fresh() == nil })
	}
	f := c.followers()[0]
	for _, n := range c.nodes {
		if n != f {
			n.close()
		}
	}
	began := time.Now()
	eventually(t, "stale", func() bool { return errors.Is(f.Fresh(), ErrStale) })
	if d := time.Since(began); d > 3*f.Store.cfg.Timing.FreshFor+2*time.Second {
		t.Fatalf("stale only after %v", d)
	}
}

// LastContact would not notice: raft is in contact, but nothing is applied.
func TestHazard5FollowerWithAStuckApplyIsStale(t *testing.T) {
	c := newCluster(t, 3, nil)
	f := c.followers()[0]
	eventually(t, "fresh", func() bool { return f.Fresh() == nil })
	release := f.machine.stick()
	defer release()
	c.set("a", "1")
	eventually(t, "stale", func() bool { return errors.Is(f.Fresh(), ErrStale) })
	if leader := c.leader(); leader.Fresh() != nil {
		eventually(t, "the leader is fresh", func() bool { return leader.Fresh() == nil })
	}
	release()
	f.await("a", "1")
	eventually(t, "fresh again", func() bool { return f.Fresh() == nil })
}

// A beacon that was long on the way says nothing about now.
func TestHazard5AgeIsMeasuredFromBeforeTheLeaderLooked(t *testing.T) {
	s := &Store{parts: parts{state: &state{}}}
	s.cfg.Timing.FreshFor = time.Hour
	f := newFreshness(s)
	s.parts.state.applied.advance(10)
	now := time.Now()
	f.accept(10, now.Add(-2*time.Hour))
	if f.check(time.Hour) == nil {
		t.Fatal("an old beacon makes fresh")
	}
	f.accept(11, now)
	if f.check(time.Hour) == nil {
		t.Fatal("an unapplied beacon makes fresh")
	}
	s.parts.state.applied.advance(11)
	if err := f.check(time.Hour); err != nil {
		t.Fatal(err)
	}
	f.accept(9, now.Add(-3*time.Hour)) // late, out of order
	if err := f.check(time.Hour); err != nil {
		t.Fatal("an older beacon undid a newer one")
	}
}

func TestHazard24SkewedLeaderGivesWay(t *testing.T) {
	c := newCluster(t, 3, nil)
	old := c.leader()
	old.clock.set(time.Hour)
	eventually(t, "another leader", func() bool {
		for _, n := range c.nodes {
			if n != old && n.IsLeader() {
				return true
			}
		}
		return false
	})
	c.set("a", "1")
	if old.IsLeader() {
		t.Fatal("the skewed node leads")
	}
}

func TestHazard24OnlyTheOneThatIsOffGivesWay(t *testing.T) {
	for name, tc := range map[string]struct {
		others []time.Duration
		median time.Duration
	}{
		"alone":               {nil, 0},
		"two that differ":     {[]time.Duration{time.Hour}, 0},
		"leader off":          {[]time.Duration{time.Hour, time.Hour + time.Second}, time.Hour},
		"leader behind":       {[]time.Duration{-time.Hour, -time.Hour}, -time.Hour},
		"one follower off":    {[]time.Duration{time.Hour, time.Second}, time.Second},
		"half against half":   {[]time.Duration{time.Hour, time.Hour, 0}, 0},
		"two off both ways":   {[]time.Duration{time.Hour, -time.Hour}, 0},
		"majority of five":    {[]time.Duration{time.Hour, time.Hour, time.Hour, 0}, time.Hour},
		"minority of five":    {[]time.Duration{time.Hour, time.Hour, 0, 0}, 0},
		"small differences":   {[]time.Duration{time.Millisecond, -time.Millisecond}, 0},
		"all ahead, a little": {[]time.Duration{time.Second, time.Second}, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			var k clocks
			voters := []string{"self"}
			for i, o := range tc.others {
				id := string(rune('a' + i))
				voters = append(voters, id)
				k.note(id, o)
			}
			k.note("not a voter", 24*time.Hour)
			if got, _ := k.median("self", voters); got != tc.median {
				t.Fatalf("median %v, want %v", got, tc.median)
			}
		})
	}
}

func TestPeersWithoutTheClustersCertificateAreRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	addr := c.nodes[0].parts.port.addr.String()
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.Certificate)
	foreign, err := mintNodeCert(newTestCA(t), "n2", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, err := mintNodeCert(c.ca, "n2", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	old, err := mintNodeCert(c.ca, "n2", time.Now().Add(-24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	// ends reports whether the server ends the connection of such a client within d.
	ends := func(d time.Duration, proto []string, cert *tls.Certificate, version uint16) bool {
		cfg := &tls.Config{NextProtos: proto, RootCAs: pool, ServerName: nodeServerName, MaxVersion: version}
		if cert != nil {
			cfg.Certificates = []tls.Certificate{*cert}
		}
		conn, err := tls.Dial("tcp", addr, cfg)
		if err != nil {
			return true
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetReadDeadline(time.Now().Add(d))
		_, err = conn.Read(make([]byte, 1))
		return !errors.Is(err, os.ErrDeadlineExceeded)
	}
	talks := func(proto []string, cert *tls.Certificate) bool { return !ends(300*time.Millisecond, proto, cert, 0) }
	refused := func(proto []string, cert *tls.Certificate, version uint16) bool {
		return ends(4*time.Second, proto, cert, version) // on a busy machine, too; one that is served may end after 5 s
	}
	for _, proto := range []string{protoRaft, protoForward, protoBeacon} {
		p := []string{proto}
		if !talks(p, own) {
			t.Errorf("%s: a member is refused", proto)
		}
		if !refused(p, nil, 0) || !refused(p, foreign, 0) || !refused(p, old, 0) || !refused(p, own, tls.VersionTLS12) {
			t.Errorf("%s: somebody else is served", proto)
		}
	}
	if !refused([]string{"http/1.1"}, own, 0) || !refused(nil, own, 0) || !refused([]string{protoRaft, protoJoin}, own, 0) {
		t.Error("an unknown or ambiguous protocol is served")
	}
}

func TestDialRefusesAnImpostor(t *testing.T) {
	c := newCluster(t, 1, nil)
	id := c.nodes[0].net.id
	addr := c.nodes[0].parts.port.addr.String()
	if conn, err := id.dial(testCtx(t), addr, "n9", protoBeacon); err == nil {
		_ = conn.Close()
		t.Fatal("n1 passed for n9")
	}
	other, err := newIdentity(newTestCA(t), "n1")
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := other.dial(testCtx(t), addr, "", protoBeacon); err == nil {
		_ = conn.Close()
		t.Fatal("a server of another CA was believed")
	}
}
