package identity

import (
	"fmt"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// The codes of this package's errors. They are stable: clients branch on them.
const (
	// A DPoP proof (RFC 9449 §4.3). Kind unauthenticated.
	CodeProofInvalid  = "invalid_dpop_proof" // missing, malformed, for another request, too old, badly signed
	CodeProofNonce    = "use_dpop_nonce"     // sign again with the nonce of FreshNonce (RFC 9449 §8)
	CodeProofReplayed = "dpop_proof_replayed"
	// CodeReplayFull (kind rate_limited): the replay cache is full, and to
	// forget would be to accept a replay.
	CodeReplayFull = "rate_limited"

	// Evidence. Kind unauthenticated.
	CodeEvidenceMissing = "evidence_missing"        // the method needs a token or a certificate that is not there
	CodeTokenMalformed  = "token_malformed"         // not a JWT that Mayfly reads: encoding, size, depth, duplicates
	CodeTokenType       = "token_type_refused"      // a JWT made for another purpose (typ)
	CodeAlgorithm       = "token_algorithm"         // none, HMAC, or not the algorithm of the key
	CodeUnknownKey      = "token_unknown_key"       // no key of the issuer has this kid
	CodeSignature       = "token_signature"         // does not verify
	CodeIssuer          = "token_issuer"            // another issuer than the method's
	CodeAudience        = "token_audience"          // made for somebody else
	CodeExpired         = "token_expired"           // exp has passed
	CodeNotYetValid     = "token_not_yet_valid"     // nbf or iat lies ahead
	CodeLifetime        = "token_lifetime"          // no exp, or one too far ahead to remember a one-shot token for
	CodeKeyBinding      = "key_binding"             // names another key than the client's, or none where one is needed
	CodeClaimsRefused   = "claims_refused"          // the method's require is not met
	CodeNoBinding       = "no_binding"              // no rule of the method's bind matches
	CodeClaimUnusable   = "claim_unusable"          // a claim that names the principal or instance is missing or unsafe
	CodeCertificate     = "certificate_refused"     // chain, validity, usage or SPIFFE ID
	CodeNonce           = "token_nonce"             // an ID token of another sign-in
	CodeProvider        = "provider_refused"        // the provider sends somebody back without a code, or takes none
	CodePrincipal       = "principal_mismatch"      // the key is nobody's, or another's than the assertion says
	CodeSessionToken    = "session_token_invalid"   // not of the form mfs_…
	CodeEnrolTruncated  = "enrol_token_truncated"   // the paste lost its end
	CodeEnrolCorrupt    = "enrol_token_corrupt"     // the checksum does not fit: a typing or copying error
	CodeEnrolInvalid    = "enrol_token_invalid"     // not an enrolment token
	CodeIssuerDown      = "issuer_unavailable"      // kind unavailable: its discovery or keys cannot be had now
	CodeMethodInvalid   = "auth_method_invalid"     // kind invalid: the detail lists every problem
	CodeMethodUnusable  = "auth_method_unsupported" // kind invalid: this node lacks what the method needs
)

// unauthenticated is the error for evidence that does not stand.
func unauthenticated(code, detail string, args ...any) *fault.Error {
	return fault.New(fault.Unauthenticated, code, detail, args...)
}

// malformed is the error for a token that cannot even be read. what never
// quotes the token.
func malformed(what string, args ...any) *fault.Error {
	return fault.New(fault.Unauthenticated, CodeTokenMalformed, "The token cannot be read: %s.", fmt.Sprintf(what, args...))
}
