package redis

import (
	"context"
	"fmt"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
)

// probe is one command that the issuer sends, tried with ACL DRYRUN.
type probe struct {
	name string
	args []any
	rule string
}

// probes are the rights of the admin user, each with the rule that gives it.
func (is *Issuer) probes(n node) []probe {
	gate := n.gate("probe")
	out := []probe{
		{"make users", []any{"ACL", "SETUSER", "x"}, "+acl|setuser"},
		{"look at users", []any{"ACL", "GETUSER", "x"}, "+acl|getuser"},
		{"delete users", []any{"ACL", "DELUSER", "x"}, "+acl|deluser"},
		{"list users", []any{"ACL", "USERS"}, "+acl|users"},
		{"end sessions", []any{"CLIENT", "KILL", "USER", "x"}, "+client|kill"},
		{"list sessions", []any{"CLIENT", "LIST"}, "+client|list"},
		{"name connections", []any{"CLIENT", "SETNAME", "x"}, "+client|setname"},
		{"watch gates", []any{"WATCH", gate}, "+watch +unwatch ~" + gatePrefix + "*"},
		{"run transactions", []any{"MULTI"}, "+multi +exec"},
		{"time gates", []any{"PTTL", gate}, "+pttl ~" + gatePrefix + "*"},
		{"read gates", []any{"GET", gate}, "+get ~" + gatePrefix + "*"},
	}
	if !n.replica {
		out = append(out, probe{"put up gates", []any{"SET", gate, "x", "PX", "1"}, "+set ~" + gatePrefix + "*"},
			probe{"take down gates", []any{"DEL", gate}, "+del ~" + gatePrefix + "*"})
	}
	switch is.spec.Persist {
	case persistACLFile:
		out = append(out, probe{"save users", []any{"ACL", "SAVE"}, "+acl|save"})
	case persistConfig:
		out = append(out, probe{"save users", []any{"CONFIG", "REWRITE"}, "+config|rewrite"})
	}
	if is.spec.Topology == topologyCluster {
		out = append(out, probe{"see the cluster", []any{"CLUSTER", "NODES"}, "+cluster|nodes"}, probe{"read on replicas", []any{"READONLY"}, "+readonly"})
	}
	return out
}

// allRules are the rules that give the admin user every right, those whose lack is
// only warned of among them.
func (is *Issuer) allRules(n node) string {
	rules := []string{"+ping", "+acl|dryrun", "+role", "+config|get"}
	for _, p := range is.probes(n) {
		for _, r := range strings.Fields(p.rule) {
			if !slices.Contains(rules, r) {
				rules = append(rules, r)
			}
		}
	}
	return strings.Join(rules, " ")
}

// Check implements [issuers.Checker].
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	nodes, err := is.fleet.topology(ctx)
	if err != nil {
		return nil, err
	}
	c := &examination{is: is, several: len(nodes) > 1}
	for _, n := range nodes {
		c.node = n
		if n.down {
			c.add("connect", false, !c.onlyMaster(nodes), "the deployment takes this node for dead; withdrawals wait for it, or until it is forgotten", "")
			continue
		}
		l, err := is.fleet.to(n.addr)
		if err != nil {
			return nil, err
		}
		if err := c.examine(ctx, l.end); err != nil {
			return nil, beforeError(n.addr+": check the admin user's rights", err)
		}
	}
	return c.findings, nil
}

// examination collects findings.
type examination struct {
	is       *Issuer
	several  bool
	node     node
	findings []issuers.Finding
}

func (c *examination) onlyMaster(nodes []node) bool {
	return !c.node.replica && !slices.ContainsFunc(nodes, func(n node) bool { return !n.replica && !n.down })
}

func (c *examination) add(name string, ok, warning bool, detail, fix string) {
	if c.several {
		name += " on " + c.node.addr
	}
	if ok {
		fix = ""
	}
	c.findings = append(c.findings, issuers.Finding{Name: name, OK: ok, Warning: warning && !ok, Detail: detail, Fix: fix})
}

func (c *examination) examine(ctx context.Context, r *goredis.Client) error {
	me := c.is.spec.Admin.Username
	if err := r.Ping(ctx).Err(); err != nil {
		if word, said := answered(err); !said || word != "NOPERM" {
			return err
		}
	}
	c.add("connect", true, false, "as "+me+" to "+c.node.addr, "")
	if err := c.rights(ctx, r); err != nil {
		return err
	}
	if err := c.defaultUser(ctx, r); err != nil {
		return err
	}
	if c.is.spec.Topology == topologyStandalone {
		c.standalone(ctx, r)
	}
	return c.persistence(ctx, r)
}

