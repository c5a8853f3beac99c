package aws_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
)

// ways are the two ways to a session that MinIO knows.
func ways(t *testing.T, test func(t *testing.T, s spec)) {
	t.Helper()
	t.Run("assume_role", func(t *testing.T) { test(t, byRole()) })
	t.Run("web_identity", func(t *testing.T) { test(t, byIdentity()) })
}

// The role may do all of S3; the session what its lease's scope says.
func TestLaw3AWSSessionDoesNoMoreThanItsScope(t *testing.T) {
	ways(t, func(t *testing.T, s spec) {
		is := open(t, target(t, s))
		reader := mint(t, is, lease(allow("s3:getobject s3:listbucket", s3("orders/2026/*"))))
		writer := mint(t, is, lease(allow("s3:putobject", s3("orders/in/*"))))
		lister := mint(t, is, lease(allow("s3:listbucket", s3("orders"))))
		one := mint(t, is, lease(allow("s3:getobject", s3("orders/2026/a.txt"))))
		for _, x := range []struct {
			c                   issuers.Credential
			method, path, query string
			want                int
		}{
			{reader, "GET", "orders/2026/a.txt", "", 200},
			{reader, "GET", "orders/2026/b.txt", "", 200},
			{reader, "GET", "orders/2025/a.txt", "", 403},    // another prefix
			{reader, "GET", "orders/top.txt", "", 403},       // above it
			{reader, "GET", "other/2026/a.txt", "", 403},     // another bucket
			{reader, "GET", "orders-eu/2026/a.txt", "", 403}, // a bucket whose name only begins alike
			{reader, "PUT", "orders/2026/a.txt", "", 403},
			{reader, "DELETE", "orders/2026/a.txt", "", 403},
			{reader, "PUT", "orders/2026/new.txt", "", 403},
			{reader, "GET", "orders", "list-type=2&prefix=2026%2F", 200},
			{reader, "GET", "orders", "list-type=2&prefix=2026%2Fa", 200},
			{reader, "GET", "orders", "list-type=2&prefix=2025%2F", 403},
			{reader, "GET", "orders", "list-type=2&prefix=202", 403},
			{reader, "GET", "orders", "list-type=2", 403},
			{reader, "GET", "other", "list-type=2&prefix=2026%2F", 403},
			{reader, "GET", "", "", 403}, // which buckets there are
			{reader, "GET", "orders", "policy=", 403},
			{reader, "PUT", "third", "", 403},
			{writer, "PUT", "orders/in/x.txt", "", 200},
			{writer, "GET", "orders/in/x.txt", "", 403},
			{writer, "PUT", "orders/out/x.txt", "", 403},
			{writer, "GET", "orders", "list-type=2&prefix=in%2F", 403},
			{lister, "GET", "orders", "list-type=2", 200},
			{lister, "GET", "orders/2026/a.txt", "", 403},
			{lister, "GET", "orders-eu", "list-type=2", 403},
			{one, "GET", "orders/2026/a.txt", "", 200},
			{one, "GET", "orders/2026/b.txt", "", 403},
			{one, "GET", "orders", "list-type=2&prefix=2026%2Fa.txt", 403},
		} {
			if got := status(t, x.c, x.method, x.path, x.query); got != x.want {
				t.Errorf("%s %s?%s: status %d, want %d (%s)", x.method, x.path, x.query, got, x.want, x.c.Public["arn"])
			}
		}
	})
}

// Reading here and writing there does not add up to writing here.
func TestLaw3AWSDetailsDoNotMix(t *testing.T) {
	is := open(t, target(t, byRole()))
	both := append(allow("s3:getobject", s3("orders/2026/*")), allow("s3:putobject", s3("orders/in/*"))...)
	c := mint(t, is, lease(both))
	for _, x := range []struct {
		method, path string
		want         int
	}{{"GET", "orders/2026/a.txt", 200}, {"PUT", "orders/in/y.txt", 200}, {"PUT", "orders/2026/y.txt", 403}, {"GET", "orders/in/y.txt", 403}} {
		if got := status(t, c, x.method, x.path, ""); got != x.want {
			t.Errorf("%s %s: status %d, want %d", x.method, x.path, got, x.want)
		}
	}
}

