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
