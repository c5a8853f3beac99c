package gcp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/secret"
)

// Words of RFC 8693 and of Google's.
const (
	grantExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
	// scopeCloud is what the token that is narrowed must have been made for.
	scopeCloud = "https://www.googleapis.com/auth/cloud-platform"
)

const (
	// longestWay is how long a question may take until the token that it makes would
	// outlive its lease: Google counts a lifetime from when it answers.
	longestWay = 10 * time.Second
	minToken   = 8     // bytes; no token is so short
	maxToken   = 16384 // bytes
)

// Issuer mints on one target.
type Issuer struct {
	federation.Issuer
	spec spec
}

// Mint implements [issuers.Issuer]. Each call makes a token of its own: Google
// remembers none, so there is no generation to compare with, and a late re-mint
// takes nothing from a newer one (HAZARDS 9).
func (is *Issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	if err := is.Admit(ctx, l, Kind{}.CredentialName(l.ID, l.Generation)); err != nil {
		return none, err
	}
	cut, err := is.spec.compile(l.Scope)
	if err != nil {
		return none, federation.Refused("%v", err)
	}
	ctx, cancel := context.WithDeadline(ctx, l.MintDeadline)
	defer cancel()
	t, err := is.token(ctx, ask{name: l.Name, boundary: cut, end: is.Expiry(l), deadline: l.MintDeadline}, nil)
	if err != nil {
		return none, err
	}
	is.Log.Debug("token made", "name", l.Name, "expires", t.expires)
	return is.deliver(t), nil
}

// ask is one token to make.
type ask struct {
	name, boundary string
	end, deadline  time.Time
}

// token is one that Google made.
type token struct {
	text    secret.Text
	expires time.Time
}

// token goes the whole way: identity, federated token, the service account's, and
// that one narrowed. Nothing but the last leaves this function. step hears of each
// step as it ends.
func (is *Issuer) token(ctx context.Context, a ask, step func(name string, j *federation.Journey, err error)) (token, error) {
	if step == nil {
		step = func(string, *federation.Journey, error) {}
	}
	if a.boundary == "" { // without one it would be all that the account may do
		return token{}, federation.Refused("no access boundary was made; nothing was asked of Google")
	}
	federated, j, err := is.exchange(ctx, a)
	step(stepExchange, j, err)
	if err != nil {
		return token{}, err
	}
	wide, j, err := is.impersonate(ctx, a, federated)
	step(stepImpersonate, j, err)
	if err != nil {
		return token{}, err
	}
	narrow, j, err := is.narrow(ctx, a, wide)
	step(stepNarrow, j, err)
	return narrow, err
}

// stsAnswer is what STS answers (RFC 8693 §2.2.1).
type stsAnswer struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
}

// exchange has STS take the target's identity for a federated token. The identity
// is worth nothing past the mint deadline, by Google's clock (HAZARDS 8).
func (is *Issuer) exchange(ctx context.Context, a ask) (secret.Text, *federation.Journey, error) {
	identity, err := is.Provider.Sign(is.Provider.Claims(a.name, time.Now(), a.deadline))
	if err != nil {
		return secret.Text{}, nil, federation.Refused("%v", err)
	}
	out, j, err := is.askSTS(ctx, stepExchange, a.deadline, url.Values{
		"grant_type": {grantExchange}, "audience": {is.spec.audience()}, "scope": {scopeCloud}, "requested_token_type": {typeAccessToken},
		"subject_token": {identity.Reveal()}, "subject_token_type": {typeJWT},
	})
	return secret.New(out.AccessToken), j, err
}

// narrow has STS cut a token down to the boundary.
func (is *Issuer) narrow(ctx context.Context, a ask, wide token) (token, *federation.Journey, error) {
	out, j, err := is.askSTS(ctx, stepNarrow, a.deadline, url.Values{
		"grant_type": {grantExchange}, "requested_token_type": {typeAccessToken}, "subject_token": {wide.text.Reveal()},
		"subject_token_type": {typeAccessToken}, "options": {a.boundary},
	})
	if err != nil {
		return token{}, j, err
	}
	if secret.New(out.AccessToken).Equal(wide.text) {
		return token{}, j, &issuers.Error{Kind: issuers.Unknown, Detail: stepNarrow + ": the answer is the token that was to be narrowed; it is not delivered"}
	}
	expires := wide.expires
	if t := time.Now().Add(time.Duration(out.ExpiresIn) * time.Second); out.ExpiresIn > 0 && t.Before(expires) {
		expires = t
	}
	return token{secret.New(out.AccessToken), expires}, j, nil
}

