package aws

import (
	"context"
	"fmt"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// acceptedTimes is how often in a row STS must have taken a new key: AWS's
// servers learn of it one after the other.
const acceptedTimes = 3

// wait asks STS as the new key until it is known, up to the mint deadline. That
// question needs no permission, and no denial keeps it from being answered.
func (m *making) wait(ctx context.Context, key session) error {
	as := static(sdk.Credentials{AccessKeyID: key.keyID, SecretAccessKey: key.secretKey})
	started, taken := time.Now(), 0
	for n := 0; ; n++ {
		_, err := m.whoami(ctx, as)
		switch {
		case err == nil:
			if taken++; taken == acceptedTimes {
				return nil
			}
			n = 0
		case ctx.Err() != nil:
		case !notYet(err) && issuers.KindOf(err) != issuers.Unknown && issuers.KindOf(err) != issuers.Unreachable:
			return err
		default:
			taken = 0
			// Somebody may have ended the user, or made a newer key.
			if n%4 == 3 {
				if err := m.standing(ctx, key.keyID); err != nil && ctx.Err() == nil {
					return err
				}
			}
		}
		if ctx.Err() != nil || !pause(ctx, n) {
			return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("the key was made, and AWS did not know it everywhere within %s", time.Since(started).Round(time.Millisecond))}
		}
	}
}

// notYet says whether an answer is what AWS gives for a key that it has not heard of.
func notYet(err error) bool {
	switch codeOf(err) {
	case "InvalidClientTokenId", "InvalidAccessKeyId", "UnrecognizedClientException", "SignatureDoesNotMatch":
		return true
	}
	return false
}

// deliverUser returns what the client gets. The session token is an empty one: a
// client that runs within another session would else send that one's.
func (u *users) deliverUser(s session, name string, end time.Time) issuers.Credential {
	s.expires, s.arn = end, u.userARNs(name)[0]
	c := u.deliver(s, end)
	delete(c.Secret, "session_token")
	c.Secret["secret_access_key"] = secret.New(s.secretKey)
	c.Public["username"], c.Public["session_token"] = name, ""
	return c
}
