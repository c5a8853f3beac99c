package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/policy"
)

// problems compiles what must be refused and returns the error's text and parts.
func problems(t *testing.T, sources ...policy.Source) (string, policy.Problems) {
	t.Helper()
	s, err := policy.Compile(sources)
	if err == nil || s != nil {
		t.Fatalf("Compile accepted it (%v, %v)", s, err)
	}
	var list policy.Problems
	if !errors.Is(err, &fault.Error{Kind: fault.Invalid, Code: "invalid_policy"}) || !errors.As(err, &list) || len(list) == 0 {
		t.Fatalf("error of the wrong sort: %#v", err)
	}
	return fault.As(err).Detail, list
}

func refused(t *testing.T, text string, wants ...string) {
	t.Helper()
	got, _ := problems(t, policy.Source{Name: "a.cedar", Text: text})
	for _, want := range wants {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nrefused with: %s\nwithout:      %s", text, got, want)
		}
	}
}

// A peer failed open on a quorum of zero: what speaks of approval without saying whose and how
// many is refused when it is loaded.
func TestAnnotationsAreRefusedUnlessUnderstood(t *testing.T) {
	const head = " permit (principal, action, resource);"
	pair := `@approvals and @approvers come together`
	for annotations, want := range map[string]string{
		``:                  "@id is missing",
		`@id`:               "@id(",
		`@id("")`:           "@id(",
		`@id("a b")`:        "@id(",
		`@id("a\nb")`:       "@id(",
		`@id("x\u{202e}y")`: "@id(",
		`@id("-a")`:         "@id(",
		`@id("` + strings.Repeat("a", 129) + `")`:                      "@id(",
		`@id("a") @aprovals("2")`:                                      "unknown annotation @aprovals; allowed are @approval_ttl",
		`@id("a") @approvals("2")`:                                     pair,
		`@id("a") @approvers("dba")`:                                   pair,
		`@id("a") @approvals @approvers("dba")`:                        "@approvals(",
		`@id("a") @approvals("2") @approvers`:                          "@approvers(",
		`@id("a") @approvals("0") @approvers("dba")`:                   "from 1 to 32",
		`@id("a") @approvals("00") @approvers("dba")`:                  "from 1 to 32",
		`@id("a") @approvals("-1") @approvers("dba")`:                  "from 1 to 32",
		`@id("a") @approvals("+2") @approvers("dba")`:                  "from 1 to 32",
		`@id("a") @approvals("02") @approvers("dba")`:                  "from 1 to 32",
		`@id("a") @approvals("2.0") @approvers("dba")`:                 "from 1 to 32",
		`@id("a") @approvals("33") @approvers("dba")`:                  "from 1 to 32",
		`@id("a") @approvals("two") @approvers("dba")`:                 "from 1 to 32",
		`@id("a") @approvals("2") @approvers("a,b")`:                   "must name one group",
		`@id("a") @approvals("2") @approvers("a\u{0}")`:                "must name one group",
		`@id("a") @approvals("2") @approvers("a") @approval_ttl("0s")`: "@approval_ttl(",
		`@id("a") @max_ttl`:                                            "@max_ttl(",
		`@id("a") @max_ttl("0")`:                                       "@max_ttl(",
		`@id("a") @max_ttl("-1h")`:                                     "@max_ttl(",
		`@id("a") @max_ttl("15")`:                                      "@max_ttl(",
		`@id("a") @max_ttl("1500ms")`:                                  "@max_ttl(",
		`@id("a") @max_ttl("9000h")`:                                   "@max_ttl(",
		`@id("a") @max_ttl("1 h")`:                                     "@max_ttl(",
		`@id("a") @step_up("pass")`:                                    "allowed are passkey",
		`@id("a") @step_up`:                                            "allowed are passkey",
		`@id("a") @description("` + strings.Repeat("x", 257) + `")`:    "@description has 257 bytes",
		`@id("a") @description("a\u{202e}b")`:                          "invisible character (U+202E)",
		`@id("a") @max_ttl("1h") @max_ttl("2h")`:                       "duplicate annotation",
	} {
		t.Run(annotations, func(t *testing.T) { refused(t, annotations+head, want) })
	}
	for _, obligation := range []string{`@max_ttl("1h")`, `@step_up("passkey")`, `@approvals("1") @approvers("dba")`} {
		refused(t, `@id("a") `+obligation+` forbid (principal, action, resource);`, "a forbid cannot carry obligations")
	}
}

