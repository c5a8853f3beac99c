package audit

import (
	"cmp"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

// A Checkpoint fixes the first Size entries of one log.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   tlog.Hash
}

// Text is the checkpoint in the form that is signed (C2SP tlog-checkpoint, "Note
// text"): origin, size and base64 root, a line each, no extension lines. It holds
// nothing that varies from node to node, so that every node signs the same bytes.
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, c.Root)
}

// ParseCheckpoint reads exactly what Text writes.
func ParseCheckpoint(text string) (Checkpoint, error) {
	malformed := fault.New(fault.Invalid, "audit_checkpoint", "A checkpoint's text is three lines: origin, size, root.")
	lines := strings.SplitAfterN(text, "\n", 4)
	if len(text) > MaxCheckpoint || len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, malformed
	}
	size, err1 := strconv.ParseInt(strings.TrimSuffix(lines[1], "\n"), 10, 64)
	root, err2 := base64.StdEncoding.DecodeString(strings.TrimSuffix(lines[2], "\n"))
	if err1 != nil || err2 != nil || len(root) != tlog.HashSize || size < 0 || size > tree.MaxSeq {
		return Checkpoint{}, malformed
	}
	c := Checkpoint{Origin: strings.TrimSuffix(lines[0], "\n"), Size: size, Root: tlog.Hash(root)}
	if c.Text() != text || c.Origin == "" {
		return Checkpoint{}, malformed
	}
	return c, nil
}

// signer signs notes with an Ed25519 key, wherever the key lives.
type signer struct {
	note.Verifier
	key crypto.Signer
}

// Sign implements [note.Signer].
func (s signer) Sign(msg []byte) ([]byte, error) { return s.key.Sign(nil, msg, crypto.Hash(0)) }

// NewSigner makes a signer of checkpoints and the verifier key to publish for it,
// "<name>+<hash>+<key>". name says whose key it is, such as "c1/node-2": no
// spaces, no plus. key is an Ed25519 key.
func NewSigner(name string, key crypto.Signer) (note.Signer, string, error) {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, "", invalid("Checkpoints are signed with Ed25519 keys.")
	}
	vkey, err := note.NewEd25519VerifierKey(name, pub)
	if err != nil {
		return nil, "", fault.Wrap(err, fault.Invalid, "", "That key cannot sign checkpoints.")
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, "", fault.Wrap(err, fault.Invalid, "", "That is no name for a key: it has spaces or a plus, or is empty.")
	}
	return signer{v, key}, vkey, nil
}

// ParseKeys reads verifier keys, at most MaxKeys, each once.
func ParseKeys(vkeys []string) ([]note.Verifier, error) {
	if len(vkeys) > MaxKeys {
		return nil, invalid("There are %d verifier keys; at most %d are taken.", len(vkeys), MaxKeys)
	}
	var out []note.Verifier
	for i, vkey := range vkeys {
		v, err := note.NewVerifier(vkey)
		if err != nil {
			return nil, fault.Wrap(err, fault.Invalid, "", "Verifier key %d of %d is malformed.", i+1, len(vkeys))
		}
		same := func(o note.Verifier) bool { return o.Name() == v.Name() && o.KeyHash() == v.KeyHash() }
		if slices.ContainsFunc(out, same) {
			return nil, invalid("Verifier key %d of %d stands there twice.", i+1, len(vkeys))
		}
		out = append(out, v)
	}
	return out, nil
}

// SignCheckpoint returns the checkpoint as a signed note (C2SP signed-note).
func SignCheckpoint(c Checkpoint, signers ...note.Signer) ([]byte, error) {
	if _, err := ParseCheckpoint(c.Text()); err != nil {
		return nil, err
	}
	if len(signers) == 0 {
		return nil, invalid("A checkpoint needs a signer.")
	}
	msg, err := note.Sign(&note.Note{Text: c.Text()}, signers...)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "The checkpoint could not be signed.")
	}
	return msg, nil
}

// Signed is a checkpoint whose signatures were checked.
type Signed struct {
	Checkpoint
	// By names the known keys that signed, each once, as name+hash.
	By []string
	// Unknown is how many signatures are by other keys; they prove nothing.
	Unknown int

	sigs []note.Signature
}

