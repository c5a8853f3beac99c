package client

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/mayfly-broker/mayfly/secret"
)

// MethodKey is the method name that means the home's key.
const MethodKey = "key"

// Names under which a token is presented when MAYFLY_METHOD names no method.
const (
	methodJWT        = "jwt"
	methodGitHub     = "github"
	methodGitLab     = "gitlab"
	methodKubernetes = "kubernetes"
	methodSPIFFE     = "spiffe"
)

const evidenceTimeout = 10 * time.Second

// projectedTokens are where pods mount a token made for Mayfly. The pod's
// ordinary service-account token is not among them: it is for the API server,
// and whoever gets it could act as the pod there.
var projectedTokens = []string{"/var/run/secrets/mayfly/token", "/var/run/secrets/tokens/mayfly"}

// evidence is what a login will present.
type evidence struct {
	method string // the AuthMethod; "" is the built-in key method
	where  string // the source's
	token  func(context.Context) (secret.Text, error)
}

// source is one place where evidence may be found.
type source struct {
	method string // its usual AuthMethod
	where  string // for people
	// find returns what gets the token, nil where there is nothing.
	find func(c *Client) func(context.Context) (secret.Text, error)
}

// sources is the contract's order, after MAYFLY_METHOD and before the home's key.
func sources() []source {
	return []source{
		{methodJWT, "MAYFLY_JWT_FILE", findJWTFile},
		{methodGitHub, "the GitHub Actions token address", findGitHub},
		{methodGitLab, "GitLab's MAYFLY_ID_TOKEN", findGitLab},
		{methodKubernetes, "a projected token at " + projectedTokens[0], findProjected},
		{methodSPIFFE, "the SPIFFE socket", findSPIFFE},
	}
}

// evidence finds what to log in with. A source that is there but broken is an
// error, not absence: falling through would act as somebody else.
func (c *Client) evidence() (evidence, error) {
	named := c.cfg.Method
	if named == MethodKey {
		return c.keyEvidence()
	}
	if c.cfg.CertFile != "" && named != "" && c.cfg.JWTFile == "" {
		// The certificate is the evidence; TLS presents it.
		return evidence{named, "the client certificate", func(context.Context) (secret.Text, error) { return secret.Text{}, nil }}, nil
	}
	var first *evidence
	for _, s := range sources() {
		token := s.find(c)
		if token == nil {
			continue
		}
		ev := &evidence{s.method, s.where, token}
		if named == "" || named == s.method {
			return *ev, nil
		}
		if first == nil {
			first = ev
		}
	}
	if first != nil {
		first.method = named
		return *first, nil
	}
	if named != "" {
		return evidence{}, newError(KindUnauthenticated, CodeNoEvidence, "MAYFLY_METHOD is %q, but there is nothing here to log in with by it: looked for %s.", named, lookedFor())
	}
	return c.keyEvidence()
}

func lookedFor() string {
	var names []string
	for _, s := range sources() {
		names = append(names, s.where)
	}
	return strings.Join(names, ", ")
}

func (c *Client) keyEvidence() (evidence, error) {
	principal := c.cfg.Principal
	if principal == "" && c.home != nil {
		id, err := c.home.Identity()
		if err != nil {
			return evidence{}, err
		}
		principal = id.Principal
	}
	if principal == "" {
		home := "There is no home to keep a key in"
		if c.home != nil {
			home = "The key in " + c.home.dir + " is not enrolled"
		}
		return evidence{}, newError(KindUnauthenticated, CodeNoEvidence, "%s, and there is no other evidence: looked for %s. An administrator makes an enrolment token with: mayfly principal enroll NAME; use it here with: mayfly login --enroll-token-file -", home, lookedFor())
	}
	return evidence{"", "the key", func(ctx context.Context) (secret.Text, error) { return c.assertion(ctx, principal) }}, nil
}

func (c *Client) getenv(name string) string {
	if c.cfg.LookupEnv == nil {
		return ""
	}
	v, _ := c.cfg.LookupEnv(name)
	return v
}

// audience is what an ID token for this client is made for. With the key's
// thumbprint in it, a thief of the token cannot bind it to a key of his
// (HAZARDS 3).
func (c *Client) audience(ctx context.Context) (plain, bound string, err error) {
	plain = c.cfg.Audience
	if plain == "" {
		if plain, err = c.issuer(ctx); err != nil {
			return "", "", err
		}
	}
	return plain, plain + "#" + c.key.Thumbprint(), nil
}

func broken(where string, err error) error {
	e := newError(KindUnauthenticated, CodeNoEvidence, "There is evidence to log in with, but it cannot be used: %s.", where)
	e.Err = err
	return e
}

