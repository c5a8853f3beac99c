package host

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
	"github.com/mayfly-broker/mayfly/scope"
	"github.com/mayfly-broker/mayfly/secret"
)

// kind is the kind that a plugin serves. It answers from what it knows; what it
// does not know it asks for by *[issuers.Pending]. Names it makes by itself.
type kind struct {
	s        *supervised
	manifest protocol.Manifest
	form     protocol.NameForm

	mu     sync.Mutex
	specs  map[[sha256.Size]byte]protocol.Examination
	scopes map[[sha256.Size]byte]error
	made   map[[sha256.Size]byte]map[string]secret.Text // handed out once
}

var (
	_ issuers.Kind        = (*kind)(nil)
	_ issuers.RoleWriter  = (*kind)(nil)
	_ issuers.SecretMaker = (*kind)(nil)
	_ issuers.Bounder     = (*kind)(nil)
)

func newKind(s *supervised, m protocol.Manifest) *kind {
	k := &kind{s: s, manifest: m, form: protocol.NameForm(m.CredentialName)}
	k.forget()
	return k
}

// fits says whether a process with that manifest is the same kind.
func (k *kind) fits(m protocol.Manifest) bool {
	return k.manifest.Name == m.Name && k.manifest.Revocable == m.Revocable && k.manifest.CredentialName == m.CredentialName && slices.Equal(k.manifest.Abilities, m.Abilities)
}

// lost returns what a process with that manifest can no longer do.
func (k *kind) lost(m protocol.Manifest) (out []protocol.Ability) {
	for _, a := range k.manifest.Abilities {
		if !m.Can(a) {
			out = append(out, a)
		}
	}
	return out
}

// forget drops what an earlier process has answered.
func (k *kind) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.specs, k.scopes, k.made = map[[sha256.Size]byte]protocol.Examination{}, map[[sha256.Size]byte]error{}, map[[sha256.Size]byte]map[string]secret.Text{}
}

// Name implements [issuers.Kind].
func (k *kind) Name() string { return k.manifest.Name }

// Revocable implements [issuers.Kind].
func (k *kind) Revocable() bool { return k.manifest.Revocable }

// CredentialName implements [issuers.Kind].
func (k *kind) CredentialName(leaseID string, generation uint64) string {
	return k.form.Name(leaseID, generation)
}

// CheckSpec implements [issuers.Kind].
func (k *kind) CheckSpec(spec json.RawMessage) error {
	x, err := k.examined(spec)
	if err != nil {
		return err
	}
	if x.Problem != "" {
		return errors.New(x.Problem)
	}
	return nil
}

// CheckScope implements [issuers.Kind].
func (k *kind) CheckScope(spec json.RawMessage, s scope.Scope) error {
	if _, err := k.examined(spec); err != nil { // MaxTTL rests on it
		return err
	}
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	at := key(spec, body)
	k.mu.Lock()
	verdict, known := k.scopes[at]
	k.mu.Unlock()
	if known {
		return verdict
	}
	return k.pending(func(ctx context.Context, p *process) error {
		a, err := protocol.All().CheckScope.Call(ctx, p.conn, protocol.ScopeRequest{Spec: spec, Scope: s})
		if err != nil {
			return err
		}
		var verdict error
		if a.Error != nil {
			verdict = errors.New(k.said(a.Error.Detail, maxProblem))
		}
		keep(k, &k.scopes, at, verdict, remembered)
		return nil
	})
}

// MaxTTL implements [issuers.Bounder]; 0 where the kind has no bound. A spec that
// was not examined, which a caller that checked its scope before never has, is
// bound to one second.
func (k *kind) MaxTTL(spec json.RawMessage) time.Duration {
	if !k.manifest.Can(protocol.AbleBound) {
		return 0
	}
	x, err := k.examined(spec)
	if err != nil {
		return time.Second
	}
	return x.MaxTTL
}

// Roles implements [issuers.RoleWriter].
func (k *kind) Roles(spec json.RawMessage) ([]issuers.RoleTemplate, error) {
	x, err := k.examined(spec)
	if err != nil {
		return nil, err
	}
	if x.RolesProblem != "" {
		return nil, errors.New(x.RolesProblem)
	}
	var out []issuers.RoleTemplate
	for _, r := range x.Roles {
		out = append(out, issuers.RoleTemplate(r))
	}
	return out, nil
}

