package host

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// openBinary returns the file of that name in dir as a sealed copy in memory, if
// its SHA-256 is want. What is hashed is the copy, and the copy is what runs:
// nobody can put another file between the check and the start (HAZARDS 6).
func openBinary(dir, file string, want [sha256.Size]byte) (*os.File, error) {
	d, err := openTrusted(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(d) }()
	if file == "" || file != filepath.Base(file) || file == "." || file == ".." {
		return nil, fmt.Errorf("%q is not the name of a file", file)
	}
	fd, err := unix.Openat(d, file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			return nil, fmt.Errorf("%s in %s is a symbolic link; put the file itself there", file, dir)
		}
		return nil, fmt.Errorf("%s cannot be opened in %s: %w", file, dir, err)
	}
	src := os.NewFile(uintptr(fd), file)
	defer func() { _ = src.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%s in %s is not a regular file", file, dir)
	case st.Size > maxBinary:
		return nil, fmt.Errorf("%s has %d bytes; at most %d are allowed", file, st.Size, maxBinary)
	}
	if err := trusted(file, st); err != nil {
		return nil, err
	}
	return sealedCopy(src, file, want)
}

// openTrusted opens a directory that nobody but root and this user can write.
func openTrusted(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return -1, fmt.Errorf("the plugin directory %s is not a directory itself (a symbolic link is refused)", dir)
		}
		return -1, fmt.Errorf("the plugin directory %s: %w", dir, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil {
		err = trusted("the plugin directory "+dir, st)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func trusted(what string, st unix.Stat_t) error {
	switch {
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s can be written by others (mode %04o); run: chmod go-w", what, st.Mode&0o7777)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d; it must belong to root or to the node's user", what, st.Uid)
	}
	return nil
}

// sealedCopy copies src into memory that nobody can change any more.
func sealedCopy(src io.Reader, name string, want [sha256.Size]byte) (_ *os.File, err error) {
	fd, err := unix.MemfdCreate("plugin", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.3 has no such word, and needs none
		fd, err = unix.MemfdCreate("plugin", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("no memory file to run the plugin from: %w", err)
	}
	f := os.NewFile(uintptr(fd), "plugin "+name)
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(src, maxBinary+1))
	if err != nil {
		return nil, err
	}
	if n > maxBinary {
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxBinary)
	}
	if got := h.Sum(nil); subtle.ConstantTimeCompare(got, want[:]) != 1 {
		return nil, fmt.Errorf("%s has the SHA-256 %s; %s is registered. Nothing was run", name, hex.EncodeToString(got), hex.EncodeToString(want[:]))
	}
	if err := unix.Fchmod(fd, 0o555); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("the plugin's copy cannot be sealed: %w", err)
	}
	return f, nil
}

// account is whom a plugin runs as.
type account struct {
	uid, gid uint32
	own      bool // another user than the node's
}

// nobodyAtAll is the number by which system calls mean "leave it as it is".
const nobodyAtAll = ^uint32(0)

// accountOf resolves a plugin's user. Whoever runs as the node's own user can
// read the node's memory and its files; so that needs the node's word (HAZARDS 6).
func accountOf(name string, sameUser bool) (account, error) {
	a := account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	if name != "" {
		uid, gid, err := lookup(name)
		if err != nil {
			return a, err
		}
		a.uid, a.gid = uid, gid
	}
	a.own = int(a.uid) != os.Geteuid()
	return a, a.check(name, sameUser, os.Geteuid())
}

// check refuses whom no plugin runs as, on a node that runs as the user self.
func (a account) check(name string, sameUser bool, self int) error {
	switch {
	case !a.own && !sameUser:
		return errors.New("it would run as the node's own user, who can read the node's memory. Give the plugin a user of its own (spec.user) and run the node as root, or set plugins.same_user: true in this node's configuration")
	case a.own && a.uid == 0:
		return errors.New("a plugin does not run as root")
	case a.own && a.gid == 0:
		return fmt.Errorf("the group of the user %s is root's, who can read more than a plugin may; give it another group", name)
	case a.uid == nobodyAtAll || a.gid == nobodyAtAll:
		return fmt.Errorf("%s is no user: the kernel takes that number for none", name)
	case a.own && self != 0:
		return fmt.Errorf("the node runs as user %d and cannot run it as %s; run the node as root", self, name)
	}
	return nil
}

func lookup(name string) (uid, gid uint32, err error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), uint32(n), nil // a uid without a name, and the group of the same number
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("this machine has no user %s", name)
	}
	n, err1 := strconv.ParseUint(u.Uid, 10, 32)
	g, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(n), uint32(g), errors.Join(err1, err2)
}

