package host

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
)

// issuer is one target of a plugin. It outlives the plugin's processes: in each
// new one it opens its target again, with the first call that needs it.
type issuer struct {
	k      *kind
	target issuers.Target
	forget func() // its secrets

	opening *semaphore.Weighted // of one: guards in and handle
	in      *process
	handle  uint64

	mu     sync.Mutex
	closed bool
	docs   published
}

// published are the documents of the last time that the plugin was asked.
type published struct {
	docs map[string][]byte
	err  error
	at   time.Time
}

// The abilities that every issuer here has: where the plugin lacks them, there is
// nothing to fence and nothing to sweep, and a check says how the plugin does.
var (
	_ issuers.Checker = (*issuer)(nil)
	_ issuers.Fencer  = (*issuer)(nil)
	_ issuers.Sweeper = (*issuer)(nil)
)

// lied is the error for an answer that cannot be true. The target may have acted:
// who lies about the answer may lie about that.
func (i *issuer) lied(format string, args ...any) *issuers.Error {
	text := i.k.said(fmt.Sprintf(format, args...), maxReceipt)
	i.k.s.lied(i.target.Name, text)
	return &issuers.Error{Kind: issuers.Unknown, Detail: "plugin " + i.k.manifest.Name + " gave an answer that is not one: " + text}
}

// failure is what the plugin says of its target.
func (i *issuer) failure(e *protocol.Error) *issuers.Error {
	out := &issuers.Error{Kind: e.KindOf(), Detail: i.k.said(e.Detail, maxReceipt)}
	if out.Detail == "" {
		out.Detail = "the plugin gives no reason"
	}
	if e.Cause != "" {
		out.Err = errors.New(i.k.said(e.Cause, maxReceipt))
	}
	return out
}

// verdict is nil for a yes.
func (i *issuer) verdict(v protocol.Verdict) error {
	if v.Error == nil {
		return nil
	}
	return i.failure(v.Error)
}

// unsent is the error for a call that did not reach the plugin.
func unsent(why string) *issuers.Error {
	return &issuers.Error{Kind: issuers.Unreachable, Detail: why}
}

// enter returns the running process, if it has fewer than most calls, with this target open in it. Whoever gets one
// leaves it again.
func (i *issuer) enter(ctx context.Context, most int) (*process, uint64, *issuers.Error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, unsent(err.Error())
	}
	i.mu.Lock()
	closed := i.closed
	i.mu.Unlock()
	if closed {
		return nil, 0, unsent("the target is closed")
	}
	p := i.k.s.enter(most)
	if p == nil {
		return nil, 0, unsent(i.k.s.absent())
	}
	handle, err := i.open(ctx, p)
	if err != nil {
		p.leave()
		return nil, 0, err
	}
	return p, handle, nil
}

// open opens the target in p, once.
func (i *issuer) open(ctx context.Context, p *process) (uint64, *issuers.Error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := i.opening.Acquire(ctx, 1); err != nil {
		return 0, unsent("the target is still being opened in the plugin")
	}
	defer i.opening.Release(1)
	if i.in == p {
		return i.handle, nil
	}
	t, handle := i.target, p.handle()
	a, err := protocol.All().Open.Call(ctx, p.conn, protocol.OpenRequest{
		Handle: handle, Name: t.Name, Spec: t.Spec, Secrets: protocol.EncodeSecrets(t.Secrets), Term: t.Term, Issuer: t.Issuer,
	})
	if err != nil {
		return 0, unsent("the target cannot be opened in the plugin: " + i.k.said(err.Error(), maxReceipt))
	}
	if a.Error != nil {
		return 0, unsent("the target cannot be opened in the plugin: " + i.k.said(a.Error.Detail, maxReceipt))
	}
	i.in, i.handle = p, handle
	return handle, nil
}

// call enters, asks, and leaves. An error of transport after the question was sent
// is Unknown.
func call[Q, A any](ctx context.Context, i *issuer, m protocol.Method[Q, A], q func(handle uint64) Q) (A, error) {
	var none A
	ctx, cancel := context.WithTimeout(ctx, callMost)
	defer cancel()
	most := maxCalls
	if m.Name == protocol.All().Withdraw.Name || m.Name == protocol.All().Fence.Name {
		most += spareCalls
	}
	p, handle, fail := i.enter(ctx, most)
	if fail != nil {
		return none, fail
	}
	defer p.leave()
	a, err := m.Call(ctx, p.conn, q(handle))
	if err != nil {
		return none, &issuers.Error{Kind: issuers.Unknown, Detail: "plugin " + i.k.manifest.Name + " did not answer: " + i.k.said(err.Error(), maxReceipt)}
	}
	return a, nil
}

func onlyHandle(handle uint64) protocol.HandleRequest { return protocol.HandleRequest{Handle: handle} }

// Mint implements [issuers.Issuer].
func (i *issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	a, err := call(ctx, i, protocol.All().Mint, func(h uint64) protocol.LeaseRequest {
		return protocol.LeaseRequest{Handle: h, Lease: protocol.EncodeLease(l)}
	})
	if err != nil {
		return issuers.Credential{}, err
	}
	if a.Error != nil {
		return issuers.Credential{}, i.failure(a.Error)
	}
	c, err := checkCredential(a)
	if err != nil {
		return issuers.Credential{}, i.lied("%v", err)
	}
	return c, nil
}

