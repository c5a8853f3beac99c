// Package federation is what the kinds share that enter a cloud with no secret of
// the cloud's: each target is an OpenID provider of its own, whose keys the broker
// makes and publishes, and whose tokens the cloud takes for a short credential.
//
// Beside keys, documents and tokens it holds the HTTP client through which such
// clouds are asked, since who asks must be able to say whether anything was sent.
// The package must know no cloud: neither their addresses nor their errors.
package federation

import (
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

// SecretKeys is the name of the key set in [issuers.Target.Secrets].
const SecretKeys = "identity_jwks"

// The documents of a target's identity provider, by the names that clouds ask for.
// "jwks" would put the keys among those of the broker's own issuer.
const (
	DocDiscovery = "openid-configuration"
	DocKeys      = "jwks.json"
)

const (
	// publicPath is where the broker serves a target's public documents, below its
	// external URL. It is part of the public contract.
	publicPath = "/api/v1/public/targets/"
	// maxIssuer is how long a provider's URL may be, in bytes: AWS's bound, which is
	// the narrowest.
	maxIssuer = 255
	// clockSlack is how far the cloud's clock may lag behind ours: a token from the
	// future is refused.
	clockSlack = time.Minute
)

// Provider is a target's own OpenID provider. Its keys speak for this target and
// nothing else: no other target's tokens have its issuer or its keys. It is safe
// for concurrent use.
type Provider struct {
	Issuer, Audience, Subject string

	keys      []jose.JSONWebKey
	signer    jose.Signer
	documents map[string][]byte
}

// Open makes the provider of a target from its sealed key set. issuer is where the
// two documents stand, and the broker's own URL for them when empty. Its errors
// quote no secret.
func Open(t issuers.Target, alg jose.SignatureAlgorithm, issuer, audience string) (*Provider, error) {
	p := &Provider{Issuer: issuer, Audience: audience, Subject: "target:" + t.Name}
	if p.Issuer == "" {
		p.Issuer = strings.TrimSuffix(t.Issuer, "/") + publicPath + url.PathEscape(t.Name)
	}
	if err := CheckIssuer(p.Issuer); err != nil {
		return nil, fmt.Errorf("the broker's external URL does not make an identity provider that others would take: %w", err)
	}
	set, err := readKeys(t.Secrets[SecretKeys], alg)
	if err != nil {
		return nil, err
	}
	p.keys = set.Keys
	p.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: p.keys[0]}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, errors.New("the identity provider's key cannot sign")
	}
	p.documents, err = p.publish(alg)
	return p, err
}

// CheckIssuer holds a provider's URL to what clouds accept, ports apart: those are
// for systems that are not on the Internet.
func CheckIssuer(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(text) > maxIssuer || strings.HasSuffix(text, "/") {
		return fmt.Errorf("%q must be an https URL of up to %d characters, without user, query, fragment and final slash", text, maxIssuer)
	}
	return nil
}

// publish writes the two documents by which the keys are known (OpenID Connect
// Discovery 1.0 §3).
func (p *Provider) publish(alg jose.SignatureAlgorithm) (map[string][]byte, error) {
	public := jose.JSONWebKeySet{}
	for _, k := range p.keys {
		public.Keys = append(public.Keys, k.Public())
	}
	keys, err := json.Marshal(public)
	if err != nil {
		return nil, errors.New("the public keys cannot be encoded")
	}
	discovery, err := json.Marshal(map[string]any{
		"issuer": p.Issuer, "jwks_uri": p.Issuer + "/" + DocKeys,
		"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(alg)},
		"claims_supported":                      []string{"iss", "sub", "aud", "iat", "exp", "jti"},
	})
	return map[string][]byte{DocDiscovery: discovery, DocKeys: keys}, err
}

// Documents returns what is published, by name. The caller changes nothing of it.
func (p *Provider) Documents() map[string][]byte { return p.documents }

// Claims are an identity token's. Kinds embed them to add their own.
type Claims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"`
	Audience string `json:"aud"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
}

// Claims are those of a token that is refused past the deadline, by the clock of
// whoever reads it (HAZARDS 8).
func (p *Provider) Claims(name string, now, deadline time.Time) Claims {
	return Claims{Issuer: p.Issuer, Subject: p.Subject, Audience: p.Audience, ID: name, IssuedAt: now.Add(-clockSlack).Unix(), Expires: deadline.Unix()}
}

// Sign signs a token that holds those claims.
func (p *Provider) Sign(claims any) (secret.Text, error) {
	payload, err := json.Marshal(claims)
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
