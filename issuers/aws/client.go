package aws

import (
	"context"
	"fmt"
	"net/http"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/secret"
)

// client asks one STS. It knows no credentials but those of the target: the SDK's
// ambient chain (environment, files, instance metadata) is in another package,
// which is not imported.
type client struct {
	sts  *sts.Client
	http *http.Client
}

func newClient(sp spec, key secret.Text) (*client, error) {
	roots, err := federation.Roots(sp.TLS.CA, sp.TLS.CAFile)
	if err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	hc := federation.NewHTTP(roots)
	o := sts.Options{
		Region: sp.Region, HTTPClient: hc,
		// One attempt: whether anything was sent, and by when, is ours to say.
		Retryer: sdk.NopRetryer{}, RetryMaxAttempts: 1,
		Credentials: sdk.AnonymousCredentials{},
	}
	if sp.Way != wayWebIdentity {
		o.Credentials = static(sdk.Credentials{AccessKeyID: sp.Admin.Username, SecretAccessKey: key.Reveal()})
	}
	if sp.Endpoint != "" {
		o.BaseEndpoint = sdk.String(sp.Endpoint)
	}
	if sp.FIPS {
		o.EndpointOptions.UseFIPSEndpoint = sdk.FIPSEndpointStateEnabled
	}
	return &client{sts: sts.New(o), http: hc}, nil
}

func static(c sdk.Credentials) sdk.CredentialsProvider {
	return sdk.CredentialsProviderFunc(func(context.Context) (sdk.Credentials, error) { return c, nil })
}
