package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func diagnoseCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "diagnose", Usage: "what is wrong between here and the cluster",
		Description: `Looks at the settings, the home, each node and the login, and says what to do.
Ends with 1 if something is wrong.

Examples:
  mayfly operator diagnose
  mayfly operator diagnose -o json`,
		Action: func(c *cli.Context) error {
			if err := s.formats(); err != nil {
				return err
			}
			if _, err := require(c, 0, 0); err != nil {
				return err
			}
			findings := s.diagnose(c)
			ok := true
			for _, f := range findings {
				ok = ok && (f.OK || f.Warning)
			}
			if err := s.show(map[string]any{"ok": ok, "findings": findings}, func(p *page) { p.findings(findings) }); err != nil {
				return err
			}
			if !ok {
				return told(exitFailed)
			}
			return nil
		},
	}
}

// diagnose goes from the near to the far and stops where nothing further can
// work.
func (s *shell) diagnose(c *cli.Context) []wire.Finding {
	cfg, err := s.config(c)
	if err != nil {
		return []wire.Finding{bad("settings", err, "")}
	}
	cfg.Retry, cfg.OnRetry = 0, nil
	out := []wire.Finding{s.diagnoseHome(cfg)}
	cl, err := client.New(cfg)
	if err != nil {
		return append(out, bad("settings", err, "eval \"$(cat ~/.mayfly/dev/env)\" for a node of mayfly dev"))
	}
	defer cl.Close()
	out = append(out, wire.Finding{Name: "settings", OK: true, Detail: fmt.Sprintf("nodes %s, CA %s", strings.Join(cl.Nodes(), ", "), or(cfg.CAFile, "of the home or the system"))})
	reached := false
	versions := map[string]bool{}
	for _, node := range cl.Nodes() {
		f, st := diagnoseNode(c.Context, cl, node)
		out = append(out, f)
		if st.Version != "" {
			reached = true
			versions[st.Version] = true
		}
	}
	if len(versions) > 1 {
		out = append(out, wire.Finding{Name: "versions", Warning: true, Detail: "the nodes run different versions", Fix: "finish the upgrade"})
	}
	if !reached {
		return out
	}
	me, err := cl.Whoami(c.Context)
	if err != nil {
		return append(out, bad("login", err, "mayfly login"))
	}
	out = append(out, wire.Finding{Name: "login", OK: true, Detail: fmt.Sprintf("%s by %s, bound by %s%s", me.Principal, or(me.Method, "its key"), me.Binding, attested(me.AttestedKey))})
	for _, node := range cl.Nodes() {
		out = append(out, diagnosePlugins(c.Context, cl, node)...)
	}
	return out
}

// diagnosePlugins says how a node's plugins do: on a follower, what is wrong with
// one shows nowhere else until it leads. A node that does not answer has been named
// already.
func diagnosePlugins(ctx context.Context, cl *client.Client, node string) (out []wire.Finding) {
	list, err := cl.NodePlugins(ctx, node)
	if err != nil {
		return nil
	}
	for _, p := range list {
		f := wire.Finding{Name: p.Node + " plugin " + p.Name, OK: p.Running && p.SHA256 == p.Registered, Detail: pluginState(p)}
		f.Warning = p.Running && !f.OK
		if !f.OK {
			f.Fix = "put the registered file into plugins.dir of " + p.Node + ", then: mayfly get plugin " + p.Name
		}
		out = append(out, f)
	}
	return out
}

// pluginState is how a plugin does on a node, in a line.
func pluginState(p wire.NodePlugin) string {
	said := "does not run"
	if p.Running {
		said = "runs sha256:" + p.SHA256[:min(12, len(p.SHA256))]
	}
	if p.Problem != "" {
		said += ": " + p.Problem
	}
	for _, n := range []struct {
		count int
		what  string
	}{{p.Restarts, "restart"}, {p.Failures, "failed start"}, {p.Refused, "refused answer"}} {
		if n.count > 0 {
			said += ", " + count(n.count, n.what)
		}
	}
	return said
}

func bad(name string, err error, fix string) wire.Finding {
	p, _, next := problemOf(err)
	return wire.Finding{Name: name, Detail: sentence(p), Fix: or(next, fix)}
}

func (s *shell) diagnoseHome(cfg client.Config) wire.Finding {
	f := wire.Finding{Name: "home", Detail: cfg.Home}
	info, err := os.Stat(cfg.Home)
	switch {
	case cfg.Home == "":
		f.Warning, f.Detail = true, "none: key and session live in memory only"
	case errors.Is(err, fs.ErrNotExist):
		f.OK, f.Detail = true, cfg.Home+" will be made"
	case err != nil:
		f.Detail = err.Error()
	case info.Mode().Perm()&0o077 != 0:
		f.Detail, f.Fix = fmt.Sprintf("%s has mode %04o; others must not enter it", cfg.Home, info.Mode().Perm()), "chmod 0700 "+cfg.Home
	default:
		f.OK = true
	}
	return f
}

func diagnoseNode(ctx context.Context, cl *client.Client, node string) (wire.Finding, wire.Status) {
	st, err := cl.Status(ctx, node)
	if err != nil {
		return bad(node, err, "is the node running, and is the address its own?"), st
	}
	f := wire.Finding{Name: node, OK: true, Detail: fmt.Sprintf("%s, %s, version %s", st.Node, st.Role, st.Version)}
	switch {
	case !st.Initialised:
		f.OK, f.Fix, f.Detail = false, "mayfly operator init, or join it to a cluster", "uninitialised"
	case st.Sealed:
		f.OK, f.Fix, f.Detail = false, "mayfly operator unseal", fmt.Sprintf("sealed; %d of %d shares given", st.Have, st.Threshold)
	case !st.Fresh:
		f.OK, f.Fix, f.Detail = false, "look at the network between the nodes", f.Detail+", not in contact with a quorum"
	case st.Leader == "":
		f.OK, f.Warning, f.Detail = false, true, f.Detail+", knows no leader"
	}
	return f, st
}
