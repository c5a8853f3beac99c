package azure

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

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	// early is how long before its making a SAS begins: Azure's clocks differ.
	early    = time.Minute
	maxToken = 32768 // bytes
)

// Issuer mints on one target.
type Issuer struct {
	federation.Issuer
	spec spec
}

// Mint implements [issuers.Issuer]. Each call makes a credential of its own: Azure
// remembers none, so there is no generation to compare with, and a late re-mint
// takes nothing from a newer one (HAZARDS 9).
func (is *Issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	if err := is.Admit(ctx, l, Kind{}.CredentialName(l.ID, l.Generation)); err != nil {
		return none, err
	}
	end := is.expiry(l)
	if !time.Now().Before(end) {
		return none, federation.TooLate("the lease ends within this second")
	}
	g, err := is.spec.compile(l.Scope)
	if err != nil {
		return none, federation.Refused("%v", err)
	}
	ctx, cancel := context.WithDeadline(ctx, l.MintDeadline)
	defer cancel()
	var c issuers.Credential
	if is.spec.Way == wayToken {
		c, err = is.mintToken(ctx, l, g, end)
	} else {
		c, err = is.mintSAS(ctx, l, g, end)
	}
	if err != nil {
		return none, err
	}
	is.Log.Debug("credential made", "name", l.Name, "expires", c.Public["expiration"])
	return c, nil
}

// expiry is when the credential ends: SAS have whole seconds.
func (is *Issuer) expiry(l issuers.Lease) time.Time { return is.Expiry(l).Truncate(time.Second) }

// entraToken is an access token.
type entraToken struct {
	text    secret.Text
	expires time.Time
}

// token has Entra take the target's identity for an access token. The identity is
// worth nothing past the deadline, by Entra's clock (HAZARDS 8).
func (is *Issuer) token(ctx context.Context, name, what string, deadline time.Time) (entraToken, *federation.Journey, error) {
	identity, err := is.Provider.Sign(is.Provider.Claims(name, time.Now(), deadline))
	if err != nil {
		return entraToken{}, nil, federation.Refused("%v", err)
	}
	form := url.Values{"client_id": {is.spec.Client}, "scope": {what}, "grant_type": {"client_credentials"},
		"client_assertion_type": {assertionType}, "client_assertion": {identity.Reveal()}}
	a, j, err := federation.Post(ctx, is.HTTP, stepToken, is.spec.Authority+"/"+is.spec.Tenant+"/oauth2/v2.0/token",
		map[string]string{"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}, form.Encode())
	if err != nil {
		return entraToken{}, j, err
	}
	t, err := readToken(a, deadline)
	return t, j, err
}

// readToken takes Entra's answer if it is a whole token.
func readToken(a federation.Answer, deadline time.Time) (entraToken, error) {
	if a.Status != http.StatusOK {
		return entraToken{}, entraFailure(a, deadline)
	}
	var out struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int64  `json:"expires_in"` // seconds
	}
	if json.Unmarshal(a.Body, &out) != nil || !federation.IsToken(out.AccessToken, maxToken) || out.TokenType != "Bearer" || out.ExpiresIn < 1 || out.ExpiresIn > 1<<20 {
		return entraToken{}, federation.HalfAnswer(stepToken)
	}
	return entraToken{secret.New(out.AccessToken), time.Now().Add(time.Duration(out.ExpiresIn) * time.Second)}, nil
}

// delegate has the storage account make a key that signs until end, and no longer.
func (is *Issuer) delegate(ctx context.Context, t entraToken, start, end time.Time) (delegationKey, error) {
	body := "<?xml version=\"1.0\" encoding=\"utf-8\"?><KeyInfo><Start>" + start.UTC().Format(timeForm) + "</Start><Expiry>" + end.UTC().Format(timeForm) + "</Expiry></KeyInfo>"
	a, _, err := federation.Post(ctx, is.HTTP, stepKey, is.spec.BlobEndpoint+"/?restype=service&comp=userdelegationkey",
		map[string]string{"Content-Type": "application/xml", "Authorization": "Bearer " + t.text.Reveal(), "x-ms-version": version}, body)
	if err != nil {
		return delegationKey{}, err
	}
	return readDelegation(a)
}

// readDelegation takes the storage account's answer if it is a whole key.
func readDelegation(a federation.Answer) (delegationKey, error) {
	if a.Status != http.StatusOK {
		return delegationKey{}, storageFailure(a)
	}
	k, err := readKey(a.Body)
	if err != nil {
		return k, federation.HalfAnswer(stepKey)
	}
	return k, nil
}

func (is *Issuer) mintSAS(ctx context.Context, l issuers.Lease, g grant, end time.Time) (issuers.Credential, error) {
	t, _, err := is.token(ctx, l.Name, storageScope, l.MintDeadline)
	if err != nil {
		return issuers.Credential{}, err
	}
	start := time.Now().Add(-early).Truncate(time.Second)
	k, err := is.delegate(ctx, t, start, end)
	if err != nil {
		return issuers.Credential{}, err
	}
	sas, err := is.spec.sas(g, k, start, end)
	if err != nil {
		return issuers.Credential{}, federation.HalfAnswer(stepKey)
	}
	at := is.spec.BlobEndpoint + "/" + g.container
	if g.path != "" {
		at += (&url.URL{Path: "/" + g.path}).EscapedPath()
	}
	return issuers.Credential{
		Public: map[string]string{"expiration": end.UTC().Format(time.RFC3339), "account": is.spec.Account, "container": g.container, "endpoint": is.spec.BlobEndpoint},
		Secret: map[string]secret.Text{"sas_token": sas, "url": secret.New(at + "?" + sas.Reveal())},
		Env:    map[string]string{"AZURE_STORAGE_ACCOUNT": "account", "AZURE_STORAGE_SAS_TOKEN": "sas_token"},
	}, nil
}

// mintToken delivers a token only if it ends by itself before its lease does: its
// life is Entra's to choose, and nothing can end it.
func (is *Issuer) mintToken(ctx context.Context, l issuers.Lease, g grant, end time.Time) (issuers.Credential, error) {
	t, _, err := is.token(ctx, l.Name, g.resource+"/.default", l.MintDeadline)
	if err != nil {
		return issuers.Credential{}, err
	}
	if t.expires.After(end) {
		return issuers.Credential{}, federation.Refused("%s: Entra's token lives until %s, longer than its lease (%s), and is not delivered: ask for a longer lease (Entra's live 60 to 90 minutes), or give the application a token lifetime policy",
			stepToken, t.expires.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339))
	}
	return issuers.Credential{
		Public: map[string]string{"expiration": t.expires.UTC().Truncate(time.Second).Format(time.RFC3339), "token_type": "Bearer", "resource": g.resource},
		Secret: map[string]secret.Text{"access_token": t.text},
	}, nil
}

// Withdraw has nothing to ask: Azure takes back no single SAS, and no token. Each
// ends with the lease's first end, and the receipt says so (HAZARDS 18). It never
// fails, also on a lease that was never minted.
func (is *Issuer) Withdraw(_ context.Context, leases []issuers.Lease) []issuers.Outcome {
	what := "Azure revokes a SAS only with all others of its storage account"
	if is.spec.Way == wayToken {
		what = "Entra revokes no access token"
	}
	out := make([]issuers.Outcome, len(leases))
	for n, l := range leases {
		out[n].Receipt = issuers.Receipt{Proof: issuers.ProofExpiresOnly, Detail: fmt.Sprintf("nothing to ask: %s; what was delivered ends by %s", what, is.expiry(l).UTC().Format(time.RFC3339))}
	}
	return out
}
