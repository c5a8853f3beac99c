package raftstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// sealedSnapshots is raft's file snapshot store with one addition: what it
// keeps in the clear beside a snapshot (index, term, members) is bound to the
// snapshot by a sealed trailer, so that it cannot be edited on the disk.
//
//	stream | sealed SHA-256 of the metadata | length of the sealed part 4
type sealedSnapshots struct {
	*raft.FileSnapshotStore
	dir     string
	sealer  Sealer
	standIn atomic.Pointer[raft.SnapshotMeta] // listed instead of the snapshots while raft starts
}

const (
	snapshotDir      = "snapshots" // raft's name for it
	snapshotContents = "state.bin" // and for the file in it
	maxTrailer       = 1 << 10
)

var trailerPlace = []byte("snapshot-file")

func openSnapshots(dir string, sealer Sealer, logger hclog.Logger) (*sealedSnapshots, error) {
	store, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsRetained, logger)
	if err != nil {
		return nil, fmt.Errorf("raftstore: open snapshots: %w", err)
	}
	s := &sealedSnapshots{FileSnapshotStore: store, dir: filepath.Join(dir, snapshotDir), sealer: sealer}
	return s, s.removeUnfinished()
}

// removeUnfinished deletes what a crash left of snapshots being written; raft only skips it.
func (s *sealedSnapshots) removeUnfinished() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("raftstore: list snapshots: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasSuffix(e.Name(), ".tmp") {
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				return fmt.Errorf("raftstore: remove unfinished snapshot: %w", err)
			}
		}
	}
	return nil
}

// List implements [raft.SnapshotStore].
func (s *sealedSnapshots) List() ([]*raft.SnapshotMeta, error) {
	if meta := s.standIn.Load(); meta != nil {
		return []*raft.SnapshotMeta{meta}, nil
	}
	return s.FileSnapshotStore.List()
}

// latest returns the position of the newest snapshot, zero when there is none.
func (s *sealedSnapshots) latest() (position, error) {
	metas, err := s.List()
	if err != nil {
		return position{}, fmt.Errorf("raftstore: list snapshots: %w", err)
	}
	if len(metas) == 0 {
		return position{}, nil
	}
	return position{metas[0].Index, metas[0].Term}, nil
}

func metaSum(index, term, confIndex uint64, conf raft.Configuration) []byte {
	h := sha256.New()
	var n [24]byte
	binary.BigEndian.PutUint64(n[:], index)
	binary.BigEndian.PutUint64(n[8:], term)
	binary.BigEndian.PutUint64(n[16:], confIndex)
	h.Write(n[:])
	for _, srv := range conf.Servers {
		fmt.Fprintf(h, "%d %q %q\n", srv.Suffrage, srv.ID, srv.Address)
	}
	return h.Sum(nil)
}

// Create implements [raft.SnapshotStore].
func (s *sealedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration,
	confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	return &sealedSink{SnapshotSink: sink, at: position{index, term}, trailer: s.sealer.Seal(trailerPlace, metaSum(index, term, confIndex, conf))}, nil
}

type sealedSink struct {
	raft.SnapshotSink
	at      position
	trailer []byte
	closed  bool
}

// Close adds the trailer and completes the snapshot.
func (s *sealedSink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if _, err := s.Write(binary.BigEndian.AppendUint32(s.trailer, uint32(len(s.trailer)))); err != nil {
		return errors.Join(err, s.Cancel())
	}
	return s.SnapshotSink.Close()
}

// snapshotReader is an open snapshot that knows its metadata.
type snapshotReader struct {
	io.Reader
	io.Closer
	meta *raft.SnapshotMeta
}

// Open implements [raft.SnapshotStore]: metadata and stream, without the trailer.
func (s *sealedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, rc, err := s.FileSnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	size, err := s.checkTrailer(meta)
	if err != nil {
		return nil, nil, errors.Join(err, rc.Close())
	}
	bare := *meta
	bare.Size = size
	return &bare, &snapshotReader{io.LimitReader(rc, size), rc, &bare}, nil
}

// checkTrailer returns the size of the stream before the trailer.
func (s *sealedSnapshots) checkTrailer(meta *raft.SnapshotMeta) (int64, error) {
	f, err := os.Open(filepath.Join(s.dir, meta.ID, snapshotContents))
	if err != nil {
		return 0, fmt.Errorf("raftstore: open snapshot: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	var raw [4]byte
	if _, err := f.ReadAt(raw[:], meta.Size-4); err != nil {
		return 0, fmt.Errorf("raftstore: read snapshot: %w", err)
	}
	size := int64(binary.BigEndian.Uint32(raw[:]))
	if size > maxTrailer || size > meta.Size-4 {
		return 0, fmt.Errorf("%w: snapshot trailer", ErrCorrupt)
	}
	sealed := make([]byte, size)
	if _, err := f.ReadAt(sealed, meta.Size-4-size); err != nil {
		return 0, fmt.Errorf("raftstore: read snapshot: %w", err)
	}
	sum, err := s.sealer.Open(trailerPlace, sealed)
	if err != nil || !bytes.Equal(sum, metaSum(meta.Index, meta.Term, meta.ConfigurationIndex, meta.Configuration)) {
		return 0, fmt.Errorf("%w: snapshot metadata", ErrSealBroken)
	}
	return meta.Size - 4 - size, nil
}
