package broker

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/protocol/webauthncose"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
)

// Bounds on passkeys.
const (
	// challengeFor is how long a person may take to find the authenticator.
	challengeFor = 2 * time.Minute
	// maxPasskeyResponse is ten times what any authenticator sends.
	maxPasskeyResponse = 32 << 10
	// maxSpent is how many challenges are remembered as used; in two minutes no
	// front lets as many through.
	maxSpent = 100_000
	// maxHandle is WebAuthn's bound on a user handle, which is a principal's name.
	maxHandle = 64
)

// Passkeys runs the ceremonies of WebAuthn level 3 for the pages under a
// cluster's external URLs: discoverable credentials, user verification
// required, no attestation, ES256 and EdDSA only. It keeps no state but which of
// its challenges were used. It is safe for concurrent use.
type Passkeys struct {
	web     *webauthn.WebAuthn // nil: closed says why
	closed  error
	origins []string
	clock   func() time.Time
	secret  [32]byte // of this process

	mu    sync.Mutex
	spent map[string]int64 // challenges that were used, until when they would live
}

// passkeyParameters are the algorithms that the ledger's verifier knows.
var passkeyParameters = []protocol.CredentialParameter{
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgES256},
	{Type: protocol.PublicKeyCredentialType, Algorithm: webauthncose.AlgEdDSA},
}

// NewPasskeys returns the ceremonies for pages under the external URLs. The
// relying party is the host of the first one that has a name: browsers make no
// passkeys for addresses.
func NewPasskeys(urls []string, clock func() time.Time) *Passkeys {
	p := &Passkeys{clock: clock, spent: map[string]int64{}}
	_, _ = rand.Read(p.secret[:]) // never fails (crypto/rand)
	rp := ""
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || net.ParseIP(u.Hostname()) != nil || u.Hostname() == "" {
			continue
		}
		host := strings.ToLower(u.Hostname())
		if rp == "" {
			rp = host
		}
		if host == rp || strings.HasSuffix(host, "."+rp) {
			p.origins = append(p.origins, "https://"+strings.TrimSuffix(strings.ToLower(u.Host), ":443"))
		}
	}
	if rp == "" {
		p.closed = fault.New(fault.Unavailable, "passkeys_need_a_name", "Browsers make passkeys for names only, not for addresses. Open the console under a name, such as https://localhost:PORT, which must be among the external URLs.")
		return p
	}
	var err error
	p.web, err = webauthn.New(&webauthn.Config{
		RPID: rp, RPDisplayName: "Mayfly", RPOrigins: p.origins, AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, RequireResidentKey: protocol.ResidentKeyRequired(), UserVerification: protocol.VerificationRequired,
		},
	})
	if err != nil {
		p.closed = fault.Wrap(err, fault.Unavailable, "passkeys_need_a_name", "Passkeys cannot be made for %s.", rp)
	}
	return p
}

// page is the external URL under which passkeys work; instead where there is none.
func (p *Passkeys) page(instead string) string {
	if len(p.origins) == 0 {
		return instead
	}
	return p.origins[0]
}

// challenge makes a challenge for one use: random, until when, and this
// process's word for both.
func (p *Passkeys) challenge(what, who string) []byte {
	c := make([]byte, 16, 56)
	_, _ = rand.Read(c)
	c = binary.BigEndian.AppendUint64(c, uint64(p.clock().Add(challengeFor).UnixMilli()))
	return append(c, p.mac(what, []byte(who), c)...)
}

// spend accepts a challenge of this process once.
func (p *Passkeys) spend(what, who, text string) error {
	late := fault.New(fault.Unauthenticated, "passkey_late", "That took too long, or was done twice. Try again.")
	c, err := decode64(text)
	if err != nil || len(c) != 56 || !hmac.Equal(c[24:], p.mac(what, []byte(who), c[:24])) {
		return late
	}
	end, now := int64(binary.BigEndian.Uint64(c[16:24])), p.clock().UnixMilli()
	if end < now {
		return late
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.spent) >= maxSpent {
		for k, until := range p.spent {
			if until < now {
				delete(p.spent, k)
			}
		}
	}
	if _, used := p.spent[string(c)]; used || len(p.spent) >= maxSpent {
		return late
	}
	p.spent[string(c)] = end
	return nil
}

