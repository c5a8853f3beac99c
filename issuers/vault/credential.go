package vault

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// publicFields are the fields of secrets that are none. A field that is not named
// here is secret.
var publicFields = []string{
	"username", "serial_number", "certificate", "issuing_ca", "ca_chain", "expiration", "private_key_type", "signed_key", "ip", "port", "key_type", "rolename",
	"expiration_time", "lease_id",
}

// credential is what the client gets: the fields of what was read.
func credential(m *mint) (issuers.Credential, error) {
	c := issuers.Credential{Public: map[string]string{}, Secret: map[string]secret.Text{}, Env: map[string]string{}}
	var paths []string
	for _, a := range m.got {
		paths = append(paths, a.item.path)
		if a.lease != "" {
			c.Public[a.item.field+"vault_lease"] = a.lease
		}
	}
	c.Public["vault_path"] = strings.Join(paths, ",")
	for _, a := range m.got {
		data := unwrapVersioned(a.data)
		for _, name := range slices.Sorted(maps.Keys(data)) {
			if data[name] == nil {
				continue
			}
			text, err := fieldText(data[name])
			if err != nil {
				return issuers.Credential{}, &issuers.Error{Kind: issuers.Unknown, Detail: "a field of " + a.item.path + " cannot be handed over", Err: err}
			}
			field := a.item.field + fieldName(name)
			_, public := c.Public[field]
			if _, hidden := c.Secret[field]; public || hidden {
				return issuers.Credential{}, badScope(nil, "two fields of %s would both be called %s", a.item.path, field)
			}
			if slices.Contains(publicFields, name) && !strings.Contains(a.item.path, "/data/") {
				c.Public[field] = text
			} else {
				c.Secret[field] = secret.New(text)
			}
			c.Env["SECRET_"+strings.ToUpper(field)] = field
		}
	}
	if len(c.Secret) == 0 {
		return issuers.Credential{}, badScope(nil, "what stands at %s holds no secret field", strings.Join(paths, ", "))
	}
	return c, nil
}

// fieldName makes a name that shells and documents take.
func fieldName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, plain(s, 64))
}

// unwrapVersioned takes the data out of what a versioned key-value store answers.
func unwrapVersioned(data map[string]any) map[string]any {
	inner, ok := data["data"].(map[string]any)
	if _, meta := data["metadata"].(map[string]any); ok && meta && len(data) == 2 {
		return inner
	}
	return data
}

// fieldText is a field as text: text as it is, anything else as JSON; a chain of
// certificates as one text of PEM.
func fieldText(v any) (string, error) {
	switch x := v.(type) {
	case string:
		return x, nil
	case []any:
		var parts []string
		for _, p := range x {
			s, ok := p.(string)
			if !ok || !strings.HasPrefix(s, "-----BEGIN ") {
				return jsonText(v)
			}
			parts = append(parts, strings.TrimSpace(s))
		}
		return strings.Join(parts, "\n"), nil
	case map[string]any:
		return jsonText(v)
	}
	return fmt.Sprint(v), nil
}

func jsonText(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}
