package raftstore

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

// A snapshot stream is both what raft ships between nodes and the backup format:
//
//	magic "MAYFLYS" 0x01 | id 16 | index 8 | term 8 | created 8 (Unix seconds) | preamble length 4 | preamble
//	chunk: length 4 | sealed                     repeated; the last one is marked so in its place
//	SHA-256 of everything before                 so that a backup can be checked without a key
//
// A chunk's place is "snapshot" | id | number 8 | last 1 | SHA-256 of the
// header: a chunk cannot be moved, left out, or put under another header. The
// plaintext of a chunk is records (bucket, key, value, each behind its length
// as a uvarint); the last chunk holds their number instead. Integers are big-endian.

var streamMagic = [8]byte{'M', 'A', 'Y', 'F', 'L', 'Y', 'S', 1}

const streamHeaderSize = 8 + 16 + 8 + 8 + 8 + 4

// streamHeader says what a stream is a snapshot of.
type streamHeader struct {
	id       [16]byte
	at       position
	created  int64
	preamble []byte
}

func (h *streamHeader) encode() []byte {
	out := append(make([]byte, 0, streamHeaderSize+len(h.preamble)), streamMagic[:]...)
	out = append(out, h.id[:]...)
	out = binary.BigEndian.AppendUint64(out, h.at.index)
	out = binary.BigEndian.AppendUint64(out, h.at.term)
	out = binary.BigEndian.AppendUint64(out, uint64(h.created))
	out = binary.BigEndian.AppendUint32(out, uint32(len(h.preamble)))
	return append(out, h.preamble...)
}

func chunkPlace(id [16]byte, header [32]byte, number uint64, last bool) []byte {
	place := append(make([]byte, 0, 8+16+8+1+32), "snapshot"...)
	place = append(place, id[:]...)
	place = binary.BigEndian.AppendUint64(place, number)
	if last {
		place = append(place, 1)
	} else {
		place = append(place, 0)
	}
	return append(place, header[:]...)
}

// streamWriter writes a stream.
type streamWriter struct {
	w       *bufio.Writer
	sum     hash.Hash
	sealer  Sealer
	id      [16]byte
	header  [32]byte
	chunk   []byte
	number  uint64
	records uint64
}

func newStreamWriter(w io.Writer, sealer Sealer, at position, created int64, preamble []byte) (*streamWriter, error) {
	if len(preamble) > MaxPreamble {
		return nil, fmt.Errorf("%w: snapshot preamble of %d bytes", ErrMisuse, len(preamble))
	}
	h := streamHeader{at: at, created: created, preamble: preamble}
	if _, err := rand.Read(h.id[:]); err != nil {
		return nil, err
	}
	raw := h.encode()
	s := &streamWriter{w: bufio.NewWriterSize(w, chunkTarget), sum: sha256.New(), sealer: sealer, id: h.id, header: sha256.Sum256(raw)}
	return s, s.write(raw)
}

// begin begins a stream with its preamble, and seals it by a key that stands there.
func (h *Hooks) begin(w io.Writer, sealer Sealer, at position, created int64) (*streamWriter, error) {
	var preamble []byte
	if h.Preamble != nil {
		var err error
		if preamble, sealer, err = h.Preamble(); err != nil {
			return nil, fmt.Errorf("raftstore: snapshot preamble: %w", err)
		}
	}
	return newStreamWriter(w, sealer, at, created, preamble)
}

func (s *streamWriter) write(p []byte) error {
	s.sum.Write(p) // never fails (hash.Hash)
	_, err := s.w.Write(p)
	return err
}

func (s *streamWriter) put(bucket string, key, value []byte) error {
	s.chunk = binary.AppendUvarint(s.chunk, uint64(len(bucket)))
	s.chunk = append(s.chunk, bucket...)
	s.chunk = binary.AppendUvarint(s.chunk, uint64(len(key)))
	s.chunk = append(s.chunk, key...)
	s.chunk = binary.AppendUvarint(s.chunk, uint64(len(value)))
	s.chunk = append(s.chunk, value...)
	s.records++
	if len(s.chunk) < chunkTarget {
		return nil
	}
	return s.flush(false)
}

func (s *streamWriter) flush(last bool) error {
	sealed := s.sealer.Seal(chunkPlace(s.id, s.header, s.number, last), s.chunk)
	if sealed == nil {
		return fmt.Errorf("raftstore: write snapshot: %w", ErrStopped) // sealed meanwhile
	}
	s.number++
	s.chunk = s.chunk[:0]
	if err := s.write(binary.BigEndian.AppendUint32(nil, uint32(len(sealed)))); err != nil {
		return err
	}
	return s.write(sealed)
}

func (s *streamWriter) finish() error {
	if len(s.chunk) > 0 {
		if err := s.flush(false); err != nil {
			return err
		}
	}
	s.chunk = binary.BigEndian.AppendUint64(s.chunk, s.records)
	if err := s.flush(true); err != nil {
		return err
	}
	if _, err := s.w.Write(s.sum.Sum(nil)); err != nil {
		return err
	}
	return s.w.Flush()
}

