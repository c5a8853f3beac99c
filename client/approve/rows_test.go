package approve_test

import (
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/client/approve"
)

// Who signs reads the filter; a value that wants to be more stays a value.
func TestHazard14ApproversReadTheFilter(t *testing.T) {
	text := strings.Replace(grantText, `["delete","insert","select"],"tables":[{"name":"public.*"}]`,
		`["select"],"tables":[{"columns":["id","region"],"name":"public.people","rows":[{"column":"id","op":"notnull"},{"column":"region","op":"eq","values":["eu\"] and ALL of public.*"]}]}]`, 1)
	text = strings.Replace(text, `{"type":"database","identifier":"orders","actions":["select"],`, `{"actions":["select"],"identifier":"orders",`, 1)
	text = strings.Replace(text, `"values":["eu\"] and ALL of public.*"]}]}]}]`, `"values":["eu\"] and ALL of public.*"]}]}],"type":"database"}]`, 1)
	d, err := approve.Check(document(approve.DomainGrant, text, "x"))
	if err != nil {
		t.Fatal(err)
	}
	want := `database orders: tables public.people (only id, region) [only rows where id is not null and region = "eu\"] and ALL of public.*"]: select`
	if got := page(d); !strings.Contains(got, want) {
		t.Errorf("the document shows no line\n%s\n%s", want, got)
	}
}

// An account is not made for the grant, and who signs reads so in what is signed.
func TestApproversReadThatAnAccountLivesOn(t *testing.T) {
	const words = "an account that lives on: its secret is not made for this grant"
	at := strings.Index(grantText, `"scope":[`)
	end := at + strings.Index(grantText[at:], `}],"target"`)
	if at < 0 || end < at {
		t.Fatal("the golden grant has no scope")
	}
	for detail, want := range map[string]bool{
		`{"actions":["use"],"identifier":"billing","type":"account"`:                                      true,
		`{"actions":["read","use"],"identifier":"billing","type":"account"`:                               false, // a kind's own
		`{"actions":["select"],"identifier":"account","tables":[{"name":"public.use"}],"type":"database"`: false,
	} {
		d, err := approve.Check(document(approve.DomainGrant, grantText[:at]+`"scope":[`+detail+grantText[end:], "x"))
		if err != nil {
			t.Fatal(err)
		}
		if got := page(d); strings.Contains(got, words) != want {
			t.Errorf("%s: %s", detail, got)
		}
	}
}
