package broker

import (
	"context"
	"encoding/hex"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

// Changes of configuration under dual control (ADR 11).

// underCustody reports whether one of the changes must be co-signed.
func underCustody(q ledger.Query, plan []change) bool {
	return slices.ContainsFunc(plan, func(x change) bool { return x.action() != "unchanged" && q.UnderCustody(x.ObjectChange) })
}

// askForChange commits a change as a grant that waits, its secrets sealed beside it.
func (e *Engine) askForChange(ctx context.Context, c Caller, plan []change, reason string, rulings []ruling) (string, error) {
	var objects []cosign.ObjectChange
	var secrets []ledger.Secret
	for _, x := range plan {
		if x.action() == "unchanged" {
			continue
		}
		o := cosign.ObjectChange{Kind: x.Kind, Name: x.Name, Version: x.Version, Delete: x.Delete, Spec: x.Spec, Override: x.Override}
		for _, s := range x.secrets {
			o.Secrets = append(o.Secrets, cosign.SecretChange{Name: s.Name, SHA256: hex.EncodeToString(s.Commitment().SHA256)})
		}
		secrets = append(secrets, x.secrets...)
		objects = append(objects, o)
	}
	return e.commitChangeRequest(ctx, c, &cosign.ChangeDocument{Reason: reason, Objects: objects}, rulings, secrets)
}

// askForKey asks the approvers for a person's first key to approve with.
func (e *Engine) askForKey(ctx context.Context, c Caller, principal string, key cosign.Key, proof *cosign.Signature) (string, error) {
	if key.Kind != cosign.KindPasskey {
		err := e.view(func(q ledger.Query) error {
			_, hash, err := keyDocument(q, principal, key)
			if err == nil && proof != nil {
				err = cosign.Verify(key, cosign.DomainKey, hash, *proof)
			}
			if err != nil || proof == nil {
				return fault.New(fault.Invalid, ledger.CodeSignature, "The new key must sign its own document.")
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	// Who may ask was decided before; one's own key is everybody's to ask for, so
	// that this is what policy says and no bar.
	var r ruling
	err := e.view(func(q ledger.Query) (err error) {
		r, err = e.decide(q, c, question{action: policy.ActionAdminister, resource: policy.Resource{Kind: ledger.KindPrincipal, Name: principal}})
		return err
	})
	if err != nil {
		return "", err
	}
	d := &cosign.ChangeDocument{Reason: "a key for " + principal + " to approve with", Keys: []cosign.NewKey{{Principal: principal, Key: key}}}
	return e.commitChangeRequest(ctx, c, d, []ruling{r}, nil)
}

func (e *Engine) commitChangeRequest(ctx context.Context, c Caller, d *cosign.ChangeDocument, rulings []ruling, secrets []ledger.Secret) (string, error) {
	cmd := ledger.RequestGrant{Change: d}
	err := e.view(func(q ledger.Query) (err error) {
		if d.Common, err = e.common(q, c, cosign.DomainChange, rulings[0]); err != nil {
			return err
		}
		d.Needs = q.Custodians()
		d.CollectBeforeMS = e.now().Add(defaultApprovalTTL).UnixMilli()
		cmd.PolicyEpoch = q.PolicyEpoch()
		return nil
	})
	if err != nil {
		return "", err
	}
	h := e.header(c)
	h.DecisionID, h.Decision = rulings[0].ID, encodeAll(rulings)
	res, err := e.commit(ctx, h, &cmd, secrets...)
	if err != nil {
		return "", err
	}
	e.changed.tell()
	return res.ID, nil
}

// waitingChange is the answer of a change that is not approved yet.
func (e *Engine) waitingChange(g ledger.Cosigned) (answer wire.AccessAnswer, err error) {
	err = e.view(func(q ledger.Query) error {
		d, err := g.Change()
		answer = wire.AccessAnswer{Status: "waiting", GrantID: g.ID, DecisionID: d.Decision, Scope: scope.Scope{}, Replaced: []string{}, Waiting: e.wireWaiting(q, g)}
		return err
	})
	return answer, err
}

// makeApproved makes a change whose last signature has just come.
func (e *Engine) makeApproved(ctx context.Context, c Caller, id string) error {
	var g ledger.Cosigned
	err := e.view(func(q ledger.Query) error { g, _ = q.Cosigned(id); return nil })
	if err != nil || g.State != ledger.GrantApproved {
		return err
	}
	return e.makeChange(ctx, c, g)
}

// makeChange makes an approved change, after all that is checked at the door for
// a change made at once; policy decides again for who asked.
func (e *Engine) makeChange(ctx context.Context, c Caller, g ledger.Cosigned) error {
	d, err := g.Change()
	if err != nil {
		return err
	}
	asker := requesterOf(d.Common)
	var rulings []ruling
	var plan []change
	err = e.view(func(q ledger.Query) error {
		for _, o := range d.Objects {
			x := change{ObjectChange: ledger.ObjectChange{Kind: o.Kind, Name: o.Name, Version: o.Version, Delete: o.Delete, Spec: o.Spec, Override: o.Override}}
			x.before, x.exists = q.Object(o.Kind, o.Name)
			for _, s := range o.Secrets {
				x.secrets = append(x.secrets, ledger.Secret{Name: s.Name, Value: q.HeldSecret(g.ID, s.Name)})
			}
			plan = append(plan, x)
			res, err := e.resourceOf(q, o.Kind, o.Name)
			if err != nil {
				return err
			}
			ask := question{action: policy.ActionAdminister, resource: res}
			if o.Override {
				ask.context.Purpose = d.Reason
			}
			r, err := e.decide(q, asker, ask)
			if err != nil {
				return err
			}
			if !r.Decision.Permit {
				return fault.New(fault.Denied, ledger.CodeGrantVoid, "%s may no longer change %s %s. The change was not made.", g.Principal, o.Kind, o.Name)
			}
			// The step-up was seen when it was asked for; no session is as fresh by now.
			if owing := r.owed(g.Needs); len(owing.approvals) > 0 || owing.stepUp != asker.Session.Method && owing.stepUp != "" {
				return owing.denial(asker, r, "The change was not made.")
			}
			rulings = append(rulings, r)
		}
		return e.checkDoor(q, asker, plan)
	})
	if err != nil {
		return err
	}
	if err := e.tryOverrides(ctx, plan); err != nil { // it may have been set again since it was asked for
		return err
	}
	h := e.header(c)
	h.Idem = nil
	if len(rulings) > 0 {
		h.DecisionID, h.Decision = rulings[0].ID, encodeAll(rulings)
	}
	res, err := e.commit(ctx, h, &ledger.MakeChange{GrantID: g.ID})
	if res.Code == ledger.CodeGrantOver {
		// The requester may have collected it between the last signature and now.
		return e.view(func(q ledger.Query) error {
			if now, _ := q.Cosigned(g.ID); now.State != ledger.GrantEnded {
				return err
			}
			return nil
		})
	}
	if err == nil {
		e.changed.tell()
		e.wake() // a secret that was overridden turns
	}
	return err
}

// requesterOf is the caller that a document describes, for deciding again when
// its session is long over.
func requesterOf(d cosign.Common) Caller {
	r := d.Requester
	return Caller{Session: ledger.Session{
		Principal: r.Principal, Instance: r.Instance, Method: r.Method, Binding: r.Binding, Thumbprint: r.Key,
		AttestedKey: r.AttestedKey, Facts: r.Facts, CreatedMS: d.RequestedMS, ExpiresMS: d.RequestedMS + time.Hour.Milliseconds(),
	}}
}
