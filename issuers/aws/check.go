package aws

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
)

const (
	// checkPolicy is the session policy of the sessions that a check opens: it
	// allows nothing, and what no statement allows is denied.
	checkPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"s3:*","Resource":"*"}]}`
	// checkName is the name of those sessions.
	checkName = "mayfly-check"
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
		f := is.provider.CheckDocuments(ctx, is.sts.http, "AWS", "web_identity.issuer", is.spec.Endpoint == "")
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
	s, j, err := is.open(ctx, ask{name: checkName, policy: checkPolicy, duration: minSession, deadline: time.Now().Add(federation.CallTimeout)})
	if err != nil && !isAnswer(err) {
		return nil, err
	}
	if j.Dated {
		out = append(out, federation.Skew("STS", j.Ahead, j.Unsure))
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
	return federation.OneLine(err.Error())
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
	ctx, cancel := context.WithTimeout(ctx, federation.CallTimeout)
	defer cancel()
	ctx, j := federation.Travel(ctx)
	out, err := is.sts.sts.GetCallerIdentity(ctx, nil, func(o *sts.Options) {
		if as != nil {
			o.Credentials = as
		}
	})
	if err != nil {
		return "", failure("GetCallerIdentity", err, j)
	}
	return federation.OneLine(sdk.ToString(out.Arn)), nil
}

// unsupported says whether an endpoint did not know a question, rather than
// refuse it: its code is none of STS's own.
func unsupported(err error) bool {
	code := codeOf(err)
	_, known := verdicts[string(code)]
	return code != "" && !known
}
