package gcp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
)

// The three questions of a mint, by their names in Google's own words.
const (
	stepExchange    = "token exchange"
	stepImpersonate = "generateAccessToken"
	stepNarrow      = "access boundary"
)

// verdict is what an answer means.
type verdict struct {
	kind issuers.ErrorKind
	hint string
}

// verdicts are the codes of STS (RFC 6749 §5.2, RFC 8693 §2.2.2) and of Google's
// APIs (google.rpc.Code), by step. With each of them nothing was done.
var verdicts = map[string]map[string]verdict{
	stepExchange: {
		"invalid_grant":       {issuers.Refused, "the provider does not take the target's token: its issuer, audience or keys, or a clock, are not what it expects"},
		"invalid_target":      {issuers.Refused, "the workload identity provider does not exist, is disabled or deleted"},
		"invalid_request":     {issuers.Refused, "STS does not take the request"},
		"unauthorized_client": {issuers.Refused, "the provider's attribute condition turns the target away"},
		"access_denied":       {issuers.Refused, "an organisation's policy forbids it"},
	},
	stepImpersonate: {
		"PERMISSION_DENIED":   {issuers.Refused, "the target's principal may not make tokens of the service account, which needs roles/iam.workloadIdentityUser on it, or the API is not enabled"},
		"NOT_FOUND":           {issuers.Refused, "the service account does not exist"},
		"UNAUTHENTICATED":     {issuers.Refused, "IAM does not take the federated token"},
		"INVALID_ARGUMENT":    {issuers.Refused, "IAM does not take the request"},
		"FAILED_PRECONDITION": {issuers.Refused, "the service account is disabled, or a policy forbids it"},
	},
	stepNarrow: {
		"invalid_grant":   {issuers.Refused, "STS does not take the service account's token"},
		"invalid_request": {issuers.BadScope, "Google does not take the scope as an access boundary; some bucket or condition is none that it knows"},
	},
}

// refusal is an error as STS or as Google's APIs write it.
type refusal struct {
	Error            json.RawMessage `json:"error"`
	ErrorDescription string          `json:"error_description"`
}

// read returns code and message.
func (r refusal) read() (code, message string) {
	if json.Unmarshal(r.Error, &code) == nil {
		return code, r.ErrorDescription
	}
	var status struct {
		Status  string `json:"status"`
		Message string `json:"message"`
	}
	if json.Unmarshal(r.Error, &status) != nil {
		return "", ""
	}
	return status.Status, status.Message
}

// failure classifies an answer that is no success by its code, never by its text.
func failure(step string, a federation.Answer, deadline time.Time) *issuers.Error {
	var r refusal
	_ = json.Unmarshal(a.Body, &r) // what cannot be read has no code
	code, message := r.read()
	v, known := verdicts[step][code]
	switch {
	case a.Status == http.StatusTooManyRequests || code == "RESOURCE_EXHAUSTED":
		v = verdict{issuers.Unreachable, "Google takes no more requests for the moment"}
	case a.Status < 400 || a.Status > 499 || code == "":
		// A fault of its own, or no refusal of Google's at all: it may have acted.
		v = verdict{issuers.Unknown, "Google failed"}
	case code == "invalid_grant" && step == stepExchange && !time.Now().Before(deadline):
		v = verdict{issuers.TooLate, "the identity token ended before STS looked at it, by its clock"}
	case !known:
		v = verdict{issuers.Refused, "Google refuses"}
	}
	return &issuers.Error{Kind: v.kind, Detail: fmt.Sprintf("%s: %s (%s)", step, v.hint, federation.OneLine(message)), Err: answerCode{step, federation.OneLine(code), a.Status}}
}

// answerCode is the code of an answer that was no token.
type answerCode struct {
	step, code string
	status     int
}

// Error implements error.
func (c answerCode) Error() string { return fmt.Sprintf("Google answered %d %s", c.status, c.code) }

// codeOf is the code in an error's chain.
func codeOf(err error) answerCode {
	var c answerCode
	_ = errors.As(err, &c) // the zero value is none
	return c
}
