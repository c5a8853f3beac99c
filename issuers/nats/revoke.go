package nats

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// maxRemembered bounds what of our own revocations is remembered.
const maxRemembered = 1 << 16

// payloadShare is the part of the server's max_payload, in percent, that the
// account's JWT may take up before no lease is minted any more: what lives must
// still find room to be revoked (HAZARDS 17).
const payloadShare = 50

// revoker changes the account's JWT.
type revoker struct {
	is   *Issuer
	sys  system
	term uint64

	updating chan struct{} // holds one token: who takes it may update

	mu     sync.Mutex
	closed bool
	reader *conn
	before *conn     // the reader before, which may still be waited on
	redial time.Time // when the reader's own JWT is about to end
	last   *account  // as it was looked up last
	keys   map[string]bool
	// ours are revocations of ours that were seen or made: by key, their moment. An
	// operator's push of an older copy loses them, and [Issuer.Sweep] puts them back.
	ours map[string]int64
}

func newRevoker(is *Issuer, term uint64) *revoker {
	r := &revoker{is: is, term: term, updating: make(chan struct{}, 1), ours: map[string]int64{}}
	r.updating <- struct{}{}
	r.sys = system{
		dialer: is.dialer, account: is.keys.account, systemAccount: is.spec.Revocation.SystemAccount, operator: is.spec.Revocation.Operator,
		signer: is.keys.system, label: "mayfly",
	}
	return r
}

func (r *revoker) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, c := range []*conn{r.reader, r.before} {
		if c != nil {
			c.close()
		}
	}
	r.reader, r.before = nil, nil
}

// read returns the connection that only reads. The lock is held while dialling:
// who comes meanwhile would only dial as well.
func (r *revoker) read(ctx context.Context) (*conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, &issuers.Error{Kind: issuers.Unreachable, Detail: "ask the servers", Err: errClosed}
	}
	if r.reader != nil && !r.reader.dead() && time.Now().Before(r.redial) {
		return r.reader, nil
	}
	if r.before != nil {
		r.before.close() // nobody has waited for ten minutes
	}
	r.before, r.reader = r.reader, nil
	c, err := r.sys.dial(ctx, "mayfly-read/"+strconv.FormatUint(r.term, 10), readerLife, false)
	if err != nil {
		return nil, beforeError("log in to the system account", err)
	}
	r.reader, r.redial = c, time.Now().Add(readerLife*8/10)
	return c, nil
}

// current looks the account's JWT up, on whichever server answers first: enough to
// decide by, where all must answer before anything is signed or proven. What was
// read last is not verified again.
func (r *revoker) current(ctx context.Context) (*account, *conn, error) {
	c, err := r.read(ctx)
	if err != nil {
		return nil, nil, err
	}
	tokens, err := r.sys.lookups(ctx, c, 1)
	if err != nil {
		return nil, nil, beforeError("look up the account", err)
	}
	r.mu.Lock()
	last, keys := r.last, r.keys
	r.mu.Unlock()
	if last != nil && last.token == string(tokens[0]) {
		return last, c, nil
	}
	a, err := newest(tokens, r.is.keys.account, keys)
	if err != nil { // also when the operator's keys have changed since they were asked for
		if keys, err = r.sys.trustedByOne(ctx, c); err != nil {
			return nil, nil, beforeError("find the keys that the servers trust", err)
		}
		if a, err = r.lookup(ctx, c, 1, keys); err != nil {
			return nil, nil, err
		}
	}
	r.learn(a, keys)
	return a, c, nil
}

// lookup asks that many servers for the account. Somebody in the system account
// could answer as well: then it is worth to wait for all that will.
func (r *revoker) lookup(ctx context.Context, c *conn, servers int, keys map[string]bool) (*account, error) {
	var a *account
	for _, enough := range []int{servers, maxAnswers} {
		tokens, err := r.sys.lookups(ctx, c, enough)
		if err != nil {
			return nil, beforeError("look up the account", err)
		}
		if a, err = newest(tokens, r.is.keys.account, keys); err == nil {
			return a, nil
		}
		if enough == maxAnswers {
			return nil, refused("%v", err)
		}
	}
	return a, nil
}

