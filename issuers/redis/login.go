package redis

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// excuseTimeout bounds the look for another reason of an answer.
const excuseTimeout = 2 * time.Second

// verdict is what one node says of a secret.
type verdict int

const (
	unsure verdict = iota
	unheard
	taken
	turnedDown
	stranger // the node has no such user
)

// TryLogin implements [issuers.Rotator], on every node of the deployment: nil only
// if all that know the user take the secret, Refused only if all turn it down.
func (is *Issuer) TryLogin(ctx context.Context, username string, candidate secret.Text) error {
	if err := checkUser(username); err != nil {
		return &issuers.Error{Kind: issuers.Unknown, Detail: err.Error()}
	}
	if candidate.IsZero() {
		return &issuers.Error{Kind: issuers.Unknown, Detail: "the server was not asked: an empty secret proves nothing"}
	}
	own := is.fleet.as(username, candidate)
	defer own.close()
	nodes, err := is.fleet.topology(ctx)
	partly := false
	if err != nil && issuers.KindOf(err) == issuers.Refused { // the admin's own secret may be what is looked for
		if nodes, err = own.topology(ctx); err != nil && is.spec.Topology == topologyCluster {
			nodes, err, partly = nil, nil, true
			for _, addr := range is.spec.seeds {
				nodes = append(nodes, node{addr: addr, slot: -1})
			}
		}
	}
	if err != nil {
		return beforeError("log in", err)
	}
	verdicts, errs := make([]verdict, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { verdicts[i], errs[i] = is.ask(ctx, own, n, username) })
	}
	wg.Wait()
	err = conclude(username, nodes, verdicts, errs)
	if err == nil && partly {
		return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("log in as %q: the nodes that the target names take the secret; nobody may ask which others there are", username)}
	}
	return err
}

// conclude sums up what the nodes say.
func conclude(username string, nodes []node, verdicts []verdict, errs []error) error {
	count := map[verdict]int{}
	var err error
	for i, v := range verdicts {
		count[v]++
		if errs[i] != nil {
			err = fmt.Errorf("%s: %w", nodes[i].addr, errs[i])
		}
	}
	asked := len(nodes) - count[stranger]
	e := &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("log in as %q", username), Err: err}
	switch {
	case asked == 0:
		e.Detail += ": there is no such user"
	case count[taken] == asked:
		return nil
	case count[turnedDown] == asked:
		e.Kind = issuers.Refused
	case count[unheard] == asked:
		e.Kind, e.Detail = issuers.Unreachable, "cannot connect"
	case asked > 1:
		e.Detail += fmt.Sprintf(": of %d nodes %d take the secret and %d turn it down; replace it again", asked, count[taken], count[turnedDown])
	}
	return e
}

// as returns the fleet's connections by another login. They bear no name: the
// user may not be allowed to give one.
func (f *fleet) as(username string, s secret.Text) *fleet {
	out := &fleet{spec: f.spec, node: f.node, watch: f.watch, nodes: map[string]lanes{}, guards: map[string]*goredis.Client{}}
	out.node.Username, out.node.Password, out.node.ClientName = username, s.Reveal(), ""
	return out
}

// ask logs in to one node, on a connection of its own.
func (is *Issuer) ask(ctx context.Context, own *fleet, n node, username string) (verdict, error) {
	o := own.node
	var mu sync.Mutex
	reached := false
	dial := goredis.NewDialer(withServerName(&o, n.addr))
	o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		mu.Lock()
		defer mu.Unlock()
		reached = reached || err == nil
		return c, err
	}
	c := client(o, n.addr, 1)
	defer func() { _ = c.Close() }()
	err := c.Ping(ctx).Err()
	word, said := answered(err)
	switch {
	case err == nil || word == "NOPERM": // the login was done before
		if f, ok := is.excuse(ctx, n, username); ok && slices.Contains(f.flags, "nopass") {
			return unsure, fmt.Errorf("the user takes any secret (nopass)")
		}
		return taken, nil
	case said && word == "WRONGPASS":
		f, ok := is.excuse(ctx, n, username)
		switch {
		case ok && !f.there:
			return stranger, nil
		case ok && slices.Contains(f.flags, "off"):
			return unsure, fmt.Errorf("the user is off, so that no secret is taken")
		}
		return turnedDown, err
	}
	mu.Lock()
	defer mu.Unlock()
	if !reached {
		return unheard, err
	}
	return unsure, err
}

// withServerName gives the options the name that client would give them.
func withServerName(o *goredis.Options, addr string) *goredis.Options {
	if o.TLSConfig != nil && o.TLSConfig.ServerName == "" {
		o.TLSConfig = o.TLSConfig.Clone()
		o.TLSConfig.ServerName = addr[:max(strings.LastIndexByte(addr, ':'), 0)]
	}
	return o
}

// excuse looks at the user, where an admin connection can be had: the server says
// WRONGPASS of a user that is off or not there, too.
func (is *Issuer) excuse(ctx context.Context, n node, username string) (found, bool) {
	ctx, cancel := context.WithTimeout(ctx, excuseTimeout)
	defer cancel()
	l, err := is.fleet.to(n.addr)
	if err != nil {
		return found{}, false
	}
	f, err := is.marks.readUser(username, l.end.Do(ctx, "ACL", "GETUSER", username))
	return f, err == nil
}
