// Package identity turns evidence into facts about who is asking.
//
// It answers four questions and no other:
//
//   - Who proves what: an [Attestor] verifies a token, an assertion or a
//     certificate chain against an operator's [Method] and names the principal.
//   - Does the caller hold the key: a [Verifier] checks a DPoP proof, and
//     [CertThumbprint] names the certificate of a mutual-TLS connection.
//   - Whom does a provider's page name: a [RelyingParty] turns a browser's code
//     into the same facts.
//   - What do the broker's own tokens look like: [MintSession], [EnrolToken].
//
// The package must not know what a principal may do (broker/policy), whether it
// exists (broker/ledger), or how requests arrive (broker/api). It keeps no
// state but two bounded caches, never reads the clock (now is a parameter), and
// reaches the network only through the *http.Client it is given, for an
// issuer's discovery document, keys and token endpoint.
//
// Everything fails closed, with a [fault.Error] whose code stands in codes.go.
// What is bounded, and why, stands in limits.go.
package identity
