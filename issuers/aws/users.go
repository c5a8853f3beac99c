package aws

import (
	"context"
	"net/url"
	"slices"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/mayfly-broker/mayfly/issuers"
)

// policyName names the one inline policy of each user.
const policyName = "mayfly"

// users is the Issuer of a target whose leases are IAM users. The broker's own
// calls of IAM are made in sessions of the target's role, opened by its way.
type users struct {
	*Issuer
	iam    *iam.Client
	path   string
	broker string
	term   uint64
	locks  locks
}

// identityUsers is the same on a target that is an identity provider, too.
type identityUsers struct{ *users }

// Publish implements [issuers.Publisher].
func (u identityUsers) Publish(ctx context.Context) (map[string][]byte, error) {
	return identityIssuer{u.Issuer}.Publish(ctx)
}

func openUsers(is *Issuer, t issuers.Target) (issuers.Issuer, error) {
	o := iam.Options{
		Region: is.spec.Region, HTTPClient: is.sts.http, Retryer: sdk.NopRetryer{}, RetryMaxAttempts: 1,
		Credentials: sdk.AnonymousCredentials{},
	}
	if e := is.spec.IAMUser.Endpoint; e != "" {
		o.BaseEndpoint = &e
	}
	if is.spec.FIPS {
		o.EndpointOptions.UseFIPSEndpoint = sdk.FIPSEndpointStateEnabled
	}
	u := &users{Issuer: is, iam: iam.New(o), path: is.spec.IAMUser.Path, broker: t.Issuer, term: t.Term}
	if u.path == "" {
		u.path = "/mayfly/" + t.Name + "/"
	}
	if is.provider != nil {
		return identityUsers{u}, nil
	}
	return u, nil
}

// Mint implements [issuers.Issuer]. A generation's key takes the place of those
// before it, under the one user of its lease.
func (u *users) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	now, end := time.Now(), u.expiry(l)
	switch {
	case u.closed.Load():
		return none, refused("the issuer is closed")
	case ctx.Err() != nil:
		return none, tooLate("the caller no longer waits")
	case !now.Before(l.MintDeadline):
		return none, tooLate("the mint deadline has passed")
	case !now.Before(end):
		return none, tooLate("the lease, or the target's max_ttl from its start on, has ended")
	case !leaseIDPattern.MatchString(l.ID) || l.Name != Kind{}.CredentialName(l.ID, l.Generation) || l.Generation == 0:
		return none, refused("the lease's name is not the one of its id and generation")
	}
	policy, err := u.spec.compile(l.Scope, end)
	if err != nil {
		return none, refused("%v", err)
	}
	tags, err := u.newTags(l, end)
	if err != nil {
		return none, refused("%v", err)
	}
	fence, err := u.mintPolicy(userName(l.ID), l.MintDeadline)
	if err != nil {
		return none, refused("%v", err)
	}
	ctx, cancel := context.WithDeadline(ctx, l.MintDeadline)
	defer cancel()
	a, err := u.enter(ctx, l.Name, fence, l.MintDeadline)
	if err != nil {
		return none, err
	}
	a.until = l.MintDeadline
	m := &making{users: u, admin: a, lease: l, name: userName(l.ID), end: end, policy: policy, tags: tags}
	key, err := m.make(ctx)
	if err != nil {
		return none, a.honest(err)
	}
	u.log.Debug("user made", "name", m.name, "generation", l.Generation, "key", key.keyID)
	return u.deliverUser(key, m.name, end), nil
}

// honest keeps an error from saying that nothing was done once something was.
func (a *admin) honest(err error) error {
	switch issuers.KindOf(err) {
	case issuers.Unreachable, issuers.TooLate, issuers.Gone, issuers.Poison:
		if a.changed || issuers.KindOf(err) == issuers.Gone || issuers.KindOf(err) == issuers.Poison {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "the user was left half made", Err: err}
		}
	}
	return err
}

// making is one mint on its way.
type making struct {
	*users
	*admin
	lease  issuers.Lease
	name   string
	end    time.Time
	policy string
	tags   []types.Tag
}

// make makes the user and its key, in the order in which a crash leaves the least:
// a user that may do nothing, then its policy, and only then a key.
func (m *making) make(ctx context.Context) (session, error) {
	unlock, err := m.locks.lock(ctx, m.name)
	if err != nil {
		return session{}, tooLate("another mint of this lease took all of the time")
	}
	key, err := m.makeLocked(ctx)
	unlock()
	if err != nil {
		return session{}, err
	}
	return key, m.wait(ctx, key)
}