func (is *Issuer) askSTS(ctx context.Context, step string, deadline time.Time, form url.Values) (stsAnswer, *federation.Journey, error) {
	var out stsAnswer
	a, j, err := federation.Post(ctx, is.HTTP, step, is.spec.STSEndpoint+"/v1/token",
		map[string]string{"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}, form.Encode())
	if err != nil {
		return out, j, err
	}
	if a.Status != http.StatusOK {
		return out, j, failure(step, a, deadline)
	}
	if json.Unmarshal(a.Body, &out) != nil || !federation.IsToken(out.AccessToken, maxToken) || out.TokenType != "Bearer" {
		return stsAnswer{}, j, federation.HalfAnswer(step)
	}
	return out, j, nil
}

// impersonate has IAM make the service account's token, which ends before the lease.
func (is *Issuer) impersonate(ctx context.Context, a ask, federated secret.Text) (token, *federation.Journey, error) {
	left := time.Until(a.end)
	seconds := int64((left - min(longestWay, left/4)) / time.Second)
	if seconds < 1 {
		return token{}, nil, federation.TooLate("the lease ends before a token could be made")
	}
	body, err := json.Marshal(map[string]any{"scope": []string{scopeCloud}, "lifetime": fmt.Sprintf("%ds", min(seconds, 3600))})
	if err != nil {
		return token{}, nil, federation.Refused("%v", err)
	}
	where := is.spec.IAMEndpoint + "/v1/projects/-/serviceAccounts/" + url.PathEscape(is.spec.ServiceAccount) + ":generateAccessToken"
	answer, j, err := federation.Post(ctx, is.HTTP, stepImpersonate, where,
		map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + federated.Reveal()}, string(body))
	if err != nil {
		return token{}, j, err
	}
	if answer.Status != http.StatusOK {
		return token{}, j, failure(stepImpersonate, answer, a.deadline)
	}
	var out struct {
		AccessToken string    `json:"accessToken"`
		ExpireTime  time.Time `json:"expireTime"`
	}
	if json.Unmarshal(answer.Body, &out) != nil || !federation.IsToken(out.AccessToken, maxToken) || out.ExpireTime.IsZero() {
		return token{}, j, federation.HalfAnswer(stepImpersonate)
	}
	expires := out.ExpireTime
	if j.Dated && j.Ahead.Abs() > j.Unsure { // by our clock, which is the lease's
		expires = expires.Add(-j.Ahead)
	}
	if expires.After(a.end) {
		return token{}, j, &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("%s: its token would end at %s, after its lease; it is not delivered", stepImpersonate, expires.UTC().Format(time.RFC3339))}
	}
	return token{secret.New(out.AccessToken), expires}, j, nil
}

// deliver returns what the client gets.
func (is *Issuer) deliver(t token) issuers.Credential {
	return issuers.Credential{
		Public: map[string]string{
			"expiration": t.expires.UTC().Truncate(time.Second).Format(time.RFC3339), "token_type": "Bearer", "service_account": is.spec.ServiceAccount,
		},
		Secret: map[string]secret.Text{"access_token": t.text},
		Env:    map[string]string{"CLOUDSDK_AUTH_ACCESS_TOKEN": "access_token", "GOOGLE_OAUTH_ACCESS_TOKEN": "access_token"},
	}
}

// Withdraw has nothing to ask: Google takes no such token back. It ends with the
// lease's first end, and the receipt says so (HAZARDS 18). It never fails, also on
// a lease that was never minted.
func (is *Issuer) Withdraw(_ context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	for n, l := range leases {
		out[n].Receipt = issuers.Receipt{
			Proof:  issuers.ProofExpiresOnly,
			Detail: "nothing to ask: Google revokes no single token of a service account; what was delivered ends by " + is.Expiry(l).UTC().Format(time.RFC3339),
		}
	}
	return out
}
