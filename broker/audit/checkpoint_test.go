package audit_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

func TestCheckpointTextIsC2SP(t *testing.T) {
	c := audit.Checkpoint{Origin: audit.Origin("c1", 3), Size: 42, Root: tlog.RecordHash([]byte("x"))}
	want := "mayfly-audit/c1/3\n42\n" + c.Root.String() + "\n"
	if c.Text() != want {
		t.Fatalf("text %q", c.Text())
	}
	if got, err := audit.ParseCheckpoint(want); err != nil || got != c {
		t.Fatalf("%+v %v", got, err)
	}
	for _, bad := range []string{
		"", "\n\n\n", want + "extension\n", want[:len(want)-1], strings.Replace(want, "42", "042", 1), strings.Replace(want, "42", "-1", 1),
		strings.Replace(want, "42", "+42", 1), strings.Replace(want, "\n42", "\n 42", 1), strings.Replace(want, "mayfly-audit/c1/3", "", 1),
		strings.Replace(want, "42", "9223372036854775807", 1), strings.Replace(want, c.Root.String(), "AAAA", 1),
	} {
		if _, err := audit.ParseCheckpoint(bad); fault.As(err).Code != "audit_checkpoint" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestOrigin(t *testing.T) {
	if c, n, ok := audit.ParseOrigin(audit.Origin("a.b-c", 7)); !ok || c != "a.b-c" || n != 7 {
		t.Fatalf("%s %d %v", c, n, ok)
	}
	for _, bad := range []string{"", "mayfly-audit/", "mayfly-audit/c", "mayfly-audit//1", "mayfly-audit/c/01", "mayfly-audit/c/-1", "mayfly-audit/c/1/2", "other/c/1"} {
		if _, _, ok := audit.ParseOrigin(bad); ok {
			t.Errorf("%q is an origin", bad)
		}
	}
}

// Several nodes sign the same head; what they signed is collected into one note.
func TestCosignaturesAreCollected(t *testing.T) {
	l := newLog(t, 5)
	own, err := l.checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := audit.ParseKeys(l.keys)
	if err != nil {
		t.Fatal(err)
	}
	leader, err := audit.SignCheckpoint(own, l.signers[0])
	if err != nil {
		t.Fatal(err)
	}
	msgs := [][]byte{leader}
	for _, s := range l.signers[1:] {
		msg, err := audit.Cosign(leader, own, s)
		if err != nil {
			t.Fatal(err)
		}
		msgs = append(msgs, msg)
	}
	merged, err := audit.MergeCheckpoints(keys, append(msgs, leader)...)
	if err != nil {
		t.Fatal(err)
	}
	again, err := audit.MergeCheckpoints(keys, msgs[2], merged, msgs[1])
	if err != nil || !bytes.Equal(again, merged) {
		t.Fatalf("the order of collecting shows: %v\n%s\n%s", err, merged, again)
	}
	s, err := audit.OpenCheckpoint(merged, keys, 3)
	if err != nil || s.Checkpoint != own || len(s.By) != 3 {
		t.Fatalf("%+v %v", s, err)
	}
	if s, err = audit.OpenCheckpoint(merged, keys[:1], 1); err != nil || s.Unknown != 2 {
		t.Fatalf("%+v %v", s, err)
	}
	_, err = audit.OpenCheckpoint(msgs[1], keys, 2)
	if fault.As(err).Code != "audit_signature" {
		t.Fatalf("one signature for a quorum of two: %v", err)
	}
	if _, err := audit.OpenCheckpoint(make([]byte, audit.MaxCheckpoint+1), keys, 1); fault.As(err).Code != "audit_checkpoint" {
		t.Fatalf("an overlong note: %v", err)
	}
}

func TestNoNodeCosignsAForeignHead(t *testing.T) {
	l := newLog(t, 5)
	own, err := l.checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]audit.Checkpoint{
		"root":   {Origin: own.Origin, Size: own.Size},
		"size":   {Origin: own.Origin, Size: own.Size + 1, Root: own.Root},
		"origin": {Origin: audit.Origin("c1", 2), Size: own.Size, Root: own.Root},
	} {
		msg, err := audit.SignCheckpoint(other, l.signers[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Cosign(msg, own, l.signers[1]); fault.As(err).Code != "audit_fork" {
			t.Errorf("another %s: %v", name, err)
		}
		mine, err := audit.SignCheckpoint(own, l.signers[1])
		if err != nil {
			t.Fatal(err)
		}
		keys, err := audit.ParseKeys(l.keys)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.MergeCheckpoints(keys, mine, msg); fault.As(err).Code != "audit_fork" {
			t.Errorf("merged with another %s: %v", name, err)
		}
	}
	for _, msg := range []string{"", own.Text(), own.Text()[1:] + "\n"} {
		if _, err := audit.Cosign([]byte(msg), own, l.signers[1]); err == nil {
			t.Errorf("%q was cosigned", msg)
		}
	}
}

func TestKeysAreChecked(t *testing.T) {
	_, vkey := testSigner(t, "n", 1)
	for _, bad := range [][]string{{"x"}, {vkey, vkey}, {vkey[:len(vkey)-4]}, make([]string, audit.MaxKeys+1)} {
		if _, err := audit.ParseKeys(bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%d keys: %v", len(bad), err)
		}
	}
	weak, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := audit.NewSigner("n", weak); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an ECDSA key: %v", err)
	}
	if _, err := audit.SignCheckpoint(audit.Checkpoint{Origin: "x"}); err == nil {
		t.Error("a checkpoint without a signer")
	}
	var f *fault.Error
	if _, err := audit.SignCheckpoint(audit.Checkpoint{Origin: "two\nlines"}); !errors.As(err, &f) {
		t.Error("an origin of two lines was signed")
	}
}
