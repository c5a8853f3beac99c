package ledger_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

func pluginSpec(file string) string {
	name, _ := json.Marshal(file)
	return fmt.Sprintf(`{"file":%s,"sha256":%q,"user":"mayfly-x","limits":{"memory_mib":64,"files":32,"processes":8}}`, name, strings.Repeat("0a", 32))
}

// TestHazard6PluginObjectsNameNoPath: what every replica refuses in a Plugin,
// whatever the leader says.
func TestHazard6PluginObjectsNameNoPath(t *testing.T) {
	b := newBook(t)
	put := func(name, spec string) *ledger.ChangeObjects {
		return &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Plugin", Name: name, Spec: rawJSON(spec), AnyVersion: true}}}
	}
	b.ok(admin, put("htpasswd", pluginSpec("htpasswd-1.2_linux")))
	b.ok(admin, put("htpasswd", pluginSpec("htpasswd-1.3")))
	b.ok(admin, put("plain", fmt.Sprintf(`{"file":"x","sha256":%q}`, strings.Repeat("0", 64))))
	for _, file := range []string{"", ".", "..", ".hidden", "-rf", "a/b", "/bin/sh", "../x", "a b", "a\x00", "a\n", strings.Repeat("x", 129)} {
		b.refused(ledger.CodeInvalid, admin, put("p", pluginSpec(file)))
	}
	good := pluginSpec("x")
	for what, spec := range map[string]string{
		"no hash":         `{"file":"x"}`,
		"a short hash":    strings.Replace(good, "0a0a", "", 1),
		"capital letters": strings.ReplaceAll(good, "0a", "0A"),
		"another key":     strings.Replace(good, `"file"`, `"path":"/x","file"`, 1),
		"root":            strings.Replace(good, "mayfly-x", "root", 1),
		"root's number":   strings.Replace(good, "mayfly-x", "000", 1),
		"a user's option": strings.Replace(good, "mayfly-x", "-x", 1),
		"a huge limit":    strings.Replace(good, ":64", ":1000000000", 1),
		"no object":       `[]`,
	} {
		if res := b.do(admin, put("p", spec)); res.Code != ledger.CodeInvalid {
			t.Errorf("%s: %s %s", what, res.Code, res.Detail)
		}
	}
	for _, name := range []string{"Upper", "1st", "-x", "a/b", "a_b", strings.Repeat("x", 33)} {
		b.refused(ledger.CodeInvalid, admin, put(name, good))
	}
	for i := range ledger.MaxPlugins - 2 {
		b.ok(admin, put(fmt.Sprintf("p%d", i), good))
	}
	b.refused(ledger.CodeCapCount, admin, put("one-more", good))
}

// TestPluginInUseStays: a plugin that serves a target cannot be deleted: nothing
// else could end what lives there.
func TestPluginInUseStays(t *testing.T) {
	b := newBook(t)
	change := func(list ...ledger.ObjectChange) *ledger.ChangeObjects {
		for i := range list {
			list[i].AnyVersion = true
		}
		return &ledger.ChangeObjects{Changes: list}
	}
	b.ok(admin, change(
		ledger.ObjectChange{Kind: "Plugin", Name: "htpasswd", Spec: rawJSON(pluginSpec("x"))},
		ledger.ObjectChange{Kind: "Plugin", Name: "other", Spec: rawJSON(pluginSpec("x"))}))
	b.ok(admin, change(ledger.ObjectChange{Kind: "Target", Name: "site", Spec: rawJSON(`{"type":"htpasswd"}`)}))
	doomed := ledger.ObjectChange{Kind: "Plugin", Name: "htpasswd", Delete: true}
	b.refused(ledger.CodeInUse, admin, change(doomed))
	b.ok(admin, change(ledger.ObjectChange{Kind: "Plugin", Name: "other", Delete: true}))
	b.ok(admin, change(ledger.ObjectChange{Kind: "Target", Name: "site", Delete: true}, doomed))
}
