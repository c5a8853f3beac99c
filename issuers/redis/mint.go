package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Times of a mint.
const (
	// defaultDeadline stands in for a lease without one.
	defaultDeadline = 30 * time.Second
	// replicaWait bounds what a replica may add to a mint.
	replicaWait = time.Second
	attempts    = 40
)

// Issuer mints and withdraws users on one Redis deployment. It is safe for
// concurrent use; [Kind.Open] makes one.
type Issuer struct {
	spec    spec
	term    uint64
	fleet   *fleet
	marks   marker
	log     *slog.Logger
	minting *locks

	mu     sync.Mutex
	savers map[string]*saver // by node
}

// Close implements [issuers.Issuer].
func (is *Issuer) Close() error {
	is.fleet.close()
	return nil
}

// user is one lease's user, ready to be written.
type user struct {
	lease    issuers.Lease
	rules    []string
	password secret.Text
	nonce    string    // what this mint's gates hold
	deadline time.Time // by our clock
}

// Mint implements [issuers.Issuer].
func (is *Issuer) Mint(ctx context.Context, lease issuers.Lease) (issuers.Credential, error) {
	u, err := is.prepare(lease)
	if err != nil {
		return issuers.Credential{}, err
	}
	ctx, cancel := context.WithDeadline(ctx, u.deadline)
	defer cancel()
	release, err := is.minting.take(ctx, lease.ID)
	if err != nil {
		return issuers.Credential{}, beforeError("wait for another mint of the lease", err)
	}
	defer release()
	nodes, err := is.fleet.topology(ctx)
	if err != nil {
		return issuers.Credential{}, err
	}
	sent, err := is.writeMasters(ctx, u, nodes)
	if err == nil {
		is.writeReplicas(ctx, u, nodes)
		err = is.keep(ctx, nodes)
	}
	if err != nil {
		return issuers.Credential{}, is.orUndo(ctx, u, nodes, sent, err)
	}
	return is.present(u.lease.Name, u.password, nodes), nil
}

func (is *Issuer) prepare(lease issuers.Lease) (*user, error) {
	if err := checkLease(lease); err != nil {
		return nil, err
	}
	grants, err := compile(is.spec, lease.Scope)
	if err != nil {
		return nil, &issuers.Error{Kind: issuers.Refused, Detail: "the scope is not one for this target", Err: err}
	}
	u := &user{lease: lease, nonce: rand.Text(), deadline: lease.MintDeadline}
	if u.deadline.IsZero() {
		u.deadline = time.Now().Add(defaultDeadline)
	}
	if lease.NotAfter.Before(u.deadline) {
		u.deadline = lease.NotAfter
	}
	if !time.Now().Before(u.deadline) {
		return nil, tooLate()
	}
	var hash string
	u.password, hash = newPassword()
	u.rules = is.rules(u.lease, hash, grants)
	return u, nil
}

// rules are the arguments of ACL SETUSER after the name. Reset gives the server's
// default for channels, which may be all of them: they are taken back by name.
func (is *Issuer) rules(l issuers.Lease, hash string, grants compiled) []string {
	out := []string{"reset", "resetchannels", "on", "#" + hash, "#" + is.marks.write(l.Name, mark{l.Generation, is.term})}
	out = append(out, base...)
	if is.spec.Topology == topologyCluster {
		out = append(out, clusterBase...)
	}
	out = append(out, harmful...)
	return append(out, grants.selectors...)
}

func tooLate() *issuers.Error {
	return &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed"}
}

// writeMasters writes the user on every master at once. sent says whether any
// node may have it.
func (is *Issuer) writeMasters(ctx context.Context, u *user, nodes []node) (sent bool, err error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, n := range nodes {
		if n.replica || is.spec.Topology == topologyCluster && n.slot < 0 {
			continue // a master without slots serves nobody
		}
		wg.Go(func() {
			s, e := is.write(ctx, u, n)
			mu.Lock()
			defer mu.Unlock()
			sent = sent || s
			errs = append(errs, e)
		})
	}
	wg.Wait()
	if len(errs) == 0 {
		return false, unreachable("the deployment has no master at the moment")
	}
	for _, e := range errs { // the gravest: one of which nobody knows what it did
		if e != nil && (err == nil || issuers.KindOf(e) == issuers.Unknown) {
			err = e
		}
	}
	return sent, err
}