// STS opens no session shorter than 15 minutes; this one is worth nothing once its
// lease has ended, by the target's own clock.
func TestHazard18AWSSessionEndsWithItsLease(t *testing.T) {
	ways(t, func(t *testing.T, s spec) {
		is := open(t, target(t, s))
		l := lease(allow("s3:getobject s3:listbucket", s3("orders/2026/*")))
		l.NotAfter = time.Now().Add(10 * time.Second)
		c := mint(t, is, l)
		end, err := time.Parse(time.RFC3339, c.Public["expiration"])
		if err != nil || end.After(l.NotAfter) {
			t.Fatalf("the lease ends at %s, its credential says %q: %v", l.NotAfter, c.Public["expiration"], err)
		}
		if got := status(t, c, "GET", "orders/2026/a.txt", ""); got != 200 && time.Now().Before(end) {
			t.Fatalf("before the lease's end: status %d", got)
		}
		eventually(t, "the session is of no use", func() bool { return status(t, c, "GET", "orders/2026/a.txt", "") == 403 })
		if now := time.Now(); now.Before(end) {
			t.Errorf("it ended at %s already, before %s", now, end)
		}
		// The session itself lives: it is the policy that gives it nothing.
		code, text, err := shared.Do(t.Context(), keys(c), "GET", "orders", "list-type=2&prefix=2026%2F", nil)
		if err != nil || code != 403 || !strings.Contains(string(text), "<Code>AccessDenied</Code>") {
			t.Errorf("after the end: status %d, %v, %s", code, err, text)
		}
		receipt := is.Withdraw(t.Context(), []issuers.Lease{l})[0].Receipt
		if receipt.Proof != issuers.ProofExpiresOnly || !strings.Contains(receipt.Detail, c.Public["expiration"]) {
			t.Errorf("the receipt %+v does not say %s", receipt, c.Public["expiration"])
		}
	})
}

// Whatever the lease says, the target's max_ttl bounds it.
func TestHazard18AWSLifeIsCapped(t *testing.T) {
	s := byRole().with(spec{"max_ttl": "20m"})
	if got := (aws.Kind{}).MaxTTL(s.raw(t)); got != 20*time.Minute {
		t.Errorf("MaxTTL is %s", got)
	}
	l := lease(allow("s3:getobject", s3("orders/2026/*")))
	l.NotAfter = l.NotBefore.Add(5 * time.Hour)
	c := mint(t, open(t, target(t, s)), l)
	if end, err := time.Parse(time.RFC3339, c.Public["expiration"]); err != nil || end.After(l.NotBefore.Add(20*time.Minute)) {
		t.Errorf("it ends at %s, %v", end, err)
	}
	if got := (aws.Kind{}).MaxTTL([]byte(`{`)); got > time.Second {
		t.Errorf("a spec that does not read allows %s", got)
	}
}

// A token that is stuck on its way, and comes after the mint deadline, opens
// nothing: it ends with the deadline, by STS's clock.
func TestHazard8AWSLateTokenIsRefusedBySTSsClock(t *testing.T) {
	late := make(chan int, 1)
	var deadline time.Time
	proxy, stop, err := ca.Serve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil { // all of it is here, before the client goes away
			return
		}
		<-time.After(time.Until(deadline.Add(1500 * time.Millisecond)))
		again, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), r.Method, shared.URL+"/", strings.NewReader(r.PostForm.Encode()))
		if err != nil {
			return
		}
		again.Header = r.Header.Clone()
		resp, err := ca.Client().Do(again)
		if err != nil {
			return
		}
		_ = resp.Body.Close()
		late <- resp.StatusCode
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	is := open(t, target(t, byIdentity().with(spec{"endpoint": proxy})))
	l := lease(allow("s3:getobject", s3("orders/2026/*")))
	deadline = time.Now().Add(5 * time.Second)
	l.MintDeadline = deadline
	_, err = is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Unknown)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	select {
	case got := <-late:
		if got < 400 {
			t.Errorf("the late token opened a session: status %d", got)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the token never came")
	}
}

// A re-mint, however late, is a session of its own: it takes nothing from another,
// and none is called by another's name.
func TestHazard9AWSEachGenerationIsASessionOfItsOwn(t *testing.T) {
	is := open(t, target(t, byRole()))
	l := lease(allow("s3:getobject", s3("orders/2026/*")))
	next := issuertest.Regenerate(aws.Kind{}, l)
	newer, older := mint(t, is, next), mint(t, is, l)
	if newer.Public["access_key_id"] == older.Public["access_key_id"] {
		t.Error("two generations share a key")
	}
	for _, c := range []issuers.Credential{newer, older} {
		if got := status(t, c, "GET", "orders/2026/a.txt", ""); got != 200 {
			t.Errorf("status %d", got)
		}
	}
	l.Name = next.Name
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Refused)
}

