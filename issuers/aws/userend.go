package aws

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/mayfly-broker/mayfly/issuers"
)

const (
	endName = "mayfly-withdraw" // the session in which users are ended
	// atOnce bounds how many users are looked at or ended at a time: IAM counts
	// requests per account.
	atOnce = 6
	// endTimeout bounds the end of one user.
	endTimeout = 40 * time.Second
	maxPages   = 100 // of a hundred; an account has 5,000 users at most
	pageSize   = 100
)

// Withdraw implements [issuers.Issuer]. IAM knows no batches: users are ended side
// by side, in one session of the broker's.
func (u *users) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	if len(leases) == 0 {
		return out
	}
	a, err := u.enterToEnd(ctx)
	if err != nil {
		for i := range out {
			out[i].Err = err
		}
		return out
	}
	each(len(leases), func(i int) {
		own := *a // each has its own memory of what was changed
		out[i].Receipt, out[i].Err = u.end(ctx, &own, leases[i])
	})
	return out
}

func (u *users) enterToEnd(ctx context.Context) (*admin, error) {
	if u.closed.Load() {
		return nil, refused("the issuer is closed")
	}
	policy, err := u.endPolicy()
	if err != nil {
		return nil, refused("%v", err)
	}
	return u.enter(ctx, endName, policy, time.Now().Add(time.Minute))
}

