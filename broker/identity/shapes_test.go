package identity

import (
	"testing"
	"time"
)

// shape is the form of a real issuer's claims, with an AuthMethod for it as an
// operator would write it.
type shape struct {
	name   string
	claims claims // iss, iat, nbf, exp and aud are filled in
	spec   claims
	want   Attested
	// refuse are changes that make the token somebody else's.
	refuse map[string]claims
}

var shapes = []shape{{
	name: "kubernetes",
	claims: claims{
		"jti": "7b2c1f3e-5f0a-4b8e-9c59-1a2b3c4d5e6f", "sub": "system:serviceaccount:payments:api",
		"kubernetes.io": claims{
			"namespace":      "payments",
			"node":           claims{"name": "worker-3", "uid": "4d2b0c1a-1111-4222-8333-944444444444"},
			"pod":            claims{"name": "api-6d5f7c9b8-x2x7p", "uid": "9e1d2c3b-aaaa-4bbb-8ccc-dddddddddddd"},
			"serviceaccount": claims{"name": "api", "uid": "0f1e2d3c-5555-4666-8777-888888888888"},
		},
	},
	spec: claims{
		"require": claims{"kubernetes.io.namespace": "payments"},
		"bind": []any{claims{
			"when":     claims{"sub": "system:serviceaccount:payments:api"},
			"as":       "workload:{kubernetes.io.namespace}/{kubernetes.io.serviceaccount.name}",
			"instance": "kubernetes.io.pod.uid",
		}},
	},
	want: Attested{Principal: "workload:payments/api", Instance: "9e1d2c3b-aaaa-4bbb-8ccc-dddddddddddd"},
	refuse: map[string]claims{
		"another namespace":   {"kubernetes.io": claims{"namespace": "dev", "serviceaccount": claims{"name": "api"}}},
		"a shadowing claim":   {"kubernetes.io.namespace": "payments"},
		"another account":     {"sub": "system:serviceaccount:payments:web"},
		"a pod without uid":   {"kubernetes.io": claims{"namespace": "payments", "serviceaccount": claims{"name": "api"}}},
		"an unsafe name":      {"kubernetes.io": claims{"namespace": "payments", "pod": claims{"uid": "u"}, "serviceaccount": claims{"name": "../admin"}}},
		"a name with slash":   {"kubernetes.io": claims{"namespace": "payments", "pod": claims{"uid": "u"}, "serviceaccount": claims{"name": "a/b"}}},
		"no namespace at all": {"kubernetes.io": nil},
	},
}, {
	name: "github",
	claims: claims{
		"jti": "c0ffee00-0000-4000-8000-000000000001", "sub": "repo:acme/shop:environment:production",
		"actor": "ann", "actor_id": "1001", "environment": "production", "event_name": "push", "job_workflow_ref": "acme/shop/.github/workflows/deploy.yml@refs/heads/main",
		"ref": "refs/heads/main", "ref_protected": "true", "ref_type": "branch", "repository": "acme/shop", "repository_id": "815",
		"repository_owner": "acme", "repository_owner_id": "4711", "repository_visibility": "private", "run_attempt": "1", "run_id": "30433642", "run_number": "10",
		"runner_environment": "github-hosted", "sha": "1f0c", "workflow": "deploy", "enterprise_id": "",
	},
	spec: claims{
		"require": claims{"repository_owner_id": "4711"},
		"bind":    []any{claims{"when": claims{"repository_id": "815", "environment": "production"}, "as": "workload:deploy", "instance": "run_id"}},
	},
	want: Attested{Principal: "workload:deploy", Instance: "30433642"},
	refuse: map[string]claims{
		"another owner":       {"repository_owner_id": "666"},
		"the id as a number":  {"repository_owner_id": 4711},
		"another repository":  {"repository_id": "816"},
		"another environment": {"environment": "Production"},
		"a pull request":      {"environment": nil},
	},
}, {
	name: "gitlab",
	claims: claims{
		"jti": "3a1f", "sub": "project_path:acme/shop:ref_type:branch:ref:main", "namespace_id": "72", "namespace_path": "acme", "project_id": "20",
		"project_path": "acme/shop", "user_id": "1", "user_login": "ann", "user_email": "ann@acme.example", "pipeline_id": "574", "pipeline_source": "push",
		"job_id": "302", "ref": "main", "ref_type": "branch", "ref_path": "refs/heads/main", "ref_protected": "true", "environment": "production",
		"environment_protected": "true", "deployment_tier": "production", "runner_id": 1, "runner_environment": "self-hosted", "sha": "7145", "groups_direct": []any{"acme", "ops"},
		"user_identities": []any{claims{"provider": "github", "extern_uid": "2435"}},
	},
	spec: claims{
		"require": claims{"namespace_id": "72"},
		"bind": []any{
			claims{"when": claims{"groups_direct": "ops", "runner_id": 1, "ref_protected": "true"}, "as": "workload:ci/{project_path}", "instance": "job_id"},
		},
	},
	want: Attested{Principal: "workload:ci/acme/shop", Instance: "302"},
	refuse: map[string]claims{
		"another namespace":   {"namespace_id": "73"},
		"not in the group":    {"groups_direct": []any{"acme", "ops-readers"}},
		"group as text":       {"groups_direct": "acme,ops"},
		"runner as a string":  {"runner_id": "1"},
		"a branch of anybody": {"ref_protected": "false"},
		"a path with ..":      {"project_path": "acme/../shop"},
		"a path with a colon": {"project_path": "acme:shop"},
	},
}, {
	name: "google",
	claims: claims{
		"azp": "113774264463038321964", "sub": "113774264463038321964", "email": "api@acme-prod.iam.gserviceaccount.com", "email_verified": true,
		"google": claims{"compute_engine": claims{"project_id": "acme-prod", "project_number": 739419398126, "zone": "europe-west1-b", "instance_id": "152986662232938449", "instance_name": "api-1"}},
	},
	spec: claims{
		"require": claims{"google.compute_engine.project_number": 739419398126},
		"bind": []any{claims{
			"when": claims{"email": "api@acme-prod.iam.gserviceaccount.com", "google.compute_engine.zone": "europe-west1-b"},
			"as":   "workload:api", "instance": "google.compute_engine.instance_id",
		}},
	},
	want: Attested{Principal: "workload:api", Instance: "152986662232938449"},
	refuse: map[string]claims{
		"email not verified":        {"email_verified": false},
		"email not said verified":   {"email_verified": nil},
		"another project":           {"google": claims{"compute_engine": claims{"project_number": 1}}},
		"project number as a float": {"google": claims{"compute_engine": claims{"project_number": 739419398126.5}}},
	},
}, {
	name: "azure",
	claims: claims{
		"aio": "E2Zg", "appid": "11111111-2222-3333-4444-555555555555", "appidacr": "2", "idp": "https://sts.windows.net/99999999-8888-7777-6666-555555555555/", "idtyp": "app",
		"oid": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "rh": "0.x", "sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "tid": "99999999-8888-7777-6666-555555555555", "uti": "abc", "ver": "1.0",
		"xms_mirid": "/subscriptions/s/resourcegroups/g/providers/Microsoft.Compute/virtualMachines/vm1",
	},
	spec: claims{
		"require": claims{"tid": "99999999-8888-7777-6666-555555555555", "idtyp": "app"},
		"bind":    []any{claims{"when": claims{"oid": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"}, "as": "workload:vm1"}},
	},
	want: Attested{Principal: "workload:vm1"},
	refuse: map[string]claims{
		"another tenant":   {"tid": "00000000-8888-7777-6666-555555555555"},
		"a user":           {"idtyp": nil},
		"another identity": {"oid": "x"},
	},
}}

func (s shape) full(i *issuer) claims {
	c := i.claims().with("team", nil).with("jti", nil).with("sub", nil)
	for k, v := range s.claims {
		c[k] = v
	}
	return c
}

// All issuers work by the two token methods, with discovery over TLS and with
// configured keys.
func TestTokensOfKnownShapes(t *testing.T) {
	i := newIssuer(t)
	for _, s := range shapes {
		discovered := i.spec(s.spec)
		configured := i.spec(s.spec)
		configured["type"] = "jwt"
		configured["jwks"] = claims{"keys": []any{jwkOf(t, i.key.Public(), "k1", "ES256", "sig")}}
		for kind, spec := range map[string]claims{"oidc": discovered, "jwt": configured} {
			t.Run(s.name+"/"+kind, func(t *testing.T) {
				deps := Deps{}
				if kind == "oidc" {
					deps = i.deps()
				}
				a := attestor(t, spec, deps)
				got, err := attest(t, a, i.token(t, s.full(i)), "")
				if err != nil {
					t.Fatal(err)
				}
				if got.Principal != s.want.Principal || got.Instance != s.want.Instance {
					t.Errorf("%s instance %q, want %s instance %q", got.Principal, got.Instance, s.want.Principal, s.want.Instance)
				}
				if got.OneShot == "" || got.AttestedKey || !got.ExpiresAt.After(noon) || got.ExpiresAt.After(noon.Add(defaultSessionTTL)) {
					t.Errorf("attested %+v", got)
				}
				for what, change := range s.refuse {
					c := s.full(i)
					for name, value := range change {
						c = c.with(name, value)
					}
					if got, err := attest(t, a, i.token(t, c), ""); err == nil {
						t.Errorf("%s: accepted as %s", what, got.Principal)
					}
				}
			})
		}
	}
}

func TestFactsAreBounded(t *testing.T) {
	i := newIssuer(t)
	long := make([]any, 100)
	for n := range long {
		long[n] = "group-with-a-long-name"
	}
	listed := []string{"groups", "odd", "nested", "absent", "number", "list"}
	a := attestor(t, i.spec(claims{"facts": listed}), i.deps())
	c := i.claims().with("groups", long).with("odd", "a\u202eb").with("nested", claims{"secret": "x"}).with("number", 7).with("list", []any{"a", 1, true}).with("unlisted", "private")
	got, err := attest(t, a, i.token(t, c), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"claim.number": "7", "claim.list": `["a",1,true]`} {
		if got.Facts[name] != want {
			t.Errorf("%s = %q, want %q", name, got.Facts[name], want)
		}
	}
	for _, hashed := range []string{"claim.groups", "claim.odd"} {
		if v := got.Facts[hashed]; len(v) != 50 || v[:7] != "sha256:" {
			t.Errorf("%s = %q, want a hash", hashed, v)
		}
	}
	for _, absent := range []string{"claim.nested", "claim.absent", "claim.unlisted"} {
		if v, there := got.Facts[absent]; there {
			t.Errorf("%s = %q, want none", absent, v)
		}
	}
	if len(got.Facts) > maxFacts {
		t.Errorf("%d facts", len(got.Facts))
	}
}

func TestSessionEndsWithItsEvidence(t *testing.T) {
	i := newIssuer(t)
	a := attestor(t, i.spec(claims{"max_ttl": "1h"}), i.deps())
	got, err := attest(t, a, i.token(t, i.claims().with("exp", noon.Add(time.Minute).Unix())), "")
	if err != nil || !got.ExpiresAt.Equal(noon.Add(time.Minute+clockSkew)) {
		t.Errorf("until %s, %v", got.ExpiresAt, err)
	}
}
