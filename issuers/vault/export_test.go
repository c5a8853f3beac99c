package vault

import (
	"encoding/json"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// TokenOf is the id of a lease's token on a target with that mark key.
func TokenOf(key secret.Text, leaseID string) string { return marker{key}.token(leaseID).Reveal() }

// MetaOf is what the token of a lease says of itself.
func MetaOf(key secret.Text, l issuers.Lease, term uint64, mint string) map[string]string {
	return marker{key}.write(mark{lease: l.ID, generation: l.Generation, term: term, mint: mint})
}

// ReadMeta reads it.
func ReadMeta(key secret.Text, meta map[string]string) (lease string, generation uint64, ended, ok bool) {
	k, ok := marker{key}.read(meta)
	return k.lease, k.generation, k.ended, ok
}

// Compile is what a scope becomes: action, path and parameters of each secret.
func Compile(raw []byte, s scope.Scope) ([][3]string, error) {
	sp, err := parseSpec(json.RawMessage(raw))
	if err != nil {
		return nil, err
	}
	items, err := compile(sp, s)
	if err != nil {
		return nil, err
	}
	if items, err = readable(items); err != nil {
		return nil, err
	}
	var out [][3]string
	for _, i := range items {
		out = append(out, [3]string{i.action, i.path, i.params.Encode()})
	}
	return out, nil
}

// CheckLeaseID says whether a lease id of Vault's may be named in a call.
func CheckLeaseID(id string) error { return checkLeaseID(id) }

// ReadRecord reads what a lease's token noted.
func ReadRecord(v any) ([]string, error) { return readRecord(v) }
