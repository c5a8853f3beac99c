package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func fileFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "file", Aliases: []string{"f"}, Usage: "YAML, JSON or .cedar; a directory with what is below it; - is stdin (`FILE|DIR`)"}
}

func applyCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "apply", Category: forOperators,
		Usage: "write objects, all or none",
		Description: `A .cedar file becomes the Policy of its name. Secrets are named, not written:
initial_password: {from_file: pw}, {from_env: VAR} or prompt. Files named in a
document are looked for beside it. A change that others must approve ends with 4
and is made with their last approval; --wait waits for them.

Examples:
  mayfly apply -f orders.yaml
  mayfly apply -f config/ --dry-run
  mayfly apply -f config/ --prune --yes --reason "old roles are unused"
  mayfly apply -f orders.yaml --reason "ticket 9" --wait 1h     # where others must approve
  mayfly apply -f orders.yaml --override-rotated --reason "reset by hand, ticket 12"`,
		Flags: confirmFlags(fileFlag(), &cli.BoolFlag{Name: "prune", Usage: "delete the objects of these kinds that the files do not hold"},
			&cli.BoolFlag{Name: "override-rotated", Usage: "put a target's own secret, reset by hand, in the place of the rotated one; needs --reason"}, waitFlag()),
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			in, err := s.documents(c, true)
			if err != nil {
				return err
			}
			in.Prune, in.DryRun, in.Reason = c.Bool("prune"), c.Bool("dry-run"), strings.TrimSpace(c.String("reason"))
			in.Override = c.Bool("override-rotated")
			ctx := c.Context
			if in.Prune && !in.DryRun {
				reason, err := s.confirmPrune(c, cl, in)
				if err != nil {
					return err
				}
				in.Reason = reason
				ctx = client.WithReason(ctx, reason)
			}
			a, err := cl.Apply(ctx, in)
			if err != nil {
				return err
			}
			return s.showApplied(c, cl, a)
		}),
	}
}

// confirmPrune looks first: only what deletes something needs a yes.
func (s *shell) confirmPrune(c *cli.Context, cl *client.Client, in wire.ApplyRequest) (string, error) {
	in.DryRun = true
	a, err := cl.Apply(c.Context, in)
	if err != nil {
		return "", err
	}
	var gone []string
	for _, x := range a.Changes {
		if x.Action == "delete" {
			gone = append(gone, x.Kind+"/"+x.Name)
		}
	}
	if len(gone) == 0 {
		return "", nil
	}
	const show = 10
	list := strings.Join(gone[:min(show, len(gone))], ", ")
	if len(gone) > show {
		list += ", …"
	}
	return s.confirm(c, fmt.Sprintf("delete %s (%s)", count(len(gone), "object"), clean(list)))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// documents reads what -f names.
func (s *shell) documents(c *cli.Context, prompt bool) (wire.ApplyRequest, error) {
	files := c.StringSlice("file")
	if len(files) == 0 {
		return wire.ApplyRequest{}, usage("what should be read? give -f FILE, -f DIR or -f -")
	}
	l := &loader{shell: s, prompt: prompt}
	list, err := l.load(files)
	if err != nil {
		return wire.ApplyRequest{}, err
	}
	var in wire.ApplyRequest
	for _, o := range list {
		in.Objects = append(in.Objects, o.Object)
	}
	return in, nil
}

// showApplied prints what was written, or goes on with what must be co-signed.
func (s *shell) showApplied(c *cli.Context, cl *client.Client, a wire.ApplyAnswer) error {
	if a.GrantID == "" || a.DryRun {
		return s.showChanges(a)
	}
	return s.changeWaits(c, cl, a.GrantID, &a.Waiting, func(waits bool) error {
		if !waits {
			a.Waiting = wire.Waiting{}
		}
		return s.showChanges(a)
	})
}

func (s *shell) showChanges(a wire.ApplyAnswer) error {
	if a.Changes == nil {
		a.Changes = []wire.Change{}
	}
	return s.show(a, func(p *page) {
		var rows [][]cell
		for _, x := range a.Changes {
			version := ""
			if x.Version > 0 {
				version = strconv.FormatUint(x.Version, 10)
			}
			rows = append(rows, []cell{{x.Action, inkOf[x.Action]}, plain(x.Kind), plain(x.Name), plain(version)})
		}
		p.table("nothing to do", []string{"CHANGE", "KIND", "NAME", "VERSION"}, rows)
		if a.DryRun {
			p.line("(dry run: nothing was written)")
		}
	})
}

var inkOf = map[string]colour{"create": green, "update": yellow, "delete": red, "unchanged": dim}

func diffCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "diff", Category: forOperators,
		Usage: "what apply would change",
		Description: `Examples:
  mayfly diff -f orders.yaml
  mayfly diff -f config/ --prune`,
		Flags: []cli.Flag{fileFlag(), &cli.BoolFlag{Name: "prune", Usage: "as apply --prune would"}},
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			in, err := s.documents(c, false)
			if err != nil {
				return err
			}
			in.DryRun, in.Prune = true, c.Bool("prune")
			a, err := cl.Apply(c.Context, in)
			if err != nil {
				return err
			}
			if s.output != asTable || s.field != "" {
				return s.showChanges(a)
			}
			return s.show(a, func(p *page) { p.changes(a.Changes) })
		}),
	}
}

