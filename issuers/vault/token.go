package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// state is what Vault says of a lease's token.
type state struct {
	there  bool
	ours   bool // it bears this target's mark
	orphan bool
	mark   mark
	left   time.Duration // until it ends; 0: never
}

// live says that the token is one that leases read with.
func (s state) live() bool { return s.there && s.ours && !s.mark.ended }

// number reads a JSON number; what is none is 0.
func number(v any) int64 {
	n, _ := v.(json.Number)
	i, _ := n.Int64()
	return i
}

// find looks for a token by its id. Vault answers 403 for a token that is not
// there and for a question that may not be asked; so the same question is asked of
// the broker's own token, and only its answer makes a 403 an absence.
func (is *Issuer) find(ctx context.Context, id secret.Text) (state, error) {
	const what = "look for a lease's token"
	var refusedToken secret.Text
	for range 2 {
		own, err := is.own.get(ctx, refusedToken)
		if err != nil {
			return state{}, err
		}
		s, err := is.fleet.call(ctx, lookup(own, id))
		if err == nil {
			return is.readState(s)
		}
		if code := statusOf(err); code != http.StatusForbidden && code != http.StatusNotFound {
			return state{}, lookError(what, err)
		}
		_, err = is.fleet.call(ctx, lookup(own, own))
		if err == nil {
			return state{}, nil
		}
		if statusOf(err) != http.StatusForbidden {
			return state{}, lookError(what, err)
		}
		refusedToken = own
	}
	return state{}, refused("%s: the broker's token has ended, or lacks update on auth/token/lookup", what)
}

func lookup(own, id secret.Text) op {
	return op{method: http.MethodPut, path: "auth/token/lookup", token: own, body: map[string]any{"token": id.Reveal()}}
}

func (is *Issuer) readState(s *api.Secret) (state, error) {
	if s == nil || s.Data == nil {
		return state{}, &issuers.Error{Kind: issuers.Unreachable, Detail: "look for a lease's token: Vault's answer is empty"}
	}
	out := state{there: true, left: time.Duration(number(s.Data["ttl"])) * time.Second}
	out.orphan, _ = s.Data["orphan"].(bool)
	meta := map[string]string{}
	if m, ok := s.Data["meta"].(map[string]any); ok {
		for k, v := range m {
			meta[k], _ = v.(string)
		}
	}
	out.mark, out.ours = is.marks.read(meta)
	return out, nil
}

// create makes a token under the id of a lease. The role makes it an orphan: it
// must not end with the broker's own login.
func (is *Issuer) create(ctx context.Context, id secret.Text, l issuers.Lease, k mark, ttl time.Duration) error {
	policy := is.spec.TokenPolicy
	if k.ended {
		policy = endedPolicy
	}
	meta := is.marks.write(k)
	for name, text := range map[string]string{"mayfly_role": l.Role, "mayfly_principal": l.Principal, "mayfly_task": l.TaskID} {
		if text = plain(text, 128); text != "" && !k.ended {
			meta[name] = text
		}
	}
	s, err := is.call(ctx, op{method: http.MethodPut, path: "auth/token/create/" + is.spec.TokenRole, body: map[string]any{
		"id": id.Reveal(), "policies": []string{policy}, "no_default_policy": true, "display_name": l.Name, "meta": meta,
		"ttl": wholeSeconds(ttl), "renewable": true, "type": "service",
	}})
	if err != nil {
		return changeError("make the lease's token", err)
	}
	if s == nil || s.Auth == nil || s.Auth.ClientToken != id.Reveal() || !s.Auth.Orphan {
		_ = is.revoke(ctx, id)
		return refused("the token role %s does not make orphan service tokens with the id that is asked for; see the target's check", is.spec.TokenRole)
	}
	return nil
}

// wholeSeconds rounds up, since Vault counts in seconds and 0 means "the default".
func wholeSeconds(d time.Duration) string {
	return fmt.Sprintf("%ds", max(1, int64((d+time.Second-1)/time.Second)))
}

