package approve

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/client/escape"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// maxKeyFile bounds a key file, in bytes; RSA keys, to be refused by name, have
// about 3 KiB.
const maxKeyFile = 64 << 10

// Passphrase asks a person for the passphrase of the key that what names.
type Passphrase func(what string) ([]byte, error)

// Open opens a private key file: an OpenSSH key, whose passphrase is asked for
// where it has one, or a private JWK. The file must be ours alone. A missing
// file is [fs.ErrNotExist]; other errors are *[Error].
func Open(path string, ask Passphrase) (Signer, error) {
	data, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	return open(data, path, ask)
}

func open(data []byte, where string, ask Passphrase) (Signer, error) {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		return openJWK(data, where)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, refuse(CodeKey, nil, "%s holds neither an OpenSSH private key nor a private JWK", escape.Line(where))
	}
	if err := checkOpenSSH(block, where); err != nil {
		return nil, err
	}
	raw, err := ssh.ParseRawPrivateKey(data)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		if ask == nil {
			return nil, refuse(CodeKey, nil, "%s is protected by a passphrase; use it through ssh-agent", escape.Line(where))
		}
		var typed []byte
		if typed, err = ask(where); err != nil {
			return nil, err
		}
		if raw, err = ssh.ParseRawPrivateKeyWithPassphrase(data, typed); err != nil {
			return nil, refuse(CodeKey, nil, "%s does not open with this passphrase", escape.Line(where))
		}
	}
	if err != nil {
		return nil, refuse(CodeKey, nil, "%s holds no private key that can be read", escape.Line(where))
	}
	signer, err := ssh.NewSignerFromKey(raw)
	if err != nil {
		return nil, refuse(CodeKey, nil, "%s holds a private key of a kind that cannot sign", escape.Line(where))
	}
	key, err := sshKey(signer.PublicKey(), where)
	if err != nil {
		return nil, err
	}
	return &sshSigner{key: key, signer: signer, hash: hashSHA512}, nil
}

// checkOpenSSH refuses by its public half, which is never protected, what no
// passphrase would make usable (PROTOCOL.key §1).
func checkOpenSSH(block *pem.Block, where string) error {
	rest, ok := bytes.CutPrefix(block.Bytes, []byte("openssh-key-v1\x00"))
	if block.Type != "OPENSSH PRIVATE KEY" || !ok {
		return nil
	}
	var head struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public               []byte
		Rest                 []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(rest, &head); err != nil {
		return refuse(CodeKey, nil, "%s is damaged", escape.Line(where))
	}
	public, err := ssh.ParsePublicKey(head.Public)
	if err != nil {
		return refuse(CodeKey, nil, "%s holds a key of a type that cannot approve; take ed25519 or ecdsa on P-256", escape.Line(where))
	}
	key, err := sshKey(public, where)
	if err != nil {
		return err
	}
	if key.application != "" {
		return refuse(CodeKey, nil, "%s belongs to a security key, which signs through ssh-agent: ssh-add %s, then name its public half", escape.Line(where), escape.Line(where))
	}
	return nil
}

// readPrivate reads a plain file that only we can read. Links are followed:
// people keep their keys elsewhere.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, refuse(CodeKey, err, "the key cannot be read")
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, refuse(CodeKey, err, "the key cannot be read")
	}
	if !info.Mode().IsRegular() {
		return nil, refuse(CodeKey, nil, "%s is no plain file", escape.Line(path))
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, refuse(CodeKey, nil, "%s can be read or replaced by others (mode %04o): chmod 0600 it", escape.Line(path), perm)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return nil, refuse(CodeKey, nil, "%s belongs to another user (uid %d)", escape.Line(path), st.Uid)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, refuse(CodeKey, err, "the key cannot be read")
	}
	if len(data) > maxKeyFile {
		return nil, refuse(CodeKey, nil, "%s has more than %d bytes: it is no key", escape.Line(path), maxKeyFile)
	}
	return data, nil
}

// OpenOrGenerate is [Open]; where there is no file it makes an Ed25519 key in
// OpenSSH's form, mode 0600, without a passphrase. Nobody's key is overwritten:
// of processes that start together, the first one's key stays.
func OpenOrGenerate(path, comment string, ask Passphrase) (s Signer, made bool, err error) {
	s, err = Open(path, ask)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, false, err
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, false, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return nil, false, refuse(CodeKey, err, "the new key cannot be written")
	}
	err = writeNew(path, pem.EncodeToMemory(block))
	made = err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, false, refuse(CodeKey, err, "the new key cannot be written")
	}
	s, err = Open(path, ask)
	return s, made, err
}

// writeNew puts a whole file, on the disk, under a name that is free.
func writeNew(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	// A link, unlike a rename, fails where the name is taken.
	return os.Link(f.Name(), path)
}

// jwsSigner signs with a JWK.
type jwsSigner struct {
	key     Key
	private any
	alg     jose.SignatureAlgorithm
}

func openJWK(data []byte, where string) (Signer, error) {
	jwk, err := parseJWK(data, where)
	if err != nil {
		return nil, err
	}
	if jwk.IsPublic() {
		return nil, refuse(CodeKey, nil, "%s holds a public JWK; the private one signs", escape.Line(where))
	}
	return jwsOf(jwk, where)
}

// FromEd25519 signs as a JWK of that key would: for the key that a first
// approver's enrolment leaves. Where names it to people.
func FromEd25519(private ed25519.PrivateKey, where string) (Signer, error) {
	return jwsOf(jose.JSONWebKey{Key: private}, where)
}

func jwsOf(jwk jose.JSONWebKey, where string) (Signer, error) {
	key, err := jwsKey(jwk.Public(), where)
	if err != nil {
		return nil, err
	}
	s := &jwsSigner{key: key, private: jwk.Key, alg: jose.ES256}
	if _, ok := jwk.Key.(ed25519.PrivateKey); ok {
		s.alg = jose.EdDSA
	}
	return s, nil
}

// Key implements [Signer].
func (s *jwsSigner) Key() Key { return s.key }

// Sign implements [Signer]: a compact JWS (RFC 7515 §7.1) of the domain's type,
// whose payload is the 32 bytes of the hash.
func (s *jwsSigner) Sign(domain string, hash [32]byte) (wire.Signature, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: s.private}, (&jose.SignerOptions{}).WithType(jose.ContentType(domain+"+jws")))
	if err != nil {
		return wire.Signature{}, refuse(CodeKey, err, "%s cannot sign", escape.Line(s.key.Where))
	}
	jws, err := signer.Sign(hash[:])
	if err != nil {
		return wire.Signature{}, refuse(CodeKey, err, "%s did not sign", escape.Line(s.key.Where))
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		return wire.Signature{}, refuse(CodeKey, err, "%s did not sign", escape.Line(s.key.Where))
	}
	return wire.Signature{Kind: KindJWS, Key: s.key.Thumbprint, JWS: text}, nil
}

// Armour is an SSH signature as ssh-keygen -Y verify reads it.
func Armour(blob []byte) string {
	const width = 70
	text := base64.StdEncoding.EncodeToString(blob)
	out := "-----BEGIN SSH SIGNATURE-----\n"
	for len(text) > width {
		out, text = out+text[:width]+"\n", text[width:]
	}
	return out + text + "\n-----END SSH SIGNATURE-----\n"
}
