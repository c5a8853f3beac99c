package github

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/secret"
)

const (
	maxKeyBytes = 16 << 10
	minKeyBits  = 2048
	// backdate and longestJWT: GitHub's clock may be a little behind, and it takes no
	// JWT that ends more than ten minutes from now (Generating a JSON Web Token).
	backdate   = time.Minute
	longestJWT = 5 * time.Minute
)

// app speaks for the App by its key.
type app struct {
	issuer string
	signer jose.Signer
}

func newApp(s spec, key secret.Text) (*app, error) {
	k, err := readKey(key)
	if err != nil {
		return nil, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: k}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, errors.New("github: the App's private key cannot sign")
	}
	a := &app{issuer: s.ClientID, signer: signer}
	if a.issuer == "" {
		a.issuer = strconv.FormatInt(s.AppID, 10)
	}
	return a, nil
}

// readKey never quotes what it was given, nor the parser that read it.
func readKey(t secret.Text) (*rsa.PrivateKey, error) {
	bad := errors.New("github: private_key is not one RSA key of at least 2048 bits in PEM, as the App's settings page gives it")
	text := t.Reveal()
	if len(text) > maxKeyBytes {
		return nil, bad
	}
	block, rest := pem.Decode([]byte(text))
	if block == nil || strings.TrimSpace(string(rest)) != "" {
		return nil, bad
	}
	k, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, bad
		}
		var ok bool
		if k, ok = parsed.(*rsa.PrivateKey); !ok {
			return nil, bad
		}
	}
	if k.N.BitLen() < minKeyBits {
		return nil, bad
	}
	return k, nil
}

// token is a JWT of the App's that ends at the deadline, or in five minutes: GitHub
// refuses a message that comes later, by its own clock (HAZARDS 8).
func (a *app) token(now, deadline time.Time) (secret.Text, error) {
	end := now.Add(longestJWT)
	if deadline.Before(end) {
		end = deadline
	}
	payload, err := json.Marshal(map[string]any{"iss": a.issuer, "iat": now.Add(-backdate).Unix(), "exp": end.Unix()})
	if err != nil {
		return secret.Text{}, err
	}
	signed, err := a.signer.Sign(payload)
	if err != nil {
		return secret.Text{}, errors.New("the App's private key cannot sign")
	}
	text, err := signed.CompactSerialize()
	return secret.New(text), err
}
