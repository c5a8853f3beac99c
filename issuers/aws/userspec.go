package aws

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// userSpec turns a target into one whose leases are IAM users.
type userSpec struct {
	// Path is where the users stand, /mayfly/TARGET/ when empty. Whatever bears a
	// lease's mark under it is this target's.
	Path string `json:"path"`
	// PermissionsBoundary is the ARN of a managed policy that bounds each user.
	PermissionsBoundary string `json:"permissions_boundary"`
	// Endpoint is the IAM to ask; the partition's own when empty.
	Endpoint string `json:"endpoint"`
}

// userScopeType is the `type` of the details that become IAM users. It is another
// one than sessions have, so that a role says itself that its credentials are
// long-lived keys, and whoever approves a grant reads it.
const userScopeType = "aws_iam_user"

const (
	longestUserTTL = 168 * time.Hour
	maxUserPath    = 512 // IAM, CreateUser, Path
)

var (
	userPathPattern = regexp.MustCompile(`^/([A-Za-z0-9_.+=,@-]+/)+$`)
	boundaryPattern = regexp.MustCompile(`^policy/[A-Za-z0-9_.+=,@/-]+$`)
)

// scopeType is the one that the target's scopes have.
func (s *spec) scopeType() string {
	if s.IAMUser != nil {
		return userScopeType
	}
	return scopeType
}

// otherType says why the other of the two types is refused.
func (s *spec) otherType(given string) string {
	switch {
	case s.IAMUser == nil && given == userScopeType:
		return "; " + userScopeType + " is for targets with iam_user"
	case s.IAMUser != nil && given == scopeType:
		return "; this target makes IAM users, and its roles must ask for them by that type"
	}
	return ""
}

func (s *spec) checkUsers() error {
	u := s.IAMUser
	switch {
	case u == nil:
		return nil
	case s.Way == wayFederation:
		return errors.New("iam_user: sessions of way federation_token cannot call IAM; allowed are assume_role and web_identity")
	case s.role.account == "" || strings.HasPrefix(s.role.partition, "minio"):
		return errors.New("iam_user: role_arn must name the account in which the users are made")
	case s.LastingActions:
		return errors.New("iam_user: lasting_actions has no place beside it: a key that can make another one would outlast its user")
	case s.SourceIdentity:
		return errors.New("iam_user: source_identity has no meaning with it; each user bears its lease in its name")
	case u.Path != "" && (!userPathPattern.MatchString(u.Path) || len(u.Path) > maxUserPath-64):
		return fmt.Errorf("iam_user.path: %q must begin and end with / and hold A-Z, a-z, 0-9 and _ . + = , @ - between, as in /mayfly/prod/", clip(u.Path))
	}
	if b := u.PermissionsBoundary; b != "" {
		a, err := parseARN(b)
		if err != nil || a.service != "iam" || a.open() || !boundaryPattern.MatchString(a.resource) || a.account == "" {
			return fmt.Errorf("iam_user.permissions_boundary: %q must name one managed policy, as in arn:aws:iam::123456789012:policy/mayfly-boundary", clip(b))
		}
	}
	return checkURL("iam_user.endpoint", u.Endpoint)
}