func tokenText(data []byte) (secret.Text, error) {
	t := strings.TrimSpace(string(data))
	if t == "" || strings.ContainsAny(t, " \r\n\t") {
		return secret.Text{}, errors.New("it does not hold one token")
	}
	return secret.New(t), nil
}

func fromFile(path, where string) func(context.Context) (secret.Text, error) {
	return func(context.Context) (secret.Text, error) {
		data, err := readBounded(path, maxTokenFile)
		if err != nil {
			return secret.Text{}, broken(where, err)
		}
		t, err := tokenText(data)
		if err != nil {
			return secret.Text{}, broken(where, err)
		}
		return t, nil
	}
}

func findJWTFile(c *Client) func(context.Context) (secret.Text, error) {
	if c.cfg.JWTFile == "" {
		return nil
	}
	return fromFile(c.cfg.JWTFile, "MAYFLY_JWT_FILE names "+c.cfg.JWTFile)
}

func findProjected(_ *Client) func(context.Context) (secret.Text, error) {
	for _, path := range projectedTokens {
		_, err := readBounded(path, maxTokenFile)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue // another user's pod mount is not ours
		}
		return fromFile(path, "the projected token "+path)
	}
	return nil
}

// findGitLab takes the job's ID token, whose audience the pipeline's file sets.
func findGitLab(c *Client) func(context.Context) (secret.Text, error) {
	v := c.getenv("MAYFLY_ID_TOKEN")
	if c.getenv("GITLAB_CI") == "" || v == "" {
		return nil
	}
	return func(context.Context) (secret.Text, error) {
		t, err := tokenText([]byte(v))
		if err != nil {
			return t, broken("MAYFLY_ID_TOKEN", err)
		}
		return t, nil
	}
}

// findGitHub asks the runner's token service, which makes a token per audience.
func findGitHub(c *Client) func(context.Context) (secret.Text, error) {
	address, bearer := c.getenv("ACTIONS_ID_TOKEN_REQUEST_URL"), secret.New(c.getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN"))
	if address == "" || bearer.IsZero() {
		return nil
	}
	return func(ctx context.Context) (secret.Text, error) {
		plain, aud, err := c.audience(ctx)
		if err != nil {
			return secret.Text{}, err
		}
		if c.cfg.PlainAudience {
			aud = plain
		}
		t, err := askGitHub(ctx, address, bearer, aud)
		if err != nil {
			return t, broken("GitHub's token service", err)
		}
		return t, nil
	}
}

func askGitHub(ctx context.Context, address string, bearer secret.Text, audience string) (secret.Text, error) {
	u, err := url.Parse(address)
	if err != nil {
		return secret.Text{}, errors.New("its address is no URL")
	}
	if u.Scheme != "https" && !loopback(u) {
		return secret.Text{}, errors.New("its address is not https")
	}
	q := u.Query()
	q.Set("audience", audience)
	u.RawQuery = q.Encode()
	ctx, cancel := context.WithTimeout(ctx, evidenceTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return secret.Text{}, errors.New("its address is no URL")
	}
	req.Header.Set("Authorization", "Bearer "+bearer.Reveal())
	web := newHTTP(tlsConfig(nil, nil)) // its certificate is the world's, not the cluster's
	defer web.CloseIdleConnections()
	resp, err := web.Do(req)
	if err != nil {
		return secret.Text{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := readAnswer(resp.Body, maxTokenFile)
	if err != nil {
		return secret.Text{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return secret.Text{}, errors.New("it answered " + resp.Status)
	}
	var a struct {
		Value string `json:"value"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return secret.Text{}, errors.New("its answer is not JSON")
	}
	return tokenText([]byte(a.Value))
}

func loopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "http" && ip != nil && ip.IsLoopback()
}

// findSPIFFE asks the Workload API for a JWT-SVID with both audiences: such
// tokens are cached and shared, so a method may want either.
func findSPIFFE(c *Client) func(context.Context) (secret.Text, error) {
	socket := c.getenv("SPIFFE_ENDPOINT_SOCKET")
	if socket == "" {
		return nil
	}
	return func(ctx context.Context) (secret.Text, error) {
		plain, bound, err := c.audience(ctx)
		if err != nil {
			return secret.Text{}, err
		}
		ctx, cancel := context.WithTimeout(ctx, evidenceTimeout)
		defer cancel()
		svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: bound, ExtraAudiences: []string{plain}}, workloadapi.WithAddr(socket))
		if err != nil {
			return secret.Text{}, broken("the SPIFFE Workload API", err)
		}
		return secret.New(svid.Marshal()), nil
	}
}
