package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
)

// FileConfig configures a [FileSink].
type FileConfig struct {
	// Path is the file. What stands there already must be this sink's own. A
	// named pipe or a device is written to as a stream: see [FileSink].
	Path string
	// CursorPath is where the cursor is kept; Path with ".cursor" if "".
	CursorPath string
	// Origin is the log that is followed ([Origin]); each line names it.
	Origin string
	// WriteTimeout bounds a write to a stream; 5 s if 0. Writes to a plain file
	// cannot be bounded: they take as long as the disk does.
	WriteTimeout time.Duration
	// Log takes what an operator should hear of: a file that was deleted, moved,
	// shortened or repaired. None if nil.
	Log *slog.Logger
}

// A FileSink appends entries to a file as JSON lines, each with origin, seq, time,
// type, result, actor, decision_id, the raw command and the leaf hash. It reopens
// the file when it is renamed or deleted, so rotating is renaming.
//
// Plain files get every entry exactly once. Lines are synced before the cursor
// beside the file moves, and after a crash the lines beyond the cursor are read
// back: whole ones count, a torn end is cut off. (One gap is left: if the file is
// also rotated away between the crash and the start, the few lines beyond the
// cursor stand in both files.) A file whose last line is of another incarnation is
// set aside as PATH.<cluster>-<incarnation> and a new one begun from entry 0.
//
// Streams (named pipes, devices) cannot be read back: they get every entry at
// least once, and again what was on its way when the reader went; a process that
// is stopped in the middle of a write leaves the reader half a line before that.
//
// The file is a convenience, not evidence: whoever may write to it may forge it,
// even so that the sink believes it wrote the forgery itself. What can be proven
// is in the ledger, and [Export] brings it out.
//
// A FileSink is for one goroutine. Make one with [NewFileSink].
type FileSink struct {
	cfg FileConfig

	f      *os.File // nil when not open
	stream bool
	next   int64
	size   int64 // of the plain file, as far as we wrote it
	// pending is what a full stream has not taken yet of entries before next.
	pending []byte
	begun   int64 // the first entry in pending
}

