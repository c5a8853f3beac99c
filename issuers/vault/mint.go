package vault

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	// defaultDeadline stands in for a lease without one.
	defaultDeadline = 30 * time.Second
	// undoTimeout bounds what a failed mint does to leave nothing.
	undoTimeout = 20 * time.Second
	// attempts bounds how often a mint meets another of the same lease.
	attempts = 5
)

// Issuer reads secrets from one Vault under leases. It is safe for concurrent use;
// [Kind.Open] makes one.
type Issuer struct {
	spec    spec
	term    uint64
	fleet   *fleet
	own     *login
	marks   marker
	log     *slog.Logger
	minting *locks
}

// Close implements [issuers.Issuer].
func (is *Issuer) Close() error {
	is.own.close()
	is.fleet.close()
	return nil
}

// mint is one lease on its way.
type mint struct {
	lease    issuers.Lease
	items    []item
	id       secret.Text // of its token
	nonce    string
	deadline time.Time
	made     bool // the token may exist
	got      []answer
}

// answer is what one item read.
type answer struct {
	item   item
	data   map[string]any
	lease  string // Vault's lease id; empty where there is none
	called time.Time
}

func (m *mint) leases() []string {
	var out []string
	for _, a := range m.got {
		if a.lease != "" {
			out = append(out, a.lease)
		}
	}
	return out
}

// Mint implements [issuers.Issuer]. The token comes first, and lives no longer than
// the mint may take; only when all is read and noted down is it prolonged to the
// lease's end. DESIGN.md says what that is good for (HAZARDS 8, 9).
func (is *Issuer) Mint(ctx context.Context, lease issuers.Lease) (issuers.Credential, error) {
	m, err := is.prepare(lease)
	if err != nil {
		return issuers.Credential{}, err
	}
	ctx, cancel := context.WithDeadline(ctx, m.deadline)
	defer cancel()
	release, err := is.minting.take(ctx, lease.ID)
	if err != nil {
		return issuers.Credential{}, &issuers.Error{Kind: issuers.Unreachable, Detail: "wait for another mint of the lease", Err: err}
	}
	defer release()
	err = is.begin(ctx, m)
	if err == nil {
		err = is.readAll(ctx, m)
	}
	if err == nil {
		err = is.finish(ctx, m)
	}
	if err == nil {
		var c issuers.Credential
		if c, err = credential(m); err == nil {
			return c, nil
		}
	}
	return issuers.Credential{}, is.undo(ctx, m, err)
}

func (is *Issuer) prepare(lease issuers.Lease) (*mint, error) {
	if err := checkLease(lease); err != nil {
		return nil, err
	}
	items, err := compile(is.spec, lease.Scope)
	if err != nil {
		return nil, &issuers.Error{Kind: issuers.Refused, Detail: "the scope is not one for this target", Err: err}
	}
	if items, err = readable(items); err != nil {
		return nil, badScope(nil, "%s", err)
	}
	m := &mint{lease: lease, items: items, id: is.marks.token(lease.ID), nonce: rand.Text(), deadline: lease.MintDeadline}
	if m.deadline.IsZero() {
		m.deadline = time.Now().Add(defaultDeadline)
	}
	if lease.NotAfter.Before(m.deadline) {
		m.deadline = lease.NotAfter
	}
	if !time.Now().Before(m.deadline) {
		return nil, tooLate()
	}
	return m, nil
}

// begin makes the lease's token, after the end of what an earlier generation had.
func (is *Issuer) begin(ctx context.Context, m *mint) error {
	k := mark{lease: m.lease.ID, generation: m.lease.Generation, term: is.term, mint: m.nonce}
	for range attempts {
		old, err := is.find(ctx, m.id)
		switch {
		case err != nil:
			return err
		case old.there && !old.ours:
			return foreign(m.lease)
		case old.there && (old.mark.ended || old.mark.generation > m.lease.Generation || old.mark.term > is.term):
			return superseded()
		case old.there:
			if _, err := is.end(ctx, m.lease, m.id, old); err != nil {
				return err
			}
		}
		left := time.Until(m.deadline)
		if left <= 0 {
			return tooLate()
		}
		m.made = true
		err = is.create(ctx, m.id, m.lease, k, left)
		if err == nil {
			return nil
		}
		// an id that is taken is answered like any other mistake: look again
		if now, lerr := is.find(ctx, m.id); lerr != nil || !now.there || now.mark.mint == m.nonce {
			return err
		}
		m.made = false
	}
	return superseded()
}

func foreign(l issuers.Lease) *issuers.Error {
	return &issuers.Error{Kind: issuers.Foreign, Detail: "the token of " + l.Name + " exists without the broker's mark; it is left alone"}
}

func (is *Issuer) readAll(ctx context.Context, m *mint) error {
	for _, i := range m.items {
		a, err := is.read(ctx, m, i)
		if a.lease != "" {
			m.got = append(m.got, a)
		}
		if err != nil {
			return err
		}
		if a.lease == "" {
			m.got = append(m.got, a)
		}
	}
	return nil
}

