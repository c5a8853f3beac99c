package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// tokenVerifier is a service that verifies access tokens by a target's published
// keys, as a [Server].
type tokenVerifier struct {
	apart
	*trusted
}

// trusted is the document by which a verifier trusts a target.
type trusted struct {
	public   *public
	document []byte
}

func startTokenVerifier(context.Context) (Server, error) {
	return tokenVerifier{trusted: &trusted{}}, nil
}

const tokenAudience = "https://orders.example"

// Add takes the keys once, as a service does at its start.
func (v tokenVerifier) Add(t testing.TB, admin CLI, _, target string) string {
	t.Helper()
	admin.Must(t, "target", "add", "jwt", "--name", target, "--set", `audiences=["`+tokenAudience+`"]`)
	v.public = newPublic(t, admin, target)
	v.document = v.public.must(t, "jwks")
	return target + "/use"
}

// Name is the token's own id.
func (v tokenVerifier) Name(credential map[string]string) string {
	claims, err := v.verify(credential["token"])
	if err != nil {
		return err.Error()
	}
	return claims.ID
}

// verify checks the signature alone.
func (v tokenVerifier) verify(text string) (claims jwt.Claims, err error) {
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(v.document, &keys); err != nil {
		return claims, err
	}
	token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return claims, err
	}
	header := token.Headers[0]
	if typ := header.ExtraHeaders[jose.HeaderType]; typ != "at+jwt" {
		return claims, fmt.Errorf("its type is %v", typ)
	}
	found := keys.Key(header.KeyID)
	if len(found) != 1 {
		return claims, errors.New("no published key signed it")
	}
	return claims, token.Claims(found[0], &claims)
}

// Login has the service accept the token.
func (v tokenVerifier) Login(_ context.Context, credential map[string]string) error {
	claims, err := v.verify(credential["token"])
	if err != nil {
		return err
	}
	if claims.Expiry == nil {
		return errors.New("it never ends")
	}
	return claims.ValidateWithLeeway(jwt.Expected{AnyAudience: jwt.Audience{tokenAudience}, Time: time.Now()}, 0)
}

// Ours is nothing; the keys are those of before.
func (v tokenVerifier) Ours(ctx context.Context) ([]string, error) {
	return v.public.unchanged(ctx, "jwks", v.document)
}