func TestPoliciesAreCheckedAgainstTheSchema(t *testing.T) {
	const when = `@id("a") permit (principal, action == Action::"request", resource) when { %s };`
	for condition, want := range map[string]string{
		`context.sesion.bound`:                                     "context has no attribute \"sesion\"; it has chain, device",
		`context.session.bond`:                                     "context.session has no attribute \"bond\"; it has age_seconds",
		`context has sesion`:                                       "context has no attribute \"sesion\"",
		`context["session"]["bond"]`:                               "context.session has no attribute",
		`principal.nam == "x"`:                                     "principal has no attribute \"nam\"; it has instance",
		`resource.labels == "x"`:                                   "resource has no attribute \"labels\"",
		`context.risk < "60"`:                                      "expected",
		`context.risk`:                                             "expected Bool",
		`context.purpose == 1`:                                     "not compatible",
		`context.network.ip.isLoopback()`:                          "optional attribute",
		`resource.getTag("a") == "b"`:                              "tag",
		`principal == User::"x"`:                                   "unknown entity type User; allowed are Account, Agent",
		`principal is User`:                                        "unknown entity type User",
		`principal is User in Group::"x"`:                          "unknown entity type User",
		`principal in Groups::"x"`:                                 "unknown entity type Groups",
		`principal == Claims::"session"`:                           "unknown entity type Claims",
		`action == Action::"Request"`:                              "unknown action \"Request\"; allowed are administer, approve",
		`Role::"x".zone == "eu"`:                                   "only principal and resource have",
		`Role::"x".hasTag("a")`:                                    "only principal and resource have",
		`resource in [Zone::"eu", Zones::"us"]`:                    "unknown entity type Zones",
		`principal == Human::"human:ann"`:                          `write Human::"ann"`,
		`principal == Human::""`:                                   "names nothing",
		`principal == Human::"a\u{200b}nn"`:                        "invisible character (U+200B)",
		`principal == Human::"a\nnn"`:                              "invisible character (U+000A)",
		`context.network.ip == ip("10.0.0.0/33")`:                  "ip",
		`context.now < datetime("yesterday")`:                      "datetime",
		`context.purpose like "*a*b*c*d*e*f*g*h*i"`:                "at most 8 wildcards",
		`context.purpose like "` + strings.Repeat("x", 300) + `"`:  "at most 8 wildcards and 256 bytes",
		strings.Repeat("!", 600) + "true":                          "at most 512 are allowed",
		strings.Repeat("(", 40) + "true" + strings.Repeat(")", 40): "nested more than 32 deep",
		strings.Repeat(`principal.hasTag("a") && `, 17) + "true":   "at most 16 are allowed",
		strings.Repeat(`context.zone like "a*" && `, 17) + "true":  "at most 16 are allowed",
		"true /* hidden */":                                        "/* is not Cedar",
	} {
		t.Run(condition, func(t *testing.T) { refused(t, fmt.Sprintf(when, condition), want) })
	}
	for head, want := range map[string]string{
		`principal == User::"x", action, resource`:                             "unknown entity type User",
		`principal is User, action, resource`:                                  "unknown entity type User",
		`principal in Group::"x", action == Action::"x", resource`:             "unknown action",
		`principal, action in [Action::"x", Action::"read"], resource`:         "unknown action",
		`principal, action == Action::"request", resource == Target::"orders"`: "action request is not done to a Target, but to Role",
		`principal, action == Action::"administer", resource is Grant`:         "action administer is not done to a Grant",
		`principal in Role::"x", action, resource`:                             "applicable action",
		`principal, action, resource == Principal::"coder"`:                    "must name its kind",
		`principal, action, resource == Principal::"robot:coder"`:              "must name its kind",
		`principal, action, resource == Role::"a\u{e0041}"`:                    "invisible character",
	} {
		t.Run(head, func(t *testing.T) { refused(t, `@id("a") permit (`+head+`);`, want) })
	}
}

// One pass finds everything: documents, lines, ids.
func TestAllProblemsComeAtOnceWithTheirPlaces(t *testing.T) {
	_, list := problems(t,
		policy.Source{Name: "one.cedar", Text: "// a comment; with \" signs\n\n@id(\"same\") permit (principal, action, resource);\n\n  @id(\"b\") @max_ttl(\"x\")\npermit (principal, action, resource) when { context.foo };\n"},
		policy.Source{Name: "two.cedar", Text: "@id(\"same\") permit (principal, action, resource);\n// more\n  permit (principl, action, resource);\n@id(\"d\") permit (principal, action == Action::\"go\", resource); permit"},
		policy.Source{Name: "three.cedar", Text: "@id(\"e\") permit (principal, action, resource) when { \"open };"},
		policy.Source{Name: "", Text: ""},
	)
	want := []struct {
		source string
		line   int
		id     string
		what   string
	}{
		{"one.cedar", 5, "b", "@max_ttl"},
		{"one.cedar", 5, "b", "no attribute"},
		{"two.cedar", 1, "same", "taken by the policy at one.cedar:3"},
		{"two.cedar", 3, "", ":3:19"},
		{"two.cedar", 4, "d", "unknown action"},
		{"two.cedar", 4, "", ":4:70"},
		{"three.cedar", 0, "", "line 1: a text is not closed"},
		{"", 0, "", "name"},
	}
	if len(list) != len(want) {
		t.Fatalf("%d problems, want %d:\n%v", len(list), len(want), list)
	}
	for i, w := range want {
		p := list[i]
		if p.Source != w.source || p.Line != w.line || p.Policy != w.id || !strings.Contains(p.What, w.what) {
			t.Errorf("problem %d is %q; want %+v", i, p, w)
		}
	}
}

