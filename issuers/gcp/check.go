package gcp

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/scope"
)

const (
	// checkName is the id of a check's identity token.
	checkName = "mayfly-check"
	// checkLife is how long the token of a check lives, in nobody's hands.
	checkLife = time.Minute
	// checkPlace is what that token may read, where the target names no bucket.
	checkPlace = "gs://mayfly-check/mayfly-check"
)

// Check implements [issuers.Checker]. It makes a token that can read one object
// of no meaning, and drops it.
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	if err := is.Usable(); err != nil {
		return nil, err
	}
	documents := is.Provider.CheckDocuments(ctx, is.HTTP, "Google", "identity.issuer", is.spec.STSEndpoint == stsEndpoint)
	out := []issuers.Finding{documents}
	cut, err := is.checkBoundary()
	if err != nil {
		return nil, federation.Refused("%v", err)
	}
	var failed error
	now := time.Now()
	_, _ = is.token(ctx, ask{name: checkName, boundary: cut, end: now.Add(checkLife), deadline: now.Add(federation.CallTimeout)}, func(step string, j *federation.Journey, err error) {
		if j != nil && j.Dated && step == stepExchange {
			out = append(out, federation.Skew("Google", j.Ahead, j.Unsure))
		}
		f := issuers.Finding{Name: step, OK: true, Detail: does[step]}
		if err != nil {
			failed = err
			f = federation.Failed(step, err, is.fixFor(err))
			// A target that is not written yet has published no key.
			f.Warning = step == stepExchange && !documents.OK && issuers.KindOf(err) == issuers.Refused
		}
		out = append(out, f)
	})
	if failed != nil && !federation.IsAnswer(failed) {
		return nil, failed
	}
	return out, nil
}

var does = map[string]string{
	stepExchange:    "the workload identity provider takes this target's token",
	stepImpersonate: "the service account's tokens can be made",
	stepNarrow:      "they can be narrowed",
}

// checkBoundary is the boundary of a token that is of no use.
func (is *Issuer) checkBoundary() (string, error) {
	at := checkPlace
	if len(is.spec.Resources) > 0 {
		at = strings.TrimSuffix(is.spec.Resources[0], "*")
		if at != is.spec.Resources[0] {
			at += "mayfly-check"
		}
	}
	return is.spec.compile(scope.Scope{{Type: scopeType, Actions: []string{actionGet}, Locations: []string{at}}})
}

// fixFor is the command that mends what Google answered, where one does.
func (is *Issuer) fixFor(err error) string {
	m := providerPattern.FindStringSubmatch(is.spec.Provider)
	switch c := codeOf(err); {
	case c.step == stepExchange && (c.code == "invalid_target" || c.code == "invalid_grant"):
		verb := "create-oidc"
		if c.code == "invalid_grant" { // it is there, and looked at the token
			verb = "update-oidc"
		}
		return fmt.Sprintf("gcloud iam workload-identity-pools providers %s %s --project=%s --location=global --workload-identity-pool=%s --issuer-uri=%s --allowed-audiences=%s --attribute-mapping=google.subject=assertion.sub --attribute-condition=%s",
			verb, m[3], m[1], m[2], federation.Quote(is.Provider.Issuer), federation.Quote(is.Provider.Audience), federation.Quote(fmt.Sprintf("assertion.sub=='%s'", is.Provider.Subject)))
	case c.step == stepImpersonate && c.code == "PERMISSION_DENIED":
		return fmt.Sprintf("gcloud iam service-accounts add-iam-policy-binding %s --role=roles/iam.workloadIdentityUser --member=%s", is.spec.ServiceAccount,
			federation.Quote(fmt.Sprintf("principal://iam.googleapis.com/projects/%s/locations/global/workloadIdentityPools/%s/subject/%s", m[1], m[2], is.Provider.Subject)))
	}
	return ""
}
