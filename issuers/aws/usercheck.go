package aws

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/mayfly-broker/mayfly/issuers"
)

// noKey is a key's id that nobody has.
const noKey = "AKIAIOSFODNN7EXAMPLE"

// Check implements [issuers.Checker]. After what [Issuer.Check] looks at, it tries
// each right: on a name that does not exist, where IAM answers NoSuchEntity to
// whoever has it, and then on a user that it makes without a key and takes away.
func (u *users) Check(ctx context.Context) ([]issuers.Finding, error) {
	out, err := u.Issuer.Check(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range out {
		if !f.OK && (!f.Warning || f.Name == actions[u.spec.Way]) {
			return out, nil // there is no session to try with
		}
	}
	name := userPrefix + "check-" + strings.ToLower(rand.Text()[:12])
	policy, err := u.checkUserPolicy(name)
	if err != nil {
		return nil, refused("%v", err)
	}
	a, err := u.enter(ctx, checkName, policy, time.Now().Add(time.Minute))
	if err != nil {
		return nil, err
	}
	t := &trial{users: u, admin: a, name: name}
	found, err := t.run(ctx)
	return append(out, found...), err
}

// trial is one check of rights on its way.
type trial struct {
	*users
	*admin
	name     string
	findings []issuers.Finding
	missing  bool
}

func (t *trial) run(ctx context.Context) ([]issuers.Finding, error) {
	for _, p := range t.probes() {
		err := t.do(ctx, p.action, true, p.ask)
		if err != nil && !isAnswer(err) {
			return t.findings, err
		}
		t.note(p.action, gone(err) || err == nil, err)
	}
	if t.missing {
		t.findings = append(t.findings, issuers.Finding{Name: "iam:CreateUser", Warning: true, Detail: "not tried while another right is missing: what would be made could not be taken away"})
		return t.findings, nil
	}
	return t.findings, t.tryMaking(ctx)
}

func (t *trial) note(action string, ok bool, err error) {
	f := issuers.Finding{Name: "iam:" + action, OK: ok, Detail: "the role may do it on users under " + t.path}
	if !ok {
		f.Detail = detailOf(err)
		if !t.missing { // one command gives them all
			f.Fix = t.fixRights()
		}
		t.missing = true
	}
	t.findings = append(t.findings, f)
}

type probe struct {
	action string
	ask    func(ctx context.Context) error
}

// probes are the rights that can be tried on a name that does not exist.
func (t *trial) probes() []probe {
	name, p := &t.name, sdk.String(policyName)
	return []probe{
		{"GetUser", func(ctx context.Context) error {
			_, err := t.GetUser(ctx, &iam.GetUserInput{UserName: name}, t.opts)
			return err
		}},
		{"ListAccessKeys", func(ctx context.Context) error {
			_, err := t.ListAccessKeys(ctx, &iam.ListAccessKeysInput{UserName: name}, t.opts)
			return err
		}},
		{"CreateAccessKey", func(ctx context.Context) error {
			_, err := t.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: name}, t.opts)
			return err
		}},
		{"UpdateAccessKey", func(ctx context.Context) error {
			_, err := t.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: name, AccessKeyId: sdk.String(noKey), Status: types.StatusTypeInactive}, t.opts)
			return err
		}},
		{"DeleteAccessKey", func(ctx context.Context) error {
			_, err := t.DeleteAccessKey(ctx, &iam.DeleteAccessKeyInput{UserName: name, AccessKeyId: sdk.String(noKey)}, t.opts)
			return err
		}},
		{"GetUserPolicy", func(ctx context.Context) error {
			_, err := t.GetUserPolicy(ctx, &iam.GetUserPolicyInput{UserName: name, PolicyName: p}, t.opts)
			return err
		}},
		{"ListUserPolicies", func(ctx context.Context) error {
			_, err := t.ListUserPolicies(ctx, &iam.ListUserPoliciesInput{UserName: name}, t.opts)
			return err
		}},
		{"DeleteUserPolicy", func(ctx context.Context) error {
			_, err := t.DeleteUserPolicy(ctx, &iam.DeleteUserPolicyInput{UserName: name, PolicyName: p}, t.opts)
			return err
		}},
		{"TagUser", func(ctx context.Context) error {
			_, err := t.TagUser(ctx, &iam.TagUserInput{UserName: name, Tags: []types.Tag{{Key: sdk.String(tagTarget), Value: &t.target}}}, t.opts)
			return err
		}},
		{"UntagUser", func(ctx context.Context) error {
			_, err := t.UntagUser(ctx, &iam.UntagUserInput{UserName: name, TagKeys: []string{tagTarget}}, t.opts)
			return err
		}},
		{"DeleteUser", func(ctx context.Context) error {
			_, err := t.DeleteUser(ctx, &iam.DeleteUserInput{UserName: name}, t.opts)
			return err
		}},
		{"ListUsers", func(ctx context.Context) error {
			_, err := t.ListUsers(ctx, &iam.ListUsersInput{PathPrefix: &t.path, MaxItems: sdk.Int32(1)}, t.opts)
			return err
		}},
	}
}

