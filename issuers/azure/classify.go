package azure

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
)

// The questions of a mint.
const (
	stepToken = "Entra token"
	stepKey   = "user delegation key"
)

// verdict is what an answer means.
type verdict struct {
	kind issuers.ErrorKind
	hint string
}

// entraVerdicts are the codes of the token endpoint (RFC 6749 §5.2).
var entraVerdicts = map[string]verdict{
	"invalid_client":          {issuers.Refused, "the application does not take the target's token: it lacks a federated credential with this issuer, subject and audience, or the keys could not be fetched"},
	"unauthorized_client":     {issuers.Refused, "the application does not exist in the tenant, or is disabled"},
	"invalid_request":         {issuers.Refused, "Entra does not take the request"},
	"invalid_scope":           {issuers.Refused, "the resource is none that the tenant knows"},
	"invalid_resource":        {issuers.Refused, "the resource is none that the tenant knows"},
	"temporarily_unavailable": {issuers.Unreachable, "Entra takes no more requests for the moment"},
}

// storageVerdicts are the codes of Blob Storage.
var storageVerdicts = map[string]verdict{
	"AuthorizationPermissionMismatch": {issuers.Refused, "the application may not make user delegation keys: it needs the role Storage Blob Delegator on the account"},
	"AuthorizationFailure":            {issuers.Refused, "the account's firewall turns the broker away, or the application lacks its rights"},
	"AuthenticationFailed":            {issuers.Refused, "the account does not take the token: it belongs to another tenant, or a clock is off"},
	"InvalidAuthenticationInfo":       {issuers.Refused, "the account does not take the token"},
	"InvalidXmlNodeValue":             {issuers.Refused, "the account does not take the key's times"},
	"ServerBusy":                      {issuers.Unreachable, "the storage account takes no more requests for the moment"},
}

// entraFailure classifies an answer of the token endpoint by its code.
func entraFailure(a federation.Answer, deadline time.Time) *issuers.Error {
	var r struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(a.Body, &r) // what cannot be read has no code
	v, known := entraVerdicts[r.Error]
	switch {
	case a.Status == http.StatusTooManyRequests:
		v = verdict{issuers.Unreachable, "Entra takes no more requests for the moment"}
	case known && v.kind == issuers.Unreachable:
	case a.Status < 400 || a.Status > 499 || r.Error == "":
		v = verdict{issuers.Unknown, "Entra failed"}
	case r.Error == "invalid_client" && !time.Now().Before(deadline):
		v = verdict{issuers.TooLate, "the identity token ended before Entra looked at it, by its clock"}
	case !known:
		v = verdict{issuers.Refused, "Entra refuses"}
	}
	return failure(stepToken, v, r.Description, r.Error, a.Status)
}

// storageFailure classifies an answer of the storage account by its code.
func storageFailure(a federation.Answer) *issuers.Error {
	var r struct {
		XMLName xml.Name `xml:"Error"`
		Code    string   `xml:"Code"`
		Message string   `xml:"Message"`
	}
	_ = xml.Unmarshal(a.Body, &r) // what cannot be read has no code
	v, known := storageVerdicts[r.Code]
	switch {
	case a.Status == http.StatusTooManyRequests:
		v = verdict{issuers.Unreachable, "the storage account takes no more requests for the moment"}
	case known && v.kind == issuers.Unreachable:
	case a.Status < 400 || a.Status > 499 || r.Code == "":
		v = verdict{issuers.Unknown, "the storage account failed"}
	case !known:
		v = verdict{issuers.Refused, "the storage account refuses"}
	}
	return failure(stepKey, v, r.Message, r.Code, a.Status)
}

func failure(step string, v verdict, message, code string, status int) *issuers.Error {
	return &issuers.Error{Kind: v.kind, Detail: fmt.Sprintf("%s: %s (%s)", step, v.hint, federation.OneLine(message)), Err: answerCode{federation.OneLine(code), status}}
}

// answerCode is the code of an answer that was no success.
type answerCode struct {
	code   string
	status int
}

// Error implements error.
func (c answerCode) Error() string { return fmt.Sprintf("Azure answered %d %s", c.status, c.code) }

// codeOf is the code in an error's chain.
func codeOf(err error) string {
	var c answerCode
	_ = errors.As(err, &c) // the zero value is none
	return c.code
}
