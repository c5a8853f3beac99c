package main

import (
	"strings"
	"testing"
)

// A provider's client secret leaves the document wherever it stands there.
func TestClientSecretLeavesTheDocument(t *testing.T) {
	for _, text := range []string{
		"kind: AuthMethod\nname: corp\nspec: {type: oidc, console: {client_id: c}, client_secret: {from_env: X}}",
		"kind: AuthMethod\nname: corp\nspec: {type: oidc, console: {client_id: c, client_secret: {from_env: X}}}",
	} {
		l := &loader{shell: testShell(map[string]string{"X": "hush"})}
		nodes, err := parseDocuments("f.yaml", []byte(text))
		if err != nil || len(nodes) != 1 {
			t.Fatalf("%d documents, %v", len(nodes), err)
		}
		o, err := l.object("/nonexistent/f.yaml", nodes[0])
		if err != nil {
			t.Fatal(err)
		}
		if o.Secrets["client_secret"] != "hush" || len(o.Secrets) != 1 || strings.Contains(string(o.Spec), "secret") || strings.Contains(string(o.Spec), "hush") {
			t.Errorf("secrets %v, spec %s", o.Secrets, o.Spec)
		}
	}
}