// rights tries every command with ACL DRYRUN, which came with Redis 7.0 and runs
// nothing.
func (c *examination) rights(ctx context.Context, r *goredis.Client) error {
	me := c.is.spec.Admin.Username
	for i, p := range c.is.probes(c.node) {
		answer, err := r.Do(ctx, append([]any{"ACL", "DRYRUN", me}, p.args...)...).Text()
		if i == 0 && err != nil {
			word, said := answered(err)
			switch {
			case !said:
				return err
			case word == "NOPERM": // to the probe, or to what every connection begins with
				c.add("try rights", false, false, "the admin user may not run ACL DRYRUN or CLIENT SETNAME, so that nothing can be said of its other rights; this gives it all that it needs",
					"ACL SETUSER "+me+" "+c.is.allRules(c.node))
			default:
				c.add("version", false, false, "the server has no ACL DRYRUN: Redis 7.0 or later is needed, for selectors and read-only keys", "")
			}
			return nil
		}
		if err != nil {
			if _, said := answered(err); !said {
				return err
			}
			answer = err.Error()
		}
		detail := "granted"
		if answer != "OK" {
			detail = answer
		}
		c.add(p.name, answer == "OK", false, detail, "ACL SETUSER "+me+" "+p.rule)
	}
	return nil
}

// defaultUser: where everybody may log in without a password, leases guard nothing.
func (c *examination) defaultUser(ctx context.Context, r *goredis.Client) error {
	f, err := c.is.marks.readUser("default", r.Do(ctx, "ACL", "GETUSER", "default"))
	if err != nil {
		if _, said := answered(err); said {
			return nil // the missing right is told above
		}
		return err
	}
	open := slices.Contains(f.flags, "on") && slices.Contains(f.flags, "nopass")
	detail := "needs a password, or is off"
	if open {
		detail = "everybody may log in as default without a password: leases guard nothing here"
	}
	c.add("default user", !open, true, detail, "ACL SETUSER default off")
	return nil
}

// standalone warns of replicas, which this topology does not look after.
func (c *examination) standalone(ctx context.Context, r *goredis.Client) {
	role, err := r.Do(ctx, "ROLE").Slice()
	if err != nil || len(role) < 3 {
		c.add("role", false, true, "the admin user may not run ROLE, so that replicas would not be seen", "ACL SETUSER "+c.is.spec.Admin.Username+" +role")
		return
	}
	replicas, _ := role[2].([]any)
	switch {
	case role[0] != "master":
		c.add("role", false, false, "the server is a replica; name the master, or the Sentinels with topology: sentinel", "")
	case len(replicas) > 0:
		c.add("role", false, true, fmt.Sprintf("the server has %d replicas, which get no users: ACLs are not replicated. After a failover no lease would work; topology: sentinel follows", len(replicas)), "")
	default:
		c.add("role", true, false, "a master without replicas", "")
	}
}

// persistence says what a restart of the server would do to users.
func (c *examination) persistence(ctx context.Context, r *goredis.Client) error {
	me := c.is.spec.Admin.Username
	reply, err := r.Do(ctx, "CONFIG", "GET", "aclfile").Result()
	if err != nil {
		if _, said := answered(err); !said {
			return err
		}
		c.add("persist", false, true, "the admin user may not read the setting aclfile, so that what a restart does is not known", "ACL SETUSER "+me+" +config|get")
		return nil
	}
	file := fields(reply)["aclfile"]
	name, persist := "persist", c.is.spec.Persist
	switch {
	case persist == persistACLFile && file == "":
		c.add(name, false, false, "persist is aclfile, and the server has none", "")
	case persist == persistConfig && file != "":
		c.add(name, false, false, "persist is config, and the server keeps its users in "+file+"; write persist: aclfile", "")
	case persist == persistNone && file != "":
		c.add(name, false, true, "persist is none, and the server has an aclfile: an ACL SAVE by anybody writes live leases into it, and a restart after their end brings them back, "+
			"until reconcile finds them; write persist: aclfile", "")
	case persist == persistNone:
		c.add(name, true, false, "a restart of the server loses the users of live leases; do not run CONFIG REWRITE while leases live", "")
	default:
		c.add(name, true, false, "users survive a restart; every withdrawal is on disk before its receipt", "")
	}
	return nil
}