// tryMaking makes a user that may do nothing and has no key, and takes it away.
func (t *trial) tryMaking(ctx context.Context) error {
	boundary := t.spec.IAMUser.PermissionsBoundary
	if err := t.tryUnbounded(ctx, boundary); err != nil {
		return err
	}
	err := t.create(ctx, boundary)
	if err != nil && !isAnswer(err) {
		return err
	}
	t.note("CreateUser", err == nil, err)
	if err != nil {
		return nil
	}
	err = settle(ctx, "NoSuchEntity", func() error {
		return t.do(ctx, "PutUserPolicy", true, func(ctx context.Context) error {
			_, err := t.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: &t.name, PolicyName: sdk.String(policyName), PolicyDocument: sdk.String(nothing)}, t.opts)
			return err
		})
	})
	if err != nil && !isAnswer(err) {
		return err
	}
	t.note("PutUserPolicy", err == nil, err)
	return t.takeAway(ctx)
}

// tryUnbounded looks whether the role could make users without a boundary: then
// the right to make users is the right to everything.
func (t *trial) tryUnbounded(ctx context.Context, boundary string) error {
	f := issuers.Finding{Name: "permissions boundary", OK: true, Detail: "no user can be made without " + boundary}
	if boundary == "" {
		f.OK, f.Warning = false, true
		f.Detail = "there is none: the role may give the users that it makes any right; name one in iam_user.permissions_boundary"
		t.findings = append(t.findings, f)
		return nil
	}
	err := t.create(ctx, "")
	switch {
	case err == nil:
		f.OK, f.Warning = false, true
		f.Detail, f.Fix = "the role may also make users without "+boundary, t.fixRights()
		err = t.takeAway(ctx)
	case iamCodeOf(err) == "AccessDenied":
		err = nil
	case isAnswer(err):
		f.OK, f.Warning, f.Detail = false, true, "whether users can be made without it is not known: "+detailOf(err)
		err = nil
	}
	t.findings = append(t.findings, f)
	return err
}

func (t *trial) create(ctx context.Context, boundary string) error {
	return t.do(ctx, "CreateUser", false, func(ctx context.Context) error {
		_, err := t.CreateUser(ctx, &iam.CreateUserInput{
			UserName: &t.name, Path: &t.path, PermissionsBoundary: optional(boundary),
			Tags: []types.Tag{{Key: sdk.String(tagTarget), Value: &t.target}},
		}, t.opts)
		return err
	})
}

func (t *trial) takeAway(ctx context.Context) error {
	if err := t.dropPolicies(ctx, t.name); err != nil {
		return err
	}
	err := t.do(ctx, "DeleteUser", true, func(ctx context.Context) error {
		_, err := t.DeleteUser(ctx, &iam.DeleteUserInput{UserName: &t.name}, t.opts)
		return err
	})
	if err != nil && !gone(err) {
		return err
	}
	return t.absent(ctx, t.name)
}
