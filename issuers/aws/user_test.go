package aws_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/aws/awstest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// roleText is what the page tells the administrator to give the role: with the
// boundary, users can only be made within it.
const (
	userARNs = `["arn:aws:iam::123456789012:user/mayfly/prod/*","arn:aws:iam::123456789012:user/mf-*"]`
	roleText = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:ListUsers","Resource":"*"},` +
		`{"Effect":"Allow","Action":["iam:CreateUser","iam:PutUserPolicy"],"Resource":` + userARNs + `,"Condition":{"StringEquals":{"iam:PermissionsBoundary":"` + awstest.BoundaryARN + `"}}},` +
		`{"Effect":"Allow","Action":["iam:CreateAccessKey","iam:DeleteAccessKey","iam:DeleteUser","iam:DeleteUserPolicy","iam:GetUser","iam:GetUserPolicy",` +
		`"iam:ListAccessKeys","iam:ListUserPolicies","iam:TagUser","iam:UntagUser","iam:UpdateAccessKey"],"Resource":` + userARNs + `}]}`
)

// newIAM starts a stand-in of the test's own.
func newIAM(t testing.TB) *awstest.IAM {
	t.Helper()
	s := awstest.NewIAM(roleText)
	stop, err := s.Serve(ca)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return s
}

func byUser(s *awstest.IAM) spec {
	return spec{
		"way": "assume_role", "region": awstest.Region, "role_arn": awstest.UsersRoleARN, "endpoint": s.URL, "tls": spec{"ca": ca.PEM}, "admin": spec{"username": s.Broker.ID},
		"iam_user": spec{"endpoint": s.URL, "permissions_boundary": awstest.BoundaryARN},
	}
}

func userTarget(t testing.TB, s *awstest.IAM, sp spec) issuers.Target {
	t.Helper()
	return issuers.Target{Name: targetName, Spec: sp.raw(t), Secrets: map[string]secret.Text{aws.SecretKey: secret.New(s.Broker.Secret)}, Issuer: "https://mayfly.example", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func openUsers(t testing.TB, s *awstest.IAM) issuers.Issuer {
	t.Helper()
	return open(t, userTarget(t, s, byUser(s)))
}

// asUser is a scope of the other type.
func asUser(in ...scope.Scope) (out []scope.Scope) {
	for _, s := range in {
		c := append(scope.Scope{}, s...)
		for i := range c {
			if c[i].Type == "aws" {
				c[i].Type = "aws_iam_user"
			}
		}
		out = append(out, c)
	}
	return out
}

func userScope(actions string, locations ...string) scope.Scope {
	return asUser(allow(actions, locations...))[0]
}

func userLease() issuers.Lease { return lease(userScope("s3:getobject", s3("orders/2026/*"))) }

// useAt asks the stand-in's bucket as a credential.
func useAt(ctx context.Context, s *awstest.IAM, c issuers.Credential, path string) error {
	code, text, err := (&awstest.Server{URL: s.URL}).As(ca).Do(ctx, keys(c), http.MethodGet, path, "", nil)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("status %d: %s", code, text)
	}
	return err
}

func userHarness(t *testing.T, s *awstest.IAM) issuertest.Harness {
	sp := byUser(s)
	nobody, err := awstest.Nobody()
	if err != nil {
		t.Fatal(err)
	}
	h := issuertest.Harness{
		Kind: aws.Kind{}, Target: userTarget(t, s, sp),
		Scope:    userScope("s3:getobject s3:listbucket", s3("orders/2026/*")),
		Narrower: userScope("s3:getobject", s3("orders/2026/a*")),
		Accepted: asUser(accepted()[:len(accepted())-1]...), Hostile: asUser(hostile()...),
		Invalid: append(asUser(invalid()...), allow("s3:getobject", s3("orders/2026/*")), userScope("sts:getsessiontoken", s3("orders/*"))),
		Use:     func(ctx context.Context, c issuers.Credential) error { return useAt(ctx, s, c, "orders/2026/a.txt") },
		Gone: func(_ context.Context, l issuers.Lease) error {
			if u, there := s.Look("mf-" + l.ID); there {
				return fmt.Errorf("the user is there: %+v", u)
			}
			return nil
		},
		Intact: func(context.Context) error {
			if _, there := s.Look("mayfly"); !there {
				return fmt.Errorf("the broker's own user is gone")
			}
			return nil
		},
		RefusesOlder: true,
		Unreachable:  sp.with(spec{"endpoint": "https://" + nobody}).raw(t),
		Stick: func(_ context.Context, l issuers.Lease, _ issuers.Credential) (func() error, error) {
			s.Attach("mf-"+l.ID, 1)
			attached := true
			return func() error {
				if attached {
					attached = false
					s.Attach("mf-"+l.ID, -1)
				}
				return nil
			}, nil
		},
		Expires: func(c issuers.Credential) (time.Time, error) { return time.Parse(time.RFC3339, c.Public["expiration"]) },
	}
	return h
}

func TestConformanceIAMUser(t *testing.T) {
	s := newIAM(t)
	s.Propagate(60*time.Millisecond, 0)
	issuertest.Run(t, userHarness(t, s))
}
