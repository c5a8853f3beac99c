package aws_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/aws/awstest"
)

// firstShape is a target's secret as the first version sealed it: a bare JWK Set.
const firstShape = `{"keys":[{"use":"sig","kty":"EC","kid":"Q9oO7p7NCiv6_gAXprCA5l8Vgba1pW4czKx1McGHSx8","crv":"P-256","alg":"ES256","x":"pvI0qrO3UpTfgG7j4g59a1nfsVF1eVTp_HzS0SbPkYE","y":"4dq6f-3MixAN7CFik7Z00sROMB2WFVQICmbYJbCCgc4","d":"f-VBFeTp_lEDjz2LHOASOkMbE2QKwOgER1LgrzkGATU"}]}`

// frontSTS passes everything on to MinIO but identity tokens by keys that MinIO
// was not started with: those come back as session tokens, for accepts to judge.
func frontSTS(t *testing.T) (base string) {
	t.Helper()
	to, err := url.Parse(shared.URL)
	if err != nil {
		t.Fatal(err)
	}
	through := httputil.NewSingleHostReverseProxy(to)
	through.Transport = ca.Client().Transport
	through.Director = func(r *http.Request) { r.URL.Scheme, r.URL.Host = to.Scheme, to.Host } // the Host was signed
	known := knownKeys(t)
	base, stop, err := ca.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		form, _ := url.ParseQuery(string(body))
		token := form.Get("WebIdentityToken")
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil || slices.Contains(known, jws.Signatures[0].Protected.KeyID) {
			through.ServeHTTP(w, r)
			return
		}
		const action = "AssumeRoleWithWebIdentity"
		_, _ = fmt.Fprintf(w, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult><AssumedRoleUser><Arn>%[2]s</Arn><AssumedRoleId>ARO:x</AssumedRoleId></AssumedRoleUser>`+
			`<Credentials><AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId><SecretAccessKey>wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY</SecretAccessKey><SessionToken>%[3]s</SessionToken>`+
			`<Expiration>2099-07-15T23:28:33.359Z</Expiration></Credentials><Audience>sts.amazonaws.com</Audience></%[1]sResult></%[1]sResponse>`,
			action, "arn:aws:sts::123456789012:assumed-role/demo/x", token)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return base
}

// knownKeys are the ids of the keys that MinIO was started with.
func knownKeys(t *testing.T) (ids []string) {
	t.Helper()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(identity[aws.SecretJWKS].Reveal()), &set); err != nil {
		t.Fatal(err)
	}
	for _, k := range set.Keys {
		ids = append(ids, k.KeyID)
	}
	return ids
}

// accepts judges the identity token of a session by the published documents alone,
// as STS does.
func accepts(_ context.Context, documents map[string][]byte, c issuers.Credential) error {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(documents["jwks.json"], &set); err != nil {
		return err
	}
	for _, k := range set.Keys {
		if !k.IsPublic() {
			return errors.New("a private key is published")
		}
	}
	jws, err := jose.ParseSignedCompact(c.Secret["session_token"].Reveal(), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	keys := set.Key(jws.Signatures[0].Protected.KeyID)
	if len(keys) != 1 {
		return fmt.Errorf("%d published keys have the token's kid", len(keys))
	}
	_, err = jws.Verify(keys[0])
	return err
}

func TestKeyTimes(t *testing.T) {
	s := byIdentity().with(spec{"max_ttl": "30m", "web_identity": spec{"issuer": issuerURL, "key_publish": "10m"}})
	publish, honour := aws.Kind{}.KeyTimes(s.raw(t))
	if publish != 10*time.Minute || honour != 31*time.Minute {
		t.Errorf("%s and %s", publish, honour)
	}
	for _, bad := range []string{"1s", "721h", "soon"} {
		if (aws.Kind{}).CheckSpec(s.with(spec{"web_identity": spec{"key_publish": bad}}).raw(t)) == nil {
			t.Errorf("key_publish %s is allowed", bad)
		}
	}
	if err := (aws.Kind{}).CheckSpec(byRole().with(spec{"web_identity": spec{"key_publish": "1h"}}).raw(t)); err == nil {
		t.Error("key_publish is allowed where there is no key")
	}
}

// The steps on a real server: it reads the key set again when it meets a key that
// it does not know.
func TestMinIOFollowsARotation(t *testing.T) {
	var documents atomic.Pointer[map[string][]byte]
	base, stop, err := ca.Serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write((*documents.Load())[path.Base(r.URL.Path)])
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	at := base + "/api/v1/public/targets/" + targetName
	tg := target(t, byIdentity().with(spec{"web_identity": spec{"issuer": at}}))
	if tg.Secrets, err = (aws.Kind{}).MakeSecrets(nil); err != nil {
		t.Fatal(err)
	}
	publish := func() issuers.Issuer {
		is := open(t, tg)
		docs, err := is.(issuers.Publisher).Publish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		documents.Store(&docs)
		return is
	}
	is := publish()
	server, err := awstest.Run(t.Context(), ca, &awstest.Provider{ConfigURL: at + "/.well-known/openid-configuration"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}()
	tg.Spec = byIdentity().with(spec{"endpoint": server.URL, "web_identity": spec{"issuer": at}}).raw(t)
	is = publish()
	eventually(t, "the server knows the provider", func() bool {
		_, err := is.Mint(t.Context(), lease(theScope))
		return err == nil
	})
	for _, step := range []issuers.KeyTurn{issuers.KeyPublish, issuers.KeyUse, issuers.KeyRetire} {
		before := is
		if tg.Secrets, err = (aws.Kind{}).TurnKeys(t.Context(), tg.Spec, tg.Secrets, step); err != nil {
			t.Fatal(err)
		}
		is = publish()
		mint(t, is, lease(theScope))
		if step != issuers.KeyRetire {
			mint(t, before, lease(theScope))
		}
	}
}