// MakeSecrets implements [issuers.SecretMaker].
func (k *kind) MakeSecrets(spec json.RawMessage) (map[string]secret.Text, error) {
	if !k.manifest.Can(protocol.AbleSecrets) {
		return nil, nil
	}
	at := key(spec)
	k.mu.Lock()
	made, known := k.made[at]
	delete(k.made, at)
	k.mu.Unlock()
	if known {
		return made, nil
	}
	return nil, k.pending(func(ctx context.Context, p *process) error {
		a, err := protocol.All().MakeSecrets.Call(ctx, p.conn, protocol.SpecRequest{Spec: spec})
		if err != nil {
			return err
		}
		if a.Error != nil {
			return errors.New(k.said(a.Error.Detail, maxProblem))
		}
		made, err := checkSecrets(a.Values)
		if err != nil {
			k.s.lied("", k.said(err.Error(), maxReceipt))
			return err
		}
		keep(k, &k.made, at, made, rememberedLarge)
		return nil
	})
}

// Open implements [issuers.Kind]. Nothing is asked of the plugin yet.
func (k *kind) Open(t issuers.Target) (issuers.Issuer, error) {
	return newIssuer(k, t), nil
}

// examined returns what is known of a spec, or asks.
func (k *kind) examined(spec json.RawMessage) (protocol.Examination, error) {
	at := key(spec)
	k.mu.Lock()
	x, known := k.specs[at]
	k.mu.Unlock()
	if known {
		return x, nil
	}
	return x, k.pending(func(ctx context.Context, p *process) error {
		a, err := protocol.All().Examine.Call(ctx, p.conn, protocol.SpecRequest{Spec: spec})
		if err != nil {
			return err
		}
		if err := checkExamination(&a, k.manifest); err != nil {
			k.s.lied("", k.said(err.Error(), maxReceipt))
			return err
		}
		a.Problem, a.RolesProblem = k.said(a.Problem, maxProblem), k.said(a.RolesProblem, maxProblem)
		keep(k, &k.specs, at, a, rememberedLarge)
		return nil
	})
}

// said is a plugin's text as people may see it.
func (k *kind) said(text string, n int) string { return clean(k.s.redact(text), n) }

// pending is the error that has the plugin asked.
func (k *kind) pending(ask func(ctx context.Context, p *process) error) error {
	return &issuers.Pending{What: "plugin " + k.manifest.Name, Fetch: func(ctx context.Context) error {
		p := k.s.enter(maxCalls)
		if p == nil {
			return errors.New(k.s.absent())
		}
		defer p.leave()
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if err := ask(ctx, p); err != nil {
			return fmt.Errorf("plugin %s failed: %s", k.manifest.Name, k.said(err.Error(), maxReceipt))
		}
		return nil
	}}
}

// key names an answer by all that it depends on.
func key(parts ...[]byte) [sha256.Size]byte {
	h := sha256.New()
	for _, p := range parts {
		sum := sha256.Sum256(p)
		_, _ = h.Write(sum[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// keep remembers an answer; a full memory begins anew.
func keep[V any](k *kind, m *map[[sha256.Size]byte]V, at [sha256.Size]byte, v V, most int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(*m) >= most {
		*m = map[[sha256.Size]byte]V{}
	}
	(*m)[at] = v
}

// Direct returns the kind as one that waits for its answers, as built-in kinds
// have them at hand.
func Direct(k issuers.Kind) issuers.Kind { return direct{k} }

// direct asks at once for what is pending.
type direct struct{ issuers.Kind }

// fetched calls try until nothing is pending, some times at most.
func fetched(try func() error) error {
	var err error
	for range 8 {
		err = try()
		var p *issuers.Pending
		if !errors.As(err, &p) {
			return err
		}
		if err := p.Fetch(context.Background()); err != nil {
			return err
		}
	}
	return err
}

// CheckSpec implements [issuers.Kind].
func (d direct) CheckSpec(spec json.RawMessage) error {
	return fetched(func() error { return d.Kind.CheckSpec(spec) })
}

// CheckScope implements [issuers.Kind].
func (d direct) CheckScope(spec json.RawMessage, s scope.Scope) error {
	return fetched(func() error { return d.Kind.CheckScope(spec, s) })
}

// Roles implements [issuers.RoleWriter].
func (d direct) Roles(spec json.RawMessage) (out []issuers.RoleTemplate, err error) {
	w, ok := d.Kind.(issuers.RoleWriter)
	if !ok {
		return nil, nil
	}
	err = fetched(func() (err error) { out, err = w.Roles(spec); return err })
	return out, err
}

// MakeSecrets implements [issuers.SecretMaker].
func (d direct) MakeSecrets(spec json.RawMessage) (out map[string]secret.Text, err error) {
	m, ok := d.Kind.(issuers.SecretMaker)
	if !ok {
		return nil, nil
	}
	err = fetched(func() (err error) { out, err = m.MakeSecrets(spec); return err })
	return out, err
}

// MaxTTL implements [issuers.Bounder].
func (d direct) MaxTTL(spec json.RawMessage) time.Duration {
	b, ok := d.Kind.(issuers.Bounder)
	if !ok || d.CheckSpec(spec) != nil {
		return 0
	}
	return b.MaxTTL(spec)
}
