package aws

import (
	"fmt"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers/federation"
)

// The commands that give the broker what it lacks, for the account's administrator.

// providerName is how IAM names the identity provider: its URL without scheme.
func providerName(p *federation.Provider) string { return strings.TrimPrefix(p.Issuer, "https://") }

func (is *Issuer) fixProvider() string {
	return fmt.Sprintf("aws iam create-open-id-connect-provider --url %s --client-id-list %s", quote(is.provider.Issuer), quote(is.provider.Audience))
}

// trustStatement is what the role's trust policy must allow. Without the
// condition on sub, whoever gets a token of the same issuer would be the broker.
func (is *Issuer) trustStatement(broker string) map[string]any {
	actions := []string{"sts:" + actions[is.spec.Way]}
	if is.spec.Tags {
		actions = append(actions, "sts:TagSession")
	}
	if is.spec.SourceIdentity {
		actions = append(actions, "sts:SetSourceIdentity")
	}
	s := map[string]any{"Effect": "Allow", "Action": actions}
	switch {
	case is.provider != nil:
		name := providerName(is.provider)
		s["Principal"] = map[string]string{"Federated": fmt.Sprintf("arn:%s:iam::%s:oidc-provider/%s", is.spec.role.partition, is.spec.role.account, name)}
		s["Condition"] = map[string]any{"StringEquals": map[string]string{name + ":aud": is.provider.Audience, name + ":sub": is.provider.Subject}}
	default:
		s["Principal"] = map[string]string{"AWS": broker}
		if is.spec.ExternalID != "" {
			s["Condition"] = map[string]any{"StringEquals": map[string]string{"sts:ExternalId": is.spec.ExternalID}}
		}
	}
	return s
}

// fixTrust is the command that writes the role's trust policy. broker is the ARN
// of the broker's own user, where it is known.
func (is *Issuer) fixTrust(broker string) string {
	if is.spec.Way == wayFederation {
		return `aws iam put-user-policy --user-name USER --policy-name mayfly --policy-document '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:GetFederationToken","Resource":"*"}]}'`
	}
	if broker == "" {
		broker = "ARN-OF-THE-BROKERS-USER"
	}
	doc, err := marshal(map[string]any{"Version": "2012-10-17", "Statement": []any{is.trustStatement(broker)}})
	if err != nil {
		return ""
	}
	role := is.spec.role.resource[strings.LastIndexByte(is.spec.role.resource, '/')+1:]
	return fmt.Sprintf("aws iam update-assume-role-policy --role-name %s --policy-document %s", quote(role), quote(string(doc)))
}

// quote quotes for any POSIX shell: nothing is special within ' but '.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