// readStream reads and checks a whole stream. begin is called before any chunk
// is opened, put for each record; put owns its arguments only for the call.
// Records that put was given before an error count for nothing.
func readStream(r io.Reader, sealer Sealer, begin func(streamHeader) error, put func(bucket string, key, value []byte) error) (streamHeader, error) {
	s := &streamReader{r: bufferOf(r), sum: sha256.New(), sealer: sealer, put: put}
	h, err := s.readHeader()
	if err != nil {
		return h, err
	}
	if err := begin(h); err != nil {
		return h, fmt.Errorf("raftstore: snapshot header: %w", err)
	}
	for {
		last, err := s.readChunk(h.id)
		if err != nil {
			return h, err
		}
		if last {
			break
		}
	}
	want := s.sum.Sum(nil)
	var got [sha256.Size]byte
	if _, err := io.ReadFull(s.r, got[:]); err != nil {
		return h, truncated(err)
	}
	if !bytes.Equal(want, got[:]) {
		return h, fmt.Errorf("%w: snapshot checksum", ErrCorrupt)
	}
	if _, err := s.r.ReadByte(); !errors.Is(err, io.EOF) {
		return h, fmt.Errorf("%w: bytes after the snapshot's end", ErrCorrupt)
	}
	return h, nil
}

func bufferOf(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, chunkTarget) }

type streamReader struct {
	r       *bufio.Reader
	sum     hash.Hash
	sealer  Sealer
	put     func(bucket string, key, value []byte) error
	header  [32]byte
	number  uint64
	records uint64
	buf     []byte
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: snapshot is cut short", ErrCorrupt)
	}
	return fmt.Errorf("raftstore: read snapshot: %w", err)
}

// read returns the next n bytes, valid until the next read.
func (s *streamReader) read(n int) ([]byte, error) {
	if cap(s.buf) < n {
		s.buf = make([]byte, n)
	}
	p := s.buf[:n]
	if _, err := io.ReadFull(s.r, p); err != nil {
		return nil, truncated(err)
	}
	s.sum.Write(p)
	return p, nil
}

func (s *streamReader) readHeader() (h streamHeader, err error) {
	raw, err := s.read(streamHeaderSize)
	if err != nil {
		return h, err
	}
	if !bytes.Equal(raw[:8], streamMagic[:]) {
		return h, fmt.Errorf("%w: not a snapshot, or of an unknown version", ErrCorrupt)
	}
	copy(h.id[:], raw[8:24])
	h.at = position{binary.BigEndian.Uint64(raw[24:]), binary.BigEndian.Uint64(raw[32:])}
	h.created = int64(binary.BigEndian.Uint64(raw[40:]))
	size := binary.BigEndian.Uint32(raw[48:])
	if size > MaxPreamble {
		return h, fmt.Errorf("%w: snapshot preamble of %d bytes", ErrCorrupt, size)
	}
	if raw, err = s.read(int(size)); err != nil {
		return h, err
	}
	h.preamble = bytes.Clone(raw)
	s.header = sha256.Sum256(h.encode())
	return h, nil
}

func (s *streamReader) readChunk(id [16]byte) (last bool, err error) {
	raw, err := s.read(4)
	if err != nil {
		return false, err
	}
	size := binary.BigEndian.Uint32(raw)
	if size > maxChunk {
		return false, fmt.Errorf("%w: snapshot chunk of %d bytes", ErrCorrupt, size)
	}
	sealed, err := s.read(int(size))
	if err != nil {
		return false, err
	}
	plain, err := s.sealer.Open(chunkPlace(id, s.header, s.number, false), sealed)
	if err != nil {
		if plain, err = s.sealer.Open(chunkPlace(id, s.header, s.number, true), sealed); err != nil {
			return false, fmt.Errorf("%w: snapshot chunk %d", ErrSealBroken, s.number)
		}
		if len(plain) != 8 || binary.BigEndian.Uint64(plain) != s.records {
			return false, fmt.Errorf("%w: number of snapshot records", ErrCorrupt)
		}
		return true, nil
	}
	s.number++
	return false, s.readRecords(plain)
}

func (s *streamReader) readRecords(plain []byte) error {
	for len(plain) > 0 {
		var field [3][]byte
		for i := range field {
			size, n := binary.Uvarint(plain)
			if n <= 0 || size > uint64(len(plain)-n) {
				return fmt.Errorf("%w: snapshot record", ErrCorrupt)
			}
			field[i], plain = plain[n:n+int(size)], plain[n+int(size):]
		}
		if err := checkEntry(string(field[0]), len(field[1]), len(field[2])); err != nil {
			return fmt.Errorf("%w: snapshot record: %w", ErrCorrupt, err)
		}
		s.records++
		if err := s.put(string(field[0]), field[1], field[2]); err != nil {
			return err
		}
	}
	return nil
}
