package jwt

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// claims are a token's (RFC 9068 §2.2). Every one is derived from the lease, so
// that a retry says the same.
type claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	ClientID  string   `json:"client_id"`
	IssuedAt  int64    `json:"iat"`
	NotBefore int64    `json:"nbf"`
	Expires   int64    `json:"exp"`
	ID        string   `json:"jti"`
	// Scope is space-delimited (RFC 8693 §4.2); absent when the lease's scope
	// names no privileges.
	Scope   string        `json:"scope,omitempty"`
	Task    string        `json:"task,omitempty"`
	Actor   *actor        `json:"act,omitempty"`
	Confirm *confirmation `json:"cnf,omitempty"`
	Details scope.Scope   `json:"authorization_details"`
}

// audience is a string when there is one, which some verifiers insist on, and
// an array otherwise (RFC 7519 §4.1.3).
type audience []string

// MarshalJSON implements [json.Marshaler].
func (a audience) MarshalJSON() ([]byte, error) {
	if len(a) == 1 {
		return json.Marshal(a[0])
	}
	return json.Marshal([]string(a))
}

// actor is one link of the delegation chain (RFC 8693 §4.1): the outermost is
// the current actor, the ones inside are history.
type actor struct {
	Subject string `json:"sub"`
	Actor   *actor `json:"act,omitempty"`
}

// confirmation binds the token to a key (RFC 9449 §6.1).
type confirmation struct {
	JKT string `json:"jkt"`
}

// claimsOf derives a lease's claims for the issuer URL iss. maxTTL caps the
// token's life from the lease's start on.
func claimsOf(iss string, l issuers.Lease, granted scope.Scope, maxTTL time.Duration) (claims, error) {
	detail := granted[0]
	c := claims{
		Issuer:    iss,
		Subject:   l.Principal,
		Audience:  detail.Locations,
		ClientID:  l.Principal,
		IssuedAt:  l.NotBefore.Unix(),
		NotBefore: l.NotBefore.Unix(),
		Expires:   expiry(l, maxTTL).Unix(),
		ID:        l.Name,
		Scope:     strings.Join(detail.Privileges, " "),
		Task:      l.TaskID,
		Details:   granted,
	}
	if err := checkText("principal", l.Principal); err != nil {
		return c, err
	}
	if l.TaskID != "" {
		if err := checkText("task", l.TaskID); err != nil {
			return c, err
		}
	}
	if len(l.Chain) > maxChain {
		return c, fmt.Errorf("chain: %d actors; at most %d are allowed", len(l.Chain), maxChain)
	}
	for i := len(l.Chain) - 1; i >= 0; i-- {
		if err := checkText("chain", l.Chain[i]); err != nil {
			return c, err
		}
		c.Actor = &actor{Subject: l.Chain[i], Actor: c.Actor}
		c.ClientID = l.Chain[i] // ends as the outermost: the one that asks
	}
	if len(l.PublicKey) > 0 {
		jkt, err := bindingOf(l.PublicKey)
		if err != nil {
			return c, err
		}
		c.Confirm = &confirmation{JKT: jkt}
	}
	return c, nil
}

// expiry is when the token ends: never after its lease, in whole seconds.
func expiry(l issuers.Lease, maxTTL time.Duration) time.Time {
	end := l.NotAfter
	if capped := l.NotBefore.Add(maxTTL); capped.Before(end) {
		end = capped
	}
	return end.Truncate(time.Second)
}

// checkText refuses what would read differently to a person, a log and a
// verifier: encoding/json turns every invalid byte into the same U+FFFD, which
// would give two principals one name.
func checkText(field, s string) error {
	if s == "" || len(s) > maxTextBytes || !utf8.ValidString(s) {
		return fmt.Errorf("%s: 1 to %d bytes of UTF-8 are allowed", field, maxTextBytes)
	}
	for _, r := range s {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return fmt.Errorf("%s: control and formatting characters are not allowed", field)
		}
	}
	return nil
}
