package redis

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
)

// maxSecret bounds a secret that is to be set; Redis takes more.
const maxSecret = 256

// Admin implements [issuers.AdminHolder].
func (Kind) Admin(raw json.RawMessage) (username, secretName string, err error) {
	s, err := parseSpec(raw)
	return s.Admin.Username, SecretPassword, err
}

// replacement is one user's next secret, on its way to every node.
type replacement struct {
	name     string
	hash     string
	nonce    string
	deadline time.Time // by our clock
	// next logs in by the next secret, where the user is the admin itself: a node
	// that has the secret already takes no other.
	next *fleet
}

// Replace implements [issuers.Rotator], on every node that knows the user. Like a
// mint it is a transaction that the server refuses past the deadline. A change that
// broke off between two nodes is made whole by another Replace; until then
// TryLogin says unknown of either secret.
func (is *Issuer) Replace(ctx context.Context, r issuers.Replacement) error {
	p, err := is.prepareReplacement(r)
	if err != nil {
		return err
	}
	if p.next != nil {
		defer p.next.close()
	}
	ctx, cancel := context.WithDeadline(ctx, p.deadline)
	defer cancel()
	release, err := is.minting.take(ctx, p.name)
	if err != nil {
		return beforeError("wait for another replacement of the secret", err)
	}
	defer release()
	nodes, err := is.fleet.topology(ctx)
	if err != nil && p.next != nil && issuers.KindOf(err) == issuers.Refused {
		nodes, err = p.next.topology(ctx)
	}
	if err != nil {
		return beforeError("replace a secret", err)
	}
	for _, n := range nodes {
		if n.down {
			return unreachable("the deployment takes %s for dead; it might come back with the secret before", n.addr)
		}
	}
	return is.putEverywhere(ctx, p, nodes)
}

func (is *Issuer) prepareReplacement(r issuers.Replacement) (*replacement, error) {
	plain := r.Next.Reveal()
	switch {
	case checkUser(r.Username) != nil:
		return nil, refused("%v", checkUser(r.Username))
	case userPattern.MatchString(r.Username):
		return nil, foreign(r.Username)
	case plain == "" || len(plain) > maxSecret:
		return nil, refused("a secret has 1 to %d characters; this one has %d", maxSecret, len(plain))
	case strings.ContainsFunc(plain, func(c rune) bool { return c <= ' ' || c > '~' }):
		return nil, refused("a secret is made of printable ASCII characters without blanks here; this one is not") // configuration files of clients and replicas are split at blanks
	case is.spec.Persist == persistNone:
		return nil, refused("persist is none: a restart of the server would bring back the secret before, which nobody keeps; write persist: aclfile, or config")
	}
	sum := sha256.Sum256([]byte(plain))
	p := &replacement{name: r.Username, hash: hex.EncodeToString(sum[:]), nonce: rand.Text(), deadline: r.Deadline}
	if p.deadline.IsZero() {
		p.deadline = time.Now().Add(defaultDeadline)
	}
	if !time.Now().Before(p.deadline) {
		return nil, tooLate()
	}
	if r.Username == is.spec.Admin.Username {
		p.next = is.fleet.as(r.Username, r.Next)
		p.next.node.ClientName = is.fleet.node.ClientName // for fences
	}
	return p, nil
}

// checkUser accepts any name that an ACL user can have and files can hold.
func checkUser(name string) error {
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return fmt.Errorf("the user %.60q: a name has 1 to %d bytes, without blanks and control characters", name, maxName)
	}
	return nil
}

func foreign(name string) *issuers.Error {
	return &issuers.Error{Kind: issuers.Foreign, Detail: fmt.Sprintf("%q is a lease's user; its secret is not rotated", name)}
}

// putEverywhere changes the masters, then the replicas, to which the masters'
// gates are replicated.
func (is *Issuer) putEverywhere(ctx context.Context, p *replacement, nodes []node) error {
	there, touched := false, false
	for _, replicas := range []bool{false, true} {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var worst error
		for _, n := range nodes {
			if n.replica != replicas {
				continue
			}
			wg.Go(func() {
				err := is.putOn(ctx, p, n)
				mu.Lock()
				defer mu.Unlock()
				switch kind := issuers.KindOf(err); {
				case err == nil:
					there, touched = true, true
				case kind == issuers.Gone: // this node never had the user
				case worst == nil || kind == issuers.Unknown:
					worst = err
				}
				touched = touched || err != nil && issuers.KindOf(err) == issuers.Unknown
			})
		}
		wg.Wait()
		if worst != nil && touched {
			return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("replace the secret of %q: nodes may differ; replace it again", p.name), Err: worst}
		}
		if worst != nil {
			return sentError("replace a secret", worst)
		}
	}
	if !there {
		return &issuers.Error{Kind: issuers.Gone, Detail: fmt.Sprintf("there is no user %q", p.name)}
	}
	return nil
}