// writeReplicas gives the user to the replicas, for reads there and for the day
// one becomes master. A replica that lacks it takes nothing from the lease's
// safety, so failures are told and not more.
func (is *Issuer) writeReplicas(ctx context.Context, u *user, nodes []node) {
	ctx, cancel := context.WithTimeout(ctx, replicaWait)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range nodes {
		if !n.replica || n.down || is.spec.Topology == topologyCluster && n.slot < 0 {
			continue
		}
		wg.Go(func() {
			if _, err := is.write(ctx, u, n); err != nil {
				is.log.Warn("a replica has not got the user", "node", n.addr, "user", u.lease.Name, "error", err)
			}
		})
	}
	wg.Wait()
}

// write writes the user on one node. It tries again while others mint or
// withdraw the same lease.
func (is *Issuer) write(ctx context.Context, u *user, n node) (sent bool, err error) {
	l, err := is.fleet.to(n.addr)
	if err != nil {
		return false, err
	}
	for i := range attempts {
		err = is.try(ctx, u, n, l.mint)
		switch {
		case err == nil:
			return true, nil
		case !errors.Is(err, errDisturbed):
			return issuers.KindOf(err) == issuers.Unknown, err
		case !time.Now().Before(u.deadline):
			return false, tooLate()
		case pause(ctx, i) != nil:
			return false, tooLate()
		}
	}
	return false, unreachable("%s: the lease's gate is never left alone", n.addr)
}

// errDisturbed: the gate was touched or had expired, so nothing was done.
var errDisturbed = errors.New("the gate was disturbed")

// try is one attempt: put up a gate that expires before the deadline, watch it,
// look who has the name, and write the user in a transaction that the server
// refuses once the gate has expired or was touched (HAZARDS 8, 9). DESIGN.md says
// why this needs no clock but the server's.
func (is *Issuer) try(ctx context.Context, u *user, n node, c *goredis.Client) error {
	cn, done := conn(c)
	defer done()
	g := guard{gate: n.gate(u.lease.ID), nonce: u.nonce, name: u.lease.Name, deadline: u.deadline}
	look, _, err := is.watch(ctx, g, n, cn)
	if err != nil {
		return err
	}
	old, err := is.marks.readUser(u.lease.Name, look)
	if err != nil {
		return beforeError(n.addr+": look for "+u.lease.Name, err)
	}
	if err := is.mayReplace(u.lease, old); err != nil {
		return err
	}
	return is.commit(context.WithValue(ctx, guarded{}, true), u, n, cn, g.gate, old.there)
}

// guard is a gate, what it holds, and the user whom it guards.
type guard struct {
	gate, nonce, name string
	deadline          time.Time // by our clock
}

// watch puts up a gate, watches it and looks for the user. The connection's next
// transaction does nothing once the gate has expired or was touched. also is the
// answer to one more command, if one is given.
func (is *Issuer) watch(ctx context.Context, g guard, n node, cn *goredis.Conn, more ...any) (look, also *goredis.Cmd, err error) {
	left := time.Until(g.deadline)
	life := left - left/10 // what the round trip may cost
	if life < time.Millisecond {
		return nil, nil, tooLate()
	}
	pipe := cn.Pipeline()
	pipe.Do(ctx, "UNWATCH")
	if n.replica {
		if is.spec.Topology == topologyCluster {
			pipe.Do(ctx, "READONLY")
		}
	} else { // to a replica the master's gate comes by replication
		pipe.Do(ctx, "SET", g.gate, g.nonce, "PX", life.Milliseconds())
	}
	pipe.Do(ctx, "WATCH", g.gate)
	ttl := pipe.Do(ctx, "PTTL", g.gate)
	text := pipe.Do(ctx, "GET", g.gate)
	look = pipe.Do(ctx, "ACL", "GETUSER", g.name)
	if len(more) > 0 {
		also = pipe.Do(ctx, more...)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, goredis.Nil) {
		return nil, nil, beforeError(n.addr+": prepare the change of "+g.name, err)
	}
	ms, err := ttl.Int64()
	if err != nil || ms <= 0 || time.Now().Add(time.Duration(ms)*time.Millisecond).After(g.deadline) {
		return nil, nil, errDisturbed
	}
	if got, err := text.Text(); err != nil || got != g.nonce {
		return nil, nil, errDisturbed
	}
	return look, also, nil
}