// attributes are how the child is set apart: a session and process group of its
// own, an end with its parent, its own user and no further groups. It stops before
// its first instruction, until [release].
//
// With apart it is the first process of a PID namespace: when that ends, in
// whatever way, the kernel ends all others in it, and none can leave it. A process
// group can be left, and ends with nobody. That needs CAP_SYS_ADMIN, which a node
// in a container has not.
func attributes(a account, apart bool) *syscall.SysProcAttr {
	x := &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Ptrace: true}
	if apart {
		x.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWIPC
	}
	if a.own {
		x.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: []uint32{}}
	}
	return x
}

// pledgeThread takes from this thread, and from whatever it starts, the power to
// gain rights by running a set-user-id program. It cannot be taken back: the
// thread must end with its goroutine.
func pledgeThread() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }

// hideMemory keeps other processes of this user from reading this one's memory.
// It is half a defence, for nodes that run plugins as their own user: the files
// of that user stay open to them, and root is not kept out.
func hideMemory() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

// closeOnExec keeps every open file of this process from its children, also those
// that were inherited from whoever started it: the standard library's own are
// closed already.
func closeOnExec() error {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if fd, err := strconv.Atoi(n); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// release lets the child run, once prepare is done with it. It is called on the
// thread that started the child.
func release(pid int, prepare func(pid int) error) error {
	var st unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &st, unix.WALL, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	if !st.Stopped() {
		return errors.New("it ended before it began")
	}
	if err := prepare(pid); err != nil {
		return err
	}
	return unix.PtraceDetach(pid)
}

// restrict sets the child's limits, before its first instruction. It is called on
// the thread of its own that started the child. A process may limit another only
// if its real user is the other's, or if it has CAP_SYS_RESOURCE, which root in a
// container has not: so this thread, and no other, takes the child's user as its
// real one. The raw calls change one thread; the thread is never given back.
func restrict(pid int, a account, l Limits) error {
	l = l.withDefaults()
	set := map[int]uint64{unix.RLIMIT_NOFILE: l.Files, unix.RLIMIT_DATA: l.MemoryMiB << 20}
	if a.own {
		set[unix.RLIMIT_NPROC] = l.Processes
		const same = ^uintptr(0)
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(a.gid), same, same); e != 0 {
			return fmt.Errorf("its limits cannot be set: %w", e)
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(a.uid), same, same); e != 0 {
			return fmt.Errorf("its limits cannot be set: %w", e)
		}
	}
	for what, n := range set {
		var now unix.Rlimit
		err := unix.Prlimit(pid, what, nil, &now)
		if err == nil {
			n = min(n, now.Max) // what the node itself may not pass, no plugin may
			err = unix.Prlimit(pid, what, &unix.Rlimit{Cur: n, Max: n}, nil)
		}
		if err != nil {
			return fmt.Errorf("its limits cannot be set: %w", err)
		}
	}
	// One byte, not none: where the kernel hands core dumps to a program it heeds no
	// other limit than this (core(5)), and to files one byte is none.
	if unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}, nil) != nil {
		if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil {
			return fmt.Errorf("its limits cannot be set: %w", err)
		}
	}
	// When memory runs out, the plugin ends before the node does. Memory that
	// processes share counts against no limit of a process.
	if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("1000"), 0); err != nil {
		return fmt.Errorf("it cannot be made the first to end when memory runs out: %w", err)
	}
	return nil
}

// awaitExit returns when the child has ended, and leaves it to be waited for: its
// number, and that of its group, stay its own until then.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// killGroup ends the child and all that it started in its group.
func killGroup(pid int) error {
	if err := unix.Kill(-pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// peerOf says which process listens at the other end of a Unix socket, and as whom.
func peerOf(c syscall.RawConn) (pid int, uid uint32, err error) {
	var cred *unix.Ucred
	var inner error
	err = c.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, inner); err != nil {
		return 0, 0, err
	}
	return int(cred.Pid), cred.Uid, nil
}

// executable is the path by which a child runs an open file.
func executable(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// tidy removes the directory of a plugin's socket after its end. The directory was
// the plugin's, and the node may be root: so no link is followed, nothing is looked
// for below it, and what is more than a socket or two stays where it is.
func tidy(dir string, owner uint32) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), dir)
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != owner {
		return errors.New("another directory stands in its place")
	}
	names, err := f.Readdirnames(maxSockets)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, n := range names {
		_ = unix.Unlinkat(fd, n, 0)
	}
	return unix.Rmdir(dir)
}
