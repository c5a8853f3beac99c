package aws

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/smithy-go"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
)

const (
	// tryTimeout bounds one attempt: a lost answer leaves time for another one.
	tryTimeout = 5 * time.Second
	maxTries   = 7
	firstPause = 100 * time.Millisecond
	maxPause   = 2 * time.Second
	// settleTime is how long IAM may take to know at one place what it was told at
	// another.
	settleTime = 5 * time.Second
)

// iamVerdicts are the codes that IAM answers with (IAM API reference, "Errors" of
// each action and "Common errors"). With each of them it did nothing.
var iamVerdicts = map[string]verdict{
	"NoSuchEntity":            {issuers.Gone, "it does not exist"},
	"EntityAlreadyExists":     {issuers.Foreign, "it exists already"},
	"DeleteConflict":          {issuers.Poison, "somebody has attached something to the user that Mayfly did not make"},
	"LimitExceeded":           {issuers.Refused, "a quota of the account is used up; an administrator raises it, or ends other leases"},
	"InvalidInput":            {issuers.Refused, "a value is not what IAM takes"},
	"ValidationError":         {issuers.Refused, "a value is not what IAM takes"},
	"MalformedPolicyDocument": {issuers.BadScope, "IAM does not take the scope as a policy; some action or resource is none that it knows"},
	"AccessDenied":            {issuers.Refused, "the target's role lacks this right"},
	"AccessDeniedException":   {issuers.Refused, "the target's role lacks this right"},
	"InvalidClientTokenId":    {issuers.Refused, "IAM does not take the broker's session"},
	"ExpiredToken":            {issuers.TooLate, "the broker's session has ended"},
	"SignatureDoesNotMatch":   {issuers.Refused, "the broker's clock is off"},
	"RequestExpired":          {issuers.Refused, "the broker's clock is off"},

	"Throttling":                    {issuers.Unreachable, "IAM takes no more requests of this account for the moment"},
	"ThrottlingException":           {issuers.Unreachable, "IAM takes no more requests of this account for the moment"},
	"RequestLimitExceeded":          {issuers.Unreachable, "IAM takes no more requests of this account for the moment"},
	"ConcurrentModification":        {issuers.Unreachable, "somebody else changes the same user at the moment"},
	"EntityTemporarilyUnmodifiable": {issuers.Unreachable, "the user cannot be changed for the moment"},
}

// iamCode is the code of an answer of IAM's.
type iamCode string

// Error implements error.
func (c iamCode) Error() string { return "IAM answered " + string(c) }

func iamCodeOf(err error) iamCode {
	var c iamCode
	if errors.As(err, &c) {
		return c
	}
	return ""
}

// admin is one session of the broker's, for one purpose.
type admin struct {
	*iam.Client
	as sdk.CredentialsProvider
	// until is the mint deadline that the session's policy knows; zero without one.
	until time.Time
	// changed says that something was asked of IAM that it may have done: from then on
	// no error may say that nothing was.
	changed bool
}

func (a *admin) opts(o *iam.Options) { o.Credentials = a.as }

// enter opens a session of the role that may do what policy says.
func (u *users) enter(ctx context.Context, name, policy string, deadline time.Time) (*admin, error) {
	var s session
	err := retry(ctx, true, func(ctx context.Context) (err error) {
		s, _, err = u.open(ctx, ask{name: name, policy: policy, duration: minSession, deadline: deadline})
		return err
	})
	if err != nil {
		return nil, err
	}
	return &admin{Client: u.iam, as: static(sdk.Credentials{AccessKeyID: s.keyID, SecretAccessKey: s.secretKey, SessionToken: s.token})}, nil
}

// do asks IAM once, or again where it is busy. again says that a repetition after
// an answer that was lost does no harm.
func (a *admin) do(ctx context.Context, what string, again bool, f func(ctx context.Context) error) error {
	return retry(ctx, again, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, tryTimeout)
		defer cancel()
		ctx, j := federation.Travel(ctx)
		err := f(ctx)
		if err == nil {
			return nil
		}
		return a.iamFailure(what, err, j)
	})
}

// look is do for what changes nothing.
func look[T any](ctx context.Context, a *admin, what string, f func(context.Context) (T, error)) (out T, err error) {
	err = a.do(ctx, what, true, func(ctx context.Context) (err error) { out, err = f(ctx); return err })
	return out, err
}

// change is do for what changes something.
func (a *admin) change(ctx context.Context, what string, again bool, f func(ctx context.Context) error) error {
	err := a.do(ctx, what, again, f)
	switch issuers.KindOf(err) {
	case issuers.Unknown:
		a.changed = true // also where err is nil
	case issuers.Unreachable: // an earlier attempt may have been sent
		a.changed = a.changed || again
	}
	return err
}

// iamFailure classifies what a call to IAM returned.
func (a *admin) iamFailure(what string, err error, j *federation.Journey) *issuers.Error {
	var said smithy.APIError
	if !errors.As(err, &said) {
		return federation.Unanswered("iam:"+what, err, j)
	}
	code := said.ErrorCode()
	v := judge("IAM", iamVerdicts, code, statusOf(err))
	if v.kind == issuers.Refused && (code == "AccessDenied" || code == "AccessDeniedException") && j.Dated && !a.until.IsZero() && time.Now().Add(j.Ahead+j.Unsure).After(a.until.Truncate(time.Second)) {
		v = verdict{issuers.TooLate, "the mint deadline has passed, by AWS's clock"}
	}
	return &issuers.Error{Kind: v.kind, Detail: fmt.Sprintf("iam:%s: %s (%s)", what, v.hint, federation.OneLine(said.ErrorMessage())), Err: iamCode(federation.OneLine(code))}
}

// retry tries until f is answered by more than "not now", until ctx ends, or seven
// times. What cannot be connected to is the caller's to try again.
func retry(ctx context.Context, again bool, f func(context.Context) error) error {
	for n := 0; ; n++ {
		err := f(ctx)
		kind := issuers.KindOf(err)
		busy := kind == issuers.Unreachable && (codeOf(err) != "" || iamCodeOf(err) != "")
		if err == nil || !busy && (kind != issuers.Unknown || !again) || n+1 == maxTries || !pause(ctx, n) {
			return err
		}
	}
}

// pause waits twice as long each time, with some chance in it: those who were
// turned away together do not come back together. It returns false where ctx ends.
func pause(ctx context.Context, n int) bool {
	d := min(firstPause<<min(n, 10), maxPause)
	t := time.NewTimer(d/2 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// settle repeats f while IAM does not know yet what it has been told (code), for
// settleTime at most.
func settle(ctx context.Context, code iamCode, f func() error) error {
	end := time.Now().Add(settleTime)
	for n := 0; ; n++ {
		err := f()
		if err == nil || iamCodeOf(err) != code || time.Now().After(end) || !pause(ctx, n) {
			return err
		}
	}
}
