package approve

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"

	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/client/escape"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// sshMagic begins the blob and what is signed (PROTOCOL.sshsig §2, §3).
const sshMagic = "SSHSIG"

// Hashes of the message within an SSH signature.
const (
	hashSHA512 = "sha512"
	hashSHA256 = "sha256"
)

// sshSigner signs with an SSH key, wherever it lies.
type sshSigner struct {
	key    Key
	signer ssh.Signer
	hash   string // [hashSHA512] but in tests
}

// Key implements [Signer].
func (s *sshSigner) Key() Key { return s.key }

// Sign implements [Signer]: an SSHSIG whose namespace is the domain, and whose
// message the 32 bytes of the hash.
func (s *sshSigner) Sign(domain string, hash [32]byte) (wire.Signature, error) {
	blob, err := sshsig(s.signer, domain, s.hash, hash[:])
	if err != nil {
		return wire.Signature{}, refuse(CodeKey, err, "%s did not sign", escape.Line(s.key.Where))
	}
	return wire.Signature{Kind: KindSSH, Key: s.key.Thumbprint, SSHSIG: blob}, nil
}

// sshsig is what ssh-keygen -Y sign puts between its armour.
func sshsig(signer ssh.Signer, namespace, algorithm string, message []byte) ([]byte, error) {
	var sum []byte
	switch algorithm {
	case hashSHA256:
		h := sha256.Sum256(message)
		sum = h[:]
	default:
		h := sha512.Sum512(message)
		sum = h[:]
	}
	signed := append([]byte(sshMagic), ssh.Marshal(struct {
		Namespace, Reserved, Algorithm string
		Hash                           []byte
	}{namespace, "", algorithm, sum})...)
	sig, err := signer.Sign(rand.Reader, signed)
	if err != nil {
		return nil, err
	}
	// A security key that is with an agent may be another than it says.
	if err := signer.PublicKey().Verify(signed, sig); err != nil {
		return nil, errors.New("it made a signature that is not its own")
	}
	return append([]byte(sshMagic), ssh.Marshal(struct {
		Version                        uint32
		PublicKey                      []byte
		Namespace, Reserved, Algorithm string
		Signature                      []byte
	}{1, signer.PublicKey().Marshal(), namespace, "", algorithm, ssh.Marshal(sig)})...), nil
}
