// Package sshdtest starts private, real OpenSSH servers for tests: own
// configuration and host key, own free port on 127.0.0.1, run as an ordinary
// user even when the caller is root, ended by its own process.
//
// It never skips: without an installed server it fails and says how to get one.
// It must know nothing of Mayfly, so that every room can use it.
package sshdtest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// startTimeout bounds a start; a loaded machine needs it.
const startTimeout = 30 * time.Second

// Server is one running sshd. It lets in its own [Server.User] alone, by
// certificate alone. Its exported fields are set by [Start] and not changed
// afterwards.
type Server struct {
	Host    string // 127.0.0.1
	Port    int
	User    string // the account that sshd runs as
	Dir     string // its files; also the clients' of [Server.Login]
	HostKey ssh.PublicKey

	bin   string
	as    servertest.Account
	lines []string
	proc  *servertest.Process
}

// Names of the files in [Server.Dir] that the configuration points to. Tests
// replace them with [Server.Write]; sshd reads them at each login.
const (
	FileCA         = "ca.pub"     // TrustedUserCAKeys
	FileKRL        = "revoked"    // RevokedKeys
	FilePrincipals = "principals" // AuthorizedPrincipalsFile
	FileHostCert   = "host_key-cert.pub"
)

// Start runs a server for one test and ends it with the test. lines are added to
// the configuration; a keyword's first line counts, and they stand first.
func Start(t testing.TB, lines ...string) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := Run(ctx, lines...)
	if err != nil {
		t.Fatalf("sshdtest: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("sshdtest: %v", err)
		}
	})
	return s
}

// Run is [Start] for callers without a test: they close the server. ctx bounds the
// start alone.
func Run(ctx context.Context, lines ...string) (*Server, error) {
	// sshd wants to be started by its whole path
	bin, err := servertest.Find("openssh-server", "/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd")
	if err != nil {
		return nil, err
	}
	as, err := chooseAccount()
	if err != nil {
		return nil, err
	}
	port, err := servertest.Port()
	if err != nil {
		return nil, err
	}
	dir, err := as.Dir("sshdtest-")
	if err != nil {
		return nil, err
	}
	s := &Server{Host: "127.0.0.1", Port: port, User: as.Name(), Dir: dir, bin: bin, as: as, lines: lines}
	err = errors.Join(s.makeHostKey(), s.Write(FileCA, nil), s.Write(FileKRL, nil), s.Write(FilePrincipals, []byte(s.User+"\n")))
	if err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

func (s *Server) makeHostKey() error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return err
	}
	s.HostKey = signer.PublicKey()
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return err
	}
	return errors.Join(
		s.Write("host_key", pem.EncodeToMemory(block)),
		s.Write("host_key.pub", ssh.MarshalAuthorizedKey(s.HostKey)))
}

// start writes the configuration and starts the server on it.
func (s *Server) start(ctx context.Context) error {
	at := func(name string) string { return filepath.Join(s.Dir, name) }
	config := append(append([]string{}, s.lines...),
		"Port "+strconv.Itoa(s.Port), "ListenAddress "+s.Host, "HostKey "+at("host_key"), "PidFile none",
		"TrustedUserCAKeys "+at(FileCA), "RevokedKeys "+at(FileKRL), "AuthorizedPrincipalsFile "+at(FilePrincipals),
		"AuthorizedKeysFile none", "AuthenticationMethods publickey", "UsePAM no", "StrictModes no",
		"MaxStartups 200:30:400", "KexAlgorithms curve25519-sha256", "MaxAuthTries 20", "LogLevel VERBOSE", "PrintMotd no", "PrintLastLog no")
	if _, err := os.Stat(at(FileHostCert)); err == nil {
		config = append(config, "HostCertificate "+at(FileHostCert))
	}
	if err := s.Write("sshd_config", []byte(strings.Join(config, "\n")+"\n")); err != nil {
		return err
	}
	var err error
	s.proc, err = servertest.Start(servertest.Command{Path: s.bin, Args: []string{"-D", "-e", "-f", at("sshd_config")}, Dir: s.Dir, Account: s.as})
	if err != nil {
		return err
	}
	return s.ready(ctx)
}

