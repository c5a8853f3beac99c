package broker

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sort"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// canonicalKind accepts "role", "Role", "roles" for Role.
func canonicalKind(kind string) (string, error) {
	for _, k := range ledger.Kinds {
		if l := strings.ToLower(k); strings.ToLower(kind) == l || strings.ToLower(kind) == l+"s" || k == ledger.KindPolicy && strings.EqualFold(kind, "policies") {
			return k, nil
		}
	}
	return "", fault.New(fault.Invalid, "unknown_kind", "%q is not a kind. Kinds are: %s.", kind, strings.Join(ledger.Kinds, ", "))
}

func wireObject(o ledger.Object) wire.Object {
	return wire.Object{Kind: o.Kind, Name: o.Name, Version: o.Version, Spec: o.Spec, ChangedAt: atOrNil(o.ChangedMS), ChangedBy: o.ChangedBy, Sealed: o.Secrets}
}

// Objects lists the objects of a kind that policy lets the caller read. What
// the caller may not read is left out, not denied.
func (e *Engine) Objects(_ context.Context, c Caller, kind string) ([]wire.Object, error) {
	kind, err := canonicalKind(kind)
	if err != nil {
		return nil, err
	}
	out := []wire.Object{}
	err = e.view(func(q ledger.Query) error {
		for _, o := range q.Objects(kind) {
			r, err := e.resourceOf(q, o.Kind, o.Name)
			if err != nil {
				return err
			}
			if e.mayRead(q, c, r) {
				out = append(out, withRotation(q, wireObject(o)))
			}
		}
		return nil
	})
	return out, err
}

// Object returns one object.
func (e *Engine) Object(ctx context.Context, c Caller, kind, name string) (wire.Object, error) {
	kind, err := canonicalKind(kind)
	if err != nil {
		return wire.Object{}, err
	}
	var ask question
	if err := e.view(func(q ledger.Query) error {
		r, err := e.resourceOf(q, kind, name)
		ask = question{action: policy.ActionRead, resource: r}
		return err
	}); err != nil {
		return wire.Object{}, err
	}
	if _, err := e.allow(ctx, c, ask); err != nil {
		return wire.Object{}, err
	}
	var out wire.Object
	err = e.view(func(q ledger.Query) error {
		o, ok := q.Object(kind, name)
		if !ok {
			return fault.New(fault.NotFound, "not_found", "%s %s does not exist. List them with: mayfly get %s", kind, name, strings.ToLower(kind))
		}
		out = withRotation(q, wireObject(o))
		return nil
	})
	return out, err
}

// change is one object to be written or deleted, with what is there now.
type change struct {
	ledger.ObjectChange
	before  ledger.Object
	exists  bool
	secrets []ledger.Secret
}

func (x change) action() string {
	switch {
	case x.Delete:
		return "delete"
	case !x.exists:
		return "create"
	case len(x.secrets) == 0 && sameJSON(x.before.Spec, x.Spec):
		return "unchanged"
	default:
		return "update"
	}
}

// Apply writes and deletes objects, all or none. With DryRun it says what it
// would do, after every check.
func (e *Engine) Apply(ctx context.Context, c Caller, in wire.ApplyRequest) (wire.ApplyAnswer, error) {
	answer := wire.ApplyAnswer{Changes: []wire.Change{}, DryRun: in.DryRun}
	var plan []change
	var rulings []ruling
	var no *declined
	var waits bool
	err := e.viewing(ctx, func(q ledger.Query) (err error) {
		if plan, err = e.changes(q, in); err != nil {
			return err
		}
		waits = underCustody(q, plan)
		if rulings, no, err = e.ruleChanges(q, c, plan, in.Reason, custodians(q, waits)); err != nil || no != nil {
			return err
		}
		if err := checkOverrides(in, plan); err != nil {
			return err
		}
		return e.checkDoor(q, c, plan)
	})
	if err != nil {
		return answer, err
	}
	if no != nil {
		return answer, e.recordDenial(ctx, c, no.ruling, no.err)
	}
	if err := e.tryOverrides(ctx, plan); err != nil {
		return answer, err
	}
	for _, x := range plan {
		answer.Changes = append(answer.Changes, wire.Change{Kind: x.Kind, Name: x.Name, Action: x.action(), Before: x.before.Spec, After: x.Spec})
	}
	if in.DryRun || len(rulings) == 0 {
		return answer, nil
	}
	if waits {
		return e.applyWaits(ctx, c, answer, plan, in.Reason, rulings)
	}
	res, err := e.commitChanges(ctx, c, plan, rulings)
	if err != nil {
		return answer, err
	}
	for i := range answer.Changes {
		if a := answer.Changes[i].Action; a == "create" || a == "update" {
			answer.Changes[i].Version = res.Seq
		}
	}
	return answer, nil
}