func (m *making) makeLocked(ctx context.Context) (session, error) {
	fresh, err := m.user(ctx)
	if err != nil {
		return session{}, err
	}
	if err := m.putPolicy(ctx); err != nil {
		return session{}, err
	}
	if !fresh {
		if _, err := m.dropKeys(ctx, m.name); err != nil {
			return session{}, err
		}
	}
	key, err := m.key(ctx)
	if err != nil {
		return session{}, err
	}
	if err := m.standing(ctx, key.keyID); err != nil {
		// Whoever holds the newer generation keeps its key, and we give up ours.
		_ = m.dropKey(ctx, m.name, key.keyID)
		return session{}, err
	}
	return key, nil
}

// user makes the user, or takes the lease's own of an earlier mint. fresh says
// that it was made just now, so that it has no keys.
func (m *making) user(ctx context.Context) (fresh bool, err error) {
	found, err := m.getUser(ctx, m.name)
	if issuers.KindOf(err) == issuers.Gone && err != nil {
		if fresh, err = m.createUser(ctx); err == nil && fresh {
			return true, nil
		}
		if err == nil { // it was there after all: an answer was lost, or IAM did not know yet
			err = settle(ctx, "NoSuchEntity", func() (err error) { found, err = m.getUser(ctx, m.name); return err })
		}
	}
	if err != nil {
		return false, err
	}
	return false, m.adopt(ctx, found)
}

func (m *making) createUser(ctx context.Context) (fresh bool, err error) {
	lost := false
	err = m.change(ctx, "CreateUser", true, func(ctx context.Context) error {
		_, err := m.CreateUser(ctx, &iam.CreateUserInput{
			UserName: &m.name, Path: &m.path, Tags: m.tags, PermissionsBoundary: optional(m.spec.IAMUser.PermissionsBoundary),
		}, m.opts)
		return err
	})
	if iamCodeOf(err) == "EntityAlreadyExists" {
		lost, err = true, nil
	}
	if gone(err) { // the user cannot be missing yet
		return false, refused("iam_user.permissions_boundary: %s", detailOf(err))
	}
	return !lost && err == nil, err
}

// adopt goes on with a user that exists, if it is this lease's and no newer.
func (m *making) adopt(ctx context.Context, found *types.User) error {
	mk, err := m.owned(found, m.lease)
	if err != nil {
		return err
	}
	if b := m.spec.IAMUser.PermissionsBoundary; b != "" && (found.PermissionsBoundary == nil || sdk.ToString(found.PermissionsBoundary.PermissionsBoundaryArn) != b) {
		return refused("the user %s has another permissions boundary than iam_user.permissions_boundary; request a new credential", m.name)
	}
	if mk.generation == m.lease.Generation {
		return nil
	}
	var old []string
	for _, n := range mk.generations {
		old = append(old, *m.generationTag(issuers.Lease{Generation: n}).Key)
	}
	err = m.change(ctx, "TagUser", true, func(ctx context.Context) error {
		_, err := m.TagUser(ctx, &iam.TagUserInput{UserName: &m.name, Tags: []types.Tag{m.generationTag(m.lease), endTag(m.end)}}, m.opts)
		return err
	})
	if err != nil {
		return err
	}
	// A user has fifty tags at most.
	return m.change(ctx, "UntagUser", true, func(ctx context.Context) error {
		_, err := m.UntagUser(ctx, &iam.UntagUserInput{UserName: &m.name, TagKeys: old}, m.opts)
		return err
	})
}

// owned says why a user is not this lease's, or is of a newer generation.
func (u *users) owned(found *types.User, l issuers.Lease) (mark, error) {
	mk, ok := u.readMark(found)
	switch {
	case !ok || mk.leaseID != l.ID:
		return mk, &issuers.Error{Kind: issuers.Foreign, Detail: "the user " + userName(l.ID) + " exists without this target's mark of the lease; it is left alone"}
	case mk.generation > l.Generation:
		return mk, &issuers.Error{Kind: issuers.Superseded, Detail: "the user bears a newer generation"}
	}
	return mk, nil
}