// NewFileSink makes a sink; nothing is opened before its first use.
func NewFileSink(cfg FileConfig) *FileSink {
	if cfg.CursorPath == "" {
		cfg.CursorPath = cfg.Path + ".cursor"
	}
	if cfg.WriteTimeout <= 0 {
		cfg.WriteTimeout = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &FileSink{cfg: cfg}
}

// sinkLine is one line of the file.
type sinkLine struct {
	Origin string `json:"origin"`
	entryLine
}

// Next implements [Sink].
func (s *FileSink) Next(ctx context.Context) (int64, error) {
	if err := s.ready(); err != nil {
		return 0, err
	}
	if err := s.flush(ctx); err != nil {
		return 0, err
	}
	return s.next, nil
}

// Check implements [Checker]: it reopens a file that was moved, deleted or
// shortened, and says so in the log.
func (s *FileSink) Check(context.Context) error { return s.ready() }

// Close implements [Sink]. The file is opened again by the next use.
func (s *FileSink) Close() error {
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f, s.pending = nil, nil
	return err
}

// Deliver implements [Sink].
func (s *FileSink) Deliver(ctx context.Context, entries []Entry) error {
	if err := s.ready(); err != nil {
		return err
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	var lines []byte
	due := s.next
	for _, e := range entries {
		if e.Seq < s.next {
			continue // in the file already: recovered after the caller last asked
		}
		if e.Seq != due {
			return fmt.Errorf("audit file: entry %d is due, got %d", due, e.Seq)
		}
		line, err := encodeEntry(e, func(l entryLine) any { return sinkLine{s.cfg.Origin, l} })
		if err != nil {
			return err
		}
		lines = append(lines, line...)
		due++
	}
	if len(lines) == 0 {
		return nil
	}
	if s.stream {
		s.pending, s.begun, s.next = lines, s.next, due
		return s.flush(ctx)
	}
	return s.appendLines(lines, due)
}

// appendLines writes to the plain file: lines, sync, cursor, in this order.
func (s *FileSink) appendLines(lines []byte, next int64) error {
	_, err := s.f.Write(lines)
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		// How much was written is for recovery to find out.
		return errors.Join(fmt.Errorf("audit file: %w", err), s.Close())
	}
	info, err := s.f.Stat()
	if err != nil {
		return errors.Join(err, s.Close())
	}
	if links(info) == 0 {
		// Deleted under our hands, and these lines with it: write them again.
		s.cfg.Log.Warn("audit file was deleted while it was written; its entries are still in the ledger", "path", s.cfg.Path, "next_seq", s.next)
		return errors.Join(errors.New("audit file: deleted while it was written"), s.Close())
	}
	s.next, s.size = next, info.Size()
	return s.writeCursor(info)
}

// ready opens the file, or opens it again where it is no longer the one at Path.
func (s *FileSink) ready() error {
	if s.f != nil {
		ok, err := s.inPlace()
		if err != nil {
			return errors.Join(err, s.Close())
		}
		if ok {
			return nil
		}
		if err := s.Close(); err != nil {
			s.cfg.Log.Warn("audit file did not close well", "path", s.cfg.Path, "error", err)
		}
	}
	if err := s.open(); err != nil {
		return errors.Join(err, s.Close())
	}
	return nil
}

// inPlace reports whether the open file is still the one at Path and as long as
// we left it.
func (s *FileSink) inPlace() (bool, error) {
	open, err := s.f.Stat()
	if err != nil {
		return false, err
	}
	at, err := os.Stat(s.cfg.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	switch {
	case err == nil && os.SameFile(open, at) && (s.stream || open.Size() == s.size):
		return true, nil
	case err == nil && os.SameFile(open, at):
		s.cfg.Log.Warn("audit file was changed by somebody else", "path", s.cfg.Path, "bytes", open.Size(), "expected_bytes", s.size)
	case links(open) == 0:
		s.cfg.Log.Warn("audit file was deleted; what it held is still in the ledger", "path", s.cfg.Path, "next_seq", s.next)
	default:
		s.cfg.Log.Info("audit file was moved; beginning a new one", "path", s.cfg.Path, "next_seq", s.next)
	}
	return false, nil
}

// links is the number of names a file has.
func links(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 1
}

func (s *FileSink) open() error {
	info, err := os.Stat(s.cfg.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if s.stream = err == nil && !info.Mode().IsRegular() && !info.IsDir(); s.stream {
		return s.openStream()
	}
	created := err != nil
	if s.f, err = os.OpenFile(s.cfg.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	if created {
		if err := syncDirOf(s.cfg.Path); err != nil {
			return err
		}
	}
	return s.recover()
}

// openStream opens a pipe or device without waiting for a reader: a pipe nobody
// reads is an error (ENXIO), and so a reason to come back later.
func (s *FileSink) openStream() error {
	c, err := s.readCursor()
	if err != nil {
		return err
	}
	if s.f, err = os.OpenFile(s.cfg.Path, os.O_WRONLY|syscall.O_NONBLOCK, 0); err != nil {
		return err
	}
	s.pending, s.next = nil, c.Next
	return nil
}

// flush writes what a stream still owes, for at most WriteTimeout, and then moves
// the cursor. What a full stream did not take stays pending, so that no line is
// ever written half and then again.
func (s *FileSink) flush(ctx context.Context) error {
	if len(s.pending) == 0 {
		return nil
	}
	err := s.f.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout))
	if err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return errors.Join(err, s.Close())
	}
	file := s.f
	stop := context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(time.Unix(1, 0)) })
	n, err := s.f.Write(s.pending)
	stop()
	s.pending = s.pending[n:]
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("audit stream: its reader is not reading: %w", err)
	case err != nil:
		// The reader is gone, and what it had not read with it: all again.
		s.next = s.begun
		return errors.Join(fmt.Errorf("audit stream: %w", err), s.Close())
	}
	s.pending = nil
	return s.writeCursor(nil)
}

// ours decodes a line of this sink, whole and of any origin.
func ours(line []byte) (sinkLine, bool) {
	var l sinkLine
	if decodeLine(line, &l) != nil {
		return sinkLine{}, false
	}
	e, err := l.entry()
	return l, err == nil && l.Origin != "" && l.Seq >= 0 && l.Leaf == tree.LeafHash(tree.LeafData(e.Result, e.Command))
}