// LoginOptions returns the options of a sign-in (PublicKeyCredentialRequestOptionsJSON).
func (p *Passkeys) LoginOptions() (json.RawMessage, error) {
	if p.closed != nil {
		return nil, p.closed
	}
	options, _, err := p.web.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired), webauthn.WithChallenge(p.challenge("login", "")))
	if err != nil {
		return nil, err
	}
	return json.Marshal(options.Response)
}

// Login checks a browser's answer to [Passkeys.LoginOptions]. keysOf lists the
// keys of a principal. It returns whose passkey it was, and which.
func (p *Passkeys) Login(response json.RawMessage, keysOf func(principal string) ([]RegisteredKey, error)) (principal, thumbprint string, err error) {
	if p.closed != nil {
		return "", "", p.closed
	}
	refused := func(err error) error {
		return fault.Wrap(err, fault.Unauthenticated, "passkey_refused", "This passkey does not open anything here. It may have been removed, or be of another place.")
	}
	if len(response) > maxPasskeyResponse {
		return "", "", refused(nil)
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(response)
	if err != nil {
		return "", "", refused(err)
	}
	if err := p.spend("login", "", parsed.Response.CollectedClientData.Challenge); err != nil {
		return "", "", err
	}
	if parsed.Response.CollectedClientData.CrossOrigin {
		return "", "", refused(nil)
	}
	session := webauthn.SessionData{Challenge: parsed.Response.CollectedClientData.Challenge, RelyingPartyID: p.web.Config.RPID, UserVerification: protocol.VerificationRequired}
	var found error
	_, err = p.web.ValidateDiscoverableLogin(func(id, handle []byte) (webauthn.User, error) {
		who := person{name: string(handle)}
		var keys []RegisteredKey
		if keys, found = keysOf(who.name); found != nil {
			return nil, found
		}
		for _, k := range keys {
			if k.Key.Kind == cosign.KindPasskey && k.Key.RPID == p.web.Config.RPID && subtle.ConstantTimeCompare(k.Key.CredentialID, id) == 1 {
				cose, err := coseOf(k.Key.JWK)
				if err != nil {
					return nil, err
				}
				// Whether it may be backed up is the authenticator's business; the
				// ledger keeps no such flag to compare with.
				who.keys = []webauthn.Credential{{ID: id, PublicKey: cose, Flags: webauthn.NewCredentialFlags(parsed.Response.AuthenticatorData.Flags)}}
				principal, thumbprint = who.name, k.Thumbprint
			}
		}
		return who, nil
	}, session, parsed)
	switch {
	case found != nil:
		return "", "", found
	case err != nil || principal == "":
		return "", "", refused(err)
	}
	return principal, thumbprint, nil
}

// NewOptions returns the options by which principal makes a passkey, on an
// authenticator that holds none of those it has.
func (p *Passkeys) NewOptions(principal string, have []Passkey) (json.RawMessage, error) {
	if p.closed != nil {
		return nil, p.closed
	}
	if !strings.HasPrefix(principal, "human:") {
		return nil, fault.New(fault.Denied, "not_a_person", "Passkeys are for people; %s is none.", principal)
	}
	if len(principal) > maxHandle {
		return nil, fault.New(fault.Invalid, "name_too_long", "A passkey's owner has a name of at most %d bytes. Approve with an SSH key instead.", maxHandle)
	}
	var known []protocol.CredentialDescriptor
	for _, k := range have {
		known = append(known, protocol.CredentialDescriptor{Type: protocol.PublicKeyCredentialType, CredentialID: k.CredentialID})
	}
	options, _, err := p.web.BeginRegistration(person{name: principal}, webauthn.WithExclusions(known), webauthn.WithCredentialParameters(passkeyParameters),
		func(o *protocol.PublicKeyCredentialCreationOptions) error {
			o.Challenge = p.challenge("new", principal)
			return nil
		})
	if err != nil {
		return nil, err
	}
	return json.Marshal(options.Response)
}

// Made checks a passkey that principal has just made and returns it as the
// ledger keeps it, with its thumbprint.
func (p *Passkeys) Made(principal string, response json.RawMessage) (cosign.Key, string, error) {
	var key cosign.Key
	if p.closed != nil {
		return key, "", p.closed
	}
	refused := func(err error) error {
		return fault.Wrap(err, fault.Invalid, "passkey_unfit", "This passkey cannot be used: it must verify its holder, be kept by the authenticator, and sign with P-256 or Ed25519.")
	}
	if len(response) > maxPasskeyResponse {
		return key, "", refused(nil)
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(response)
	if err != nil {
		return key, "", refused(err)
	}
	if err := p.spend("new", principal, parsed.Response.CollectedClientData.Challenge); err != nil {
		return key, "", err
	}
	made, err := p.web.CreateCredential(person{name: principal}, webauthn.SessionData{
		Challenge: parsed.Response.CollectedClientData.Challenge, RelyingPartyID: p.web.Config.RPID, UserID: []byte(principal),
		UserVerification: protocol.VerificationRequired, CredParams: passkeyParameters,
	}, parsed)
	if err != nil || parsed.Response.CollectedClientData.CrossOrigin {
		return key, "", refused(err)
	}
	jwk, thumb, err := jwkOf(made.PublicKey)
	if err != nil {
		return key, "", refused(err)
	}
	return cosign.Key{Kind: cosign.KindPasskey, JWK: jwk, CredentialID: made.ID, RPID: p.web.Config.RPID, Origins: p.origins}, thumb, nil
}

// person is a principal as the library asks for it.
type person struct {
	name string
	keys []webauthn.Credential
}

// WebAuthnID implements [webauthn.User].
func (p person) WebAuthnID() []byte { return []byte(p.name) }

// WebAuthnName implements [webauthn.User].
func (p person) WebAuthnName() string { return p.name }

// WebAuthnDisplayName implements [webauthn.User].
func (p person) WebAuthnDisplayName() string { return strings.TrimPrefix(p.name, "human:") }

// WebAuthnCredentials implements [webauthn.User].
func (p person) WebAuthnCredentials() []webauthn.Credential { return p.keys }

// jwkOf turns an authenticator's key (COSE, RFC 9053) into a JWK of the
// required members alone.
func jwkOf(cose []byte) (json.RawMessage, string, error) {
	parsed, err := webauthncose.ParsePublicKey(cose)
	if err != nil {
		return nil, "", err
	}
	var key any
	switch k := parsed.(type) {
	case webauthncose.EC2PublicKeyData:
		if webauthncose.COSEAlgorithmIdentifier(k.Algorithm) != webauthncose.AlgES256 || len(k.XCoord) != 32 || len(k.YCoord) != 32 {
			return nil, "", fault.New(fault.Invalid, "passkey_unfit", "The key is not on P-256.")
		}
		key, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, k.XCoord...), k.YCoord...))
	case webauthncose.OKPPublicKeyData:
		if webauthncose.COSEAlgorithmIdentifier(k.Algorithm) != webauthncose.AlgEdDSA || len(k.XCoord) != ed25519.PublicKeySize {
			return nil, "", fault.New(fault.Invalid, "passkey_unfit", "The key is not of Ed25519.")
		}
		key = ed25519.PublicKey(k.XCoord)
	default:
		return nil, "", fault.New(fault.Invalid, "passkey_unfit", "The key is of another kind.")
	}
	if err != nil {
		return nil, "", err
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		return nil, "", err
	}
	thumb, err := identity.KeyThumbprint(key)
	return jwk, thumb, err
}