// declined is a ruling that does not let something be done, and why.
type declined struct {
	ruling ruling
	err    *fault.Error
}

// ruleChanges asks policy about each change that changes something. needs is what
// the changes gather.
func (e *Engine) ruleChanges(q ledger.Query, c Caller, plan []change, reason string, needs []cosign.Need) (rulings []ruling, no *declined, err error) {
	for _, x := range plan {
		if x.action() == "unchanged" {
			continue
		}
		res, err := e.resourceOf(q, x.Kind, x.Name)
		if err != nil {
			return nil, nil, err
		}
		ask := question{action: policy.ActionAdminister, resource: res}
		if x.Override {
			ask.context.Purpose = reason
		}
		r, err := e.decide(q, c, ask)
		if err != nil {
			return nil, nil, err
		}
		if no := declineChange(c, r, needs); no != nil {
			return nil, no, nil
		}
		rulings = append(rulings, r)
	}
	return rulings, nil, nil
}

func declineChange(c Caller, r ruling, needs []cosign.Need) *declined {
	if !r.Decision.Permit {
		return &declined{r, denied(c, r)}
	}
	if d := r.owed(needs); !d.none() {
		return &declined{r, d.denial(c, r, insteadOfChange(needs))}
	}
	return nil
}

func (e *Engine) commitChanges(ctx context.Context, c Caller, plan []change, rulings []ruling) (ledger.Result, error) {
	var cmd ledger.ChangeObjects
	var secrets []ledger.Secret
	for _, x := range plan {
		if x.action() != "unchanged" {
			cmd.Changes = append(cmd.Changes, x.ObjectChange)
			secrets = append(secrets, x.secrets...)
		}
	}
	h := e.header(c)
	h.DecisionID, h.Decision = rulings[0].ID, encodeAll(rulings)
	res, err := e.commit(ctx, h, &cmd, secrets...)
	if err != nil {
		return res, err
	}
	e.wake() // a secret that was overridden turns
	if err := e.SyncPlugins(); err != nil {
		e.log.Warn("plugins not looked at; they are soon", "error", err)
	}
	return res, nil
}

// encodeAll records several decisions under the first one's id.
func encodeAll(rulings []ruling) json.RawMessage {
	if len(rulings) == 1 {
		return rulings[0].encode()
	}
	return rawMessage(map[string]any{"decision": rulings[0].Decision, "request": rulings[0].Request, "further": rulings[1:]})
}

// applyWaits asks for the approvals that the change needs; nothing is written yet.
func (e *Engine) applyWaits(ctx context.Context, c Caller, answer wire.ApplyAnswer, plan []change, reason string, rulings []ruling) (wire.ApplyAnswer, error) {
	id, err := e.askForChange(ctx, c, plan, reason, rulings)
	if err != nil {
		return answer, err
	}
	answer.GrantID = id
	err = e.view(func(q ledger.Query) error {
		g, _ := q.Cosigned(id)
		answer.Waiting = e.wireWaiting(q, g)
		return nil
	})
	return answer, err
}

// changes reads what is there and lines up what is asked for.
func (e *Engine) changes(q ledger.Query, in wire.ApplyRequest) ([]change, error) {
	var out []change
	seen := map[wire.Ref]bool{}
	add := func(kind, name string, fill func(*change) error) error {
		kind, err := canonicalKind(kind)
		if err != nil {
			return err
		}
		if ref := (wire.Ref{Kind: kind, Name: name}); seen[ref] {
			return fault.New(fault.Invalid, "object_twice", "%s %s stands twice in the request.", kind, name)
		} else {
			seen[ref] = true
		}
		x := change{ObjectChange: ledger.ObjectChange{Kind: kind, Name: name}}
		x.before, x.exists = q.Object(kind, name)
		x.Version = x.before.Version
		if err := fill(&x); err != nil {
			return err
		}
		out = append(out, x)
		return nil
	}
	for _, o := range in.Objects {
		if err := add(o.Kind, o.Name, func(x *change) error { return e.fillSpec(q, x, o, in.Override) }); err != nil {
			return nil, err
		}
	}
	doomed := slices.Clone(in.Delete)
	if in.Prune {
		doomed = append(doomed, unnamed(q, out, seen)...)
	}
	for _, r := range doomed {
		if err := add(r.Kind, r.Name, func(x *change) error { x.Delete = true; return nil }); err != nil {
			return nil, err
		}
	}
	if len(out) > ledger.MaxObjectsPut {
		return nil, fault.New(fault.Invalid, "too_many_objects", "%d objects in one apply; at most %d are allowed. Split it.", len(out), ledger.MaxObjectsPut)
	}
	order := func(k string) int { return slices.Index(ledger.Kinds, k) }
	sort.SliceStable(out, func(i, j int) bool { return order(out[i].Kind) < order(out[j].Kind) })
	return out, nil
}

