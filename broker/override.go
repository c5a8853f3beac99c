package broker

import (
	"context"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// A target's own secret that was rotated is known to the broker alone. Where a
// person has reset it on the target, an apply with Override tells the broker of it:
// policed, recorded with its reason, co-signed where targets are, tried by logging
// in, and replaced at once. Without Override nothing puts back a rotated secret.

// overrideWait bounds the login by a secret that is handed in.
const overrideWait = 15 * time.Second

// checkOverrides refuses an override that overrides nothing, or says not why.
func checkOverrides(in wire.ApplyRequest, plan []change) error {
	if !in.Override {
		return nil
	}
	if strings.TrimSpace(in.Reason) == "" {
		return fault.New(fault.Invalid, "reason_missing", "Putting a secret in the place of a rotated one needs a reason; it stands in the ledger.")
	}
	for _, x := range plan {
		if x.Override {
			return nil
		}
	}
	return fault.New(fault.Invalid, "nothing_to_override", "None of these objects brings a secret that was rotated. What can be overridden is a target's own (admin: {initial_password: …}); an account's is replaced by: mayfly rotate account NAME")
}

// tryOverrides logs in by the secrets that take the place of rotated ones.
func (e *Engine) tryOverrides(ctx context.Context, plan []change) error {
	for _, x := range plan {
		if !x.Override {
			continue
		}
		if err := e.tryOverride(ctx, x); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) tryOverride(ctx context.Context, x change) error {
	secrets := map[string]secret.Text{}
	err := e.view(func(q ledger.Query) error {
		for _, f := range x.before.Secrets {
			secrets[f] = secret.New(string(q.Secret(x.Kind, x.Name, f)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	given := map[string]bool{}
	for _, s := range x.secrets {
		field := strings.TrimPrefix(s.Name, x.Kind+"/"+x.Name+"/")
		secrets[field], given[field] = secret.New(string(s.Value)), true
	}
	username, field, err := e.adminOf(ctx, x)
	if err != nil {
		return err
	}
	if field == "" || !given[field] {
		return fault.New(fault.Invalid, "nothing_to_override", "Target %s: what can be overridden is the secret of the account that the broker enters it by.", x.Name)
	}
	t, err := e.openTarget(ledger.Object{Kind: x.Kind, Name: x.Name, Spec: x.Spec, Version: x.before.Version}, secrets, e.cfg.Log.Term())
	if err != nil {
		return err
	}
	defer t.close()
	open, err := asRotator(t)
	if err != nil {
		return fault.Wrap(err, fault.Invalid, "nothing_to_override", "Target %s: %v.", x.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, overrideWait)
	defer cancel()
	if err := open.TryLogin(ctx, username, secrets[field]); err != nil {
		if issuers.KindOf(err) == issuers.Refused {
			return fault.Wrap(err, fault.Invalid, "secret_refused", "Target %s does not take this secret for %s. Nothing was changed; set it there first.", x.Name, username)
		}
		return &fault.Error{Kind: fault.Unavailable, Code: "target_unavailable", RetryAfter: 5 * time.Second, Err: err,
			Detail: "Target " + x.Name + " could not be asked whether it takes this secret. Nothing was changed; retry."}
	}
	return nil
}

// adminOf is the account by which the broker would enter a target, and its field.
func (e *Engine) adminOf(ctx context.Context, x change) (username, field string, err error) {
	err = asking(ctx, func() error {
		spec, rest, err := ledger.SplitTarget(x.Spec)
		if err != nil {
			return err
		}
		kind, err := e.kind(spec.Type)
		if err != nil {
			return err
		}
		if holder, ok := kind.(issuers.AdminHolder); ok {
			username, field, err = holder.Admin(rest)
		}
		return err
	})
	return username, field, err
}
