package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// Bounds on what apply reads.
const (
	maxFiles = 4096
	maxNodes = 200_000 // after anchors are followed
	maxDepth = 64
)

// loaded is an object with the place it was written.
type loaded struct {
	wire.Object
	where string // file:line
}

// loader reads documents; it holds what their secrets are read with.
type loader struct {
	shell *shell
	// prompt lets a document ask for a secret; without it such secrets are left
	// out, as a comparison needs none.
	prompt bool
}

// load reads files, directories (with those below) and "-".
func (l *loader) load(sources []string) ([]loaded, error) {
	var out []loaded
	for _, src := range sources {
		files, err := expand(src)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			more, err := l.file(f)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		}
	}
	if len(out) == 0 {
		return nil, usage("there is no object in %s", strings.Join(sources, ", "))
	}
	if err := unique(out); err != nil {
		return nil, err
	}
	sort.SliceStable(out, func(i, j int) bool {
		return slices.Index(kinds, out[i].Kind) < slices.Index(kinds, out[j].Kind)
	})
	return out, nil
}

func unique(list []loaded) error {
	seen := map[string]string{}
	for _, o := range list {
		id := o.Kind + "/" + o.Name
		if first, ok := seen[id]; ok {
			return usage("%s: %s stands at %s already", o.where, id, first)
		}
		seen[id] = o.where
	}
	return nil
}

// expand lists the documents under a source in a stable order.
func expand(src string) ([]string, error) {
	if src == "-" {
		return []string{src}, nil
	}
	info, err := os.Stat(src)
	if err != nil {
		return nil, failed("no_file", "%v", err)
	}
	if !info.IsDir() {
		return []string{src}, nil
	}
	var out []string
	err = filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path != src && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json", ".cedar"}, filepath.Ext(path)):
			out = append(out, path)
		}
		if len(out) > maxFiles {
			return fmt.Errorf("more than %d documents in %s", maxFiles, src)
		}
		return nil
	})
	if err != nil {
		return nil, failed("no_file", "%v", err)
	}
	return out, nil
}

func (l *loader) file(path string) ([]loaded, error) {
	data, err := l.shell.document(path)
	if err != nil {
		return nil, failed("no_file", "%v", err)
	}
	if filepath.Ext(path) == ".cedar" {
		spec, err := json.Marshal(map[string]string{"text": string(data)})
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(path), ".cedar")
		return []loaded{{wire.Object{Kind: "Policy", Name: name, Spec: spec}, path + ":1"}}, nil
	}
	nodes, err := parseDocuments(path, data)
	if err != nil {
		return nil, err
	}
	var out []loaded
	for _, n := range nodes {
		o, err := l.object(path, n)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// parseDocuments reads YAML (JSON is YAML) into one node per object: each
// document is one, or a list of them as `get -o json` prints.
func parseDocuments(path string, data []byte) ([]*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var out []*yaml.Node
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, usage("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if len(doc.Content) == 0 {
			continue
		}
		top := doc.Content[0]
		switch {
		case top.Kind == yaml.ScalarNode && top.Tag == "!!null": // an empty document
		case top.Kind == yaml.SequenceNode:
			out = append(out, top.Content...)
		default:
			out = append(out, top)
		}
		if len(out) > maxFiles {
			return nil, usage("%s: more than %d objects", path, maxFiles)
		}
	}
}

// topLevel are an object's keys; the last five are printed by `get` and say
// nothing when written.
var topLevel = []string{"kind", "name", "spec", "version", "changed_at", "changed_by", "sealed", "rotation"}

// object reads one node strictly.
func (l *loader) object(path string, n *yaml.Node) (loaded, error) {
	at := func(n *yaml.Node) string { return fmt.Sprintf("%s:%d", path, n.Line) }
	o := loaded{where: at(n)}
	if n.Kind != yaml.MappingNode {
		return o, usage("%s: an object has kind, name and spec", at(n))
	}
	conv := &converter{at: at}
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if !slices.Contains(topLevel, key.Value) {
			return o, usage("%s: unknown key %q; an object has kind, name and spec", at(key), key.Value)
		}
		if seen[key.Value] != nil {
			return o, usage("%s: %q stands twice", at(key), key.Value)
		}
		seen[key.Value] = value
	}
	for _, want := range []string{"kind", "name"} {
		v := seen[want]
		if v == nil || v.Kind != yaml.ScalarNode || v.Tag != "!!str" || v.Value == "" {
			return o, usage("%s: %s is missing, or no text", at(n), want)
		}
	}
	kind, err := kindOf(seen["kind"].Value)
	if err != nil {
		return o, usage("%s: %s", at(seen["kind"]), err.Error())
	}
	o.Kind, o.Name = kind, seen["name"].Value
	spec := any(map[string]any{})
	if v := seen["spec"]; v != nil {
		if spec, err = conv.value(v, 0); err != nil {
			return o, err
		}
	}
	m, ok := spec.(map[string]any)
	if !ok {
		return o, usage("%s: spec is an object", at(n))
	}
	if err := l.resolve(&o, path, m); err != nil {
		return o, err
	}
	o.Spec, err = json.Marshal(m)
	return o, err
}

// converter turns YAML into what JSON would have said, within bounds.
type converter struct {
	at    func(*yaml.Node) string
	nodes int
}

func (c *converter) value(n *yaml.Node, depth int) (any, error) {
	c.nodes++
	if c.nodes > maxNodes || depth > maxDepth {
		return nil, usage("%s: more than %d values, or nested more than %d deep", c.at(n), maxNodes, maxDepth)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return c.value(n.Alias, depth+1)
	case yaml.SequenceNode:
		out := []any{}
		for _, e := range n.Content {
			v, err := c.value(e, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	case yaml.MappingNode:
		return c.mapping(n, depth)
	case yaml.ScalarNode:
		return c.scalar(n)
	default:
		return nil, usage("%s: this cannot be read", c.at(n))
	}
}

func (c *converter) mapping(n *yaml.Node, depth int) (any, error) {
	out := map[string]any{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			return nil, usage("%s: a key is a word; merging with << is not supported", c.at(key))
		}
		if _, twice := out[key.Value]; twice {
			return nil, usage("%s: %q stands twice", c.at(key), key.Value)
		}
		v, err := c.value(n.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		out[key.Value] = v
	}
	return out, nil
}

func (c *converter) scalar(n *yaml.Node) (any, error) {
	switch n.Tag {
	case "!!str", "!!timestamp": // a time stays as it was written
		return n.Value, nil
	case "!!null":
		return nil, nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			return nil, usage("%s: %s", c.at(n), strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if _, err := json.Marshal(v); err != nil { // .inf and .nan
			return nil, usage("%s: %s is no number that can be sent", c.at(n), n.Value)
		}
		return v, nil
	default:
		return nil, usage("%s: the tag %s is not supported", c.at(n), n.Tag)
	}
}