// revoke ends a token; Vault then ends what was read with it, in its own time.
func (is *Issuer) revoke(ctx context.Context, id secret.Text) error {
	_, err := is.call(ctx, op{method: http.MethodPut, path: "auth/token/revoke", body: map[string]any{"token": id.Reveal()}, timeout: slowTimeout})
	if err != nil {
		return changeError("revoke the lease's token", err)
	}
	return nil
}

// prolong moves a token's end to at least that time from now.
func (is *Issuer) prolong(ctx context.Context, id secret.Text, left time.Duration) error {
	s, err := is.call(ctx, op{method: http.MethodPut, path: "auth/token/renew", body: map[string]any{"token": id.Reveal(), "increment": wholeSeconds(left)}})
	if err != nil {
		return changeError("prolong the lease's token", err)
	}
	if s == nil || s.Auth == nil {
		return &issuers.Error{Kind: issuers.Unknown, Detail: "prolong the lease's token: Vault's answer is empty"}
	}
	if got := time.Duration(s.Auth.LeaseDuration) * time.Second; got+slack < left {
		return badScope(nil, "the token role %s lets a lease live %s longer at most, and %s are asked for; ask for a shorter ttl", is.spec.TokenRole, got, left.Round(time.Second))
	}
	return nil
}

// slack is what whole seconds, and the way to Vault, may take from a length.
const slack = 2 * time.Second

// read is what a lease's own token kept of its mint.
type record struct {
	// Leases are Vault's own lease ids.
	Leases []string `json:"leases"`
}

// limits of a record, which only a lease's own token can write.
const (
	maxRecordBytes = 64 << 10
	maxRecords     = 64
)

// note writes down what was read, in the token's own cubbyhole, where nobody else
// reads it and which ends with it.
func (is *Issuer) note(ctx context.Context, id secret.Text, mint string, r record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = is.fleet.call(ctx, op{method: http.MethodPut, path: journal + "/" + mint, token: id, body: map[string]any{"record": string(text)}})
	if err != nil {
		return changeError("note what the lease read", err)
	}
	return nil
}

// recall reads the records of all mints under a token. finished says whether the
// present one's is among them. A token that has just ended has none.
func (is *Issuer) recall(ctx context.Context, id secret.Text, mint string) (leases []string, finished bool, err error) {
	const what = "read what the lease noted"
	s, err := is.fleet.call(ctx, op{method: "LIST", path: journal, token: id})
	if err != nil {
		return nil, false, lookError(what, err)
	}
	if s == nil {
		return nil, false, nil
	}
	keys, _ := s.Data["keys"].([]any)
	if len(keys) > maxRecords {
		return nil, false, &issuers.Error{Kind: issuers.Poison, Detail: fmt.Sprintf("%s: %d records, more than a lease can have", what, len(keys))}
	}
	for _, k := range keys {
		name, _ := k.(string)
		if !segmentPattern.MatchString(name) {
			continue
		}
		s, err := is.fleet.call(ctx, op{method: http.MethodGet, path: journal + "/" + name, token: id})
		if err != nil {
			return nil, false, lookError(what, err)
		}
		if s == nil {
			continue
		}
		ids, err := readRecord(s.Data["record"])
		if err != nil {
			return nil, false, &issuers.Error{Kind: issuers.Poison, Detail: what, Err: err}
		}
		leases = append(leases, ids...)
		finished = finished || name == mint
	}
	return leases, finished, nil
}

// readRecord reads one record; the ids in it become paths of calls.
func readRecord(v any) ([]string, error) {
	text, _ := v.(string)
	var r record
	if len(text) > maxRecordBytes || json.Unmarshal([]byte(text), &r) != nil || len(r.Leases) > maxItems {
		return nil, fmt.Errorf("a record of %d bytes is not one of the broker's", len(text))
	}
	for _, id := range r.Leases {
		if err := checkLeaseID(id); err != nil {
			return nil, err
		}
	}
	return r.Leases, nil
}