// learn remembers an account, and those of its revocations that are ours.
func (r *revoker) learn(a *account, keys map[string]bool) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.keys = a, keys
	maps.DeleteFunc(r.ours, func(_ string, m int64) bool {
		end, _ := ourEnd(m)
		return now.After(end.Add(keepRevoked))
	})
	for k, m := range a.revocations {
		if end, ours := ourEnd(m); ours && now.Before(end.Add(keepRevoked)) && len(r.ours) < maxRemembered {
			r.ours[k] = m
		}
	}
}

// remembered are revocations of ours that should stand in the account's JWT.
func (r *revoker) remembered() map[string]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.ours)
}

// admit decides whether a lease may be minted, and takes earlier generations
// back.
func (r *revoker) admit(ctx context.Context, l issuers.Lease, key string) error {
	if l.Generation > maxGenerations {
		return refused("the lease was minted %d times already; each is an entry in the account's JWT, so request a new one", l.Generation-1)
	}
	a, c, err := r.current(ctx)
	if err != nil {
		return err
	}
	own, err := r.is.keys.signer.PublicKey()
	if err != nil {
		return refused("the signing key has no public key")
	}
	if r.is.keys.overtaken(a) {
		if err := r.relist(ctx); err != nil {
			return err
		}
		if a, c, err = r.current(ctx); err != nil {
			return err
		}
	}
	s, listed := a.signers[own]
	switch {
	case !listed:
		return refused("the account does not list the key that users are signed with, %s; see the target's check", own)
	case s.scoped:
		return refused("the account lists the key %s with a role of its own, so that its users may have no permissions; it must be listed without", own)
	case a.revocations[key] >= l.NotBefore.Unix():
		return &issuers.Error{Kind: issuers.Superseded, Detail: "this generation of the lease was revoked already: a newer one was here, or the lease has ended"}
	case len(a.token) > c.info.MaxPayload*payloadShare/100:
		return refused("the account's JWT has %d bytes, of the %d that the server's max_payload lets through; no lease is minted until older revocations have expired, "+
			"so that those that live can still be revoked", len(a.token), c.info.MaxPayload)
	case l.Generation == 1:
		return nil
	}
	earlier, err := r.is.keys.users.all(l.ID, l.Generation-1)
	if err != nil {
		return refused("the keys of earlier generations cannot be made")
	}
	add := map[string]int64{}
	for _, k := range earlier {
		if a.revocations[k] < moment(l.NotAfter) {
			add[k] = moment(l.NotAfter)
		}
	}
	if len(add) == 0 {
		return nil
	}
	ids, err := r.update(ctx, change{revoke: add})
	if err != nil {
		return err
	}
	return r.prove(ctx, add, ids, nil)
}

// update changes the account's JWT, and puts those of our revocations back that
// somebody's push has lost. The servers have no conditional update, so that only
// one may read, change and push at a time, among all brokers: see lock.
func (r *revoker) update(ctx context.Context, todo change) (map[string]server, error) {
	select {
	case <-ctx.Done():
		return nil, &issuers.Error{Kind: issuers.Unreachable, Detail: "wait for another update of the account", Err: ctx.Err()}
	case <-r.updating:
	}
	defer func() { r.updating <- struct{}{} }()
	c, ids, err := r.lock(ctx)
	if err != nil {
		return nil, beforeError("become the one who updates the account", err)
	}
	defer c.close()
	keys, err := r.sys.trusted(ctx, c, ids)
	if err != nil {
		return nil, beforeError("find the keys that the servers trust", err)
	}
	own, err := r.is.keys.operator.PublicKey()
	if err != nil || !keys[own] {
		// an account that is signed by it would shut everybody out of the account
		return nil, refused("the operator_key %s is none that every server lets sign accounts; nothing was pushed", own)
	}
	a, err := r.lookup(ctx, c, len(ids), keys)
	if err != nil {
		return nil, err
	}
	add := todo.revoke
	todo.revoke = r.remembered()
	maps.Copy(todo.revoke, add)
	if !a.edit(todo, time.Now()) {
		r.learn(a, keys)
		return ids, nil
	}
	token, err := a.sign(r.is.keys.operator, time.Now())
	if err != nil {
		return nil, refused("the account's JWT cannot be signed")
	}
	if n := c.info.MaxPayload; len(token) > n {
		return nil, refused("the account's JWT would have %d bytes, and the server's max_payload lets %d through: it holds %d revocations; raise max_payload, or wait until some have expired",
			len(token), n, len(a.revocations))
	}
	r.note(add)
	if err := r.sys.push(ctx, c, token); err != nil {
		return nil, sentError("push the account's JWT", err)
	}
	return ids, nil
}

