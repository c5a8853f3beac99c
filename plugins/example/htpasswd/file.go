package htpasswd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxFile bounds a password file: about 100,000 accounts. A web server reads the
// whole file for each request.
const maxFile = 16 << 20

// markAccount begins our mark, a comment, which web servers pass over: one stands
// before each of our accounts, with its lease and generation.
const markAccount = "# mayfly account "

// account is one of ours.
type account struct {
	name       string
	leaseID    string
	generation uint64
	notAfter   time.Time
	hash       string // empty where the account's own line is gone
}

// file is a password file, read whole. Other people's lines stay as they are.
type file struct {
	path  string
	mode  os.FileMode
	gid   int
	lines []string            // those of others, in order
	users map[string]bool     // that others' lines name
	ours  map[string]*account // by name
	order []string            // of ours
}

// read reads a file that the caller has locked.
func read(path string) (*file, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	f := &file{path: path, mode: info.Mode().Perm(), gid: -1, users: map[string]bool{}, ours: map[string]*account{}}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		f.gid = int(st.Gid)
	}
	f.parse(text)
	return f, nil
}

func (f *file) parse(text []byte) {
	if len(text) == 0 {
		return
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(text), "\n"), "\n") {
		if rest, ok := strings.CutPrefix(line, markAccount); ok {
			if a := parseMark(rest); a != nil && f.ours[a.name] == nil {
				f.ours[a.name] = a
				f.order = append(f.order, a.name)
				continue
			}
		}
		user, hash, isUser := strings.Cut(line, ":")
		if a := f.ours[user]; isUser && a != nil && a.hash == "" {
			a.hash = hash
			continue
		}
		if isUser && !strings.HasPrefix(line, "#") {
			f.users[user] = true
		}
		f.lines = append(f.lines, line)
	}
}

// parseMark reads "NAME lease=ID generation=N until=TIME"; nil for what is no mark.
func parseMark(text string) *account {
	w := strings.Fields(text)
	if len(w) != 4 {
		return nil
	}
	lease, ok1 := strings.CutPrefix(w[1], "lease=")
	generation, ok2 := strings.CutPrefix(w[2], "generation=")
	until, ok3 := strings.CutPrefix(w[3], "until=")
	n, err1 := strconv.ParseUint(generation, 10, 64)
	at, err2 := time.Parse(time.RFC3339Nano, until)
	if !ok1 || !ok2 || !ok3 || err1 != nil || err2 != nil {
		return nil
	}
	return &account{name: w[0], leaseID: lease, generation: n, notAfter: at}
}

// put adds an account, or replaces the one of its name.
func (f *file) put(a account) {
	if f.ours[a.name] == nil {
		f.order = append(f.order, a.name)
	}
	f.ours[a.name] = &a
}

// text is the file as it is to be written.
func (f *file) text() []byte {
	var b bytes.Buffer
	for _, l := range f.lines {
		b.WriteString(l)
		b.WriteByte('\n')
	}
	for _, name := range f.order {
		a := f.ours[name]
		if a == nil {
			continue
		}
		fmt.Fprintf(&b, "%s%s lease=%s generation=%d until=%s\n", markAccount, a.name, a.leaseID, a.generation, a.notAfter.UTC().Format(time.RFC3339Nano))
		if a.hash != "" {
			fmt.Fprintf(&b, "%s:%s\n", a.name, a.hash)
		}
	}
	return b.Bytes()
}

// write puts the file in its own place, whole or not at all, and keeps its mode
// and group: a web server must go on reading it.
func (f *file) write() (err error) {
	text := f.text()
	if len(text) > maxFile {
		return fmt.Errorf("%s would have more than %d bytes", f.path, maxFile)
	}
	dir := filepath.Dir(f.path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(f.path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(text)
	if f.gid >= 0 {
		// Whoever is not in the group cannot give the file to it; Check says so.
		_ = tmp.Chown(-1, f.gid)
	}
	err = errors.Join(err, tmp.Chmod(f.mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), f.path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lock takes the lock file beside a password file: also against plugins on other
// nodes, where the file system is shared and carries locks.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	l, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(l.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = l.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(err, l.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), l.Close())
		case <-tick.C:
		}
	}
}