// What a lease does must not outlast it: no other session, no key, no open door.
func TestHazard10AWSActionsThatOutlastTheLeaseAreRefused(t *testing.T) {
	key, role := "arn:aws:kms:eu-west-1:123456789012:key/*", "arn:aws:iam::123456789012:role/x"
	s := spec{"way": "assume_role", "region": "eu-west-1", "role_arn": role, "admin": spec{"username": "AKIAIOSFODNN7EXAMPLE"}}
	for _, action := range []string{
		"sts:assumerole", "sts:assumeroot", "sts:getfederationtoken", "sts:getsessiontoken", "sts:assumerolewithwebidentity", "sts:setsourceidentity",
		"iam:createuser", "iam:createaccesskey", "iam:passrole", "iam:putrolepolicy", "iam:updateassumerolepolicy", "iam:createloginprofile",
		"kms:creategrant", "kms:putkeypolicy", "lambda:addpermission", "lambda:updatefunctioncode", "lambda:createfunction", "ecr:getauthorizationtoken",
		"redshift:getclustercredentials", "secretsmanager:putresourcepolicy", "ram:createresourceshare", "sso:createaccountassignment", "ssm:startsession",
		"ec2-instance-connect:sendsshpublickey", "rolesanywhere:createtrustanchor", "organizations:attachpolicy", "codeartifact:getauthorizationtoken",
		"ec2:createkeypair", "rds-db:connect", "ec2:importkeypair", "sqs:addpermission", "s3:putbucketacl", "s3:putbucketpolicy", "s3:deletebucketpolicy", "s3:putreplicationconfiguration",
	} {
		resource := key
		if strings.HasPrefix(action, "s3:") {
			resource = s3("orders")
		}
		if err := (aws.Kind{}).CheckScope(s.raw(t), allow(action, resource)); err == nil {
			t.Errorf("%s is accepted", action)
		}
		if err := (aws.Kind{}).CheckScope(s.with(spec{"lasting_actions": true}).raw(t), allow(action, resource)); err != nil {
			t.Errorf("%s, where the target allows it: %v", action, err)
		}
	}
	for _, action := range []string{"dynamodb:getitem", "dynamodb:putitem", "kms:decrypt", "sqs:sendmessage", "secretsmanager:getsecretvalue", "iam:getrole", "iam:listusers", "iam:getuserpolicy", "logs:putlogevents", "ec2:describeinstances", "lambda:invokefunction"} {
		if err := (aws.Kind{}).CheckScope(s.raw(t), allow(action, key)); err != nil {
			t.Errorf("%s: %v", action, err)
		}
	}
}

// AWS cuts no name off, and refuses what is too long for it.
func TestHazard16AWSNamesFitWhole(t *testing.T) {
	id := issuertest.NewLeaseID()
	if n := (aws.Kind{}).CredentialName(id, 1<<63); len(n) > 64 || !strings.Contains(n, id) {
		t.Errorf("%q has %d characters; a session's name has at most 64", n, len(n))
	}
	s, stop := standIn(t)
	defer stop()
	is := open(t, target(t, byFederation(s)))
	l := lease(allow("s3:getobject", s3("orders/2026/*")))
	l.Generation = 100
	l.Name = aws.Kind{}.CredentialName(l.ID, l.Generation)
	_, err := is.Mint(t.Context(), l)
	wantKind(t, err, issuers.Refused)
	l.Generation = 99
	l.Name = aws.Kind{}.CredentialName(l.ID, l.Generation)
	mint(t, is, l)
	if asked := s.Asked(); len(asked) != 1 || asked[0].Form.Get("Name") != l.Name || len(l.Name) > 32 {
		t.Errorf("asked %+v", asked)
	}
}

func TestLaw8AWSHangingSTSDelaysNoLongerThanTheDeadline(t *testing.T) {
	is := open(t, target(t, byRole()))
	l := lease(allow("s3:getobject", s3("orders/2026/*")))
	mint(t, is, l) // a connection stands
	goOn, err := shared.Hang()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := goOn(); err != nil {
			t.Error(err)
		}
	}()
	var began time.Time
	eventually(t, "the server hangs", func() bool { // it stops a moment after the signal
		began = time.Now()
		next := lease(l.Scope)
		next.MintDeadline = began.Add(4 * time.Second)
		_, err = is.Mint(t.Context(), next)
		return err != nil
	})
	wantKind(t, err, issuers.Unknown)
	if took := time.Since(began); took > 14*time.Second {
		t.Errorf("it took %s", took)
	}
}