// Close ends the server for good and removes its files.
func (s *Server) Close() error { return errors.Join(s.stop(), os.RemoveAll(s.Dir)) }

// stop ends the server and the sessions that are open.
func (s *Server) stop() error { return s.proc.Stop(syscall.SIGTERM) }

// ready waits until the server answers, or has ended.
func (s *Server) ready(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.DialTimeout("tcp", s.Addr(), time.Second)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-s.proc.Done():
			return fmt.Errorf("sshd ended at once:\n%s", s.Log())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("sshd does not answer: %w\n%s", err, s.Log()), s.stop())
		case <-tick.C:
		}
	}
}

// Restart ends the server and starts it again, with the host's certificate if
// [FileHostCert] has been written.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	err := s.stop()
	if err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		t.Fatalf("sshdtest: %v", err)
	}
}

// Addr is where the server listens.
func (s *Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// Log is what the server has written, up to 1 MiB.
func (s *Server) Log() string { return s.proc.Output() }

// Write replaces a file in the server's directory, all at once.
func (s *Server) Write(name string, content []byte) error {
	fresh := filepath.Join(s.Dir, name+".new")
	return errors.Join(s.as.WriteFile(fresh, content), os.Rename(fresh, filepath.Join(s.Dir, name)))
}

// Login is one login with OpenSSH's own client.
type Login struct {
	User        string // of the server, when empty
	PrivateKey  string // PEM
	Certificate string // the line
	KnownHosts  string // a known_hosts file; the server's host key, when empty
	Host        string // the name to look for there; the server's address, when empty
	Options     []string
	Command     string
}

// Run logs in and runs the command. Its output is both streams'; the error says
// that the client failed or the command did.
func (s *Server) Run(ctx context.Context, l Login) (string, error) {
	dir, err := os.MkdirTemp(s.Dir, "client-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if l.KnownHosts == "" {
		l.KnownHosts = "[" + s.Host + "]:" + strconv.Itoa(s.Port) + " " + string(ssh.MarshalAuthorizedKey(s.HostKey))
	}
	if l.User == "" {
		l.User = s.User
	}
	args := []string{"-F", "none", "-p", strconv.Itoa(s.Port), "-i", filepath.Join(dir, "key"),
		"-o", "CertificateFile=" + filepath.Join(dir, "key-cert.pub"), "-o", "UserKnownHostsFile=" + filepath.Join(dir, "hosts"),
		"-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
		"-o", "BatchMode=yes", "-o", "ConnectTimeout=10"}
	if l.Host != "" {
		args = append(args, "-o", "HostKeyAlias="+l.Host)
	}
	args = append(append(args, l.Options...), l.User+"@"+s.Host, l.Command)
	for name, text := range map[string]string{"key": l.PrivateKey, "key-cert.pub": l.Certificate, "hosts": l.KnownHosts} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	return client(ctx, "ssh", dir, args...)
}

// Keygen runs ssh-keygen with those files in a directory of their own, which is
// its working directory.
func Keygen(t testing.TB, files map[string][]byte, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return client(t.Context(), "ssh-keygen", dir, args...)
}

// client runs one of OpenSSH's programs as the caller.
func client(ctx context.Context, program, dir string, args ...string) (string, error) {
	path, err := servertest.Find("openssh-client", program)
	if err != nil {
		return "", err
	}
	return servertest.Command{Path: path, Args: args, Dir: dir}.Run(ctx)
}

// chooseAccount returns the user a server runs as. An sshd without root's rights
// lets in that user alone, and runs its shell. It gives a terminal to the group
// tty, which only its members may do.
func chooseAccount() (servertest.Account, error) {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return servertest.Account{}, err
	}
	var shells []string // those who have one
	for line := range strings.Lines(string(passwd)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) == 7 && strings.HasSuffix(f[6], "sh") {
			shells = append(shells, f[0])
		}
	}
	as, err := servertest.Choose(shells...)
	if err == nil && os.Getuid() == 0 && !slices.Contains(shells, as.Name()) {
		err = errors.New("as root, an ordinary user with a shell is needed to run sshd as, and there is none: run the tests as an ordinary user, or install PostgreSQL, whose user will do")
	}
	return as.In("tty"), err
}