// OpenCheckpoint checks a signed checkpoint against the keys given. At least
// quorum of them (1 if quorum is less) must have signed, and none wrongly. Errors:
// a [fault.Invalid] with code audit_checkpoint (malformed) or audit_signature.
func OpenCheckpoint(msg []byte, keys []note.Verifier, quorum int) (Signed, error) {
	if len(msg) > MaxCheckpoint {
		return Signed{}, fault.New(fault.Invalid, "audit_checkpoint", "The signed checkpoint is longer than %d bytes.", MaxCheckpoint)
	}
	n, err := note.Open(msg, note.VerifierList(keys...))
	var bad *note.InvalidSignatureError
	var unverified *note.UnverifiedNoteError
	switch {
	case errors.As(err, &bad):
		return Signed{}, fault.Wrap(err, fault.Invalid, "audit_signature", "The signature by key %s is false.", Escape(keyID(bad.Name, bad.Hash)))
	case errors.As(err, &unverified):
		return Signed{}, fault.Wrap(err, fault.Invalid, "audit_signature", "None of the known keys signed the checkpoint.")
	case err != nil:
		return Signed{}, fault.Wrap(err, fault.Invalid, "audit_checkpoint", "The signed checkpoint is malformed.")
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Signed{}, err
	}
	s := Signed{Checkpoint: c, Unknown: len(n.UnverifiedSigs), sigs: n.Sigs}
	for _, sig := range n.Sigs {
		s.By = append(s.By, keyID(sig.Name, sig.Hash))
	}
	slices.Sort(s.By)
	s.By = slices.Compact(s.By)
	if len(s.By) < quorum {
		return Signed{}, fault.New(fault.Invalid, "audit_signature", "%d of the known keys signed the checkpoint; %d are wanted.", len(s.By), quorum)
	}
	return s, nil
}

// KeyID returns how a verifier key is named in [Report.SignedBy]. Errors: a
// [fault.Invalid] for what is no key.
func KeyID(vkey string) (string, error) {
	keys, err := ParseKeys([]string{vkey})
	if err != nil {
		return "", err
	}
	return keyID(keys[0].Name(), keys[0].KeyHash()), nil
}

func keyID(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }

// Cosign adds a node's signature to a checkpoint that another node signed, if it
// says exactly what this node's own ledger says (own): that is what makes a head
// signed by a quorum. msg need not be trusted: it is refused unless its text is
// own's. Errors: a [fault.Conflict] with code audit_fork when it is not.
func Cosign(msg []byte, own Checkpoint, s note.Signer) ([]byte, error) {
	text, _, found := strings.Cut(string(msg), "\n\n")
	if text += "\n"; !found || len(msg) > MaxCheckpoint || text != own.Text() {
		return nil, fault.New(fault.Conflict, "audit_fork", "This node's log at size %d is not the one in the checkpoint: nothing was signed.", own.Size)
	}
	return SignCheckpoint(own, s)
}

// MergeCheckpoints collects the signatures that several nodes made on one
// checkpoint. Every message must hold the same text and a right signature by one
// of keys; signatures by other keys are left out.
func MergeCheckpoints(keys []note.Verifier, msgs ...[]byte) ([]byte, error) {
	if len(msgs) == 0 || len(msgs) > MaxKeys {
		return nil, invalid("Between 1 and %d signed checkpoints can be merged.", MaxKeys)
	}
	var first Checkpoint
	var sigs []note.Signature
	for i, msg := range msgs {
		s, err := OpenCheckpoint(msg, keys, 1)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			first = s.Checkpoint
		} else if s.Checkpoint != first {
			return nil, fault.New(fault.Conflict, "audit_fork", "The signed checkpoints differ: sizes %d and %d.", first.Size, s.Size)
		}
		sigs = append(sigs, s.sigs...)
	}
	byKey := func(a, b note.Signature) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Hash, b.Hash))
	}
	slices.SortStableFunc(sigs, byKey)
	sigs = slices.CompactFunc(sigs, func(a, b note.Signature) bool { return byKey(a, b) == 0 })
	out, err := note.Sign(&note.Note{Text: first.Text(), Sigs: sigs})
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "The checkpoint could not be encoded.")
	}
	return out, nil
}
