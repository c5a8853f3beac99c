package aws_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/aws"
	"github.com/mayfly-broker/mayfly/issuers/aws/awstest"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
)

func withdrawn(t testing.TB, is issuers.Issuer, l issuers.Lease) issuers.Receipt {
	t.Helper()
	o := is.Withdraw(t.Context(), []issuers.Lease{l})[0]
	if o.Err != nil {
		t.Fatalf("Withdraw: %v", o.Err)
	}
	return o.Receipt
}

// The order in which things are made: what a crash leaves may do nothing, or ends
// by itself.
func TestHazard8IAMUserHasItsEndBeforeItsKey(t *testing.T) {
	s := newIAM(t)
	is := openUsers(t, s)
	l := userLease()
	h := s.Hold("CreateAccessKey")
	done := make(chan error, 1)
	go func() { _, err := is.Mint(t.Context(), l); done <- err }()
	<-h.Arrived
	u, there := s.Look("mf-" + l.ID)
	var doc struct {
		Statement []struct {
			Effect, Action, Resource any
			Condition                map[string]map[string]string
		}
	}
	if err := json.Unmarshal([]byte(u.Policies["mayfly"]), &doc); err != nil || !there || len(u.Keys) != 0 || len(doc.Statement) != 4 {
		t.Errorf("before the key there is %+v, %v", u, err)
	} else {
		end := l.NotAfter.UTC().Truncate(time.Second).Format(time.RFC3339)
		if d := doc.Statement[1]; d.Effect != "Deny" || d.Action != "*" || d.Resource != "*" || d.Condition["DateGreaterThanEquals"]["aws:CurrentTime"] != end {
			t.Errorf("nothing denies everything from %s on: %+v", end, d)
		}
		if u.Boundary != awstest.BoundaryARN || u.Path != "/mayfly/prod/" || u.Tags["mayfly:lease"] != l.ID || u.Tags["mayfly:end"] != end || u.Tags["mayfly:broker"] != "https://mayfly.example" {
			t.Errorf("the user is %+v", u)
		}
	}
	h.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Requests of a leader that is long deposed reach AWS after the mint deadline: AWS
// refuses them by its own clock, so the last look was the last.
func TestHazard8IAMLateRequestsAreRefusedByAWSsClock(t *testing.T) {
	for _, action := range []string{"CreateUser", "PutUserPolicy", "CreateAccessKey"} {
		t.Run(action, func(t *testing.T) {
			s := newIAM(t)
			deposed, next := openUsers(t, s), openUsers(t, s)
			l, like := userLease(), userLease()
			ample := issuertest.Ample(func() { mint(t, next, like) })
			withdrawn(t, next, like)
			l.MintDeadline = time.Now().Add(ample + time.Second) // requests count whole ones
			h := s.Hold(action)
			_, err := deposed.Mint(t.Context(), l)
			wantKind(t, err, issuers.Unknown)
			eventually(t, "the deadline has passed", func() bool { return time.Now().After(l.MintDeadline) })
			before := s.Calls(action)
			if action == "CreateUser" {
				withdrawn(t, next, l)
			}
			h.Release()
			<-h.Done
			u, there := s.Look("mf-" + l.ID)
			if action == "CreateUser" && there || action == "PutUserPolicy" && len(u.Policies) > 0 || len(u.Keys) > 0 {
				t.Errorf("%s took effect after the deadline (%d calls): %+v", action, before, u)
			}
			withdrawn(t, next, l)
		})
	}
}

// A withdrawal that meets a mint half-way ends what it finds, and the mint's key
// opens nothing.
func TestHazard8IAMWithdrawalMeetsAnotherLeadersMint(t *testing.T) {
	s := newIAM(t)
	deposed, next := openUsers(t, s), openUsers(t, s)
	l := userLease()
	l.MintDeadline = time.Now().Add(8 * time.Second)
	h := s.Hold("CreateAccessKey")
	done := make(chan error, 1)
	go func() { _, err := deposed.Mint(t.Context(), l); done <- err }()
	<-h.Arrived
	withdrawn(t, next, l)
	h.Release()
	if err := <-done; err == nil {
		t.Error("a mint of a user that was ended gave a key")
	}
	withdrawn(t, next, l)
	if u, there := s.Look("mf-" + l.ID); there {
		t.Errorf("left: %+v", u)
	}
}

// Another process made a newer key: the older mint gives its own up.
func TestHazard9IAMOlderGenerationGivesWay(t *testing.T) {
	s := newIAM(t)
	deposed, next := openUsers(t, s), openUsers(t, s)
	l := userLease()
	h := s.Hold("CreateAccessKey")
	done := make(chan error, 1)
	go func() { _, err := deposed.Mint(t.Context(), l); done <- err }()
	<-h.Arrived
	newer := issuertest.Regenerate(aws.Kind{}, l)
	c := mint(t, next, newer)
	h.Release()
	wantKind(t, <-done, issuers.Superseded)
	if u, _ := s.Look("mf-" + l.ID); len(u.Keys) != 1 || u.Keys[0] != c.Public["access_key_id"] {
		t.Errorf("keys %v; want the newer generation's alone", u.Keys)
	}
	if err := useAt(t.Context(), s, c, "orders/2026/a.txt"); err != nil {
		t.Error(err)
	}
	o := deposed.Withdraw(t.Context(), []issuers.Lease{l})
	wantKind(t, o[0].Err, issuers.Superseded)
	withdrawn(t, next, newer)
}

// A late TagUser adds a lower number, and takes no higher one away.
func TestHazard9IAMLateMarkLowersNothing(t *testing.T) {
	s := newIAM(t)
	deposed, next := openUsers(t, s), openUsers(t, s)
	l := userLease()
	mint(t, deposed, l)
	second := issuertest.Regenerate(aws.Kind{}, l)
	h := s.Hold("TagUser")
	done := make(chan error, 1)
	go func() { _, err := deposed.Mint(t.Context(), second); done <- err }()
	<-h.Arrived
	third := issuertest.Regenerate(aws.Kind{}, second)
	c := mint(t, next, third)
	h.Release()
	if err := <-done; err == nil {
		t.Error("the second generation came after the third and gave a key")
	}
	found, err := next.(issuers.Lister).List(t.Context())
	if err != nil || len(found) != 1 || found[0].Generation != 3 {
		t.Errorf("listed %+v, %v", found, err)
	}
	_, err = next.Mint(t.Context(), second)
	wantKind(t, err, issuers.Superseded)
	_ = c
	withdrawn(t, next, third)
}

// A key can open sessions that outlive it, without any right. These are denied,
// and one that was opened nevertheless is allowed nothing.
func TestHazard10IAMKeyOpensNoSessions(t *testing.T) {
	s := newIAM(t)
	c := mint(t, openUsers(t, s), userLease())
	policy := ""
	u, _ := s.Look(c.Public["username"])
	policy = u.Policies["mayfly"]
	if !strings.Contains(policy, `"sts:Get*Token"`) || !strings.Contains(policy, `"sts:Assume*"`) {
		t.Errorf("the policy is %s", policy)
	}
	if code := s.SessionToken(t.Context(), s.Broker); code != http.StatusOK {
		t.Fatalf("a key without the denials gets status %d: the question itself is wrong", code)
	}
	if code := s.SessionToken(t.Context(), keys(c)); code != http.StatusForbidden {
		t.Errorf("sts:GetSessionToken: status %d", code)
	}
	session := s.StolenSession(c.Public["username"])
	code, _, err := (&awstest.Server{URL: s.URL}).As(ca).Do(t.Context(), session, http.MethodGet, "orders/2026/a.txt", "", nil)
	if err != nil || code != http.StatusForbidden {
		t.Errorf("a session of the user's: status %d, %v", code, err)
	}
	if err := useAt(t.Context(), s, c, "orders/2026/a.txt"); err != nil {
		t.Errorf("the key itself: %v", err)
	}
}

// The key is worth nothing from the lease's end on, though nobody deletes it.
func TestLaw2IAMKeyEndsWithNoBroker(t *testing.T) {
	s := newIAM(t)
	is := openUsers(t, s)
	l := userLease()
	l.NotAfter = time.Now().Add(6 * time.Second)
	c := mint(t, is, l)
	if err := useAt(t.Context(), s, c, "orders/2026/a.txt"); err != nil && time.Now().Before(l.NotAfter.Truncate(time.Second)) {
		t.Fatal(err)
	}
	_ = is.Close()
	eventually(t, "the key opens nothing", func() bool { return useAt(t.Context(), s, c, "orders/2026/a.txt") != nil })
	if now := time.Now(); now.Before(l.NotAfter.Truncate(time.Second)) {
		t.Errorf("it ended at %s, before %s", now, l.NotAfter)
	}
	if u, there := s.Look(c.Public["username"]); !there || len(u.Keys) != 1 {
		t.Errorf("somebody deleted it: %+v", u)
	}
}

func TestLaw3IAMUserDoesNoMoreThanItsScope(t *testing.T) {
	s := newIAM(t)
	c := mint(t, openUsers(t, s), userLease())
	for path, ok := range map[string]bool{"orders/2026/a.txt": true, "orders/2025/a.txt": false, "other/2026/a.txt": false, "orders-eu/2026/a.txt": false} {
		if err := useAt(t.Context(), s, c, path); (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Somebody else's users are left alone, whatever they are called and wherever they
// stand.
func TestHazard16IAMForeignUsersAreLeftAlone(t *testing.T) {
	s := newIAM(t)
	is := openUsers(t, s)
	tags := func(id string, more ...string) map[string]string {
		out := map[string]string{"mayfly:lease": id, "mayfly:target": targetName, "mayfly:generation:1": "1"}
		for i := 0; i < len(more); i += 2 {
			out[more[i]] = more[i+1]
		}
		return out
	}
	for name, x := range map[string]struct {
		path string
		tags func(id string) map[string]string
	}{
		"no tags":        {"/mayfly/prod/", func(string) map[string]string { return map[string]string{} }},
		"another path":   {"/", func(id string) map[string]string { return tags(id) }},
		"a deeper path":  {"/mayfly/prod/x/", func(id string) map[string]string { return tags(id) }},
		"another target": {"/mayfly/prod/", func(id string) map[string]string { return tags(id, "mayfly:target", "other") }},
		"another lease":  {"/mayfly/prod/", func(id string) map[string]string { return tags(issuertest.NewLeaseID()) }},
		"no generation": {"/mayfly/prod/", func(id string) map[string]string {
			return map[string]string{"mayfly:lease": id, "mayfly:target": targetName}
		}},
		"a false number":    {"/mayfly/prod/", func(id string) map[string]string { return tags(id, "mayfly:generation:01", "") }},
		"a hostile id":      {"/mayfly/prod/", func(id string) map[string]string { return tags(id + "/../x") }},
		"a negative number": {"/mayfly/prod/", func(id string) map[string]string { return tags(id, "mayfly:generation:-1", "") }},
	} {
		t.Run(name, func(t *testing.T) {
			l := userLease()
			s.Put("mf-"+l.ID, x.path, x.tags(l.ID))
			_, err := is.Mint(t.Context(), l)
			if kind := issuers.KindOf(err); err == nil || kind != issuers.Foreign && kind != issuers.Refused {
				t.Errorf("Mint: %v", err)
			}
			o := is.Withdraw(t.Context(), []issuers.Lease{l})[0]
			if kind := issuers.KindOf(o.Err); o.Err == nil || kind != issuers.Foreign && kind != issuers.Refused {
				t.Errorf("Withdraw: %+v", o)
			}
			if u, there := s.Look("mf-" + l.ID); !there || len(u.Keys) != 0 || len(u.Policies) != 0 {
				t.Errorf("it is now %+v", u)
			}
		})
	}
	if found, err := is.(issuers.Lister).List(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("listed %+v, %v", found, err)
	}
	for _, id := range []string{"", "*", "check-0123456789ab", strings.Repeat("a", 25) + "/", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"} {
		o := is.Withdraw(t.Context(), []issuers.Lease{{ID: id, Name: "mf-" + id + "-1", Generation: 1}})
		wantKind(t, o[0].Err, issuers.Foreign)
	}
}

// What was asked, and took effect, and never answered, is found again.
func TestIAMLostAnswers(t *testing.T) {
	s := newIAM(t)
	is := openUsers(t, s)
	for _, action := range []string{"AssumeRole", "CreateUser", "PutUserPolicy", "CreateAccessKey", "GetUser"} {
		s.Lose(action, 1)
		l := userLease()
		c, err := is.Mint(t.Context(), l)
		if err != nil {
			t.Errorf("Mint, the answer of %s lost: %v", action, err)
			continue
		}
		if u, _ := s.Look("mf-" + l.ID); len(u.Keys) != 1 || u.Keys[0] != c.Public["access_key_id"] {
			t.Errorf("%s: the user has the keys %v", action, u.Keys)
		}
		for _, action := range []string{"UpdateAccessKey", "DeleteAccessKey", "DeleteUserPolicy", "DeleteUser", "ListAccessKeys"} {
			s.Lose(action, 1)
		}
		if r := withdrawn(t, is, l); r.Proof != issuers.ProofAbsent {
			t.Errorf("%+v", r)
		}
	}
}

// IAM may answer from where the last change has not arrived.
func TestIAMAnswersThatLagBehind(t *testing.T) {
	s := newIAM(t)
	is := openUsers(t, s)
	l := userLease()
	s.Stale("GetUser", 2)
	s.Stale("ListAccessKeys", 2)
	mint(t, is, l)
	s.Stale("ListAccessKeys", 1)
	withdrawn(t, is, l)
	if u, there := s.Look("mf-" + l.ID); there {
		t.Errorf("left: %+v", u)
	}
	// The user is there already, and the first look does not see it.
	mint(t, is, l)
	s.Stale("GetUser", 1)
	mint(t, is, issuertest.Regenerate(aws.Kind{}, l))
	if u, _ := s.Look("mf-" + l.ID); len(u.Keys) != 1 {
		t.Errorf("keys %v", u.Keys)
	}
}

// What the spec names must be there: nothing is made without its boundary.
func TestIAMBoundaryThatDoesNotExist(t *testing.T) {
	s := newIAM(t)
	s.Grant(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:*","Resource":"*"}]}`)
	sp := byUser(s).with(spec{"tags": true, "iam_user": spec{"endpoint": s.URL, "permissions_boundary": awstest.BoundaryARN + "-x"}})
	_, err := open(t, userTarget(t, s, sp)).Mint(t.Context(), userLease())
	wantKind(t, err, issuers.Refused)
	if !strings.Contains(err.Error(), "permissions_boundary") {
		t.Error(err)
	}
	l := userLease()
	mint(t, open(t, userTarget(t, s, byUser(s).with(spec{"tags": true}))), l)
	if u, _ := s.Look("mf-" + l.ID); u.Tags["mayfly:principal"] != l.Principal || u.Tags["mayfly:role"] != l.Role {
		t.Errorf("tags %v", u.Tags)
	}
	// A retry under another boundary does not go on with the user of before.
	_, err = open(t, userTarget(t, s, sp)).Mint(t.Context(), issuertest.Regenerate(aws.Kind{}, l))
	wantKind(t, err, issuers.Refused)
}

func TestIAMThrottling(t *testing.T) {
	s := newIAM(t)
	is := openUsers(t, s)
	for _, action := range []string{"AssumeRole", "CreateUser", "PutUserPolicy", "CreateAccessKey", "GetCallerIdentity", "DeleteUser"} {
		s.Throttle(action, 3)
	}
	l := userLease()
	mint(t, is, l)
	withdrawn(t, is, l)
	// Longer than anybody waits: nothing was done, and whoever asks may try again.
	s.Throttle("CreateUser", 1000)
	_, err := is.Mint(t.Context(), userLease())
	if kind := issuers.KindOf(err); err == nil || kind != issuers.Unreachable && kind != issuers.Unknown {
		t.Errorf("%v", err)
	}
}

func TestIAMQuota(t *testing.T) {
	s := newIAM(t)
	is := openUsers(t, s)
	s.Quota(1)
	_, err := is.Mint(t.Context(), userLease())
	wantKind(t, err, issuers.Refused)
	if !strings.Contains(err.Error(), "quota") || !strings.Contains(err.Error(), "UsersPerAccount") {
		t.Errorf("%v", err)
	}
}

// A key is delivered once every server that is asked knows it, or not at all.
func TestIAMWaitsForTheKey(t *testing.T) {
	s := newIAM(t)
	s.Propagate(700*time.Millisecond, 0)
	is := openUsers(t, s)
	began := time.Now()
	l := userLease()
	c := mint(t, is, l) // for as long again, every second server does not know it
	if took := time.Since(began); took < 1400*time.Millisecond || s.Calls("GetCallerIdentity") < 3 {
		t.Errorf("it took %s and %d looks", took, s.Calls("GetCallerIdentity"))
	}
	if _, empty := c.Public["session_token"]; !empty || c.Env["AWS_SESSION_TOKEN"] != "session_token" {
		t.Error("a client within another session would send that one's token")
	}
	s.Propagate(25*time.Minute, 0)
	late := userLease()
	late.MintDeadline = time.Now().Add(3 * time.Second)
	_, err := is.Mint(t.Context(), late)
	wantKind(t, err, issuers.Unknown)
	if errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "did not know it everywhere") {
		t.Errorf("%v", err)
	}
	withdrawn(t, is, late)
}

// A deleted key that AWS has not forgotten everywhere is refused in the end.
func TestIAMForgetsLate(t *testing.T) {
	s := newIAM(t)
	s.Propagate(0, 500*time.Millisecond)
	is := openUsers(t, s)
	l := userLease()
	c := mint(t, is, l)
	withdrawn(t, is, l)
	// The user's policies went with it: the key that is still known is allowed nothing.
	if err := useAt(t.Context(), s, c, "orders/2026/a.txt"); err == nil {
		t.Error("the key still opens the bucket")
	}
}

func TestIAMListIsPaged(t *testing.T) {
	s := newIAM(t)
	is := openUsers(t, s)
	want := 230
	for range want {
		id := issuertest.NewLeaseID()
		s.Put("mf-"+id, "/mayfly/prod/", map[string]string{"mayfly:lease": id, "mayfly:target": targetName, "mayfly:generation:2": "1"})
	}
	found, err := is.(issuers.Lister).List(t.Context())
	if err != nil || len(found) != want || s.Calls("ListUsers") != 3 {
		t.Fatalf("%d of %d in %d pages: %v", len(found), want, s.Calls("ListUsers"), err)
	}
	var leases []issuers.Lease
	for _, f := range found {
		leases = append(leases, issuers.Lease{ID: f.LeaseID, Name: f.Name, Generation: f.Generation})
	}
	for i, o := range is.Withdraw(t.Context(), leases) {
		if o.Err != nil {
			t.Fatalf("%d: %v", i, o.Err)
		}
	}
	if n := s.Calls("AssumeRole"); n != 2 {
		t.Errorf("a list and a batch took %d sessions; want one each", n)
	}
}

func TestIAMCheckNamesEachMissingRight(t *testing.T) {
	s := newIAM(t)
	tg := userTarget(t, s, byUser(s))
	for name, f := range check(t, tg) {
		if !f.OK {
			t.Errorf("%s: %+v", name, f)
		}
	}
	for _, action := range []string{"GetUser", "CreateUser", "TagUser", "UntagUser", "PutUserPolicy", "GetUserPolicy", "CreateAccessKey", "ListAccessKeys", "UpdateAccessKey", "DeleteAccessKey", "ListUserPolicies", "DeleteUserPolicy", "DeleteUser", "ListUsers"} {
		s.Grant(roleText, fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"iam:%s","Resource":"*"}]}`, action))
		wantFinding(t, check(t, tg)["iam:"+action], false, false, "iam:"+action, "aws iam put-role-policy --role-name 'mayfly-users'", awstest.BoundaryARN)
	}
	s.Grant(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:*","Resource":"*"}]}`)
	wantFinding(t, check(t, tg)["permissions boundary"], false, true, "without", "put-role-policy")
	free := byUser(s).with(spec{"iam_user": spec{"endpoint": s.URL}})
	wantFinding(t, check(t, userTarget(t, s, free))["permissions boundary"], false, true, "any right")
	if found, err := open(t, tg).(issuers.Lister).List(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("the checks left %+v, %v", found, err)
	}
	// The command that is printed gives what is needed, and no more.
	s.Grant(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"iam:ListUsers","Resource":"*"}]}`)
	fix := check(t, tg)["iam:GetUser"].Fix
	_, doc, _ := strings.Cut(fix, "--policy-document ")
	if doc = strings.Trim(doc, "'"); doc != roleText {
		t.Errorf("the command gives\n%s\nand the tests run with\n%s", doc, roleText)
	}
}

func TestIAMSpecs(t *testing.T) {
	base := spec{"way": "assume_role", "region": "eu-central-1", "role_arn": awstest.UsersRoleARN, "admin": spec{"username": "AKIAIOSFODNN7EXAMPLE"}}
	for name, x := range map[string]struct {
		more spec
		ok   bool
	}{
		"plain":              {spec{"iam_user": spec{}}, true},
		"whole":              {spec{"iam_user": spec{"path": "/mayfly/eu/", "permissions_boundary": awstest.BoundaryARN, "endpoint": "https://iam.example"}, "max_ttl": "168h"}, true},
		"too long":           {spec{"iam_user": spec{}, "max_ttl": "169h"}, false},
		"federation":         {spec{"iam_user": spec{}, "way": "federation_token", "role_arn": ""}, false},
		"MinIO":              {spec{"iam_user": spec{}, "role_arn": awstest.RoleARN}, false},
		"lasting":            {spec{"iam_user": spec{}, "lasting_actions": true}, false},
		"source identity":    {spec{"iam_user": spec{}, "source_identity": true}, false},
		"a path of patterns": {spec{"iam_user": spec{"path": "/mayfly/*/"}}, false},
		"an open path":       {spec{"iam_user": spec{"path": "/mayfly"}}, false},
		"a long path":        {spec{"iam_user": spec{"path": "/" + strings.Repeat("x", 500) + "/"}}, false},
		"any boundary":       {spec{"iam_user": spec{"permissions_boundary": "arn:aws:iam::123456789012:policy/*"}}, false},
		"a role as boundary": {spec{"iam_user": spec{"permissions_boundary": awstest.UsersRoleARN}}, false},
		"no TLS":             {spec{"iam_user": spec{"endpoint": "http://iam.example"}}, false},
		"an unknown key":     {spec{"iam_user": spec{"user": "x"}}, false},
	} {
		raw := base.with(x.more).raw(t)
		if err := (aws.Kind{}).CheckSpec(raw); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
		if got := issuers.Revocable(aws.Kind{}, raw); got != x.ok {
			t.Errorf("%s: revocable %t", name, got)
		}
	}
	// A role asks for users by its scope, and gets none by mistake.
	for _, x := range []struct {
		s     spec
		words string
	}{{base, "is for targets with iam_user"}, {base.with(spec{"iam_user": spec{}}), "must ask for them"}} {
		wrong := userScope("s3:getobject", s3("orders/*"))
		if x.s["iam_user"] != nil {
			wrong = allow("s3:getobject", s3("orders/*"))
		}
		if err := (aws.Kind{}).CheckScope(x.s.raw(t), wrong); err == nil || !strings.Contains(err.Error(), x.words) {
			t.Errorf("%v", err)
		}
	}
	long := asUser(long(21))[0]
	if err := (aws.Kind{}).CheckScope(base.with(spec{"iam_user": spec{}}).raw(t), long); err == nil {
		t.Error("a scope is accepted that fits no user's policy beside the denials")
	}
}
