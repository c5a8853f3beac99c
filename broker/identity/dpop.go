package identity

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

const typeProof = "dpop+jwt"

// VerifierConfig configures a [Verifier]. Zero durations and counts mean their
// defaults.
type VerifierConfig struct {
	// ExternalURLs are the https URLs under which clients reach any node of the
	// cluster, base path included. A proof's htu must lie under one of them:
	// neither the Host header nor a follower is believed. At least one.
	ExternalURLs []string
	// Nonces are this process's. Required.
	Nonces *Nonces
	// MaxAge is how old a proof's iat may be; default 60 s.
	MaxAge time.Duration
	// Skew is how far ahead a proof's iat may lie; default 30 s.
	Skew time.Duration
	// ReplayEntries bounds the memory of used proofs; default about a million.
	ReplayEntries int
}

// A Verifier checks DPoP proofs (RFC 9449 §4.3) on one node. It remembers the
// proofs it accepted until they have expired. Safe for concurrent use.
//
// Endpoints that strangers reach (logging in) should have a Verifier of their
// own with the same Nonces: strangers can then fill its memory only.
type Verifier struct {
	external externals
	nonces   *Nonces
	maxAge   time.Duration
	skew     time.Duration
	replay   *replayCache
}

// NewVerifier returns a Verifier, or an error of kind invalid that says what in
// the configuration is wrong.
func NewVerifier(cfg VerifierConfig) (*Verifier, error) {
	ext, err := parseExternals(cfg.ExternalURLs)
	if err != nil {
		return nil, fault.New(fault.Invalid, CodeMethodUnusable, "DPoP cannot be checked: %v.", err)
	}
	if cfg.Nonces == nil {
		return nil, fault.New(fault.Invalid, CodeMethodUnusable, "DPoP cannot be checked: there are no nonces.")
	}
	v := &Verifier{external: ext, nonces: cfg.Nonces, maxAge: cfg.MaxAge, skew: cfg.Skew, replay: newReplayCache(cfg.ReplayEntries)}
	if v.maxAge <= 0 {
		v.maxAge = time.Minute
	}
	if v.skew <= 0 {
		v.skew = clockSkew
	}
	return v, nil
}

// ProofFromHeader returns the request's one DPoP header. It is "" where there
// is none, and [CodeProofInvalid] where there are several (RFC 9449 §4.3, check 1).
func ProofFromHeader(h http.Header) (string, error) {
	switch values := h.Values("DPoP"); len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	default:
		return "", badProof("the request has %d DPoP headers, not one", len(values))
	}
}

// Verify checks a proof that a client sent to this node, with all of RFC 9449
// §4.3, and returns the thumbprint of the key that signed it.
//
// method is the request's method; target its escaped path or absolute URL;
// token the session token that came along, empty when there is none (then the
// proof must have no ath). The caller compares the thumbprint with the
// session's ([SameThumbprint]).
//
// Errors: [CodeProofInvalid], [CodeProofReplayed], [CodeProofNonce] (see
// [FreshNonce]), and [CodeReplayFull] of kind rate_limited.
func (v *Verifier) Verify(proof, method, target string, token secret.Text, now time.Time) (jkt string, err error) {
	return v.check(proof, method, target, token, now, true)
}

// VerifyForwarded checks on the leader a proof that a client sent to a
// follower: everything but the nonce's value, which only the follower's process
// can check. The leader remembers the proof beside those it got itself, so one
// proof moves the ledger once, whatever way it comes (HAZARDS 4).
func (v *Verifier) VerifyForwarded(proof, method, target string, token secret.Text, now time.Time) (jkt string, err error) {
	return v.check(proof, method, target, token, now, false)
}

func (v *Verifier) check(proof, method, target string, token secret.Text, now time.Time, ours bool) (string, error) {
	t, ferr := parseJWS(proof, maxProof, proofAlgorithms, true)
	if ferr != nil {
		return "", fault.Wrap(ferr, fault.Unauthenticated, CodeProofInvalid, "The DPoP proof was refused. %s", ferr.Detail)
	}
	if t.typ != typeProof {
		return "", badProof("its typ is not %s", typeProof)
	}
	c, err := readProof(t.claims)
	if err != nil {
		return "", err
	}
	// The cheap checks come first: a flood of stale proofs costs no curve
	// arithmetic.
	if c.method != method {
		return "", badProof("it was made for another method")
	}
	if err := v.external.match(c.url, target); err != nil {
		return "", badProof("%v", err)
	}
	if !hashMatches(c.hash, token) {
		return "", badProof("its ath does not fit the session token that came along")
	}
	if now.Sub(c.issued) > v.maxAge || c.issued.Sub(now) > v.skew {
		return "", badProof("its iat is not within %s before and %s after this node's time", v.maxAge, v.skew)
	}
	if ours && !v.nonces.Valid(c.nonce, now) {
		return "", useNonce(v.nonces.Current(now))
	}
	if !ours && c.nonce == "" {
		return "", badProof("it was forwarded without a nonce")
	}
	if ferr := t.verify(t.jwk.Key); ferr != nil {
		return "", fault.Wrap(ferr, fault.Unauthenticated, CodeProofInvalid, "The DPoP proof was refused. %s", ferr.Detail)
	}
	jkt, err := KeyThumbprint(t.jwk.Key)
	if err != nil {
		return "", err
	}
	if ferr := v.replay.claim(jkt, c.id, c.issued.Add(v.maxAge), now); ferr != nil {
		return "", ferr
	}
	return jkt, nil
}

// Nonce returns the nonce to send in an answer's DPoP-Nonce header, so that the
// client's next proof is accepted at once.
func (v *Verifier) Nonce(now time.Time) string { return v.nonces.Current(now) }

type proofClaims struct {
	id, method, url, hash, nonce string
	issued                       time.Time
}

func readProof(o object) (proofClaims, error) {
	var c proofClaims
	for _, f := range []struct {
		name string
		into *string
		most int
	}{{"jti", &c.id, maxProofID}, {"htm", &c.method, 32}, {"htu", &c.url, maxURL}, {"ath", &c.hash, 64}, {"nonce", &c.nonce, maxNonce}} {
		v, err := o.text(f.name)
		if err != nil {
			return c, badProof("%v", err)
		}
		if len(v) > f.most {
			return c, badProof("its %s is longer than %d bytes", f.name, f.most)
		}
		*f.into = v
	}
	if len(c.id) < minProofID || c.method == "" || c.url == "" {
		return c, badProof("it lacks htm, htu, or a jti of at least %d characters", minProofID)
	}
	iat, ok, err := o.seconds("iat")
	if err != nil || !ok {
		return c, badProof("it lacks iat")
	}
	c.issued = time.Unix(iat, 0)
	return c, nil
}

// hashMatches checks ath (RFC 9449 §4.3, check 12). A proof with ath but
// without its token was made for another request.
func hashMatches(ath string, token secret.Text) bool {
	if token.IsZero() {
		return ath == ""
	}
	sum := sha256.Sum256([]byte(token.Reveal()))
	want := base64.RawURLEncoding.EncodeToString(sum[:])
	return subtle.ConstantTimeCompare([]byte(ath), []byte(want)) == 1
}

func badProof(what string, args ...any) *fault.Error {
	e := fault.New(fault.Unauthenticated, CodeProofInvalid, what, args...)
	e.Detail = "The DPoP proof was refused: " + e.Detail + "."
	return e
}
