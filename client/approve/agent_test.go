package approve_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/mayfly-broker/mayfly/client/approve"
)

// realAgent starts OpenSSH's own agent and returns its socket.
func realAgent(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("ssh-agent: %v (apt-get install openssh-client, or make setup)", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it listens once it has spoken
		t.Fatal(err)
	}
	return socket
}

func add(t *testing.T, socket string, files ...string) {
	t.Helper()
	cmd := exec.Command("ssh-add", append([]string{"-q"}, files...)...)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v: %s", err, out)
	}
}

func signers(t *testing.T, socket string) []approve.Signer {
	t.Helper()
	a, err := approve.OpenAgent(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	list, err := a.Signers()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestSSHKeygenVerifiesWhatTheAgentSigns(t *testing.T) {
	socket := realAgent(t)
	ed, ec := keygen(t, "ed25519", ""), keygen(t, "ecdsa", "")
	add(t, socket, ed, ec, keygen(t, "rsa", "")) // RSA is passed over
	list := signers(t, socket)
	if len(list) != 2 {
		t.Fatalf("%d keys, want 2", len(list))
	}
	for i, path := range []string{ed, ec} {
		line, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		want, err := approve.PublicKey(line, path)
		if err != nil || list[i].Key().Thumbprint != want.Thumbprint {
			t.Errorf("%+v, want %+v, %v", list[i].Key(), want, err)
		}
		verified(t, list[i])
	}
}

func TestNoAgent(t *testing.T) {
	for _, socket := range []string{"", filepath.Join(t.TempDir(), "none")} {
		if _, err := approve.OpenAgent(socket); code(err) != approve.CodeAgent {
			t.Errorf("%q: %v", socket, err)
		}
	}
}

// securityKeys is an agent with keys as FIDO authenticators hold them, touched
// by nobody's finger.
type securityKeys struct {
	agent.ExtendedAgent // for what is never called
	ed                  ed25519.PrivateKey
	ec                  *ecdsa.PrivateKey
	liar                bool // signs something else
}

const application = "ssh:mayfly"

func (k *securityKeys) List() ([]*agent.Key, error) {
	ed := ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, k.ed.Public().(ed25519.PublicKey), application})
	point, err := k.ec.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	ec := ssh.Marshal(struct {
		Type, Curve string
		Point       []byte
		Application string
	}{ssh.KeyAlgoSKECDSA256, "nistp256", point, application})
	return []*agent.Key{{Format: ssh.KeyAlgoSKED25519, Blob: ed}, {Format: ssh.KeyAlgoSKECDSA256, Blob: ec}}, nil
}

// Sign is PROTOCOL.u2f's: over application, flags, counter and message.
func (k *securityKeys) Sign(key ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	if k.liar {
		data = append(data, 'x')
	}
	app, sum := sha256.Sum256([]byte(application)), sha256.Sum256(data)
	tail := []byte{1, 0, 0, 0, 7} // touched; the seventh signature
	message := append(append(app[:], tail...), sum[:]...)
	sig := &ssh.Signature{Format: key.Type(), Rest: tail}
	if key.Type() == ssh.KeyAlgoSKED25519 {
		sig.Blob = ed25519.Sign(k.ed, message)
		return sig, nil
	}
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, k.ec, digest[:])
	if err != nil {
		return nil, err
	}
	sig.Blob = ssh.Marshal(struct{ R, S *big.Int }{r, s})
	return sig, nil
}

func (k *securityKeys) SignWithFlags(key ssh.PublicKey, data []byte, _ agent.SignatureFlags) (*ssh.Signature, error) {
	return k.Sign(key, data)
}

func (k *securityKeys) Extension(string, []byte) ([]byte, error) {
	return nil, agent.ErrExtensionUnsupported
}

// serve serves an agent on a socket.
func serve(t *testing.T, k *securityKeys) string {
	t.Helper()
	var err error
	if _, k.ed, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if k.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = agent.ServeAgent(k, conn) // until the client goes
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		<-done
	})
	return l.Addr().String()
}

func TestSSHKeygenVerifiesWhatSecurityKeysSign(t *testing.T) {
	list := signers(t, serve(t, &securityKeys{}))
	if len(list) != 2 {
		t.Fatalf("%d keys", len(list))
	}
	for _, s := range list {
		verified(t, s)
	}
}

func TestAnAgentThatSignsSomethingElseIsNotBelieved(t *testing.T) {
	for _, s := range signers(t, serve(t, &securityKeys{liar: true})) {
		if _, err := s.Sign(domain, hash); code(err) != approve.CodeKey || !strings.Contains(err.Error(), "not its own") {
			t.Errorf("%v", err)
		}
	}
}
