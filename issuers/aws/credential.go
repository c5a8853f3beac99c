package aws

import (
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// deliver returns what the client gets. Its expiration is when it stops being of
// use: the session's own end or the session policy's, whichever comes first.
func (is *Issuer) deliver(s session, end time.Time) issuers.Credential {
	if s.expires.Before(end) {
		end = s.expires
	}
	c := issuers.Credential{
		Public: map[string]string{
			"access_key_id": s.keyID, "expiration": end.UTC().Format(time.RFC3339), "region": is.spec.Region,
		},
		Secret: map[string]secret.Text{"secret_access_key": secret.New(s.secretKey), "session_token": secret.New(s.token)},
		Env: map[string]string{
			"AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key", "AWS_SESSION_TOKEN": "session_token",
			"AWS_REGION": "region", "AWS_DEFAULT_REGION": "region", "AWS_CREDENTIAL_EXPIRATION": "expiration",
		},
	}
	if s.arn != "" {
		c.Public["arn"] = s.arn
	}
	if is.spec.ServiceEndpoint != "" {
		c.Public["endpoint"] = is.spec.ServiceEndpoint
		c.Env["AWS_ENDPOINT_URL"] = "endpoint"
		if is.spec.TLS.CA != "" {
			c.Public["ca"] = is.spec.TLS.CA
		}
	}
	return c
}
