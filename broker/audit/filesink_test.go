package audit_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/audit"
)

// fileTest is a file sink in a directory of its own, and what it logged.
type fileTest struct {
	t    *testing.T
	log  *memLog
	path string
	said bytes.Buffer
	sink *audit.FileSink
}

func newFileTest(t *testing.T, size int) *fileTest {
	t.Helper()
	f := &fileTest{t: t, log: newLog(t, size), path: filepath.Join(t.TempDir(), "audit.log")}
	f.restart()
	return f
}

// restart is a new process: nothing is kept but the disk.
func (f *fileTest) restart() {
	f.sink = audit.NewFileSink(audit.FileConfig{
		Path: f.path, Origin: f.log.origin, WriteTimeout: 50 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&f.said, nil)),
	})
	sink := f.sink
	f.t.Cleanup(func() { _ = sink.Close() })
}

// deliver brings the sink up to an entry, as the runner does.
func (f *fileTest) deliver(upTo int64) error {
	next, err := f.sink.Next(f.t.Context())
	if err != nil || next >= upTo {
		return err
	}
	return f.sink.Deliver(f.t.Context(), f.log.entries[next:upTo])
}

func (f *fileTest) mustDeliver(upTo int64) {
	f.t.Helper()
	if err := f.deliver(upTo); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fileTest) read(path string) []byte {
	f.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

func (f *fileTest) write(path string, b []byte) {
	f.t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// want checks that bytes are the lines of exactly the entries [from, to).
func (f *fileTest) want(b []byte, from, to int64) {
	f.t.Helper()
	if len(b) > 0 && b[len(b)-1] != '\n' {
		f.t.Fatal("the last line has no end")
	}
	var seqs []int64
	for line := range bytes.Lines(b) {
		var l struct {
			Origin, Command string
			Seq             int64
		}
		if err := json.Unmarshal(line, &l); err != nil {
			f.t.Fatalf("line %q: %v", line, err)
		}
		if l.Origin != f.log.origin || l.Command != string(f.log.entries[l.Seq].Command) {
			f.t.Fatalf("line %q is not entry %d", line, l.Seq)
		}
		seqs = append(seqs, l.Seq)
	}
	for i, seq := range seqs {
		if seq != from+int64(i) {
			f.t.Fatalf("entries %v, want %d to %d", seqs, from, to-1)
		}
	}
	if int64(len(seqs)) != to-from {
		f.t.Fatalf("entries %v, want %d to %d", seqs, from, to-1)
	}
}

func (f *fileTest) wantFile(from, to int64) { f.t.Helper(); f.want(f.read(f.path), from, to) }

func TestFileSinkGoesOnAfterRestart(t *testing.T) {
	f := newFileTest(t, 20)
	for upTo := int64(1); upTo <= 20; upTo += 4 {
		f.mustDeliver(upTo)
		f.restart()
	}
	f.wantFile(0, 17)
	if info, err := os.Stat(f.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(filepath.Dir(f.path)); len(left) != 2 {
		t.Fatalf("temporary files are left: %v", left)
	}
	if f.said.Len() > 0 {
		t.Fatalf("a plain restart was remarked upon: %s", &f.said)
	}
}

// Law 5: a crash at any byte of a write, before the cursor moved, neither loses an
// entry nor writes one twice; with the cursor of before, without one, with a
// ruined one.
func TestLaw5CrashBetweenWriteAndCursor(t *testing.T) {
	f := newFileTest(t, 9)
	f.mustDeliver(4)
	cursor, before := f.read(f.path+".cursor"), len(f.read(f.path))
	f.mustDeliver(7)
	full := f.read(f.path)
	for name, old := range map[string][]byte{"cursor of before": cursor, "ruined cursor": []byte("{"), "no cursor": nil} {
		for cut := before; cut <= len(full); cut++ {
			if near := bytes.IndexByte(full[max(before, cut-1):min(len(full), cut+2)], '\n') >= 0; !near && cut%29 != 0 {
				continue // every place about a line's end, and some within
			}
			f.write(f.path, full[:cut])
			if old == nil {
				_ = os.Remove(f.path + ".cursor")
			} else {
				f.write(f.path+".cursor", old)
			}
			f.restart()
			f.mustDeliver(9)
			b := f.read(f.path)
			if f.want(b, 0, 9); !bytes.HasPrefix(b, full[:bytes.LastIndexByte(full[:cut], '\n')+1]) {
				t.Fatalf("%s, cut at %d: whole lines were written again", name, cut)
			}
		}
	}
}

// After a power cut a page in the middle may be zeroes with whole lines behind it.
func TestTornMiddleBeyondTheCursorIsWrittenAgain(t *testing.T) {
	f := newFileTest(t, 9)
	f.mustDeliver(4)
	cursor, before := f.read(f.path+".cursor"), len(f.read(f.path))
	f.mustDeliver(8)
	b := f.read(f.path)
	second := before + bytes.IndexByte(b[before:], '\n') + 1
	clear(b[second+5 : second+50])
	f.write(f.path, b)
	f.write(f.path+".cursor", cursor)
	f.restart()
	f.mustDeliver(9)
	f.wantFile(0, 9)
	if !strings.Contains(f.said.String(), "torn end") {
		t.Fatalf("the repair was not logged: %s", &f.said)
	}
}

func TestRenamedFileIsReopened(t *testing.T) {
	f := newFileTest(t, 9)
	f.mustDeliver(4)
	if err := os.Rename(f.path, f.path+".1"); err != nil {
		t.Fatal(err)
	}
	f.mustDeliver(6)
	f.want(f.read(f.path+".1"), 0, 4)
	f.wantFile(4, 6)
	// Rotated while the process was down.
	if err := os.Rename(f.path, f.path+".2"); err != nil {
		t.Fatal(err)
	}
	f.restart()
	f.mustDeliver(9)
	f.wantFile(6, 9)
}

// A deleted file is noticed, by the idle check too, and said.
func TestDeletedFileIsNoticed(t *testing.T) {
	f := newFileTest(t, 9)
	f.mustDeliver(4)
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	if err := f.sink.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(f.said.String(), "audit file was deleted") {
		t.Fatalf("nothing was said: %s", &f.said)
	}
	f.wantFile(4, 4)
	f.mustDeliver(9)
	f.wantFile(4, 9)
}

func TestShortenedFileGoesOn(t *testing.T) {
	f := newFileTest(t, 9)
	f.mustDeliver(4)
	if err := os.Truncate(f.path, 0); err != nil { // as copytruncate does
		t.Fatal(err)
	}
	f.mustDeliver(6)
	f.wantFile(4, 6)
	if err := os.Truncate(f.path, int64(len(f.read(f.path))-10)); err != nil { // into the last line
		t.Fatal(err)
	}
	f.mustDeliver(9)
	f.wantFile(4, 9)
	if strings.Count(f.said.String(), "changed by somebody else") != 2 {
		t.Fatalf("it was not said: %s", &f.said)
	}
}

func TestForeignFileIsLeftAlone(t *testing.T) {
	for _, content := range []string{"127.0.0.1 GET /\n", "no newline", "{\"origin\":\"x\"}\n", "\n", strings.Repeat("x", 5<<20)} {
		f := newFileTest(t, 3)
		f.write(f.path, []byte(content))
		if err := f.deliver(3); err == nil {
			t.Fatalf("%.20q was taken for an audit file", content)
		}
		if got := f.read(f.path); string(got) != content {
			t.Fatalf("%.20q was changed", content)
		}
	}
}

// Hazard 19: the file of an earlier incarnation is set aside whole.
func TestHazard19EarlierIncarnationsFileIsSetAside(t *testing.T) {
	f := newFileTest(t, 9)
	f.mustDeliver(6)
	old := f.read(f.path)
	f.log.origin = audit.Origin("c1", 2)
	f.restart()
	f.mustDeliver(9)
	f.wantFile(0, 9)
	if !bytes.Equal(f.read(f.path+".c1-1"), old) {
		t.Fatal("the earlier file was changed")
	}
	f.log.origin = audit.Origin("c1", 1)
	f.restart()
	f.mustDeliver(9)
	f.log.origin = audit.Origin("c1", 2)
	f.restart()
	if err := f.deliver(9); err == nil || !strings.Contains(err.Error(), "taken") {
		t.Fatalf("an earlier file was overwritten: %v", err)
	}
}

// A directory that may not be written to: refused, then everything arrives.
func TestLaw5UnwritableDirectoryLosesNothing(t *testing.T) {
	f := newFileTest(t, 5)
	dir := filepath.Dir(f.path)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	asNobody(t, func() {
		if err := f.deliver(5); !errors.Is(err, syscall.EACCES) {
			t.Errorf("got %v, want EACCES", err)
		}
	})
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f.mustDeliver(5)
	f.wantFile(0, 5)
}

// asNobody runs f on a thread without root's right to pass over file modes;
// without root it just runs f. The thread is not given back.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := syscall.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// /dev/full answers ENOSPC to every write.
func TestLaw5FullDiskLosesNothing(t *testing.T) {
	dir := t.TempDir()
	l := newLog(t, 5)
	sink := audit.NewFileSink(audit.FileConfig{Path: "/dev/full", CursorPath: filepath.Join(dir, "cursor"), Origin: l.origin})
	for range 3 {
		if next, err := sink.Next(t.Context()); err != nil || next != 0 {
			t.Fatalf("next %d, %v", next, err)
		}
		if err := sink.Deliver(t.Context(), l.entries); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v, want ENOSPC", err)
		}
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
}

// A pipe whose reader does not read: the sink gives up in time, and once the reader
// reads, every entry is there once.
func TestLaw8FullPipeBlocksNobodyAndLosesNothing(t *testing.T) {
	f := newFileTest(t, 900)
	if err := syscall.Mkfifo(f.path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.deliver(900); !errors.Is(err, syscall.ENXIO) {
		t.Fatalf("a pipe nobody reads: %v", err)
	}
	reader, err := os.OpenFile(f.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for range 3 {
		if err := f.deliver(900); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a full pipe: %v", err)
		}
	}
	got := make(chan []byte, 1)
	go func() {
		var b []byte
		lines := bufio.NewReader(reader)
		for range 900 {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				break
			}
			b = append(b, line...)
		}
		got <- b
	}()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if err := f.deliver(900); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	f.want(<-got, 0, 900)
	f.restart()
	if next, err := f.sink.Next(t.Context()); err != nil || next != 900 {
		t.Fatalf("after a restart: %d %v", next, err)
	}
}

// A write that is stuck ends with its context, however long it might have waited.
func TestStuckWriteEndsWithItsContext(t *testing.T) {
	f := newFileTest(t, 900)
	if err := syscall.Mkfifo(f.path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(f.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	sink := audit.NewFileSink(audit.FileConfig{Path: f.path, Origin: f.log.origin, WriteTimeout: time.Hour})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sink.Deliver(cancelled, f.log.entries); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
}

// The reader of a pipe dies with lines in it: they come again, whole.
func TestPipeWhoseReaderDies(t *testing.T) {
	f := newFileTest(t, 600)
	if err := syscall.Mkfifo(f.path, 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.mustDeliver(3)
	if err := f.deliver(600); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a full pipe: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.deliver(600); !errors.Is(err, syscall.EPIPE) {
		t.Fatalf("a pipe without a reader: %v", err)
	}
	second, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	f.mustDeliver(20)
	if err := f.sink.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(second)
	if err != nil {
		t.Fatal(err)
	}
	f.want(b, 3, 20)
}

func TestGapIsRefused(t *testing.T) {
	f := newFileTest(t, 9)
	f.mustDeliver(3)
	if err := f.sink.Deliver(t.Context(), f.log.entries[4:]); err == nil {
		t.Fatal("a gap was written")
	}
	// What is in the file already is passed over.
	if err := f.sink.Deliver(t.Context(), f.log.entries[1:5]); err != nil {
		t.Fatal(err)
	}
	f.wantFile(0, 5)
}

// The whole: a runner, a file, a rotation in the middle.
func TestRunnerWithAFile(t *testing.T) {
	f := newFileTest(t, 0)
	r := audit.NewRunner(f.log, []audit.NamedSink{{Name: "file", Sink: f.sink}}, audit.RunnerOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	caughtUp := func() {
		t.Helper()
		r.Wake()
		for deadline := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
			st, err := r.Status(t.Context())
			if err == nil && st[0].Behind == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%+v %v", st, err)
			}
		}
	}
	for range 700 {
		f.log.add(t, "")
		r.Wake()
	}
	caughtUp()
	if err := os.Rename(f.path, f.path+".1"); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		f.log.add(t, "")
		r.Wake()
	}
	caughtUp()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	f.want(f.read(f.path+".1"), 0, 700)
	f.wantFile(700, 800)
}

func BenchmarkFileSink(b *testing.B) {
	l := newLog(b, 256)
	for b.Loop() {
		sink := audit.NewFileSink(audit.FileConfig{Path: filepath.Join(b.TempDir(), "audit.log"), Origin: l.origin})
		if err := sink.Deliver(b.Context(), l.entries); err != nil {
			b.Fatal(err)
		}
		if err := sink.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