func TestProblemsAreBounded(t *testing.T) {
	text, list := problems(t, policy.Source{Name: "a", Text: strings.Repeat("permit (principal, action, resource);\n", 1000)})
	if len(list) != policy.MaxProblems || !strings.Contains(text, "and 936 more") {
		t.Errorf("%d problems: %s", len(list), text[len(text)-40:])
	}
}

func TestSizesAreBounded(t *testing.T) {
	many := make([]policy.Source, policy.MaxSources+1)
	_, list := problems(t, many...)
	if len(list) != 1 {
		t.Errorf("too many documents: %v", list)
	}
	for name, text := range map[string]string{
		"document": strings.Repeat(" ", policy.MaxDocumentBytes+1),
		"policy":   `@id("a") permit (principal, action, resource) when { "` + strings.Repeat("x", policy.MaxPolicyBytes) + `" == "" };`,
		"not text": "@id(\"a\xff\") permit (principal, action, resource);",
		"deep if":  `@id("a") permit (principal, action, resource) when { ` + strings.Repeat("if true then true else ", 600) + "true };",
		"unclosed": strings.Repeat("(", policy.MaxPolicyBytes*2),
	} {
		t.Run(name, func(t *testing.T) { problems(t, policy.Source{Name: "a.cedar", Text: text}) })
	}
	big := strings.Repeat(" ", policy.MaxDocumentBytes)
	var total []policy.Source
	for i := range policy.MaxTotalBytes/policy.MaxDocumentBytes + 1 {
		total = append(total, policy.Source{Name: fmt.Sprint(i), Text: big})
	}
	problems(t, total...)
}

func TestHashDependsOnPoliciesAlone(t *testing.T) {
	const a = `@id("a") permit (principal, action, resource);`
	const b = `@id("b") @max_ttl("1h") permit (principal, action == Action::"read", resource);`
	base := compile(t, a, b).Hash()
	for name, texts := range map[string][]string{
		"order":    {b, a},
		"one file": {b + "\n\n" + a},
		"comments": {"// hello\n" + a + " // bye;", "\r\n" + b, ""},
	} {
		if got := compile(t, texts...).Hash(); got != base {
			t.Errorf("%s changes the hash", name)
		}
	}
	seen := map[string]string{base: "base", compile(t).Hash(): "empty"}
	for _, texts := range [][]string{
		{a},
		{b},
		{a, strings.Replace(b, "1h", "2h", 1)},
		{a, strings.Replace(b, "read", "renew", 1)},
		{a, strings.Replace(b, "permit", "permit ", 1)},
		{strings.Replace(a, "permit", "forbid", 1), b},
		{a, b, strings.Replace(a, `"a"`, `"c"`, 1)},
	} {
		got := compile(t, texts...).Hash()
		if other, ok := seen[got]; ok || len(got) != 64 {
			t.Errorf("%v has the hash of %s: %q", texts, other, got)
		}
		seen[got] = fmt.Sprint(texts)
	}
}

// HAZARDS 20: approvals bind to the policies that decided, so an unrelated edit must leave their
// hashes alone, and an edit of theirs must not.
func TestHazard20ReasonHashSurvivesUnrelatedEdits(t *testing.T) {
	hash := func(texts ...string) string { return compile(t, texts...).Decide(ann("sre")).Policies[0].Hash }
	before := hash(contractPolicy)
	if after := hash(`@id("aa") permit (principal, action == Action::"read", resource);`, "\n\n// moved\n"+contractPolicy); after != before {
		t.Error("an unrelated edit changed the hash of the policy that decided")
	}
	if after := hash(strings.Replace(contractPolicy, "15m", "16m", 1)); after == before {
		t.Error("an edit of the policy left its hash as it was")
	}
}

// What ends a policy is a semicolon outside of texts and comments; a forbid that was taken for
// a part of a text would be lost.
func TestTextsAndCommentsDoNotEndPolicies(t *testing.T) {
	s := compile(t, `@id("a") permit (principal, action, resource) when { context.purpose != "\"; // \\" }; // ; "
@id("b") forbid (principal, action, resource) when { context.purpose == "x\";y" };`)
	if s.Len() != 2 {
		t.Fatalf("%d policies, want 2", s.Len())
	}
	expect(t, s.Decide(ann()), policy.CodePermit, "a")
	r := ann()
	r.Context.Purpose = `x";y`
	expect(t, s.Decide(r), policy.CodeForbidden, "b")
}
