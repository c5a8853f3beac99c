package aws

import (
	"time"

	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/secret"
)

// claims are a web identity token's. AWS reads the last two.
type claims struct {
	federation.Claims
	// Tags and SourceIdentity as in "Passing session tags using
	// AssumeRoleWithWebIdentity" of the IAM user guide.
	Tags           *tagClaim `json:"https://aws.amazon.com/tags,omitempty"`
	SourceIdentity string    `json:"https://aws.amazon.com/source_identity,omitempty"`
}

type tagClaim struct {
	Principal map[string][]string `json:"principal_tags"`
}

// identityToken signs a web identity token that STS refuses past the deadline, by
// its own clock (HAZARDS 8).
func identityToken(p *federation.Provider, a ask, now time.Time) (secret.Text, error) {
	c := claims{Claims: p.Claims(a.name, now, a.deadline), SourceIdentity: a.source}
	if len(a.tags) > 0 {
		c.Tags = &tagClaim{map[string][]string{}}
		for _, t := range a.tags {
			c.Tags.Principal[t.key] = []string{t.value}
		}
	}
	return p.Sign(c)
}
