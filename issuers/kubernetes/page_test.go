package kubernetes_test

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"sigs.k8s.io/yaml"
)

// document is one object of the page, and where it is created.
type document struct {
	path string
	body map[string]any
}

// leastPrivilege reads the objects that give the broker its rights from the page
// that operators read: the block called least-privilege.
func leastPrivilege() ([]document, error) {
	page, err := os.ReadFile("../../docs/issuers/kubernetes.md")
	if err != nil {
		return nil, err
	}
	_, rest, ok := strings.Cut(string(page), "```yaml least-privilege\n")
	block, _, ok2 := strings.Cut(rest, "\n```")
	if !ok || !ok2 {
		return nil, errors.New("the page has no block least-privilege")
	}
	var out []document
	for _, text := range strings.Split(block, "\n---\n") {
		var body map[string]any
		if err := yaml.Unmarshal([]byte(text), &body); err != nil {
			return nil, err
		}
		kind, _ := body["kind"].(string)
		version, _ := body["apiVersion"].(string)
		meta, _ := body["metadata"].(map[string]any)
		namespace, _ := meta["namespace"].(string)
		path := "/api/" + version
		if strings.Contains(version, "/") {
			path = "/apis/" + version
		}
		if namespace != "" {
			path += "/namespaces/" + namespace
		}
		if kind == "" || version == "" {
			return nil, fmt.Errorf("no object: %s", text)
		}
		out = append(out, document{path + "/" + strings.ToLower(kind) + "s", body})
	}
	return out, nil
}
