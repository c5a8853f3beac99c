package aws

import (
	"slices"
	"strings"
	"time"
)

// denial is one statement that denies. It wins over whatever allows.
type denial struct {
	Effect    string
	Action    oneOrMore
	Resource  string
	Condition map[string]map[string]string `json:",omitempty"`
}

// userDenials end an IAM user's policy. The first makes the key worthless at the
// lease's end though nobody deletes it, also where a resource's own policy lets the
// user in. The others are about sessions that a key can open, and which would live
// on after it: sts:GetSessionToken needs no permission, so it takes a denial. A
// session that was opened before AWS knew of the policy is allowed nothing either;
// calls that a service makes in the user's name also carry a session's key, and are
// left alone.
func userDenials(end string) []any {
	return []any{
		denial{"Deny", oneOrMore{"*"}, "*", map[string]map[string]string{"DateGreaterThanEquals": {"aws:CurrentTime": end}}},
		denial{"Deny", oneOrMore{"sts:Assume*", "sts:Get*Token"}, "*", nil},
		denial{"Deny", oneOrMore{"*"}, "*", map[string]map[string]string{"Null": {"aws:TokenIssueTime": "false"}, "Bool": {"aws:ViaAWSService": "false"}}},
	}
}

// nothing is the policy of the user that a check makes.
const nothing = `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}`

// What the broker's sessions do at IAM. Each session may do no more than it is
// opened for.
var (
	endActions  = []string{"iam:DeleteAccessKey", "iam:DeleteUser", "iam:DeleteUserPolicy", "iam:GetUser", "iam:ListAccessKeys", "iam:ListUserPolicies", "iam:UpdateAccessKey"}
	mintActions = []string{
		"iam:CreateAccessKey", "iam:CreateUser", "iam:DeleteAccessKey", "iam:GetUser", "iam:GetUserPolicy", "iam:ListAccessKeys", "iam:PutUserPolicy", "iam:TagUser", "iam:UntagUser", "iam:UpdateAccessKey",
	}
	allActions = sorted(append(slices.Clone(endActions), mintActions...))
)

// instant is a time as IAM's conditions have it, cut to the second.
func instant(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// userARNs are how IAM names a user: by its path where it exists, and without one
// where it does not, which it must be allowed to say.
func (u *users) userARNs(name string) oneOrMore {
	base := "arn:" + u.spec.role.partition + ":iam::" + u.spec.role.account + ":user"
	bare := "/" + name
	if name == "*" {
		bare = "/" + userPrefix + "*"
	}
	return oneOrMore{base + u.path + name, base + bare}
}

// mintPolicy lets a session make one user, until the mint deadline by AWS's own
// clock: what is still on its way then is refused there (HAZARDS 8).
func (u *users) mintPolicy(name string, deadline time.Time) (string, error) {
	return document(statement{"Allow", mintActions, u.userARNs(name), condition{DateLessThan: map[string]string{"aws:CurrentTime": instant(deadline)}}})
}

// allowed is a statement without a condition.
type allowed struct {
	Effect    string
	Action    oneOrMore
	Resource  oneOrMore
	Condition map[string]map[string]string `json:",omitempty"`
}

// endPolicy lets a session end users and look at them.
func (u *users) endPolicy() (string, error) {
	return document(allowed{Effect: "Allow", Action: endActions, Resource: u.userARNs("*")}, u.mayList())
}

// checkUserPolicy lets a session try every right, on one name.
func (u *users) checkUserPolicy(name string) (string, error) {
	return document(allowed{Effect: "Allow", Action: allActions, Resource: u.userARNs(name)}, u.mayList())
}

func (u *users) mayList() allowed {
	return allowed{Effect: "Allow", Action: oneOrMore{"iam:ListUsers"}, Resource: oneOrMore{"*"}}
}

// fixRights is the command that gives the role all that it needs, and no more.
// With a boundary it can make no user without it: else the right to make users
// would be the right to everything.
func (u *users) fixRights() string {
	guarded := []string{"iam:CreateUser", "iam:PutUserPolicy"}
	plain, all := allActions, u.userARNs("*")
	statements := []any{u.mayList()}
	if b := u.spec.IAMUser.PermissionsBoundary; b != "" {
		plain = slices.DeleteFunc(slices.Clone(plain), func(a string) bool { return slices.Contains(guarded, a) })
		statements = append(statements, allowed{"Allow", guarded, all, map[string]map[string]string{"StringEquals": {"iam:PermissionsBoundary": b}}})
	}
	doc, err := document(append(statements, allowed{Effect: "Allow", Action: plain, Resource: all})...)
	if err != nil {
		return ""
	}
	role := u.spec.role.resource[strings.LastIndexByte(u.spec.role.resource, '/')+1:]
	return "aws iam put-role-policy --role-name " + quote(role) + " --policy-name mayfly-users --policy-document " + quote(doc)
}
