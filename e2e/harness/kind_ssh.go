package harness

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	xssh "golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/issuers/ssh/sshdtest"
)

// sshd is an OpenSSH server as a [Server]. What outlives its lease there is a
// certificate that it lets in.
type sshd struct {
	apart
	*sshdtest.Server
	lists *lists
}

// lists is the job that fetches the revocation list, as the page says.
type lists struct {
	mu     sync.Mutex
	public *public
	stop   context.CancelFunc
	done   chan struct{}
}

func startSSHD(ctx context.Context) (Server, error) {
	s, err := sshdtest.Run(ctx)
	if err != nil {
		return nil, err
	}
	return sshd{Server: s, lists: &lists{}}, nil
}

// Close ends the job and the server.
func (s sshd) Close() error {
	if s.lists.stop != nil {
		s.lists.stop()
		<-s.lists.done
	}
	return s.Server.Close()
}

// fetchEach is how often the job runs; on servers it is each minute.
const fetchEach = time.Second

// Add has the server trust the target's CA, and fetch its list from then on.
func (s sshd) Add(t testing.TB, admin CLI, _, target string) string {
	t.Helper()
	admin.Must(t, "target", "add", "ssh", "--name", target, "--set", `principals=["`+s.User+`"]`, "--set", `krl={"max_age":"60s"}`)
	p := newPublic(t, admin, target)
	if err := s.Write(sshdtest.FileCA, p.must(t, "ca.pub")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	s.lists.public, s.lists.stop, s.lists.done = p, cancel, make(chan struct{})
	go func() {
		defer close(s.lists.done)
		tick := time.NewTicker(fetchEach)
		defer tick.Stop()
		for ctx.Err() == nil {
			_ = s.fetch(ctx) // the list of before stays in force, then
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return target + "/user"
}

// fetch replaces the server's revocation list by the newest.
func (s sshd) fetch(ctx context.Context) error {
	s.lists.mu.Lock() // an older answer must not replace a newer one
	defer s.lists.mu.Unlock()
	list, err := s.lists.public.fetch(ctx, "krl")
	if err == nil && len(list) == 0 {
		err = errors.New("the revocation list is empty, and so revokes nothing")
	}
	if err != nil {
		return err
	}
	return s.Write(sshdtest.FileKRL, list)
}

// Name is the certificate's key id, which the server logs.
func (s sshd) Name(credential map[string]string) string {
	cert, err := certificateOf(credential)
	if err != nil {
		return err.Error()
	}
	return cert.KeyId
}

func certificateOf(credential map[string]string) (*xssh.Certificate, error) {
	key, _, _, _, err := xssh.ParseAuthorizedKey([]byte(credential["certificate"]))
	if err != nil {
		return nil, err
	}
	cert, ok := key.(*xssh.Certificate)
	if !ok {
		return nil, fmt.Errorf("a %s is no certificate", key.Type())
	}
	return cert, nil
}

// Login has the server let a certificate's holder in.
func (s sshd) Login(_ context.Context, credential map[string]string) error {
	cert, err := certificateOf(credential)
	if err != nil {
		return err
	}
	key, err := xssh.ParsePrivateKey([]byte(credential["private_key"]))
	if err != nil {
		return err
	}
	signer, err := xssh.NewCertSigner(cert, key)
	if err != nil {
		return err
	}
	c, err := xssh.Dial("tcp", s.Addr(), &xssh.ClientConfig{User: s.User, Auth: []xssh.AuthMethod{xssh.PublicKeys(signer)}, HostKeyCallback: xssh.FixedHostKey(s.HostKey), Timeout: 10 * time.Second})
	if err != nil {
		return err
	}
	return c.Close()
}

// Ours lists nothing, since a server keeps no certificates; but it has the list that
// is published now.
func (s sshd) Ours(ctx context.Context) ([]string, error) { return nil, s.fetch(ctx) }
