package protocol_test

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
	"github.com/mayfly-broker/mayfly/scope"
)

// TestGoldenMessages: plugins that are built today meet nodes of years to come. A
// message's bytes change with the protocol's version and never without it.
func TestGoldenMessages(t *testing.T) {
	at := time.Date(2026, 11, 22, 10, 0, 0, 5, time.UTC)
	full := protocol.EncodeLease(issuers.Lease{
		ID: "id", Name: "mf-id", Generation: 2, Role: "t/r", RoleVersion: 3, RoleSpec: issuers.RoleSpec{OwnedOnEnd: "reassign", ReassignTo: "owner"},
		Scope: scope.Scope{{Type: "x", Actions: []string{"use"}}}, Principal: "workload:w", Chain: []string{"human:h"}, TaskID: "task", Purpose: "why",
		NotBefore: at, NotAfter: at, MintDeadline: at, CSR: []byte{1}, PublicKey: json.RawMessage(`{"kty":"EC"}`),
	})
	for _, c := range []struct {
		message any
		want    string
	}{
		{full, `{"id":"id","name":"mf-id","generation":2,"role":"t/r","role_version":3,"owned_on_end":"reassign","reassign_to":"owner","scope":[{"type":"x","actions":["use"]}],"principal":"workload:w","chain":["human:h"],"task_id":"task","purpose":"why","not_before":"2026-11-22T10:00:00.000000005Z","not_after":"2026-11-22T10:00:00.000000005Z","mint_deadline":"2026-11-22T10:00:00.000000005Z","csr":"AQ==","public_key":{"kty":"EC"}}`},
		{protocol.Manifest{Name: "k", Revocable: true, CredentialName: "mf-{lease}", Abilities: []protocol.Ability{protocol.AbleRoles, protocol.AblePublish}, Build: "v1"}, `{"name":"k","revocable":true,"credential_name":"mf-{lease}","abilities":["roles","publish"],"build":"v1"}`},
		{protocol.OpenRequest{Handle: 1, Name: "t", Spec: []byte(`{}`), Secrets: map[string][]byte{"a": []byte("b")}, Term: 2, Issuer: "https://x"}, `{"handle":1,"name":"t","spec":"e30=","secrets":{"a":"Yg=="},"term":2,"issuer":"https://x"}`},
		{protocol.Minted{Public: map[string]string{"a": "b"}, Secret: map[string][]byte{"c": []byte("d")}, Env: map[string]string{"E": "a"}}, `{"public":{"a":"b"},"secret":{"c":"ZA=="},"env":{"E":"a"}}`},
		{protocol.Withdrawn{Outcomes: []protocol.Outcome{{Receipt: &issuers.Receipt{Proof: "absent", Detail: "d", SessionsEnded: 1}}, {Error: &protocol.Error{Kind: "poison", Detail: "d", Cause: "c"}}}}, `{"outcomes":[{"receipt":{"proof":"absent","detail":"d","sessions_ended":1}},{"error":{"kind":"poison","detail":"d","cause":"c"}}]}`},
		{protocol.Examination{Problem: "p", MaxTTL: time.Second, Roles: []protocol.Role{{Suffix: "s", DefaultTTL: 1, MaxTTL: 2}}, RolesProblem: "q"}, `{"problem":"p","max_ttl":1000000000,"roles":[{"suffix":"s","scope":null,"default_ttl":1,"max_ttl":2}],"roles_problem":"q"}`},
		{protocol.Listed{Found: []protocol.Found{{Name: "n", LeaseID: "l", Generation: 1}}}, `{"found":[{"name":"n","lease_id":"l","generation":1}]}`},
		{protocol.Verdict{}, `{}`},
		{protocol.RevokedRequest{Handle: 1, Withdrawn: []protocol.Ending{{ID: "id", NotAfter: at}}}, `{"handle":1,"withdrawn":[{"id":"id","not_after":"2026-11-22T10:00:00.000000005Z"}]}`},
	} {
		got, err := json.Marshal(c.message)
		if err != nil || string(got) != c.want {
			t.Errorf("%T is written as\n%s (%v); want\n%s", c.message, got, err, c.want)
		}
	}
}

// TestLeaseTravelsWhole: every field of a lease, also one added later, arrives.
func TestLeaseTravelsWhole(t *testing.T) {
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	l := issuers.Lease{
		ID: "id", Name: "n", Generation: 2, Role: "r", RoleVersion: 3, RoleSpec: issuers.RoleSpec{OwnedOnEnd: "drop", ReassignTo: "x"}, Scope: scope.Scope{{Type: "x", Actions: []string{"use"}}},
		Principal: "p", Chain: []string{"c"}, TaskID: "t", Purpose: "w", NotBefore: at, NotAfter: at, MintDeadline: at, CSR: []byte{1}, PublicKey: json.RawMessage(`{}`),
	}
	v := reflect.ValueOf(l)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("this test leaves %s out", v.Type().Field(i).Name)
		}
	}
	body, err := json.Marshal(protocol.EncodeLease(l))
	if err != nil {
		t.Fatal(err)
	}
	var back protocol.Lease
	if err := json.Unmarshal(body, &back); err != nil {
		t.Fatal(err)
	}
	if got := back.Decode(); !reflect.DeepEqual(got, l) {
		t.Errorf("%+v became %+v", l, got)
	}
	body, _ = json.Marshal(protocol.EncodeLease(issuers.Lease{}))
	back = protocol.Lease{}
	if err := json.Unmarshal(body, &back); err != nil || back.Decode().PublicKey != nil {
		t.Errorf("no key became %q, %v", back.Decode().PublicKey, err)
	}
}