// Withdraw implements [issuers.Issuer].
func (i *issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	if len(leases) == 0 {
		return out
	}
	all := func(err error) []issuers.Outcome {
		for n := range out {
			out[n].Err = err
		}
		return out
	}
	a, err := call(ctx, i, protocol.All().Withdraw, func(h uint64) protocol.LeasesRequest {
		q := protocol.LeasesRequest{Handle: h}
		for _, l := range leases {
			q.Leases = append(q.Leases, protocol.EncodeLease(l))
		}
		return q
	})
	switch {
	case err != nil:
		return all(err)
	case a.Error != nil:
		return all(i.failure(a.Error))
	case len(a.Outcomes) != len(leases):
		return all(i.lied("%d outcomes for %d leases", len(a.Outcomes), len(leases)))
	}
	for n, o := range a.Outcomes {
		out[n] = i.checkOutcome(o)
	}
	return out
}

// Extend implements [issuers.Extender].
func (x extends) Extend(ctx context.Context, l issuers.Lease) error {
	a, err := call(ctx, x.i, protocol.All().Extend, func(h uint64) protocol.LeaseRequest {
		return protocol.LeaseRequest{Handle: h, Lease: protocol.EncodeLease(l)}
	})
	if err != nil {
		return err
	}
	return x.i.verdict(a)
}

// List implements [issuers.Lister].
func (x lists) List(ctx context.Context) ([]issuers.Found, error) {
	a, err := call(ctx, x.i, protocol.All().List, onlyHandle)
	if err != nil {
		return nil, err
	}
	if a.Error != nil {
		return nil, x.i.failure(a.Error)
	}
	return x.i.checkFound(a.Found)
}

// Check implements [issuers.Checker]: first how the plugin does, then what it says.
func (i *issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	st := i.k.s.status()
	own := issuers.Finding{Name: "plugin", OK: st.Running, Detail: "sha256 " + st.SHA256}
	switch {
	case !st.Running:
		own.Detail = i.k.s.absent()
		return []issuers.Finding{own}, nil
	case st.Problem != "":
		own.OK, own.Warning, own.Detail = false, true, own.Detail+"; the one that is registered now does not run: "+st.Problem
	}
	if !i.k.manifest.Can(protocol.AbleCheck) {
		return []issuers.Finding{own}, nil
	}
	a, err := call(ctx, i, protocol.All().Check, onlyHandle)
	if err == nil && a.Error != nil {
		err = i.failure(a.Error)
	}
	if err != nil {
		return nil, err
	}
	found, err := i.checkFindings(a.Findings)
	return append([]issuers.Finding{own}, found...), err
}

// Fence implements [issuers.Fencer].
func (i *issuer) Fence(ctx context.Context) error {
	return i.where(ctx, protocol.AbleFence, protocol.All().Fence)
}

// Sweep implements [issuers.Sweeper].
func (i *issuer) Sweep(ctx context.Context) error {
	return i.where(ctx, protocol.AbleSweep, protocol.All().Sweep)
}

// where calls a method that says yes or no, where the plugin has it.
func (i *issuer) where(ctx context.Context, a protocol.Ability, m protocol.Method[protocol.HandleRequest, protocol.Verdict]) error {
	if !i.k.manifest.Can(a) {
		return nil
	}
	v, err := call(ctx, i, m, onlyHandle)
	if err != nil {
		return err
	}
	return i.verdict(v)
}

// Publish implements [issuers.Publisher]. Anybody may ask for what is published, so
// the plugin is asked seldom, and nobody waits long for it.
func (x publishes) Publish(ctx context.Context) (map[string][]byte, error) {
	i := x.i
	i.mu.Lock()
	known := i.docs
	i.mu.Unlock()
	if time.Since(known.at) < publishEvery {
		return known.docs, known.err
	}
	docs, err := i.publish(ctx, publishWait, maxDocument, func(ctx context.Context) (protocol.Published, error) {
		return call(ctx, i, protocol.All().Publish, onlyHandle)
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	i.docs = published{docs: docs, err: err, at: time.Now()}
	return docs, err
}

// PublishRevoked implements [issuers.RevocationPublisher]. The plugin gets the whole
// list each time, or there is none: it must not remember what was withdrawn.
func (x revokes) PublishRevoked(ctx context.Context, withdrawn iter.Seq[issuers.Lease]) (map[string][]byte, error) {
	var all []protocol.Ending
	for l := range withdrawn {
		if len(all) == protocol.MaxRevoked {
			return nil, unsent(fmt.Sprintf("more than %d leases were withdrawn lately: too many for one message to a plugin, so nothing is published", protocol.MaxRevoked))
		}
		all = append(all, protocol.Ending{ID: l.ID, NotAfter: l.NotAfter})
	}
	return x.i.publish(ctx, revokedWait, maxRevocations, func(ctx context.Context) (protocol.Published, error) {
		return call(ctx, x.i, protocol.All().Revoked, func(h uint64) protocol.RevokedRequest {
			return protocol.RevokedRequest{Handle: h, Withdrawn: all}
		})
	})
}

// publish asks for documents of at most so many bytes, and waits no longer than that.
func (i *issuer) publish(ctx context.Context, wait time.Duration, most int, ask func(context.Context) (protocol.Published, error)) (map[string][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	a, err := ask(ctx)
	switch {
	case err != nil:
		return nil, err
	case a.Error != nil:
		return nil, i.failure(a.Error)
	}
	if err := i.checkDocuments(a.Documents, most); err != nil {
		return nil, err
	}
	return a.Documents, nil
}

// Close implements [issuers.Issuer]. It does not wait for the plugin.
func (i *issuer) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	i.closed = true
	i.forget()
	i.k.s.host.background(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, closeTimeout)
		defer cancel()
		if i.opening.Acquire(ctx, 1) != nil {
			return
		}
		defer i.opening.Release(1)
		if i.in == nil || !i.in.enter(maxCalls) {
			return
		}
		defer i.in.leave()
		_, _ = protocol.All().Close.Call(ctx, i.in.conn, protocol.HandleRequest{Handle: i.handle})
	})
	return nil
}