// note remembers revocations of ours before they are pushed.
func (r *revoker) note(add map[string]int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, m := range add {
		if len(r.ours) < maxRemembered {
			r.ours[k] = m
		}
	}
}

const lockPrefix = "mayfly-update/"

// lock makes us the only one who updates the account. The lock is a connection to
// the system account with a telling name: everybody connects first, then looks
// who else is there, and goes on alone. Of two who see each other, the one with
// the higher term stays and waits, and the other leaves. The reading and the push
// go over that same connection, and its server ends it after a minute, by its own
// clock: what a leader that froze between them sends later finds it closed
// (HAZARDS 8).
func (r *revoker) lock(ctx context.Context) (*conn, map[string]server, error) {
	prefix := lockPrefix + r.sys.account + "/"
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s%020d/%s", prefix, r.term, rand.Text())
		c, err := r.sys.dial(ctx, name, writerLife, true)
		if err != nil {
			return nil, nil, err
		}
		ids, err := r.alone(ctx, c, prefix, name)
		if err == nil {
			return c, ids, nil
		}
		c.close()
		if !errors.Is(err, errOthers) {
			return nil, nil, err
		}
		if err := pause(ctx, i+2); err != nil {
			return nil, nil, errors.Join(err, errOthers)
		}
	}
}

// errOthers: somebody else updates the account.
var errOthers = errors.New("another broker is updating the account")

// alone waits until no other connection has a name like ours; it gives way to one
// with a greater name.
func (r *revoker) alone(ctx context.Context, c *conn, prefix, name string) (map[string]server, error) {
	for i := 0; ; i++ {
		ids, err := r.sys.servers(ctx, c)
		if err != nil {
			return nil, err
		}
		list, err := r.sys.connections(ctx, c, r.sys.systemAccount, ids)
		if err != nil {
			return nil, err
		}
		others := slices.DeleteFunc(list, func(x connection) bool { return x.Name == name || !strings.HasPrefix(x.Name, prefix) })
		switch {
		case len(others) == 0:
			return ids, nil
		case slices.ContainsFunc(others, func(x connection) bool { return x.Name > name }):
			return nil, errOthers
		}
		if err := pause(ctx, i); err != nil {
			return nil, errors.Join(err, errOthers)
		}
	}
}

// Fence implements [issuers.Fencer]: it waits until no leader of an older term
// holds the lock, which its server ends after a minute at the latest. What such a
// leader signs afterwards is refused by name, and what it pushes was read after
// what we had pushed.
func (is *Issuer) Fence(ctx context.Context) error {
	if is.revoker == nil {
		return nil
	}
	r := is.revoker
	prefix := lockPrefix + r.sys.account + "/"
	mine := fmt.Sprintf("%s%020d/", prefix, r.term)
	for i := 0; ; i++ {
		c, err := r.read(ctx)
		if err != nil {
			return err
		}
		ids, err := r.sys.servers(ctx, c)
		if err != nil {
			return beforeError("find the servers", err)
		}
		list, err := r.sys.connections(ctx, c, r.sys.systemAccount, ids)
		if err != nil {
			return beforeError("find older leaders", err)
		}
		if !slices.ContainsFunc(list, func(x connection) bool { return strings.HasPrefix(x.Name, prefix) && x.Name < mine }) {
			return nil
		}
		if err := pause(ctx, i); err != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "wait until an older leader's update of the account ends", Err: err}
		}
	}
}

// Sweep implements [issuers.Sweeper]: it puts back what somebody's push of an older
// copy of the account's JWT has lost, revocations and the signing key of a
// rotation.
func (is *Issuer) Sweep(ctx context.Context) error {
	if is.revoker == nil {
		return nil
	}
	r := is.revoker
	a, _, err := r.current(ctx)
	if err != nil {
		return err
	}
	if is.keys.overtaken(a) {
		return r.relist(ctx) // and with it the revocations
	}
	lost := 0
	for k, m := range r.remembered() {
		if a.revocations[k] < m {
			lost++
		}
	}
	if lost == 0 {
		return nil
	}
	is.log.Warn("revocations were lost from the account's JWT, perhaps by a push of an older copy; putting them back", "count", lost)
	_, err = r.update(ctx, change{})
	return err
}
