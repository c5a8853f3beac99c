package jwt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// issuer signs tokens for one target. Everything but closed is made once, in
// Open: the signer is shared by all mints.
type issuer struct {
	name   string
	draft  bool
	keys   []string // kid and algorithm of each, the one that signs first
	spec   spec
	iss    string
	signer jose.Signer
	jwks   []byte
	closed atomic.Bool
}

// Open implements [issuers.Kind]. It needs the target's [SecretKeys] and the
// broker's external URL.
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	sp, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(t.Issuer)
	if err != nil || u.Scheme == "" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("jwt: the broker's external URL is needed for `iss`, without query and fragment (RFC 8414 §2)")
	}
	keys, _, err := readKeys(t.Secrets[SecretKeys])
	if err != nil {
		return nil, fmt.Errorf("jwt: %w", err)
	}
	// while a new key is only published, the one before may be for another algorithm
	if !slices.ContainsFunc(keys, func(k jose.JSONWebKey) bool { return k.Algorithm == string(sp.Alg) }) {
		return nil, fmt.Errorf("jwt: the spec says alg %s, but the signing key is for %s; rotate the target's key to change it", sp.Alg, keys[0].Algorithm)
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.SignatureAlgorithm(keys[0].Algorithm), Key: keys[0]},
		(&jose.SignerOptions{}).WithType("at+jwt"), // RFC 9068 §2.1: no ID token or DPoP proof can pass for it
	)
	if err != nil {
		return nil, errors.New("jwt: the signing key cannot sign")
	}
	jwks, err := publicSet(keys)
	if err != nil {
		return nil, fmt.Errorf("jwt: %w", err)
	}
	var names []string
	for _, k := range keys {
		names = append(names, k.KeyID+" ("+k.Algorithm+")")
	}
	return &issuer{name: t.Name, draft: t.Draft, keys: names, spec: sp, iss: t.Issuer, signer: signer, jwks: jwks}, nil
}

// Check implements [issuers.Checker]: it names the keys that verifiers should find in
// the published set. Nobody is shown a draft's: what is made when the target is
// written is another.
func (i *issuer) Check(context.Context) ([]issuers.Finding, error) {
	if i.draft {
		return []issuers.Finding{{Name: "key", OK: true, Detail: "once the target is written, mayfly target check " + i.name + " names the key that signs"}}, nil
	}
	var out []issuers.Finding
	for n, k := range i.keys {
		f := issuers.Finding{Name: "key", OK: true, Detail: k + " signs"}
		if n > 0 {
			f = issuers.Finding{Name: fmt.Sprintf("key %d", n+1), OK: true, Detail: k + " is published, but does not sign"}
		}
		out = append(out, f)
	}
	return out, nil
}

// Mint implements [issuers.Issuer]. The clock of the target is this machine's.
// There is no generation to compare with: a late re-mint yields a token under
// its own jti, bound to the same key (HAZARDS 9).
func (i *issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	if i.closed.Load() {
		return none, refused("the issuer is closed")
	}
	now := time.Now()
	end := expiry(l, i.spec.maxTTL)
	switch {
	case ctx.Err() != nil:
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "the caller no longer waits; nothing was signed", Err: ctx.Err()}
	case !now.Before(l.MintDeadline):
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed; nothing was signed"}
	case !now.Before(end):
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "the lease, or the target's max_ttl from its start on, has ended; nothing was signed"}
	case l.Name != Kind{}.CredentialName(l.ID, l.Generation):
		return none, refused("the lease's name is not the one of its id and generation")
	}
	granted, err := i.spec.compile(l.Scope)
	if err != nil {
		return none, refused(err.Error())
	}
	if slices.Contains(granted[0].Locations, i.iss) {
		return none, refused("locations: the broker itself cannot be an audience: its own tokens have other keys and rules")
	}
	c, err := claimsOf(i.iss, l, granted, i.spec.maxTTL)
	if err != nil {
		return none, refused(err.Error())
	}
	token, err := i.sign(c)
	if err != nil {
		return none, refused(err.Error())
	}
	return deliver(c, token), nil
}

func (i *issuer) sign(c claims) (string, error) {
	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode the claims: %w", err)
	}
	signed, err := i.signer.Sign(payload)
	if err != nil {
		return "", errors.New("the signing key could not sign")
	}
	return signed.CompactSerialize()
}

func deliver(c claims, token string) issuers.Credential {
	tokenType := "Bearer"
	if c.Confirm != nil {
		tokenType = "DPoP"
	}
	return issuers.Credential{
		Public: map[string]string{
			"token_type": tokenType,
			"jti":        c.ID,
			"expires_at": time.Unix(c.Expires, 0).UTC().Format(time.RFC3339),
		},
		Secret: map[string]secret.Text{"token": secret.New(token)},
	}
}

// Withdraw has nothing to ask: whoever verifies offline accepts the token until
// its exp, and the receipt says so (HAZARDS 18). It never fails, also on a lease
// that was never minted.
func (i *issuer) Withdraw(_ context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	for n, l := range leases {
		end := expiry(l, i.spec.maxTTL).UTC().Format(time.RFC3339)
		out[n].Receipt = issuers.Receipt{
			Proof:  issuers.ProofExpiresOnly,
			Detail: "nothing to ask: a token that was delivered verifies until its exp, at the latest " + end,
		}
	}
	return out
}

// Publish returns "jwks": the JWK Set of all the target's public keys.
func (i *issuer) Publish(context.Context) (map[string][]byte, error) {
	return map[string][]byte{"jwks": slices.Clone(i.jwks)}, nil
}

// Close implements [issuers.Issuer]; it may be called again.
func (i *issuer) Close() error {
	i.closed.Store(true)
	return nil
}

func refused(detail string) error {
	return &issuers.Error{Kind: issuers.Refused, Detail: detail}
}
