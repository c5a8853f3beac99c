package house

import (
	"fmt"
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// hazards are those that the parts built so far touch. A part that brings
// others (approvals, restore, plugins …) adds their numbers.
var hazards = []int{2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 20, 21, 22, 23, 24, 25, 26}

// testNames lists every test of the house.
func testNames(x *tree) (out []string) {
	for _, s := range x.sources {
		if !s.test {
			continue
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				out = append(out, f.Name.Name)
			}
		}
	}
	return out
}

// named says whether a test is called Test<what><n>…, where n is not the
// beginning of a longer number.
func named(names []string, what string, n int) bool {
	re := regexp.MustCompile(fmt.Sprintf(`^Test%s%d([^0-9]|$)`, what, n))
	return slices.ContainsFunc(names, re.MatchString)
}

// A law that no test tries to break is a wish.
func TestEveryLawHasATest(t *testing.T) {
	names := testNames(read(t))
	for law := 1; law <= 8; law++ {
		if !named(names, "Law", law) {
			t.Errorf("no test is called TestLaw%d…", law)
		}
	}
}

// A hazard that was found once comes back unless a test waits for it.
func TestEveryHazardHasATest(t *testing.T) {
	names := testNames(read(t))
	for _, n := range hazards {
		if !named(names, "Hazard", n) {
			t.Errorf("no test is called TestHazard%d…", n)
		}
	}
}

// The page that says which test watches what names tests that exist, and leaves
// none of them out.
func TestHazardsPageNamesTheTests(t *testing.T) {
	x := read(t)
	names := testNames(x)
	page, err := os.ReadFile(filepath.Join(x.root, "docs", "hazards.md"))
	if err != nil {
		t.Fatal(err)
	}
	listed := regexp.MustCompile("`Test[A-Za-z0-9_]+`").FindAllString(string(page), -1)
	for i, name := range listed {
		listed[i] = strings.Trim(name, "`")
		if !slices.Contains(names, listed[i]) {
			t.Errorf("docs/hazards.md names %s, which does not exist", listed[i])
		}
	}
	numbered := regexp.MustCompile(`^Test(Hazard|Law)[0-9]`)
	for _, name := range names {
		if numbered.MatchString(name) && !slices.Contains(listed, name) {
			t.Errorf("docs/hazards.md leaves out %s", name)
		}
	}
}

// decoders are the readers of what comes from outside, each with the fuzz
// targets that feed them. "Outside" is the network, files that a person or a
// disk may have changed, and targets' answers.
var decoders = map[string][]string{
	"scope":               {"FuzzParse"},
	"client":              {"FuzzParseEnrolment", "FuzzBaseURL"},
	"client/approve":      {"FuzzCheck", "FuzzOpen"},
	"client/escape":       {"FuzzLine"},
	"client/keys":         {"FuzzLoad"},
	"broker":              {"FuzzAccessRequest", "FuzzPasskey"},
	"broker/cosign":       {"FuzzCanonical", "FuzzVerify", "FuzzKey"},
	"broker/ledger":       {"FuzzDecode", "FuzzApply", "FuzzReplay"},
	"broker/api":          {"FuzzHTTP", "FuzzStrict", "FuzzTokenForm"},
	"cmd/mayfly":          {"FuzzEscapes", "FuzzLoad"},
	"broker/audit":        {"FuzzVerifyExport"},
	"broker/identity":     {"FuzzProof", "FuzzToken", "FuzzEnrolToken", "FuzzMethod", "FuzzKeySet"},
	"broker/notify":       {"FuzzSlackCode"},
	"broker/policy":       {"FuzzCompile", "FuzzCases"},
	"broker/seal":         {"FuzzParseKeyring", "FuzzParseShare"},
	"issuers/jwt":         {"FuzzSpec", "FuzzHolderKey"},
	"issuers/postgres":    {"FuzzCompile", "FuzzMark"},
	"issuers/x509":        {"FuzzCSR", "FuzzSpecAndScope"},
	"raftstore":           {"FuzzReadStream", "FuzzDecodeJoin", "FuzzFrames", "FuzzDecodeEntry"},
	"broker/audit/replay": {"FuzzVerify"},
	"issuers/ssh":         {"FuzzKRL", "FuzzSpecAndScope", "FuzzHolderKey", "FuzzCA"},
	"issuers/mysql":       {"FuzzCompile", "FuzzVersion"},
	"issuers/redis":       {"FuzzCompile", "FuzzClusterNodes"},
	"issuers/aws":         {"FuzzCompile", "FuzzAnswer"},
	"issuers/rabbitmq":    {"FuzzCompile"},
	"issuers/nats":        {"FuzzCompile", "FuzzServer", "FuzzAccount"},
	"issuers/kubernetes":  {"FuzzCompile", "FuzzMark"},
	"issuers/vault":       {"FuzzCompile", "FuzzRecord"},
	"plugins/protocol":    {"FuzzNameForm"},

	"plugins/example/htpasswd": {"FuzzFile"},
	"issuers/kv":               {"FuzzCompile"},
	"issuers/github":           {"FuzzCompile"},
	"issuers/gcp":              {"FuzzCompile", "FuzzAnswer"},
	"issuers/azure":            {"FuzzCompile", "FuzzToken", "FuzzDelegation"},
	"issuers/federation":       {"FuzzDocuments"},
}

// A decoder of outside input meets input that nobody thought of.
func TestEveryDecoderIsFuzzed(t *testing.T) {
	x := read(t)
	found := map[string][]string{}
	for _, s := range x.sources {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !s.test || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Fuzz") {
				continue
			}
			found[s.room] = append(found[s.room], f.Name.Name)
			if !slices.Contains(decoders[s.room], f.Name.Name) {
				t.Errorf("%s: %s is not in the list of decoders; add it, so that its loss is noticed", x.at(f), f.Name.Name)
			}
			if !seeds(f) {
				t.Errorf("%s: %s has no seed, so a plain test run proves nothing", x.at(f), f.Name.Name)
			}
		}
	}
	for room, names := range decoders {
		for _, name := range names {
			if !slices.Contains(found[room], name) {
				t.Errorf("%s has lost its fuzz target %s", room, name)
			}
		}
	}
}

// seeds says whether a fuzz target adds a corpus, itself or by a helper that is
// handed its *testing.F.
func seeds(f *ast.FuncDecl) bool {
	if len(f.Type.Params.List) != 1 || len(f.Type.Params.List[0].Names) != 1 {
		return false
	}
	name := f.Type.Params.List[0].Names[0].Name
	yes := false
	ast.Inspect(f.Body, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok && isIdent(sel.X, name) && sel.Sel.Name == "Add" {
			yes = true
		}
		return true
	})
	return yes
}