// each calls f for 0 to n-1, a few at a time.
func each(n int, f func(i int)) {
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

// end ends one lease's user and looks for it again.
func (u *users) end(ctx context.Context, a *admin, l issuers.Lease) (issuers.Receipt, error) {
	if !leaseIDPattern.MatchString(l.ID) {
		return issuers.Receipt{}, &issuers.Error{Kind: issuers.Foreign, Detail: "the lease's id is none; nothing was asked of IAM"}
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	name := userName(l.ID)
	unlock, err := u.locks.lock(ctx, name)
	if err != nil {
		return issuers.Receipt{}, &issuers.Error{Kind: issuers.Unknown, Detail: "a mint of the same lease is on its way", Err: err}
	}
	defer unlock()
	keys, err := u.remove(ctx, a, l, name)
	if err != nil {
		if a.changed && issuers.KindOf(err) == issuers.Unreachable {
			err = &issuers.Error{Kind: issuers.Unknown, Detail: "the user was ended in part", Err: err}
		}
		return issuers.Receipt{}, err
	}
	detail := "iam:GetUser " + name + " answers NoSuchEntity"
	if a.changed {
		detail += fmt.Sprintf("; access keys deactivated and deleted: %d, then the user", keys)
	}
	return issuers.Receipt{Proof: issuers.ProofAbsent, Detail: detail}, nil
}

// remove takes a user away in the order that IAM asks for, keys first, and returns
// once IAM does not show it any more. A late key, made between, is met once more.
func (u *users) remove(ctx context.Context, a *admin, l issuers.Lease, name string) (keys int, err error) {
	for n := 0; ; n++ {
		found, err := a.getUser(ctx, name)
		if gone(err) {
			return keys, nil
		}
		if err != nil {
			return keys, err
		}
		if _, err := u.owned(found, l); err != nil {
			return keys, err
		}
		dropped, err := a.dropKeys(ctx, name)
		keys += dropped
		if err == nil {
			err = a.dropPolicies(ctx, name)
		}
		if err == nil {
			err = a.change(ctx, "DeleteUser", true, func(ctx context.Context) error {
				_, err := a.DeleteUser(ctx, &iam.DeleteUserInput{UserName: &name}, a.opts)
				return err
			})
		}
		switch {
		case err == nil || gone(err):
			return keys, a.absent(ctx, name)
		case issuers.KindOf(err) != issuers.Poison || n == 2:
			return keys, err
		case !pause(ctx, n):
			return keys, err
		}
	}
}

// absent asks until IAM answers that there is no such user.
func (a *admin) absent(ctx context.Context, name string) error {
	end := time.Now().Add(settleTime)
	for n := 0; ; n++ {
		_, err := a.getUser(ctx, name)
		switch {
		case gone(err):
			return nil
		case err != nil:
			return err
		case time.Now().After(end) || !pause(ctx, n):
			return &issuers.Error{Kind: issuers.Unknown, Detail: "the user " + name + " was deleted, and IAM still shows it"}
		}
	}
}

func gone(err error) bool { return err != nil && issuers.KindOf(err) == issuers.Gone }

func (a *admin) getUser(ctx context.Context, name string) (*types.User, error) {
	out, err := look(ctx, a, "GetUser", func(ctx context.Context) (*iam.GetUserOutput, error) {
		return a.GetUser(ctx, &iam.GetUserInput{UserName: &name}, a.opts)
	})
	if err != nil {
		return nil, err
	}
	if out.User == nil {
		return nil, &issuers.Error{Kind: issuers.Unknown, Detail: "iam:GetUser: the answer holds no user"}
	}
	return out.User, nil
}

// keys returns a user's keys: two at most, so there is one page.
func (a *admin) keys(ctx context.Context, name string) ([]types.AccessKeyMetadata, error) {
	out, err := look(ctx, a, "ListAccessKeys", func(ctx context.Context) (*iam.ListAccessKeysOutput, error) {
		return a.ListAccessKeys(ctx, &iam.ListAccessKeysInput{UserName: &name, MaxItems: sdk.Int32(pageSize)}, a.opts)
	})
	if err != nil {
		return nil, err
	}
	return out.AccessKeyMetadata, nil
}

// dropKeys ends all keys of a user: none of them opens anything before the first
// is deleted.
func (a *admin) dropKeys(ctx context.Context, name string) (n int, err error) {
	keys, err := a.keys(ctx, name)
	if err != nil {
		if gone(err) {
			return 0, nil
		}
		return 0, err
	}
	for _, k := range active(keys) {
		err := a.change(ctx, "UpdateAccessKey", true, func(ctx context.Context) error {
			_, err := a.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: &name, AccessKeyId: k.AccessKeyId, Status: types.StatusTypeInactive}, a.opts)
			return err
		})
		if err != nil && !gone(err) {
			return 0, err
		}
	}
	for _, k := range keys {
		if err := a.dropKey(ctx, name, sdk.ToString(k.AccessKeyId)); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func (a *admin) dropKey(ctx context.Context, name, id string) error {
	err := a.change(ctx, "DeleteAccessKey", true, func(ctx context.Context) error {
		_, err := a.DeleteAccessKey(ctx, &iam.DeleteAccessKeyInput{UserName: &name, AccessKeyId: &id}, a.opts)
		return err
	})
	if gone(err) {
		return nil
	}
	return err
}

// dropPolicies takes every inline policy away, also one that somebody added.
func (a *admin) dropPolicies(ctx context.Context, name string) error {
	var marker *string
	for range maxPages {
		out, err := look(ctx, a, "ListUserPolicies", func(ctx context.Context) (*iam.ListUserPoliciesOutput, error) {
			return a.ListUserPolicies(ctx, &iam.ListUserPoliciesInput{UserName: &name, Marker: marker, MaxItems: sdk.Int32(pageSize)}, a.opts)
		})
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, p := range out.PolicyNames {
			err := a.change(ctx, "DeleteUserPolicy", true, func(ctx context.Context) error {
				_, err := a.DeleteUserPolicy(ctx, &iam.DeleteUserPolicyInput{UserName: &name, PolicyName: &p}, a.opts)
				return err
			})
			if err != nil && !gone(err) {
				return err
			}
		}
		if marker = out.Marker; !out.IsTruncated || marker == nil {
			return nil
		}
	}
	return &issuers.Error{Kind: issuers.Poison, Detail: "the user " + name + " has more inline policies than a user can have"}
}

// List implements [issuers.Lister]. A page of users does not show their tags, so
// each is asked for; what bears no mark of this target's is left out.
func (u *users) List(ctx context.Context) ([]issuers.Found, error) {
	a, err := u.enterToEnd(ctx)
	if err != nil {
		return nil, err
	}
	names, err := u.names(ctx, a)
	if err != nil {
		return nil, err
	}
	found, errs := make([]issuers.Found, len(names)), make([]error, len(names))
	each(len(names), func(i int) {
		own := *a
		user, err := own.getUser(ctx, names[i])
		if err != nil {
			if !gone(err) {
				errs[i] = err
			}
			return
		}
		if m, ok := u.readMark(user); ok {
			found[i] = issuers.Found{Name: Kind{}.CredentialName(m.leaseID, m.generation), LeaseID: m.leaseID, Generation: m.generation}
		}
	})
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	out := []issuers.Found{}
	for _, f := range found {
		if f.Name != "" {
			out = append(out, f)
		}
	}
	return out, nil
}

// names returns the users under the target's path.
func (u *users) names(ctx context.Context, a *admin) (out []string, err error) {
	var marker *string
	for range maxPages {
		page, err := look(ctx, a, "ListUsers", func(ctx context.Context) (*iam.ListUsersOutput, error) {
			return a.ListUsers(ctx, &iam.ListUsersInput{PathPrefix: &u.path, Marker: marker, MaxItems: sdk.Int32(pageSize)}, a.opts)
		})
		if err != nil {
			return nil, err
		}
		for _, user := range page.Users {
			if sdk.ToString(user.Path) == u.path {
				out = append(out, sdk.ToString(user.UserName))
			}
		}
		if marker = page.Marker; !page.IsTruncated || marker == nil {
			return out, nil
		}
	}
	return nil, &issuers.Error{Kind: issuers.Unknown, Detail: "iam:ListUsers: more pages than an account has users"}
}