// putPolicy writes the policy and reads it again: no key is made before IAM shows
// the denials at the lease's end.
func (m *making) putPolicy(ctx context.Context) error {
	err := settle(ctx, "NoSuchEntity", func() error {
		return m.change(ctx, "PutUserPolicy", true, func(ctx context.Context) error {
			_, err := m.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: &m.name, PolicyName: sdk.String(policyName), PolicyDocument: &m.policy}, m.opts)
			return err
		})
	})
	if err != nil {
		return err
	}
	return settle(ctx, "NoSuchEntity", func() error {
		out, err := look(ctx, m.admin, "GetUserPolicy", func(ctx context.Context) (*iam.GetUserPolicyOutput, error) {
			return m.GetUserPolicy(ctx, &iam.GetUserPolicyInput{UserName: &m.name, PolicyName: sdk.String(policyName)}, m.opts)
		})
		if err != nil {
			return err
		}
		// IAM writes the document as RFC 3986 has it.
		if text, err := url.PathUnescape(sdk.ToString(out.PolicyDocument)); err != nil || text != m.policy {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "iam:GetUserPolicy: IAM does not show the policy that was written", Err: iamCode("NoSuchEntity")}
		}
		return nil
	})
}

// key makes the generation's key. One whose secret was lost on the way is taken
// back, since nobody holds it and a user has two at most.
func (m *making) key(ctx context.Context) (session, error) {
	for n := 0; ; n++ {
		var out *iam.CreateAccessKeyOutput
		err := settle(ctx, "NoSuchEntity", func() error {
			return m.change(ctx, "CreateAccessKey", false, func(ctx context.Context) (err error) {
				out, err = m.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: &m.name}, m.opts)
				return err
			})
		})
		if err == nil {
			return readKey(out.AccessKey)
		}
		if n == 3 || issuers.KindOf(err) != issuers.Unknown && iamCodeOf(err) != "LimitExceeded" || ctx.Err() != nil {
			return session{}, err
		}
		if _, err := m.dropKeys(ctx, m.name); err != nil {
			return session{}, err
		}
	}
}

func readKey(k *types.AccessKey) (session, error) {
	if k == nil || len(sdk.ToString(k.AccessKeyId)) < 16 || len(sdk.ToString(k.SecretAccessKey)) < 16 ||
		checkPlain(*k.AccessKeyId) != nil || checkPlain(*k.SecretAccessKey) != nil {
		return session{}, &issuers.Error{Kind: issuers.Unknown, Detail: "iam:CreateAccessKey: the answer holds no whole key"}
	}
	return session{keyID: *k.AccessKeyId, secretKey: *k.SecretAccessKey}, nil
}

// standing looks whether the user is still of this generation, and this its one
// key. IAM may need a moment to show what it was told just now.
func (m *making) standing(ctx context.Context, keyID string) error {
	return settle(ctx, "NoSuchEntity", func() error {
		found, err := m.getUser(ctx, m.name)
		if err != nil {
			return err
		}
		if _, err := m.owned(found, m.lease); err != nil {
			return err
		}
		keys, err := m.keys(ctx, m.name)
		if err != nil {
			return err
		}
		if len(keys) != 1 || sdk.ToString(keys[0].AccessKeyId) != keyID {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "iam:ListAccessKeys: not this mint's key alone; perhaps another one of the same lease works on the user", Err: iamCode("NoSuchEntity")}
		}
		return nil
	})
}

// locks keep two calls of this process off one user. A channel of one, so that
// whoever waits also watches its deadline.
type locks struct {
	mu sync.Mutex
	by map[string]*gate
}

type gate struct {
	turn    chan struct{}
	waiting int
}

func (k *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	k.mu.Lock()
	if k.by == nil {
		k.by = map[string]*gate{}
	}
	g := k.by[name]
	if g == nil {
		g = &gate{turn: make(chan struct{}, 1)}
		k.by[name] = g
	}
	g.waiting++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if g.waiting--; g.waiting == 0 {
			delete(k.by, name)
		}
	}
	select {
	case g.turn <- struct{}{}:
		return func() { <-g.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// active says whether a key opens anything.
func active(keys []types.AccessKeyMetadata) []types.AccessKeyMetadata {
	return slices.DeleteFunc(slices.Clone(keys), func(k types.AccessKeyMetadata) bool { return k.Status == types.StatusTypeInactive })
}
