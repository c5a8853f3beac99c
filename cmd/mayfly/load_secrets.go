package main

import (
	"fmt"
	"path/filepath"
	"sort"
	"strings"
)

// Where a document says a secret comes from.
const (
	fromFileKey = "from_file"
	fromEnvKey  = "from_env"
	promptKey   = "prompt"
)

// secretNames are what the broker calls secrets whose place in the document has
// another name.
var secretNames = map[string]string{"admin.initial_password": "admin_password", "console.client_secret": "client_secret"}

// resolve takes the secrets out of a spec, reads them, and reads the CA file of
// a target, whose place is the reader's machine and not the broker's.
func (l *loader) resolve(o *loaded, path string, spec map[string]any) error {
	if admin, ok := spec["admin"].(map[string]any); ok && o.Kind == "Target" {
		if v, ok := admin["initial_password"]; ok {
			if _, clear := v.(string); clear {
				return usage("%s: admin.initial_password holds a password in the clear; write initial_password: {from_file: FILE} instead", o.where)
			}
		}
	}
	if err := l.walk(o, path, "", spec); err != nil {
		return err
	}
	if tls, ok := spec["tls"].(map[string]any); ok && o.Kind == "Target" {
		return inlineCA(o, path, tls)
	}
	return nil
}

func inlineCA(o *loaded, path string, tls map[string]any) error {
	file, ok := tls["ca_file"].(string)
	if !ok {
		return nil
	}
	if _, both := tls["ca"]; both {
		return usage("%s: tls has both ca and ca_file", o.where)
	}
	pem, err := readFile(beside(path, file), maxDocument)
	if err != nil {
		return failed("no_file", "%s: tls.ca_file: %v", o.where, err)
	}
	delete(tls, "ca_file")
	tls["ca"] = string(pem)
	return nil
}

// beside takes a path relative to the document that names it.
func beside(document, file string) string {
	if filepath.IsAbs(file) || document == "-" {
		return file
	}
	return filepath.Join(filepath.Dir(document), file)
}

// walk finds {from_file: F}, {from_env: V} and {prompt: TEXT}, wherever they
// stand, and moves what they name into the object's secrets.
func (l *loader) walk(o *loaded, path, at string, m map[string]any) error {
	var members []string
	for k := range m {
		members = append(members, k)
	}
	sort.Strings(members) // prompts come in the same order each time
	for _, k := range members {
		inner, ok := m[k].(map[string]any)
		if !ok {
			if m[k] == promptKey && secretNames[join(at, k)] != "" {
				inner, ok = map[string]any{promptKey: true}, true
			} else {
				continue
			}
		}
		place := join(at, k)
		if !isSecret(inner) {
			if err := l.walk(o, path, place, inner); err != nil {
				return err
			}
			continue
		}
		delete(m, k)
		if err := l.take(o, path, place, inner); err != nil {
			return err
		}
	}
	return nil
}

func join(at, k string) string { return strings.TrimPrefix(at+"."+k, ".") }

func isSecret(m map[string]any) bool {
	if len(m) != 1 {
		return false
	}
	for k := range m {
		return k == fromFileKey || k == fromEnvKey || k == promptKey
	}
	return false
}

func (l *loader) take(o *loaded, path, place string, m map[string]any) error {
	name := secretNames[place]
	if name == "" {
		name = strings.ReplaceAll(place, ".", "_")
	}
	what := fmt.Sprintf("%s %s, %s", o.Kind, o.Name, place)
	var text string
	switch {
	case m[fromFileKey] != nil:
		file, ok := m[fromFileKey].(string)
		if !ok || file == "" {
			return usage("%s: %s: from_file names a file", o.where, place)
		}
		data, err := readFile(beside(path, file), maxSecret)
		if err != nil {
			return failed("no_file", "%s: %s: %v", o.where, place, err)
		}
		text = strings.TrimRight(string(data), "\r\n")
	case m[fromEnvKey] != nil:
		variable, ok := m[fromEnvKey].(string)
		if !ok || variable == "" {
			return usage("%s: %s: from_env names a variable", o.where, place)
		}
		v, set := l.shell.lookup(variable)
		if !set {
			return failed("no_secret", "%s: %s: %s is not set", o.where, place, variable)
		}
		text = v
	case !l.prompt:
		return nil
	default:
		typed, err := l.shell.ask(what)
		if err != nil {
			return err
		}
		text = typed.Reveal()
	}
	if text == "" {
		return failed("no_secret", "%s: %s is empty", o.where, place)
	}
	if o.Secrets == nil {
		o.Secrets = map[string]string{}
	}
	o.Secrets[name] = text
	return nil
}
