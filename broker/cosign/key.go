package cosign

import "encoding/json"

// Kinds of keys, and of the signatures made with them.
const (
	KindPasskey = "passkey" // WebAuthn assertion, ES256 or EdDSA
	KindSSH     = "ssh"     // SSHSIG: ed25519, ecdsa-p256, and their sk- forms
	KindJWS     = "jws"     // compact JWS, ES256 or EdDSA
)

// Key is an approver's public key as the ledger holds it.
type Key struct {
	Kind string `json:"kind"`
	// JWK is the public key, P-256 or Ed25519, with its required members only (RFC 7638).
	JWK json.RawMessage `json:"jwk"`
	// CredentialID, RPID and Origins belong to a passkey: what the authenticator
	// calls it, for whom it was made, and which pages may use it.
	CredentialID []byte   `json:"credential_id,omitempty"`
	RPID         string   `json:"rp_id,omitempty"`
	Origins      []string `json:"origins,omitempty"`
	// SSHType and Application belong to an SSH key: its type as in an authorized
	// key, and the application of an sk- key.
	SSHType     string `json:"ssh_type,omitempty"`
	Application string `json:"application,omitempty"`
}

// Signature is one signature over a [Hash], with all that its check needs.
type Signature struct {
	// Verifier is the number of the verifier that checks it; see [Verify].
	Verifier int    `json:"verifier"`
	Kind     string `json:"kind"`
	// Key is the thumbprint of the key (RFC 7638), base64url.
	Key string `json:"key"`
	// AuthenticatorData, ClientDataJSON (as received, never marshalled again)
	// and Assertion belong to a passkey.
	AuthenticatorData []byte `json:"authenticator_data,omitempty"`
	ClientDataJSON    []byte `json:"client_data_json,omitempty"`
	Assertion         []byte `json:"assertion,omitempty"`
	// SSHSIG is the blob inside the armour (PROTOCOL.sshsig).
	SSHSIG []byte `json:"sshsig,omitempty"`
	// JWS is the compact form; its payload is the hash.
	JWS string `json:"jws,omitempty"`
}