func (p *page) changes(list []wire.Change) {
	same := true
	for _, x := range list {
		if x.Action == "unchanged" {
			continue
		}
		same = false
		id := x.Kind + "/" + x.Name
		text := diff.Diff("live "+id, specText(x.Before), "new "+id, specText(x.After))
		for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
			if strings.HasPrefix(line, "diff ") {
				line = x.Action + " " + id
			}
			p.printf("%s\n", p.paint(inkOfDiff(line), clean(line)))
		}
		if len(text) == 0 { // only its secrets change
			p.line(x.Action + " " + id)
		}
	}
	if same {
		p.line("no differences")
	}
}

func inkOfDiff(line string) colour {
	switch {
	case strings.HasPrefix(line, "+"):
		return green
	case strings.HasPrefix(line, "-"):
		return red
	case strings.HasPrefix(line, "@"):
		return dim
	default:
		return bold
	}
}

// specText is a spec as people read it; nothing for none.
func specText(spec json.RawMessage) []byte {
	if len(spec) == 0 || string(spec) == "null" {
		return nil
	}
	var policy struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(spec, &policy) == nil && policy.Text != "" {
		return []byte(strings.TrimRight(policy.Text, "\n") + "\n")
	}
	out, err := yaml.JSONToYAML(spec)
	if err != nil {
		return append(spec, '\n')
	}
	return out
}

func getCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "get", Category: forOperators, ArgsUsage: "KIND [NAME]",
		Usage: "show objects",
		Description: `Examples:
  mayfly get role
  mayfly get Role orders/readonly
  mayfly get target/orders -o yaml
  mayfly get policy --field name
  mayfly get rotations                    what turns when, and what last happened`,
		Action: s.with(1, 2, func(c *cli.Context, cl *client.Client, args []string) error {
			if word := strings.ToLower(args[0]); len(args) == 1 && (word == "rotations" || word == "rotation") {
				return showRotations(s, c, cl)
			}
			kind, name, err := kindName(args)
			if err != nil {
				return err
			}
			if name == "" {
				list, err := cl.Objects(c.Context, kind)
				if err != nil {
					return err
				}
				if list == nil {
					list = []wire.Object{}
				}
				return s.show(list, func(p *page) { objectTable(p, kind, list) })
			}
			o, err := cl.Object(c.Context, kind, name)
			if err != nil {
				return err
			}
			return s.show(o, func(p *page) {
				objectPage(p, o)
				if kind == "Plugin" {
					pluginNodes(c.Context, cl, p, name)
				}
			})
		}),
	}
}

func objectTable(p *page, kind string, list []wire.Object) {
	var rows [][]cell
	for _, o := range list {
		changed := ""
		if o.ChangedAt != nil {
			changed = p.when(*o.ChangedAt)
		}
		rows = append(rows, []cell{plain(o.Name), plain(summary(o)), plain(strconv.FormatUint(o.Version, 10)), plain(changed), plain(o.ChangedBy)})
	}
	p.table("no objects of kind "+kind, []string{"NAME", "WHAT", "VERSION", "CHANGED", "BY"}, rows)
}

// summary is the one thing about an object that tells it from its like.
func summary(o wire.Object) string {
	var spec struct {
		Type    string `json:"type"`
		Address string `json:"address"`
		Owner   string `json:"owner"`
		Issuer  string `json:"issuer"`
		Text    string `json:"text"`
		TTL     struct {
			Default string `json:"default"`
			Max     string `json:"max"`
		} `json:"ttl"`
		Members   []json.RawMessage `json:"members"`
		Account   string            `json:"account"`
		Target    string            `json:"target"`
		Usernames []string          `json:"usernames"`
		File      string            `json:"file"`
		SHA256    string            `json:"sha256"`
	}
	// A spec of another shape leaves out what it does not have.
	_ = json.Unmarshal(o.Spec, &spec)
	switch o.Kind {
	case "Target", "AuthMethod", "Sink":
		return strings.TrimSpace(spec.Type + " " + spec.Address + spec.Issuer)
	case "Role":
		if spec.Account != "" {
			return "account " + spec.Account + ", ttl " + short(spec.TTL.Default) + ", at most " + short(spec.TTL.Max)
		}
		return "ttl " + short(spec.TTL.Default) + ", at most " + short(spec.TTL.Max)
	case "Group":
		return count(len(spec.Members), "member")
	case "Account":
		return strings.Join(spec.Usernames, " and ") + " on " + spec.Target
	case "Principal":
		return spec.Owner
	case "Plugin":
		return spec.File + " sha256:" + spec.SHA256[:min(12, len(spec.SHA256))]
	case "Policy":
		return count(strings.Count(strings.TrimSpace(spec.Text), "\n")+1, "line")
	default:
		return ""
	}
}