// mayReplace decides whether a user of that name may be overwritten.
func (is *Issuer) mayReplace(l issuers.Lease, old found) error {
	switch {
	case !old.there:
		return nil
	case !old.ours:
		return &issuers.Error{Kind: issuers.Foreign, Detail: "the user " + l.Name + " exists without the broker's mark of this lease; it is left alone"}
	case old.mark.generation > l.Generation || old.mark.term > is.term:
		return &issuers.Error{Kind: issuers.Superseded, Detail: "a newer generation of the lease, or a newer leader, has been there"}
	}
	return nil
}

// commit is the transaction. It touches the gate, so that whoever watches it at
// the same time starts again and sees this user. Sessions of an earlier secret end.
func (is *Issuer) commit(ctx context.Context, u *user, n node, cn *goredis.Conn, gate string, replace bool) error {
	args := []any{"ACL", "SETUSER", u.lease.Name}
	for _, r := range u.rules {
		args = append(args, r)
	}
	var set *goredis.Cmd
	_, err := cn.TxPipelined(ctx, func(p goredis.Pipeliner) error {
		set = p.Do(ctx, args...)
		if replace {
			p.Do(ctx, "CLIENT", "KILL", "USER", u.lease.Name)
		}
		is.touch(ctx, p, n, gate, u.nonce)
		return nil
	})
	if errors.Is(err, goredis.TxFailedErr) {
		return errDisturbed
	}
	if err != nil {
		e := set.Err()
		if _, said := answered(e); !said {
			e = err
		}
		return mintError(n.addr+": write "+u.lease.Name, e)
	}
	return nil
}

// touch ends a transaction: who watches the gate at the same time starts again.
func (is *Issuer) touch(ctx context.Context, p goredis.Pipeliner, n node, gate, nonce string) {
	switch {
	case n.replica:
	case is.spec.Topology == topologyStandalone:
		p.Do(ctx, "DEL", gate)
	default: // it stays for the replicas
		p.Do(ctx, "SET", gate, nonce, "KEEPTTL")
	}
}

// mintError classifies what the transaction answered. The rules are this
// package's own but for the commands that a scope names one by one: where the
// server refuses a rule (ERR), it has no such command.
func mintError(what string, err error) *issuers.Error {
	if word, _ := answered(err); word == "ERR" {
		return &issuers.Error{Kind: issuers.BadScope, Detail: "the scope names a command that this server does not have", Err: err}
	}
	return sentError(what, err)
}

// orUndo removes a user that stands on some nodes and not on others. The kind of
// err is kept only if the user is proven gone, or was never sent.
func (is *Issuer) orUndo(ctx context.Context, u *user, nodes []node, sent bool, err error) error {
	e := *sentError("mint "+u.lease.Name, err)
	if !sent {
		return &e
	}
	if len(nodes) == 1 && e.Kind == issuers.Unknown {
		return &e // the broker withdraws it; that is no quicker here
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ioTimeout)
	defer cancel()
	if out := is.Withdraw(ctx, []issuers.Lease{u.lease}); out[0].Err != nil {
		e.Kind = issuers.Unknown
	}
	return &e
}
