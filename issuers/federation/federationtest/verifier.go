// Package federationtest plays the part of a cloud's that trusts a target's identity
// provider: it knows issuer, subject and audience as an administrator wrote them down,
// takes the keys from the two public documents, and judges identity tokens.
//
// It must know no cloud, and nothing of issuers: it reads what is published as a
// stranger would.
package federationtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// maxDocument bounds a published document, in bytes.
const maxDocument = 64 << 10

// Verifier is one trusted provider.
type Verifier struct {
	Subject, Audience string
	Algorithms        []jose.SignatureAlgorithm

	mu     sync.Mutex
	issuer string
	keys   jose.JSONWebKeySet
	client *http.Client
}

// New trusts an issuer whose keys are handed to [Verifier.Learn].
func New(issuer, subject, audience string, algorithms ...jose.SignatureAlgorithm) *Verifier {
	return &Verifier{Subject: subject, Audience: audience, Algorithms: algorithms, issuer: issuer}
}

// Name has it trust another issuer from now on, and another subject there.
func (v *Verifier) Name(issuer, subject string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.issuer, v.Subject = issuer, subject
}

// Learn takes published keys beside those of before, as a cloud does that fetches
// them anew.
func (v *Verifier) Learn(jwks []byte) error {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range set.Keys {
		if len(v.keys.Key(k.KeyID)) == 0 {
			v.keys.Keys = append(v.keys.Keys, k)
		}
	}
	return nil
}

// Fetch trusts another issuer from now on, whose documents it fetches for each token.
func (v *Verifier) Fetch(issuer string, client *http.Client) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.issuer, v.client, v.keys = issuer, client, jose.JSONWebKeySet{}
}

// trusted is the issuer with its keys as they stand now (OpenID Connect Discovery
// 1.0 §4).
func (v *Verifier) trusted(ctx context.Context) (string, jose.JSONWebKeySet, error) {
	v.mu.Lock()
	issuer, keys, client := v.issuer, v.keys, v.client
	v.mu.Unlock()
	if client == nil {
		return issuer, keys, nil
	}
	var discovery struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := get(ctx, client, issuer+"/.well-known/openid-configuration", &discovery); err != nil {
		return "", keys, fmt.Errorf("error connecting to the given credential's issuer: %w", err)
	}
	if discovery.Issuer != issuer {
		return "", keys, fmt.Errorf("the discovery document names the issuer %q, not %q", discovery.Issuer, issuer)
	}
	return issuer, keys, get(ctx, client, discovery.Keys, &keys)
}

func get(ctx context.Context, client *http.Client, where string, into any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d", where, resp.StatusCode)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// Verify judges an identity token. Everything is compared as it is written.
func (v *Verifier) Verify(ctx context.Context, token string) error {
	issuer, keys, err := v.trusted(ctx)
	if err != nil {
		return err
	}
	jws, err := jose.ParseSignedCompact(token, v.Algorithms)
	if err != nil {
		return fmt.Errorf("the identity token cannot be read: %w", err)
	}
	found := keys.Key(jws.Signatures[0].Protected.KeyID)
	if len(found) != 1 {
		return fmt.Errorf("no key with id %q", jws.Signatures[0].Protected.KeyID)
	}
	payload, err := jws.Verify(found[0])
	if err != nil {
		return err
	}
	var c struct {
		Issuer   string `json:"iss"`
		Subject  string `json:"sub"`
		Audience string `json:"aud"`
		IssuedAt int64  `json:"iat"`
		Expires  int64  `json:"exp"`
	}
	now := time.Now().Unix()
	switch err := json.Unmarshal(payload, &c); {
	case err != nil:
		return err
	case c.Issuer != issuer, c.Subject != v.Subject, c.Audience != v.Audience:
		return fmt.Errorf("issuer %q, subject %q, audience %q; trusted are %q, %q, %q", c.Issuer, c.Subject, c.Audience, issuer, v.Subject, v.Audience)
	case c.IssuedAt > now, c.Expires <= now, c.Expires-c.IssuedAt > 24*3600:
		return fmt.Errorf("the identity token is from %d to %d; it is %d", c.IssuedAt, c.Expires, now)
	}
	return nil
}
