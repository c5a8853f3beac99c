package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
)

const (
	// checkPolicy is the session policy of the sessions that a check opens: it
	// allows nothing, and what no statement allows is denied.
	checkPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"s3:*","Resource":"*"}]}`
	// checkName is the name of those sessions.
	checkName = "mayfly-check"
	// maxSkew is how far clocks may differ before a person should look. Identity
	// tokens live as long as a mint may take; STS takes signatures for minutes.
	maxSkew = 5 * time.Second
)

// Check implements [issuers.Checker]. It opens a session that may do nothing.
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	if is.closed.Load() {
		return nil, refused("the issuer is closed")
	}
	var out []issuers.Finding
	var broker string
	published := true
	if is.provider != nil {
		f := is.checkDocuments(ctx)
		published = f.OK
		out = append(out, f)
	} else {
		f, who, err := is.checkKey(ctx)
		if err != nil {
			return nil, err
		}
		broker = who
		out = append(out, f)
		if !f.OK && !f.Warning {
			return out, nil // whatever follows would only say so again
		}
	}
	s, j, err := is.open(ctx, ask{name: checkName, policy: checkPolicy, duration: minSession, deadline: time.Now().Add(callTimeout)})
	if err != nil && !isAnswer(err) {
		return nil, err
	}
	if j.dated {
		out = append(out, skew(j.ahead, j.unsure))
	}
	f := issuers.Finding{Name: actions[is.spec.Way], OK: err == nil, Detail: "a session that may do nothing was opened"}
	if err != nil {
		f.Detail = detailOf(err)
		f.Fix = is.fixFor(err, broker)
		// A target that is not written yet has published no key.
		f.Warning = !published && issuers.KindOf(err) == issuers.Refused
		return append(out, f), nil
	}
	return append(out, f, is.checkSession(ctx, s)), nil
}

// isAnswer says whether STS itself said no.
func isAnswer(err error) bool {
	k := issuers.KindOf(err)
	return k != issuers.Unreachable && k != issuers.Unknown
}

func detailOf(err error) string {
	var e *issuers.Error
	if errors.As(err, &e) {
		return e.Detail
	}
	return oneLine(err.Error())
}

// fixFor is the command that mends what STS answered, where one does.
func (is *Issuer) fixFor(err error, broker string) string {
	switch codeOf(err) {
	case "InvalidIdentityToken", "IDPRejectedClaim":
		return is.fixProvider()
	case "AccessDenied", "AccessDeniedException":
		return is.fixTrust(broker)
	}
	return ""
}

// checkKey asks who the broker is. Some systems that speak STS's protocol do not
// know the question; then the session that follows is the proof.
func (is *Issuer) checkKey(ctx context.Context) (issuers.Finding, string, error) {
	f := issuers.Finding{Name: "access key"}
	who, err := is.whoami(ctx, nil)
	switch {
	case err == nil:
		f.OK, f.Detail = true, who
		if strings.HasSuffix(who, ":root") {
			f.OK, f.Warning = false, true
			f.Detail = "it is the account's root user: whoever steals it has everything; make a user that may do " + actions[is.spec.Way] + " and nothing else"
		}
	case unsupported(err):
		f.OK, f.Detail = true, "this endpoint does not tell whose it is (no GetCallerIdentity)"
	case !isAnswer(err):
		return f, "", err
	default:
		f.Detail = detailOf(err)
	}
	return f, who, nil
}

// checkSession looks at the session that was opened, from the inside.
func (is *Issuer) checkSession(ctx context.Context, s session) issuers.Finding {
	f := issuers.Finding{Name: "session", OK: true}
	who, err := is.whoami(ctx, static(sdk.Credentials{AccessKeyID: s.keyID, SecretAccessKey: s.secretKey, SessionToken: s.token}))
	switch {
	case err == nil && is.spec.role.account != "" && !strings.Contains(who, ":"+is.spec.role.account+":"):
		f.OK, f.Detail = false, fmt.Sprintf("it is %s, of another account than role_arn's", who)
	case err == nil:
		f.Detail = who
	case unsupported(err):
		f.Detail = "this endpoint does not tell whose it is (no GetCallerIdentity)"
	default:
		f.OK, f.Warning, f.Detail = false, true, detailOf(err)
	}
	return f
}

// whoami asks STS whose a key is: the broker's own where as is nil.
func (is *Issuer) whoami(ctx context.Context, as sdk.CredentialsProvider) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ctx, j := travel(ctx)
	out, err := is.sts.sts.GetCallerIdentity(ctx, nil, func(o *sts.Options) {
		if as != nil {
			o.Credentials = as
		}
	})
	if err != nil {
		return "", failure("GetCallerIdentity", err, j)
	}
	return oneLine(sdk.ToString(out.Arn)), nil
}

// unsupported says whether an endpoint did not know a question, rather than
// refuse it: its code is none of STS's own.
func unsupported(err error) bool {
	code := codeOf(err)
	_, known := verdicts[string(code)]
	return code != "" && !known
}

func skew(ahead, unsure time.Duration) issuers.Finding {
	off := ahead.Abs()-unsure > maxSkew
	f := issuers.Finding{Name: "clock", OK: !off, Warning: off}
	f.Detail = fmt.Sprintf("STS's is %s ahead of this node's", ahead.Round(time.Second))
	if ahead < 0 {
		f.Detail = fmt.Sprintf("STS's is %s behind this node's", (-ahead).Round(time.Second))
	}
	return f
}

// checkDocuments fetches what STS will fetch, from where it will.
func (is *Issuer) checkDocuments(ctx context.Context) issuers.Finding {
	f := issuers.Finding{Name: "identity provider", Warning: true}
	var discovery struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	where := is.provider.issuer + "/.well-known/" + docDiscovery
	if err := is.fetch(ctx, where, &discovery); err != nil {
		f.Detail = fmt.Sprintf("%s: %v; a target that is not written yet publishes nothing: write it, then run target check; STS must be able to fetch it from where it stands", where, err)
		return f
	}
	if u, err := url.Parse(is.provider.issuer); err == nil && u.Port() != "" && is.spec.Endpoint == "" {
		f.Detail = is.provider.issuer + " has a port, which AWS does not take; put the documents at a URL without one and name it in web_identity.issuer"
		return f
	}
	if discovery.Issuer != is.provider.issuer {
		f.Warning, f.Detail = false, fmt.Sprintf("%s names the issuer %q; tokens say %q", where, clip(discovery.Issuer), is.provider.issuer)
		return f
	}
	if discovery.Keys != is.provider.issuer+"/"+docKeys { // nor is anything fetched that a stranger names
		f.Warning, f.Detail = false, fmt.Sprintf("%s names the keys %q; they are published at %s", where, clip(discovery.Keys), is.provider.issuer+"/"+docKeys)
		return f
	}
	var set jose.JSONWebKeySet
	if err := is.fetch(ctx, discovery.Keys, &set); err != nil {
		f.Detail = fmt.Sprintf("%s: %v", clip(discovery.Keys), err)
		return f
	}
	if len(set.Key(is.provider.keys[0].KeyID)) == 0 {
		f.Detail = fmt.Sprintf("%s lacks this target's key; where the documents are copied to a place of their own, copy them again", clip(discovery.Keys))
		return f
	}
	return issuers.Finding{Name: f.Name, OK: true, Detail: is.provider.issuer + " publishes this target's key"}
}

// fetch reads a small JSON document.
func (is *Issuer) fetch(ctx context.Context, where string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := checkIssuer(where); err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return err
	}
	resp, err := is.sts.http.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	if json.Unmarshal(body, into) != nil {
		return errors.New("not the JSON document that it should be")
	}
	return nil
}