// read reads one secret with the lease's own token.
func (is *Issuer) read(ctx context.Context, m *mint, i item) (answer, error) {
	o := op{method: http.MethodGet, path: i.path, query: i.params, token: m.id, namespace: is.fleet.secrets, timeout: slowTimeout}
	if i.action == actionWrite || i.action == actionIssue {
		o.method, o.query, o.body = http.MethodPut, nil, bodyOf(i.params)
		if i.action == actionIssue {
			o.body["ttl"] = wholeSeconds(time.Until(m.lease.NotAfter))
		}
	}
	a := answer{item: i, called: time.Now()}
	s, err := is.fleet.call(ctx, o)
	if err != nil {
		return a, is.readError(i, err)
	}
	if s == nil || len(s.Data) == 0 {
		return a, badScope(nil, "there is no secret at %s", i.path)
	}
	a.data = s.Data
	if s.LeaseID != "" {
		if err := checkLeaseID(s.LeaseID); err != nil {
			return a, &issuers.Error{Kind: issuers.Unknown, Detail: "read " + i.path, Err: err}
		}
		a.lease = s.LeaseID
	}
	switch {
	case i.leased() && a.lease == "":
		return a, badScope(nil, "%s gives no lease of Vault's, so that what it gives could not be ended; a role for it says action %s or %s", i.path, actionStatic, actionIssue)
	case a.lease == "":
		return a, endsWith(a, m.lease.NotAfter)
	default:
		return a, is.lastUntil(ctx, a, int64(s.LeaseDuration), s.Renewable, m.lease.NotAfter)
	}
}

// endsWith looks at the end that a certificate tells of itself.
func endsWith(a answer, end time.Time) error {
	seconds := number(a.data["expiration"])
	if a.item.action != actionIssue || seconds == 0 {
		return nil
	}
	tells := time.Unix(seconds, 0)
	switch {
	case tells.Add(slack).Before(end):
		return badScope(nil, "what Vault issues at %s ends at %s, and the lease asks for %s; ask for a shorter ttl", a.item.path, tells.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339))
	case tells.After(end.Add(time.Minute)):
		return badScope(nil, "what Vault issues at %s ends at %s, which is after the lease; its ttl is not heeded there", a.item.path, tells.UTC().Format(time.RFC3339))
	}
	return nil
}

func bodyOf(params url.Values) map[string]any {
	out := map[string]any{}
	for name := range params {
		out[name] = params.Get(name)
	}
	return out
}

// readError classifies a refused read. The child's token is new and has its policy:
// a 403 is that policy's.
func (is *Issuer) readError(i item, err error) *issuers.Error {
	switch statusOf(err) {
	case http.StatusForbidden:
		return &issuers.Error{Kind: issuers.Refused, Detail: "the policy " + is.spec.TokenPolicy + " of leases does not allow " + i.action + " of " + i.path, Err: err}
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return badScope(err, "there is nothing to %s at %s", i.action, i.path)
	case http.StatusBadRequest:
		return badScope(err, "Vault refuses to %s %s with these parameters", i.action, i.path)
	}
	return changeError("read "+i.path, err)
}

// lastUntil makes a lease of Vault's last as long as ours, or refuses: an end that
// comes before the one the client is told would be a lie.
func (is *Issuer) lastUntil(ctx context.Context, a answer, seconds int64, renewable bool, end time.Time) error {
	have := time.Duration(seconds) * time.Second
	if a.called.Add(have + slack).After(end) {
		return nil
	}
	if renewable {
		s, err := is.call(ctx, op{method: http.MethodPut, path: "sys/leases/renew/" + a.lease, namespace: is.fleet.secrets, timeout: slowTimeout,
			body: map[string]any{"increment": int64(time.Until(end)/time.Second) + 1}})
		if err != nil && statusOf(err) != http.StatusBadRequest { // 400: it cannot be renewed
			return changeError("prolong "+a.item.path, err)
		}
		if s != nil {
			have = time.Duration(s.LeaseDuration) * time.Second
		}
		if time.Now().Add(have + slack).After(end) {
			return nil
		}
	}
	if have <= 0 { // the token that reads ends with the mint's deadline, and so does what it reads
		return tooLate()
	}
	return badScope(nil, "what Vault gives at %s lives %s from now at most, and the lease asks for %s; ask for a shorter ttl", a.item.path, have, time.Until(end).Round(time.Second))
}

// finish notes down what was read, prolongs the token to the lease's end, and looks
// once more whether it is still this mint's: another one may have begun.
func (is *Issuer) finish(ctx context.Context, m *mint) error {
	if err := is.note(ctx, m.id, m.nonce, record{Leases: m.leases()}); err != nil {
		return err
	}
	if err := is.prolong(ctx, m.id, time.Until(m.lease.NotAfter)); err != nil {
		return err
	}
	now, err := is.find(ctx, m.id)
	switch {
	case err != nil:
		return err
	case !now.live() || now.mark.mint != m.nonce:
		m.made = false
		return superseded()
	case !now.orphan:
		return refused("the token role %s makes tokens that end with the broker's own; it needs orphan=true", is.spec.TokenRole)
	}
	return nil
}

// undo leaves nothing of a mint that failed. The failure's kind is kept only if
// that is proven.
func (is *Issuer) undo(ctx context.Context, m *mint, failed error) error {
	e := *changeError("mint "+m.lease.Name, failed)
	if !m.made && len(m.got) == 0 {
		return &e
	}
	ctx, cancel := context.WithTimeout(upkeep(context.WithoutCancel(ctx)), undoTimeout)
	defer cancel()
	if err := is.undone(ctx, m); err != nil {
		is.log.Warn("a failed mint is not undone; the broker withdraws it", "lease", m.lease.Name, "error", err)
		e.Kind = issuers.Unknown
	}
	return &e
}

func (is *Issuer) undone(ctx context.Context, m *mint) error {
	if err := is.endUpstream(ctx, m.leases()); err != nil {
		return err
	}
	if !m.made {
		return nil
	}
	now, err := is.find(ctx, m.id)
	if err != nil || !now.live() || now.mark.mint != m.nonce {
		return err // it is gone, or another's
	}
	if err := is.revoke(ctx, m.id); err != nil {
		return err
	}
	return is.absent(ctx, m.id)
}
