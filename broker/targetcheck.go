package broker

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// checkTimeout bounds one look at a target. It is less than a client waits for an
// answer: who asks about a target that says nothing is told so, and not that the
// broker gave none.
const checkTimeout = 20 * time.Second

// CheckTarget examines a target's connection and the rights of its admin
// account.
func (e *Engine) CheckTarget(ctx context.Context, c Caller, name string) (wire.TargetReport, error) {
	if _, err := e.allow(ctx, c, question{action: policy.ActionRead, resource: policy.Resource{Kind: ledger.KindTarget, Name: name}}); err != nil {
		return wire.TargetReport{}, err
	}
	var t *target
	if err := e.viewing(ctx, func(q ledger.Query) (err error) { t, err = e.targets.acquire(q, name); return err }); err != nil {
		return wire.TargetReport{}, err
	}
	defer e.targets.release(t)
	return checkIssuer(ctx, name, t.issuer)
}

func checkIssuer(ctx context.Context, name string, iss issuers.Issuer) (wire.TargetReport, error) {
	rep := wire.TargetReport{Target: name, OK: true, Findings: []wire.Finding{}}
	ck, ok := iss.(issuers.Checker)
	if !ok {
		rep.Findings = append(rep.Findings, wire.Finding{Name: "local", OK: true, Detail: "The broker itself is the issuer; there is nothing to connect to."})
		return rep, nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	found, err := ck.Check(ctx)
	if err != nil {
		rep.OK = false
		rep.Findings = append(rep.Findings, wire.Finding{Name: "connect", Detail: err.Error()})
		return rep, nil
	}
	for _, f := range found {
		rep.Findings = append(rep.Findings, wire.Finding(f))
		rep.OK = rep.OK && (f.OK || f.Warning)
	}
	return rep, nil
}

// PreviewTarget checks a target that is not written yet and proposes roles and
// a permit for it.
func (e *Engine) PreviewTarget(ctx context.Context, c Caller, in wire.TargetPreview) (wire.TargetReport, error) {
	if _, err := e.allowProposing(ctx, c, question{action: policy.ActionAdminister, resource: policy.Resource{Kind: ledger.KindTarget, Name: in.Name}}); err != nil {
		return wire.TargetReport{}, err
	}
	spec, rest, err := ledger.SplitTarget(in.Spec)
	if err != nil {
		return wire.TargetReport{}, fault.New(fault.Invalid, "invalid_spec", "%v", err)
	}
	var kind issuers.Kind
	err = asking(ctx, func() (err error) {
		if kind, err = e.kind(spec.Type); err != nil {
			return err
		}
		if err := kind.CheckSpec(rest); err != nil {
			return fault.Wrap(err, fault.Invalid, "invalid_spec", "Target %s: %v", in.Name, err)
		}
		return nil
	})
	if err != nil {
		return wire.TargetReport{}, err
	}
	secrets, err := previewSecrets(ctx, kind, in, rest)
	if err != nil {
		return wire.TargetReport{}, err
	}
	t, err := e.openTarget(ledger.Object{Name: in.Name, Spec: in.Spec}, secrets, e.cfg.Log.Term())
	if err != nil {
		return wire.TargetReport{}, err
	}
	defer t.close()
	rep, err := checkIssuer(ctx, in.Name, t.issuer)
	if err != nil {
		return rep, err
	}
	return rep, asking(ctx, func() error { return proposeRoles(&rep, kind, in.Name, rest) })
}

// previewSecrets are the secrets that were sent along, and those that the kind makes.
func previewSecrets(ctx context.Context, kind issuers.Kind, in wire.TargetPreview, rest json.RawMessage) (map[string]secret.Text, error) {
	secrets := map[string]secret.Text{}
	for k, v := range in.Secrets {
		secrets[k] = secret.New(v)
	}
	m, ok := kind.(issuers.SecretMaker)
	if !ok {
		return secrets, nil
	}
	err := asking(ctx, func() error {
		made, err := m.MakeSecrets(rest)
		if err != nil {
			return fault.Wrap(err, fault.Invalid, "invalid_spec", "Target %s: %v", in.Name, err)
		}
		for k, v := range made {
			if _, given := secrets[k]; !given {
				secrets[k] = v
			}
		}
		return nil
	})
	return secrets, err
}

// proposeRoles adds working roles and the permit to paste.
func proposeRoles(rep *wire.TargetReport, kind issuers.Kind, name string, rest json.RawMessage) error {
	rw, ok := kind.(issuers.RoleWriter)
	if !ok {
		return nil
	}
	templates, err := rw.Roles(rest)
	if err != nil {
		return fault.Wrap(err, fault.Invalid, "invalid_spec", "%v", err)
	}
	for _, tpl := range templates {
		spec := ledger.RoleSpec{Scope: tpl.Scope, TTL: ledger.RoleTTL{Default: ledger.Duration(tpl.DefaultTTL), Max: ledger.Duration(tpl.MaxTTL)}}
		rep.Roles = append(rep.Roles, wire.Object{Kind: ledger.KindRole, Name: name + "/" + tpl.Suffix, Spec: rawMessage(spec)})
	}
	if len(rep.Roles) > 0 {
		rep.Permit = permitFor(rep.Roles[0].Name)
	}
	return nil
}

func permitFor(role string) string {
	id := strings.NewReplacer("/", "-", ":", "-").Replace(role)
	return `@id("` + id + `")
permit (principal in Group::"developers", action in [Action::"request", Action::"renew"], resource)
when { resource == Role::"` + role + `" && context.session.bound };
`
}
