package client

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mayfly-broker/mayfly/client/keys"
)

const (
	keyName      = "key.pem"
	caName       = "ca.pem"
	identityName = "identity.json"
	sessionName  = "session.json"
	certName     = "client.crt"

	maxHomeFile = 64 << 10
)

// Identity is what a home remembers about itself: whose key it holds and where
// the cluster is. It is not secret.
type Identity struct {
	// Principal is kind:name.
	Principal string `json:"principal,omitempty"`
	// Addresses are the nodes that the enrolment token named.
	Addresses []string `json:"addresses,omitempty"`
}

// Home is a client's private directory, mode 0700, and what is in it. Several
// processes may share one.
type Home struct{ dir string }

// OpenHome makes sure that dir is ours alone, creating it with mode 0700.
func OpenHome(dir string) (*Home, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return nil, newError(KindInvalid, CodeConfiguration, "The home %s has mode %04o; others must not enter it: chmod 0700 it.", dir, info.Mode().Perm())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return nil, newError(KindInvalid, CodeConfiguration, "The home %s belongs to another user (uid %d).", dir, st.Uid)
	}
	return &Home{dir}, nil
}

// Path returns the path of a file in the home.
func (h *Home) Path(elem ...string) string {
	return filepath.Join(append([]string{h.dir}, elem...)...)
}

// Key returns the home's key, making one where there is none yet.
func (h *Home) Key() (*keys.Key, error) { return keys.LoadOrGenerate(h.Path(keyName), keys.P256) }

// HasKey reports whether the home holds a key.
func (h *Home) HasKey() bool {
	_, err := os.Lstat(h.Path(keyName))
	return err == nil
}

// Identity reads who the home belongs to; the zero value if nobody enrolled.
func (h *Home) Identity() (Identity, error) {
	var id Identity
	err := h.ReadJSON(identityName, &id)
	if errors.Is(err, fs.ErrNotExist) {
		return id, nil
	}
	return id, err
}

// SaveIdentity writes who the home belongs to, and the cluster's CA in PEM
// where it is given.
func (h *Home) SaveIdentity(id Identity, caPEM []byte) error {
	if len(caPEM) > 0 {
		if err := h.write(caName, caPEM); err != nil {
			return err
		}
	}
	return h.WriteJSON(identityName, id)
}

// caFile returns the CA that enrolment left, or "".
func (h *Home) caFile() string {
	if _, err := os.Stat(h.Path(caName)); err != nil {
		return ""
	}
	return h.Path(caName)
}

// ReadJSON reads a file of the home. A missing one is [fs.ErrNotExist].
func (h *Home) ReadJSON(name string, into any) error {
	data, err := readBounded(h.Path(name), maxHomeFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s is damaged; remove it: %w", h.Path(name), err)
	}
	return nil
}

// WriteJSON replaces a file of the home, mode 0600, by an atomic rename.
func (h *Home) WriteJSON(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return h.write(name, data)
}

func (h *Home) write(name string, data []byte) error {
	path := h.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	// CreateTemp makes files of mode 0600.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// Remove deletes a file of the home; a missing one is no error.
func (h *Home) Remove(name string) error {
	if err := os.Remove(h.Path(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Lock takes the home's named lock among processes, waiting at most until
// done is closed, and returns what releases it.
func (h *Home) Lock(done <-chan struct{}, name string) (release func(), err error) {
	f, err := os.OpenFile(h.Path("."+name+".lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing releases
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-done:
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: another process held it for too long", f.Name())
		case <-tick.C:
		}
	}
}

const voucherName = "voucher.pem"

// saveVoucher keeps the key that a first approver's enrolment token gives, until
// it has vouched for the person's own.
func (h *Home) saveVoucher(seed []byte) error {
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		return err
	}
	return h.write(voucherName, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// Voucher returns the key that vouches for a first key to approve with, or nil
// where enrolment left none.
func (h *Home) Voucher() (ed25519.PrivateKey, error) {
	raw, err := readBounded(h.Path(voucherName), maxHomeFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s is damaged; ask the approvers to approve the key instead", h.Path(voucherName))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged; ask the approvers to approve the key instead", h.Path(voucherName))
	}
	own, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds another kind of key than enrolment leaves", h.Path(voucherName))
	}
	return own, nil
}

// ForgetVoucher removes it once it has served.
func (h *Home) ForgetVoucher() error { return h.Remove(voucherName) }
