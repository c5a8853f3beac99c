package aws

import (
	"errors"
	"fmt"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
)

// verdict is what an STS error code means.
type verdict struct {
	kind issuers.ErrorKind
	hint string
}

// verdicts are the codes that STS answers with (STS API reference, "Errors" of
// each action and "Common errors"). With each of them it did nothing.
var verdicts = map[string]verdict{
	"AccessDenied":                {issuers.Refused, "the trust policy of the role, or the policies of the broker's own user, do not allow it"},
	"AccessDeniedException":       {issuers.Refused, "the trust policy of the role, or the policies of the broker's own user, do not allow it"},
	"InvalidClientTokenId":        {issuers.Refused, "the broker's access key does not exist or is not active"},
	"InvalidAccessKeyId":          {issuers.Refused, "the broker's access key does not exist or is not active"},
	"UnrecognizedClientException": {issuers.Refused, "the broker's access key does not exist or is not active"},
	"SignatureDoesNotMatch":       {issuers.Refused, "the broker's secret access key does not belong to its access key, or its clock is off"},
	"RequestExpired":              {issuers.Refused, "the broker's clock is off"},
	"RequestTimeTooSkewed":        {issuers.Refused, "the broker's clock is off"},
	"OptInRequired":               {issuers.Refused, "the account is not signed up for this"},
	"RegionDisabledException":     {issuers.Refused, "STS is not active in this region for the account; an administrator activates it under Account settings"},
	"ValidationError":             {issuers.Refused, "a value is not what STS takes; max_ttl may exceed the role's maximum session duration"},

	"InvalidIdentityToken":  {issuers.Refused, "the account has no identity provider for this issuer, or could not verify the token with its published keys"},
	"IDPRejectedClaim":      {issuers.Refused, "the identity provider in IAM does not know the token's audience"},
	"IDPCommunicationError": {issuers.Refused, "STS could not fetch the identity provider's documents; they must be reachable from the Internet under a certificate that AWS trusts"},
	// Ours are never old: the mint deadline passed on STS's clock.
	"ExpiredTokenException": {issuers.TooLate, "the identity token ended before STS looked at it, by its clock"},
	"ExpiredToken":          {issuers.TooLate, "the identity token ended before STS looked at it, by its clock"},

	"MalformedPolicyDocument": {issuers.BadScope, "AWS does not take the scope as a session policy; some action or resource is none that it knows"},
	"PackedPolicyTooLarge":    {issuers.BadScope, "the scope is too long for one session once AWS has packed it; name fewer actions and resources, or ask for two credentials"},

	// Nothing was done, and it may be tried again in a moment.
	"Throttling":               {issuers.Unreachable, "STS takes no more requests of this account for the moment"},
	"ThrottlingException":      {issuers.Unreachable, "STS takes no more requests of this account for the moment"},
	"RequestLimitExceeded":     {issuers.Unreachable, "STS takes no more requests of this account for the moment"},
	"TooManyRequestsException": {issuers.Unreachable, "STS takes no more requests of this account for the moment"},
	"SlowDown":                 {issuers.Unreachable, "STS takes no more requests of this account for the moment"},
}

// failure classifies what a call to STS returned.
func failure(what string, err error, j *federation.Journey) *issuers.Error {
	var mine *issuers.Error
	if errors.As(err, &mine) {
		return mine
	}
	var said smithy.APIError
	if errors.As(err, &said) {
		return answered(what, said, statusOf(err))
	}
	return federation.Unanswered(what, err, j)
}

// answered classifies a refusal of STS by its code, never by its text.
func answered(what string, said smithy.APIError, status int) *issuers.Error {
	v := judge("STS", verdicts, said.ErrorCode(), status)
	return &issuers.Error{Kind: v.kind, Detail: fmt.Sprintf("%s: %s (%s)", what, v.hint, federation.OneLine(said.ErrorMessage())), Err: stsCode(federation.OneLine(said.ErrorCode()))}
}

// judge looks a service's code up.
func judge(service string, known map[string]verdict, code string, status int) verdict {
	v, ok := known[code]
	switch {
	case ok:
	case status < 400 || status > 499 || code == "" || code == "UnknownError":
		// A fault of its own, or no refusal of the service's at all: it may have acted.
		v = verdict{issuers.Unknown, service + " failed"}
	default:
		v = verdict{issuers.Refused, service + " refuses"}
	}
	return v
}

// stsCode is the code of an answer that was no session.
type stsCode string

// Error implements error.
func (c stsCode) Error() string { return "STS answered " + string(c) }

// codeOf is the code in an error's chain; empty where STS gave none.
func codeOf(err error) stsCode {
	var c stsCode
	if errors.As(err, &c) {
		return c
	}
	return ""
}

// statusOf is the HTTP status of an answer; 0 where there was none.
func statusOf(err error) int {
	var r *smithyhttp.ResponseError
	if errors.As(err, &r) {
		return r.HTTPStatusCode()
	}
	return 0
}

func refused(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf(format, args...)}
}

func tooLate(detail string) *issuers.Error {
	return &issuers.Error{Kind: issuers.TooLate, Detail: detail + "; nothing was asked of STS"}
}