// coseOf is the reverse of jwkOf.
func coseOf(jwk json.RawMessage) ([]byte, error) {
	var k jose.JSONWebKey
	if err := json.Unmarshal(jwk, &k); err != nil {
		return nil, err
	}
	switch key := k.Key.(type) {
	case *ecdsa.PublicKey:
		raw, err := key.Bytes()
		if err != nil || len(raw) != 65 {
			return nil, fault.New(fault.Internal, "", "a registered key is not on P-256")
		}
		return append(append(append([]byte{0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32}, raw[1:33]...), 0x22, 0x58, 32), raw[33:]...), nil
	case ed25519.PublicKey:
		return append([]byte{0xa4, 1, 1, 3, 0x27, 0x20, 6, 0x21, 0x58, 32}, key...), nil
	}
	return nil, fault.New(fault.Internal, "", "a registered key is of an unknown kind")
}

// forgottenKey makes a public key whose private half nobody has.
func forgottenKey(random io.Reader) (json.RawMessage, string, error) {
	pub, _, err := ed25519.GenerateKey(random)
	if err != nil {
		return nil, "", err
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: pub})
	if err != nil {
		return nil, "", err
	}
	thumb, err := identity.KeyThumbprint(pub)
	return jwk, thumb, err
}

func encode64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func decode64(s string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(s) }