// unnamed returns the objects that prune would delete.
func unnamed(q ledger.Query, named []change, seen map[wire.Ref]bool) []wire.Ref {
	var out []wire.Ref
	done := map[string]bool{}
	for _, x := range named {
		if done[x.Kind] {
			continue
		}
		done[x.Kind] = true
		for _, o := range q.Objects(x.Kind) {
			if ref := (wire.Ref{Kind: o.Kind, Name: o.Name}); !seen[ref] {
				out = append(out, ref)
			}
		}
	}
	return out
}

// fillSpec takes over a document's spec, in canonical form, and its secrets.
func (e *Engine) fillSpec(q ledger.Query, x *change, o wire.Object, override bool) error {
	x.Spec = o.Spec
	if len(x.Spec) == 0 {
		x.Spec = json.RawMessage(`{}`)
	}
	if x.Kind == ledger.KindRole {
		var r ledger.RoleSpec
		if err := json.Unmarshal(x.Spec, &r); err == nil {
			if r.Account != "" && len(r.Scope) == 0 {
				r.Scope = ledger.AccountScope(r.Account)
			}
			if n, err := r.Scope.Normalise(); err == nil {
				var all map[string]json.RawMessage
				if json.Unmarshal(x.Spec, &all) == nil {
					all["scope"] = rawMessage(n)
					x.Spec = rawMessage(all)
				}
			}
		}
	}
	fields := map[string]secret.Text{}
	for name, v := range o.Secrets {
		fields[name] = secret.New(v)
	}
	if err := e.makeSecrets(x, fields); err != nil {
		return err
	}
	for _, name := range slices.Sorted(mapKeys(fields)) {
		if q.RotationOwns(x.Kind, x.Name, name) {
			if !override || x.Kind != ledger.KindTarget {
				continue // a rotated secret is never put back
			}
			x.Override = true
		}
		full := x.Kind + "/" + x.Name + "/" + name
		x.secrets = append(x.secrets, sealed(full, fields[name]))
		x.Secrets = append(x.Secrets, full)
	}
	return nil
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// makeSecrets has a new target's kind make what only the broker shall know.
func (e *Engine) makeSecrets(x *change, fields map[string]secret.Text) error {
	if x.Kind != ledger.KindTarget || x.exists {
		return nil
	}
	spec, rest, err := ledger.SplitTarget(x.Spec)
	if err != nil {
		return fault.New(fault.Invalid, "invalid_spec", "Target %s: %v.", x.Name, err)
	}
	kind, err := e.kind(spec.Type)
	if err != nil {
		return err
	}
	maker, ok := kind.(issuers.SecretMaker)
	if !ok {
		return nil
	}
	made, err := maker.MakeSecrets(rest)
	if err != nil {
		return fault.Wrap(err, fault.Invalid, "invalid_spec", "Target %s: %v.", x.Name, err)
	}
	for k, v := range made {
		if _, given := fields[k]; !given {
			fields[k] = v
		}
	}
	return nil
}

// checkDoor validates what Apply leaves to this build: kinds' own keys, scopes,
// Cedar, auth methods; and that somebody can still administer.
func (e *Engine) checkDoor(q ledger.Query, c Caller, plan []change) error {
	touchesPower := false
	for _, x := range plan {
		switch x.Kind {
		case ledger.KindPolicy, ledger.KindGroup, ledger.KindPrincipal:
			touchesPower = true
		}
		if x.Delete {
			continue
		}
		if err := e.checkObject(q, plan, x); err != nil {
			var fe *fault.Error
			if errors.As(err, &fe) {
				return fe
			}
			return fault.Wrap(err, fault.Invalid, "invalid_spec", "%s %s: %v", x.Kind, x.Name, err)
		}
	}
	if touchesPower {
		return e.checkPower(q, c, plan)
	}
	return nil
}

func (e *Engine) checkObject(q ledger.Query, plan []change, x change) error {
	switch x.Kind {
	case ledger.KindAuthMethod:
		if x.Name == methodKey || x.Name == methodEnroll || x.Name == methodPasskey {
			return fault.New(fault.Invalid, "name_reserved", "The auth method %s is built in; choose another name.", x.Name)
		}
		_, err := identity.ParseMethod(x.Name, x.Spec)
		return err
	case ledger.KindTarget:
		spec, rest, err := ledger.SplitTarget(x.Spec)
		if err != nil {
			return err
		}
		kind, err := e.kind(spec.Type)
		if err != nil {
			return err
		}
		if err := kind.CheckSpec(rest); err != nil {
			return err
		}
		if err := checkAdminIsNoAccount(q, kind, x.Name, rest); err != nil {
			return err
		}
		if err := e.checkSharedKeys(q, plan, x, spec, rest); err != nil {
			return err
		}
		return checkTargetRotation(kind, spec, rest)
	case ledger.KindAccount:
		return e.checkAccountObject(q, plan, x)
	case ledger.KindRole:
		return e.checkRoleObject(q, plan, x)
	case ledger.KindCluster:
		var spec ledger.ClusterSpec
		if err := json.Unmarshal(x.Spec, &spec); err != nil || spec.Rotation == nil {
			return err // Apply says what is wrong with it
		}
		return checkClusterObject(x.Name, spec.Rotation, e.now())
	case ledger.KindPlugin:
		if _, builtIn := e.kinds[x.Name]; builtIn {
			return fault.New(fault.Invalid, "name_reserved", "The kind %s is built in; a plugin cannot take its place. Give the plugin's kind another name.", x.Name)
		}
	}
	return nil
}

func (e *Engine) checkRoleObject(q ledger.Query, plan []change, x change) error {
	var r ledger.RoleSpec
	if err := json.Unmarshal(x.Spec, &r); err != nil {
		return err
	}
	target := ledger.RoleTarget(x.Name)
	raw, ok := planned(q, plan, ledger.KindTarget, target)
	if !ok {
		return fault.New(fault.NotFound, "target_not_found", "Role %s belongs to target %s, which does not exist.", x.Name, target)
	}
	spec, rest, err := ledger.SplitTarget(raw)
	if err != nil {
		return err
	}
	kind, err := e.kind(spec.Type)
	if err != nil {
		return err
	}
	n, err := r.Scope.Normalise()
	if err != nil || r.Account != "" {
		return err // the ledger knows the one scope of a role on an account
	}
	return kind.CheckScope(rest, n)
}

// checkPower compiles the policies as they would be, and refuses a change after
// which no human could administer policies.
func (e *Engine) checkPower(q ledger.Query, c Caller, plan []change) error {
	after := func(kind string) []ledger.Object {
		objs := q.Objects(kind)
		for _, x := range plan {
			if x.Kind != kind {
				continue
			}
			objs = slices.DeleteFunc(objs, func(o ledger.Object) bool { return o.Name == x.Name })
			if !x.Delete {
				objs = append(objs, ledger.Object{Kind: x.Kind, Name: x.Name, Spec: x.Spec})
			}
		}
		return objs
	}
	set, err := policy.Compile(policySources(after(ledger.KindPolicy)))
	if err != nil {
		var problems policy.Problems
		if errors.As(err, &problems) {
			return invalidPolicy(problems)
		}
		return fault.Wrap(err, fault.Invalid, "invalid_policy", "%v", err)
	}
	idle := slices.DeleteFunc(set.Idle(policy.ActionContain, policy.ActionRevoke), func(p policy.Problem) bool {
		// What stands already goes on meaning what it means.
		return !slices.ContainsFunc(plan, func(x change) bool {
			return x.Kind == ledger.KindPolicy && x.Name == p.Source && x.action() != "unchanged"
		})
	})
	if len(idle) > 0 {
		return invalidPolicy(idle)
	}
	g := &ground{set: set, members: membersOf(after(ledger.KindGroup)), zones: zoneNets(q.Objects(ledger.KindZone))}
	for _, o := range after(ledger.KindPrincipal) {
		if strings.HasPrefix(o.Name, "human:") && e.administers(q, c, g, o.Name) {
			return nil
		}
	}
	return fault.New(fault.Conflict, ledger.CodeLastAdmin, "After this change no human could administer policies any more. Keep a policy that permits action administer on Policy to somebody, and asks for no approvals or step-up for it.")
}

func invalidPolicy(problems policy.Problems) error {
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	return fault.New(fault.Invalid, "invalid_policy", "%s", strings.Join(lines, "\n"))
}

func (e *Engine) administers(q ledger.Query, c Caller, g *ground, name string) bool {
	req := policy.Request{Action: policy.ActionAdminister, Resource: policy.Resource{Kind: ledger.KindPolicy, Name: "any"}}
	req.Principal = e.principal(q, g, name, "")
	c.Session.Principal = name
	e.fillContext(g, c, &req.Context)
	d := g.set.Decide(req)
	return d.Permit && ruling{Decision: d}.owed(q.Custodians()).none()
}