// answering is a connection on which every call is answered with the same bytes.
type answering struct {
	grpc.ClientConnInterface
	body []byte
}

func (a answering) Invoke(_ context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	reply.(*wrapperspb.BytesValue).Value = a.body
	return nil
}

// TestHazard6SmallAnswersStaySmall: three bytes of an answer are many more once they
// are decoded, so values are counted too.
func TestHazard6SmallAnswersStaySmall(t *testing.T) {
	empty := []byte(`{"found":[{}` + strings.Repeat(",{}", protocol.MaxMessage/3-16) + `]}`)
	if a, err := protocol.All().List.Call(t.Context(), answering{body: empty}, protocol.HandleRequest{}); err == nil || len(a.Found) > 0 {
		t.Errorf("%d empty things are taken: %v", len(a.Found), err)
	}
	fields := []byte(`{"public":{"a":""` + strings.Repeat(`,"a":""`, 100_000) + `}}`)
	if _, err := protocol.All().Mint.Call(t.Context(), answering{body: fields}, protocol.LeaseRequest{}); err == nil {
		t.Error("100,000 fields are taken")
	}
	var most protocol.Listed
	for n := range 100_000 {
		most.Found = append(most.Found, protocol.Found{Name: fmt.Sprintf("mf-%026d", n), LeaseID: strings.Repeat(`\",{`, 8), Generation: 2})
	}
	body, err := json.Marshal(most)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := protocol.All().List.Call(t.Context(), answering{body: body}, protocol.HandleRequest{}); err != nil || len(a.Found) != len(most.Found) {
		t.Errorf("of the longest list there are %d: %v", len(a.Found), err)
	}
	full := protocol.Withdrawn{}
	for range 256 {
		full.Outcomes = append(full.Outcomes, protocol.Outcome{Receipt: &issuers.Receipt{Proof: "absent", Detail: "d", SessionsEnded: 1, OwnedDropped: 1}})
	}
	body, _ = json.Marshal(full)
	if a, err := protocol.All().Withdraw.Call(t.Context(), answering{body: body}, protocol.LeasesRequest{}); err != nil || len(a.Outcomes) != 256 {
		t.Errorf("of the largest batch there are %d: %v", len(a.Outcomes), err)
	}
}

func TestErrorKindsTravel(t *testing.T) {
	for k := issuers.Unknown; k <= issuers.BadScope; k++ {
		if got := protocol.EncodeError(&issuers.Error{Kind: k, Detail: "d"}).KindOf(); got != k {
			t.Errorf("%s became %s", k, got)
		}
	}
	if (issuers.BadScope + 1).String() != "unknown" {
		t.Error("there is a kind after BadScope that KindOf does not know")
	}
	if got := (&protocol.Error{Kind: "catastrophe"}).KindOf(); got != issuers.Unknown {
		t.Errorf("a word of its own became %s", got)
	}
	if got := protocol.EncodeError(fmt.Errorf("plain")); got.KindOf() != issuers.Unknown || got.Detail != "plain" {
		t.Errorf("an error without a kind became %+v", got)
	}
	if protocol.EncodeError(nil) != nil {
		t.Error("no error became one")
	}
}

// TestHazard16FormsOfNames: a form holds the whole lease id, and no two leases meet.
func TestHazard16FormsOfNames(t *testing.T) {
	for form, fn := range map[string]func(string, uint64) string{
		"mf-{lease}":                func(l string, _ uint64) string { return "mf-" + l },
		"{lease}.{generation}@mail": func(l string, g uint64) string { return fmt.Sprintf("%s.%d@mail", l, g) },
		"g{generation}-{lease}":     func(l string, g uint64) string { return fmt.Sprintf("g%d-%s", g, l) },
	} {
		f, err := protocol.FindForm(fn)
		if err != nil || string(f) != form {
			t.Errorf("the form of %s is %s, %v", form, f, err)
		}
	}
	for name, fn := range map[string]func(string, uint64) string{
		"truncated":      func(l string, _ uint64) string { return "mf-" + l[:20] },
		"constant":       func(string, uint64) string { return "root" },
		"nothing":        func(string, uint64) string { return "" },
		"a hash":         func(l string, _ uint64) string { return strings.ToUpper(l) },
		"twice":          func(l string, _ uint64) string { return l + "-" + l },
		"with a space":   func(l string, _ uint64) string { return "mf " + l },
		"run together":   func(l string, g uint64) string { return fmt.Sprintf("%s%d", l, g) },
		"only sometimes": func(l string, g uint64) string { return "mf-" + l + strings.Repeat("x", int(g%2)) },
		"endless":        func(l string, _ uint64) string { return l + strings.Repeat("x", 100) },
	} {
		if f, err := protocol.FindForm(fn); err == nil {
			t.Errorf("%s has the form %s", name, f)
		}
	}
}

// FuzzNameForm: whatever form is accepted, it gives two leases two names.
func FuzzNameForm(f *testing.F) {
	for _, s := range []string{"mf-{lease}", "{generation}-{lease}", "{lease}", "{lease}{generation}", "{lea{lease}se}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		form := protocol.NameForm(s)
		if form.Check() != nil {
			return
		}
		const a, b = "00000000000000000000000001", "00000000000000000000000000"
		for _, g := range []uint64{1, 2, 11} {
			if form.Name(a, 1) == form.Name(b, g) || !strings.Contains(form.Name(a, g), a) {
				t.Errorf("%q names %q and %q", s, form.Name(a, 1), form.Name(b, g))
			}
		}
	})
}
