package aws

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"regexp"
	"sync/atomic"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
)

// Issuer mints on one target. Everything but closed is made once, in Open.
type Issuer struct {
	spec     spec
	target   string
	log      *slog.Logger
	sts      *client
	provider *federation.Provider // with way web_identity alone
	closed   atomic.Bool
}

const (
	// minSession is the shortest session that STS opens (AssumeRole,
	// DurationSeconds). A shorter lease is kept by the session policy.
	minSession = 15 * time.Minute
	// maxFederatedName bounds the name of a GetFederationToken session.
	maxFederatedName = 32
)

// session is what STS answered.
type session struct {
	keyID, secretKey, token string
	expires                 time.Time
	arn                     string
}

// tag is a session tag.
type tag struct{ key, value string }

// tagPattern is what AWS takes as a tag's value (AssumeRole, Tag).
var tagPattern = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]{1,256}$`)

// Mint implements [issuers.Issuer]. Each call opens a session of its own: STS
// remembers none, so there is no generation to compare with, and a late re-mint
// takes nothing from a newer one (HAZARDS 9).
func (is *Issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	now, end := time.Now(), is.expiry(l)
	switch {
	case is.closed.Load():
		return none, refused("the issuer is closed")
	case ctx.Err() != nil:
		return none, tooLate("the caller no longer waits")
	case !now.Before(l.MintDeadline):
		return none, tooLate("the mint deadline has passed")
	case !now.Before(end):
		return none, tooLate("the lease, or the target's max_ttl from its start on, has ended")
	case l.Name != Kind{}.CredentialName(l.ID, l.Generation):
		return none, refused("the lease's name is not the one of its id and generation")
	}
	a := ask{name: l.Name, deadline: l.MintDeadline, duration: max(minSession, end.Sub(now))}
	var err error
	if a.policy, err = is.spec.compile(l.Scope, end); err != nil {
		return none, refused("%v", err)
	}
	if a.tags, err = is.tags(l); err != nil {
		return none, refused("%v", err)
	}
	if is.spec.SourceIdentity {
		a.source = "mayfly-" + l.ID
	}
	ctx, cancel := context.WithDeadline(ctx, l.MintDeadline)
	defer cancel()
	s, _, err := is.open(ctx, a)
	if err != nil {
		return none, err
	}
	is.log.Debug("session opened", "name", l.Name, "arn", s.arn, "expires", s.expires)
	return is.deliver(s, end), nil
}

// expiry is when the credential ends: never after its lease, in whole seconds.
func (is *Issuer) expiry(l issuers.Lease) time.Time {
	end := l.NotAfter
	if capped := l.NotBefore.Add(is.spec.maxTTL); capped.Before(end) {
		end = capped
	}
	return end.Truncate(time.Second)
}

// tags are what AWS may decide by, and writes into its records. A value that AWS
// would not take is refused rather than altered: two principals must not share one.
func (is *Issuer) tags(l issuers.Lease) ([]tag, error) {
	if !is.spec.Tags {
		return nil, nil
	}
	out := []tag{{"mayfly:lease", l.ID}, {"mayfly:principal", l.Principal}, {"mayfly:role", l.Role}}
	if l.TaskID != "" {
		out = append(out, tag{"mayfly:task", l.TaskID})
	}
	for _, t := range out {
		if !tagPattern.MatchString(t.value) {
			return nil, errors.New(t.key + ": AWS takes 1 to 256 letters, digits, spaces and _ . : / = + - @ in a session tag; the target does without with tags: false")
		}
	}
	return out, nil
}

// ask is one session to open.
type ask struct {
	name     string
	policy   string
	duration time.Duration
	deadline time.Time
	tags     []tag
	source   string
}

// open opens a session by the target's way.
func (is *Issuer) open(ctx context.Context, a ask) (session, *federation.Journey, error) {
	if a.policy == "" { // without one STS would give all that the role may do
		return session{}, &federation.Journey{}, refused("no session policy was made; nothing was asked of STS")
	}
	ctx, cancel := context.WithTimeout(ctx, federation.CallTimeout)
	defer cancel()
	ctx, j := federation.Travel(ctx)
	var s session
	var err error
	switch is.spec.Way {
	case wayWebIdentity:
		s, err = is.byWebIdentity(ctx, a)
	case wayFederation:
		s, err = is.byFederation(ctx, a)
	default:
		s, err = is.byRole(ctx, a)
	}
	if err != nil {
		return session{}, j, failure(actions[is.spec.Way], err, j)
	}
	return s, j, nil
}

// actions are the ways' names in AWS's own words.
var actions = map[string]string{wayAssumeRole: "AssumeRole", wayWebIdentity: "AssumeRoleWithWebIdentity", wayFederation: "GetFederationToken"}

func (a ask) seconds() *int32 { return sdk.Int32(int32(a.duration / time.Second)) }

func (a ask) stsTags() (out []types.Tag) {
	for _, t := range a.tags {
		out = append(out, types.Tag{Key: sdk.String(t.key), Value: sdk.String(t.value)})
	}
	return out
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (is *Issuer) byRole(ctx context.Context, a ask) (session, error) {
	out, err := is.sts.sts.AssumeRole(ctx, &sts.AssumeRoleInput{
		RoleArn: &is.spec.RoleARN, RoleSessionName: &a.name, Policy: &a.policy, DurationSeconds: a.seconds(),
		ExternalId: optional(is.spec.ExternalID), Tags: a.stsTags(), SourceIdentity: optional(a.source),
	})
	if err != nil {
		return session{}, err
	}
	var who string
	if out.AssumedRoleUser != nil {
		who = sdk.ToString(out.AssumedRoleUser.Arn)
	}
	return read(out.Credentials, who)
}

func (is *Issuer) byWebIdentity(ctx context.Context, a ask) (session, error) {
	token, err := identityToken(is.provider, a, time.Now())
	if err != nil {
		return session{}, refused("%v", err)
	}
	out, err := is.sts.sts.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &is.spec.RoleARN, RoleSessionName: &a.name, Policy: &a.policy, DurationSeconds: a.seconds(),
		WebIdentityToken: sdk.String(token.Reveal()),
	})
	if err != nil {
		return session{}, err
	}
	var who string
	if out.AssumedRoleUser != nil {
		who = sdk.ToString(out.AssumedRoleUser.Arn)
	}
	return read(out.Credentials, who)
}

func (is *Issuer) byFederation(ctx context.Context, a ask) (session, error) {
	if len(a.name) > maxFederatedName {
		return session{}, refused("GetFederationToken takes names of %d characters, and after 99 retries a lease's is longer; request a new credential", maxFederatedName)
	}
	out, err := is.sts.sts.GetFederationToken(ctx, &sts.GetFederationTokenInput{
		Name: &a.name, Policy: &a.policy, DurationSeconds: a.seconds(), Tags: a.stsTags(),
	})
	if err != nil {
		return session{}, err
	}
	var who string
	if out.FederatedUser != nil {
		who = sdk.ToString(out.FederatedUser.Arn)
	}
	return read(out.Credentials, who)
}

// read takes STS's answer, if it is whole: half a credential is none.
func read(c *types.Credentials, who string) (session, error) {
	if c == nil || c.Expiration == nil {
		return session{}, errors.New("the answer holds no credentials")
	}
	s := session{sdk.ToString(c.AccessKeyId), sdk.ToString(c.SecretAccessKey), sdk.ToString(c.SessionToken), *c.Expiration, federation.OneLine(who)}
	for _, v := range []string{s.keyID, s.secretKey, s.token} {
		if len(v) < 8 || checkPlain(v) != nil {
			return session{}, errors.New("the answer's credentials are not whole")
		}
	}
	return s, nil
}

// Withdraw has nothing to ask: STS takes no session back. The session policy ends
// it at the lease's expiry, and the receipt says so (HAZARDS 18). It never fails,
// also on a lease that was never minted.
func (is *Issuer) Withdraw(_ context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	for n, l := range leases {
		out[n].Receipt = issuers.Receipt{
			Proof:  issuers.ProofExpiresOnly,
			Detail: "nothing to ask: STS revokes no single session; what was delivered is allowed nothing after " + is.expiry(l).UTC().Format(time.RFC3339),
		}
	}
	return out
}

// identityIssuer is an Issuer that is an identity provider, too.
type identityIssuer struct{ *Issuer }

// Publish returns the documents of the target's identity provider.
func (is identityIssuer) Publish(context.Context) (map[string][]byte, error) {
	return maps.Clone(is.provider.Documents()), nil
}

// Close implements [issuers.Issuer]; it may be called again.
func (is *Issuer) Close() error {
	is.closed.Store(true)
	is.sts.http.CloseIdleConnections()
	return nil
}