// putOn changes one node and has it written to the node's disk.
func (is *Issuer) putOn(ctx context.Context, p *replacement, n node) error {
	c, err := is.laneFor(ctx, p, n)
	if err != nil {
		return err
	}
	for i := range attempts {
		err = is.tryPut(ctx, p, n, c)
		if !errors.Is(err, errDisturbed) {
			break
		}
		if !time.Now().Before(p.deadline) || pause(ctx, i) != nil {
			return tooLate()
		}
	}
	switch {
	case errors.Is(err, errDisturbed):
		return unreachable("%s: the gate of the change is never left alone", n.addr)
	case err != nil:
		return err
	}
	if p.next != nil { // a new connection wants the secret that now holds
		l, err := p.next.to(n.addr)
		if err != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "write the users to disk", Err: err}
		}
		c = l.mint
	}
	if err := is.save(ctx, n.addr, c); err != nil { // whatever it said: the secret is changed, and its file is not
		return &issuers.Error{Kind: issuers.Unknown, Detail: n.addr + ": write the users to disk (persist: " + is.spec.Persist + ")", Err: err}
	}
	return nil
}

// laneFor returns connections by the admin's secret, or by its next one where the
// node has that already.
func (is *Issuer) laneFor(ctx context.Context, p *replacement, n node) (*goredis.Client, error) {
	var err error
	for _, f := range []*fleet{is.fleet, p.next} {
		if f == nil {
			break
		}
		l, e := f.to(n.addr)
		if e != nil {
			return nil, e
		}
		err = l.mint.Ping(ctx).Err()
		word, said := answered(err)
		if err == nil || word == "NOPERM" {
			return l.mint, nil
		}
		if !said || word != "WRONGPASS" {
			break
		}
	}
	return nil, beforeError(n.addr+": log in", err)
}

// tryPut is one attempt on one node.
func (is *Issuer) tryPut(ctx context.Context, p *replacement, n node, c *goredis.Client) error {
	cn, done := conn(c)
	defer done()
	sum := sha256.Sum256([]byte(p.name))
	g := guard{gate: n.gate("account-" + hex.EncodeToString(sum[:16])), nonce: p.nonce, name: p.name, deadline: p.deadline}
	look, list, err := is.watch(ctx, g, n, cn, "CLIENT", "LIST")
	if err != nil {
		return err
	}
	before, err := is.marks.readUser(p.name, look)
	if err != nil {
		return beforeError(n.addr+": look for the user", err)
	}
	switch {
	case !before.there:
		return &issuers.Error{Kind: issuers.Gone, Detail: fmt.Sprintf("%s has no user %q", n.addr, p.name)}
	case before.ours:
		return foreign(p.name)
	case is.followed(list.Val()):
		return &issuers.Error{Kind: issuers.Superseded, Detail: "a newer leader is connected to " + n.addr}
	}
	return is.commitPut(context.WithValue(ctx, guarded{}, true), p, n, cn, g, before)
}

// followed says whether a connection of a newer leader's is on the list. A lasting
// user bears no mark of ours that could refuse an older leader's change (HAZARDS 9).
func (is *Issuer) followed(list any) bool {
	text, _ := list.(string)
	for _, s := range sessions(text) {
		if term, ok := parseClientName(s.name); ok && s.user == is.spec.Admin.Username && term > is.term {
			return true
		}
	}
	return false
}

// commitPut is the transaction. ACL SETUSER makes a user that is not there, and
// users cannot be watched: one that was deleted since the look shows as blank, and
// is deleted again.
func (is *Issuer) commitPut(ctx context.Context, p *replacement, n node, cn *goredis.Conn, g guard, before found) error {
	var set, look *goredis.Cmd
	_, err := cn.TxPipelined(ctx, func(pipe goredis.Pipeliner) error {
		set = pipe.Do(ctx, "ACL", "SETUSER", p.name, "resetpass", "#"+p.hash)
		look = pipe.Do(ctx, "ACL", "GETUSER", p.name)
		is.touch(ctx, pipe, n, g.gate, g.nonce)
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
		if word, _ := answered(e); word == "NOPERM" {
			return &issuers.Error{Kind: issuers.Refused, Detail: n.addr + ": the admin user may not change users; ACL SETUSER " + is.spec.Admin.Username + " +acl|setuser", Err: e}
		}
		return sentError(n.addr+": replace the secret", e)
	}
	if after, err := is.marks.readUser(p.name, look); err == nil && after.blank && !before.blank {
		if err := cn.Do(ctx, "ACL", "DELUSER", p.name).Err(); err != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("%s: the user %q was deleted meanwhile, and stands again without rights", n.addr, p.name), Err: err}
		}
		return &issuers.Error{Kind: issuers.Gone, Detail: fmt.Sprintf("%s has no user %q any more", n.addr, p.name)}
	}
	return nil
}