// short writes a duration as people do: 15m for 15m0s.
func short(d string) string {
	v, err := time.ParseDuration(d)
	if err != nil {
		return or(d, "?")
	}
	return span(v)
}

func objectPage(p *page, o wire.Object) {
	p.card("kind", o.Kind, "name", o.Name, "version", strconv.FormatUint(o.Version, 10), "changed", p.bothPtr(o.ChangedAt), "by", o.ChangedBy, "sealed", strings.Join(o.Sealed, ", "))
	p.line("")
	p.line(strings.TrimRight(string(specText(o.Spec)), "\n"))
	if o.Rotation != nil {
		p.line("")
		p.rotation(*o.Rotation)
	}
}

// pluginNodes says how a plugin does on each node that this client knows.
func pluginNodes(ctx context.Context, cl *client.Client, p *page, name string) {
	var rows [][]cell
	for _, node := range cl.Nodes() {
		list, err := cl.NodePlugins(ctx, node)
		if err != nil {
			problem, _, _ := problemOf(err)
			rows = append(rows, []cell{plain(node), plain("not known: " + sentence(problem)), plain("")})
			continue
		}
		for _, x := range list {
			if x.Name == name {
				since := ""
				if x.Since != nil {
					since = p.when(*x.Since)
				}
				rows = append(rows, []cell{plain(x.Node), plain(pluginState(x)), plain(since)})
			}
		}
	}
	p.line("")
	p.table("no node tells", []string{"NODE", "STATE", "SINCE"}, rows)
}

func deleteCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "delete", Category: forOperators, ArgsUsage: "KIND NAME",
		Usage: "delete an object",
		Description: `A target with live leases is not deleted: end them first.

Examples:
  mayfly delete Role orders/old --dry-run
  mayfly delete target/orders --with-roles --yes --reason "moved to the new cluster"`,
		Flags: confirmFlags(&cli.BoolFlag{Name: "with-roles", Usage: "with a target, its roles too"}, waitFlag()),
		Action: s.with(1, 2, func(c *cli.Context, cl *client.Client, args []string) error {
			kind, name, err := kindName(args)
			if err != nil {
				return err
			}
			if name == "" {
				return usage("delete takes one object: KIND NAME")
			}
			in := wire.ApplyRequest{Delete: []wire.Ref{{Kind: kind, Name: name}}, DryRun: true}
			if c.Bool("with-roles") {
				if err := addRoles(c.Context, cl, &in, kind, name); err != nil {
					return err
				}
			}
			// Looking first tells what stands in the way before anybody is asked.
			a, err := cl.Apply(c.Context, in)
			if err != nil {
				return err
			}
			if c.Bool("dry-run") {
				return s.showChanges(a)
			}
			reason, err := s.confirm(c, deletion(in.Delete))
			if err != nil {
				return err
			}
			in.DryRun, in.Reason = false, reason
			if a, err = cl.Apply(client.WithReason(c.Context, reason), in); err != nil {
				return err
			}
			return s.showApplied(c, cl, a)
		}),
	}
}

// addRoles has the roles of a target deleted with it.
func addRoles(ctx context.Context, cl *client.Client, in *wire.ApplyRequest, kind, name string) error {
	if kind != "Target" {
		return usage("--with-roles goes with a target, not with a %s", kind)
	}
	roles, err := cl.Objects(ctx, "Role")
	if err != nil {
		return err
	}
	for _, r := range roles {
		if strings.HasPrefix(r.Name, name+"/") {
			in.Delete = append(in.Delete, wire.Ref{Kind: "Role", Name: r.Name})
		}
	}
	return nil
}

// deletion says what is about to be deleted.
func deletion(list []wire.Ref) string {
	var what []string
	for _, r := range list {
		what = append(what, r.Kind+" "+r.Name)
	}
	return "delete " + clean(strings.Join(what, ", "))
}
