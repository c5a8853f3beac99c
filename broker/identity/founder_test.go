package identity

import (
	"crypto/ed25519"
	"testing"
)

// What a node is handed gives it neither the token nor the founder's key.
func TestHazard1FoundersTokenIsNeverHandedInWhole(t *testing.T) {
	tok, err := NewEnrolToken([32]byte{1}, []string{"a.example:8700"})
	if err != nil {
		t.Fatal(err)
	}
	shown := tok.Presented()
	if shown.Secret == tok.Secret || shown.CAHash != tok.CAHash || len(shown.Addresses) != 1 {
		t.Fatalf("%+v", shown)
	}
	if shown.Founder().Equal(tok.Founder()) || shown.Presented().Secret == shown.Secret {
		t.Fatal("the key follows from what is handed in")
	}
	if !tok.Founder().Equal(ed25519.NewKeyFromSeed(tok.derive("mayfly.enrol.approve.v1"))) {
		t.Fatal("the key is not the token's")
	}
	back, err := ParseEnrolToken(shown.Encode())
	if err != nil || back.Hash() != shown.Hash() {
		t.Fatalf("%v", err)
	}
}
