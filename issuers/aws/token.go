package aws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// The documents of the target's identity provider, by the names that STS asks
// for. "jwks" would put the keys among those of the broker's own issuer.
const (
	docDiscovery = "openid-configuration"
	docKeys      = "jwks.json"
)

// publicPath is where the broker serves a target's public documents, below its
// external URL. It is part of the public contract.
const publicPath = "/api/v1/public/targets/"

const (
	maxKeys = 8 // two overlap in an ordinary rotation
	// clockSlack is how far STS's clock may lag behind ours: a token from the
	// future is refused.
	clockSlack = time.Minute
)

// provider is the target's own OpenID provider. Its keys speak for this target
// and nothing else: no other target's tokens have its issuer or its keys.
type provider struct {
	issuer, audience, subject string
	keys                      []jose.JSONWebKey
	signer                    jose.Signer
	documents                 map[string][]byte
}

// newKeySet makes a set of one signing key.
func newKeySet() (secret.Text, error) {
	key, err := newKey()
	if err != nil {
		return secret.Text{}, err
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
	if err != nil {
		return secret.Text{}, errors.New("the signing key cannot be encoded")
	}
	return secret.New(string(set)), nil
}

func newKey() (jose.JSONWebKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("make a signing key: %w", err)
	}
	key := jose.JSONWebKey{Key: private, Algorithm: string(jose.ES256), Use: "sig"}
	key.KeyID, err = thumbprint(key)
	return key, err
}

// thumbprint is the base64url of a key's SHA-256 thumbprint (RFC 7638).
func thumbprint(key jose.JSONWebKey) (string, error) {
	sum, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", errors.New("the signing key has no thumbprint")
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// readSet reads the sealed key set, the signing key first, and the phase of its
// rotation. Its errors never quote what they read.
func readSet(text secret.Text) (keys []jose.JSONWebKey, phase string, err error) {
	var set sealedSet
	if err := json.Unmarshal([]byte(text.Reveal()), &set); err != nil {
		return nil, "", errors.New("aws: the target lacks its secret identity_jwks, which the broker makes when the target is written; write the target again")
	}
	if len(set.Keys) == 0 || len(set.Keys) > maxKeys {
		return nil, "", fmt.Errorf("aws: the secret identity_jwks holds %d keys; 1 to %d are allowed", len(set.Keys), maxKeys)
	}
	for i, key := range set.Keys {
		kid, err := thumbprint(key)
		private, ok := key.Key.(*ecdsa.PrivateKey)
		if err != nil || !ok || private.Curve != elliptic.P256() || kid != key.KeyID || !key.Valid() || key.Algorithm != string(jose.ES256) {
			return nil, "", fmt.Errorf("aws: key %d of the secret identity_jwks is not a private ES256 key whose kid is its thumbprint", i)
		}
	}
	return set.Keys, set.Turn, nil
}

func newProvider(sp spec, t issuers.Target) (*provider, error) {
	p := &provider{issuer: sp.WebIdentity.Issuer, audience: sp.WebIdentity.Audience, subject: "target:" + t.Name}
	if p.issuer == "" {
		p.issuer = strings.TrimSuffix(t.Issuer, "/") + publicPath + url.PathEscape(t.Name)
	}
	if err := checkIssuer(p.issuer); err != nil {
		return nil, fmt.Errorf("aws: the broker's external URL does not make an identity provider that STS would take: %w", err)
	}
	var err error
	if p.keys, _, err = readSet(t.Secrets[SecretJWKS]); err != nil {
		return nil, err
	}
	p.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: p.keys[0]}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, errors.New("aws: the identity provider's key cannot sign")
	}
	p.documents, err = p.publish()
	return p, err
}

// publish writes the two documents by which STS knows the keys (OpenID Connect
// Discovery 1.0 §3).
func (p *provider) publish() (map[string][]byte, error) {
	public := jose.JSONWebKeySet{}
	for _, k := range p.keys {
		public.Keys = append(public.Keys, k.Public())
	}
	keys, err := json.Marshal(public)
	if err != nil {
		return nil, errors.New("aws: the public keys cannot be encoded")
	}
	discovery, err := json.Marshal(map[string]any{
		"issuer": p.issuer, "jwks_uri": p.issuer + "/" + docKeys,
		"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(jose.ES256)},
		"claims_supported":                      []string{"iss", "sub", "aud", "iat", "exp", "jti"},
	})
	return map[string][]byte{docDiscovery: discovery, docKeys: keys}, err
}

// claims are a web identity token's. AWS reads the last two.
type claims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"`
	Audience string `json:"aud"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
	// Tags and SourceIdentity as in "Passing session tags using
	// AssumeRoleWithWebIdentity" of the IAM user guide.
	Tags           *tagClaim `json:"https://aws.amazon.com/tags,omitempty"`
	SourceIdentity string    `json:"https://aws.amazon.com/source_identity,omitempty"`
}

type tagClaim struct {
	Principal map[string][]string `json:"principal_tags"`
}

// token signs a web identity token that STS refuses past the deadline, by its own
// clock (HAZARDS 8).
func (p *provider) token(name string, now, deadline time.Time, tags []tag, sourceIdentity string) (secret.Text, error) {
	c := claims{
		Issuer: p.issuer, Subject: p.subject, Audience: p.audience, ID: name,
		IssuedAt: now.Add(-clockSlack).Unix(), Expires: deadline.Unix(), SourceIdentity: sourceIdentity,
	}
	if len(tags) > 0 {
		c.Tags = &tagClaim{map[string][]string{}}
		for _, t := range tags {
			c.Tags.Principal[t.key] = []string{t.value}
		}
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return secret.Text{}, errors.New("the identity token cannot be encoded")
	}
	signed, err := p.signer.Sign(payload)
	if err != nil {
		return secret.Text{}, errors.New("the identity provider's key cannot sign")
	}
	text, err := signed.CompactSerialize()
	return secret.New(text), err
}
