package cosign

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"slices"
)

// Bounds of an assertion, in bytes. A browser's client data has some 200, an
// authenticator's data 37 and its extensions.
const (
	maxClientData        = 4 << 10
	maxAuthenticatorData = 4 << 10
)

// Flags of an authenticator (WebAuthn §6.1).
const (
	flagPresent    = 0x01 // UP: somebody touched it
	flagVerified   = 0x04 // UV: it made sure who: a PIN, a finger
	flagAttested   = 0x40 // AT: a credential follows
	flagExtensions = 0x80 // ED: extensions follow
)

// authenticatorHead is RP id hash, flags and counter, in bytes.
const authenticatorHead = sha256.Size + 1 + 4

// verifyPasskey checks an assertion (WebAuthn §7.2) whose challenge is the hash.
func verifyPasskey(k Key, p *public, hash Hash, s Signature) error {
	if err := checkAuthenticator(k, s.AuthenticatorData); err != nil {
		return err
	}
	if err := checkClientData(k, hash, s.ClientDataJSON); err != nil {
		return err
	}
	client := sha256.Sum256(s.ClientDataJSON)
	message := slices.Concat(s.AuthenticatorData, client[:])
	if p.p256 == nil {
		if !p.signedEd25519(message, s.Assertion) {
			return refuse(rulePasskey, "the assertion is not the key's Ed25519 signature of what it comes with")
		}
		return nil
	}
	e, ok := parseDER(s.Assertion)
	if !ok {
		return refuse(rulePasskey, "the assertion is not an ECDSA signature in DER")
	}
	if !p.signedECDSA(message, e) {
		return refuse(rulePasskey, "the assertion is not the key's ECDSA signature of what it comes with")
	}
	return nil
}

// checkAuthenticator reads the authenticator's data (WebAuthn §6.1). Not looked
// at: the counter, which synced passkeys leave at 0 and which replicas would
// have to keep; whether it is backed up, which registration may ask; and what
// extensions say. All of it is signed.
func checkAuthenticator(k Key, data []byte) error {
	if n := len(data); n < authenticatorHead || n > maxAuthenticatorData {
		return refuse(rulePasskey, "authenticator data has %d to %d bytes, this has %d", authenticatorHead, maxAuthenticatorData, n)
	}
	if want := sha256.Sum256([]byte(k.RPID)); !bytes.Equal(data[:sha256.Size], want[:]) {
		return refuse(rulePasskey, "the assertion was made for another RP id")
	}
	flags := data[sha256.Size]
	switch {
	case flags&flagPresent == 0:
		return refuse(rulePasskey, "user presence (UP) is missing: nobody touched the authenticator")
	case flags&flagVerified == 0:
		return refuse(rulePasskey, "user verification (UV) is missing: neither PIN nor biometry said who touched the authenticator")
	case (flags&(flagAttested|flagExtensions) != 0) != (len(data) > authenticatorHead):
		return refuse(rulePasskey, "the authenticator's flags and the length of its data disagree")
	}
	return nil
}

// checkClientData reads what the browser says of the ceremony (WebAuthn §5.8.1).
// Members that we do not know are allowed: browsers add some, on purpose.
func checkClientData(k Key, hash Hash, raw []byte) error {
	members, err := readObject(raw, maxClientData)
	if err != nil {
		return refuse(rulePasskey, "the client data: %s", err)
	}
	challenge := base64.RawURLEncoding.EncodeToString(hash[:])
	if got := find(members, "type"); got != quoted("webauthn.get") {
		return refuse(rulePasskey, "the client data's type is %s, not webauthn.get", echoJSON(got))
	}
	if find(members, "challenge") != quoted(challenge) {
		return refuse(rulePasskey, "the client data's challenge is not the hash")
	}
	origin := find(members, "origin")
	if !slices.ContainsFunc(k.Origins, func(o string) bool { return origin == quoted(o) }) {
		return refuse(rulePasskey, "the client data's origin is %s, which is none of the key's", echoJSON(origin))
	}
	if got := find(members, "crossOrigin"); got != "" && got != "false" {
		return refuse(rulePasskey, "the client data's crossOrigin is %s: a page in a frame of another origin asked", echoJSON(got))
	}
	if find(members, "topOrigin") != "" {
		return refuse(rulePasskey, "the client data has a topOrigin: a page in a frame of another origin asked")
	}
	return nil
}
