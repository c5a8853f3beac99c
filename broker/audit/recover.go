package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
)

// cursor is what a FileSink keeps beside its file: the entry due next, and how
// long which file was when everything before that was synced.
type cursor struct {
	Origin string `json:"origin"`
	Next   int64  `json:"next"`
	Device uint64 `json:"device,omitempty"`
	Inode  uint64 `json:"inode,omitempty"`
	Size   int64  `json:"size,omitempty"`
}

// is reports whether c was written for the file that info is of, as long as it
// then was or longer.
func (c cursor) is(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && c.Inode != 0 && c.Inode == st.Ino && c.Device == uint64(st.Dev) && info.Size() >= c.Size
}

// readCursor returns the zero cursor when there is none, or when it is another
// origin's or cannot be read: the file then speaks for itself.
func (s *FileSink) readCursor() (cursor, error) {
	f, err := os.Open(s.cfg.CursorPath)
	if errors.Is(err, fs.ErrNotExist) {
		return cursor{}, nil
	}
	if err != nil {
		return cursor{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return cursor{}, err
	}
	var c cursor
	if err := json.Unmarshal(b, &c); err != nil || c.Next < 0 || c.Next > tree.MaxSeq || c.Size < 0 {
		s.cfg.Log.Warn("audit cursor cannot be read; going by the file", "path", s.cfg.CursorPath)
		return cursor{}, nil
	}
	if c.Origin != s.cfg.Origin {
		return cursor{}, nil
	}
	return c, nil
}

// writeCursor stores the cursor atomically. info is the plain file's; nil for a
// stream. The entries before next are safe whether this succeeds or not.
func (s *FileSink) writeCursor(info fs.FileInfo) error {
	c := cursor{Origin: s.cfg.Origin, Next: s.next}
	if info != nil {
		c.Size = info.Size()
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			c.Device, c.Inode = uint64(st.Dev), st.Ino
		}
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(s.cfg.CursorPath), "."+filepath.Base(s.cfg.CursorPath)+".*")
	if err != nil {
		return fmt.Errorf("audit cursor: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.cfg.CursorPath)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("audit cursor: %w", err), os.Remove(f.Name()))
	}
	return nil
}

func syncDirOf(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// recover finds out, from the file just opened and the cursor, which entry is due
// next, and cuts off a torn end. Lines up to the cursor's size are known to be
// synced; lines beyond it are believed one by one. Without a cursor for this very
// file, the last whole line says where it stopped; an empty file says nothing, and
// the cursor goes on.
func (s *FileSink) recover() error {
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("audit file: no plain file any more")
	}
	c, err := s.readCursor()
	if err != nil {
		return err
	}
	var end, next int64
	if c.is(info) {
		end, next, err = s.believe(c)
	} else {
		end, next, err = s.lastLine(info.Size(), c.Next)
	}
	if errors.Is(err, errOtherLog) {
		return s.setAside()
	}
	if err != nil {
		return err
	}
	if end < info.Size() {
		s.cfg.Log.Warn("audit file had a torn end, which was cut off", "path", s.cfg.Path, "bytes", info.Size()-end, "next_seq", next)
		if err := s.f.Truncate(end); err != nil {
			return err
		}
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	if info, err = s.f.Stat(); err != nil {
		return err
	}
	s.next, s.size = next, info.Size()
	return s.writeCursor(info)
}

// believe reads the lines beyond the cursor and returns where the good ones end
// and the entry due after them.
func (s *FileSink) believe(c cursor) (end, next int64, err error) {
	if _, err := s.f.Seek(c.Size, io.SeekStart); err != nil {
		return 0, 0, err
	}
	end, next = c.Size, c.Next
	lines := newLineReader(s.f)
	for {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, errNoNewline), errors.Is(err, errLineTooLong):
			return end, next, nil
		case err != nil:
			return 0, 0, err
		}
		if l, ok := ours(line); !ok || l.Origin != s.cfg.Origin || l.Seq != next {
			return end, next, nil
		}
		end += int64(len(line))
		next++
	}
}

var (
	errOtherLog = errors.New("audit file: holds another incarnation's entries")
	errForeign  = errors.New("audit file: its last line is none of this program's; move the file away, or name another")
)

// lastLine finds the last whole line of a file of a size: where it ends, and the
// entry due after it. A file without any continues at the cursor's entry.
func (s *FileSink) lastLine(size, cursorNext int64) (end, next int64, err error) {
	tail := make([]byte, min(size, 2*MaxLine)) // a torn line and a whole one
	if _, err := s.f.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, err
	}
	whole := bytes.LastIndexByte(tail, '\n') + 1
	if whole == 0 {
		// Nothing, or a first line that was never finished.
		head, start := tail[:min(len(tail), len(linePrefix))], []byte(linePrefix)
		if len(tail) >= MaxLine || !bytes.Equal(head, start[:len(head)]) {
			return 0, 0, errForeign
		}
		return 0, cursorNext, nil
	}
	start := bytes.LastIndexByte(tail[:whole-1], '\n') + 1
	l, ok := ours(tail[start:whole])
	if !ok {
		return 0, 0, errForeign
	}
	if l.Origin != s.cfg.Origin {
		return 0, 0, errOtherLog
	}
	return size - int64(len(tail)-whole), l.Seq + 1, nil
}

// linePrefix begins every line of a sink's file.
const linePrefix = `{"origin":`

// setAside renames a file with another incarnation's entries, and opens a new one.
func (s *FileSink) setAside() error {
	suffix := "earlier"
	if l, ok := s.anyLine(); ok {
		if cluster, incarnation, ok := ParseOrigin(l.Origin); ok {
			suffix = fmt.Sprintf("%s-%d", cluster, incarnation)
		}
	}
	aside := s.cfg.Path + "." + suffix
	if _, err := os.Lstat(aside); err == nil {
		return fmt.Errorf("audit file: holds another incarnation's entries, and %s is taken; move one of them away", aside)
	}
	if err := os.Rename(s.cfg.Path, aside); err != nil {
		return err
	}
	s.cfg.Log.Warn("audit file of another incarnation was set aside", "path", s.cfg.Path, "aside", aside)
	if err := s.Close(); err != nil {
		return err
	}
	return s.open()
}

// anyLine reads the file's first line, to learn whose it is.
func (s *FileSink) anyLine() (sinkLine, bool) {
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return sinkLine{}, false
	}
	line, err := newLineReader(s.f).next()
	if err != nil {
		return sinkLine{}, false
	}
	return ours(line)
}
