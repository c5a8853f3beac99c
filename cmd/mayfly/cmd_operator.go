package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func operatorCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "operator", Category: forCluster, Usage: "the life of the cluster and its nodes",
		Subcommands: []*cli.Command{
			initCommand(s), unsealCommand(s), sealCommand(s), statusCommand(s), diagnoseCommand(s),
			joinTokenCommand(s), peersCommand(s), removePeerCommand(s), stepDownCommand(s), rekeyCommand(s), recoverCommand(s),
		},
	}
}

func initCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "init", Usage: "initialise a cluster on an empty node",
		Description: `Prints the unseal shares and one enrolment token per administrator, once. Give
each share to another person; no administrator alone should hold a threshold.

Examples:
  mayfly operator init --shares 5 --threshold 3 --admin human:ann --admin human:bo
  mayfly operator init --admin human:ann -o json > keep-this-safe.json
  mayfly operator init --admin human:ann --approver human:bo --approver human:kim --approvals 2`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "shares", Usage: "how many unseal shares (`N`; with a local key none)"},
			&cli.IntFlag{Name: "threshold", Usage: "how many of them unseal (`N`)"},
			&cli.StringSliceFlag{Name: "admin", Usage: "a first administrator; may be given several times (`human:NAME`)"},
			&cli.StringSliceFlag{Name: "approver", Usage: "turns dual control on, for good: a first approver of changes; may be given several times (`human:NAME`)"},
			&cli.IntFlag{Name: "approvals", Usage: "how many approvers a change needs (`N`; 1 where left out)"},
		},
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			if len(c.StringSlice("admin")) == 0 {
				return usage("--admin human:NAME is missing: who administers the cluster?")
			}
			a, err := cl.Init(c.Context, cl.Nodes()[0], wire.InitRequest{
				Shares: c.Int("shares"), Threshold: c.Int("threshold"), Admins: c.StringSlice("admin"),
				Approvers: c.StringSlice("approver"), Approvals: c.Int("approvals"),
			})
			if err != nil {
				return err
			}
			return s.show(a, func(p *page) {
				p.card("cluster", a.Cluster)
				for i, share := range a.Shares {
					p.card(fmt.Sprintf("share %d", i+1), share)
				}
				for _, admin := range a.Admins {
					p.line("")
					p.card("administrator", admin.Principal, "token", admin.Token, "use until", p.both(admin.ExpiresAt), "there", admin.Command)
				}
				for _, approver := range a.Approvers {
					p.line("")
					p.card("approver", approver.Principal, "token", approver.Token, "use until", p.both(approver.ExpiresAt), "there", approver.Command)
				}
				p.line("\nNone of this is shown again.")
			})
		}),
	}
}

// shares reads n shares: from a file or stdin, one a line, or by asking for each.
func (s *shell) shares(source string, n int) ([]string, error) {
	if source == "" {
		if !s.interactive() {
			return nil, usage("shares are needed: give --share-file FILE, or --share-file - to read them from stdin, one a line")
		}
		var out []string
		for i := range n {
			t, err := s.ask(fmt.Sprintf("Share %d", i+1))
			if err != nil {
				return nil, err
			}
			out = append(out, t.Reveal())
		}
		return out, nil
	}
	data, err := s.document(source)
	if err != nil {
		return nil, failed("no_secret", "the shares: %v", err)
	}
	out := strings.Fields(string(data))
	if len(out) == 0 {
		return nil, failed("no_secret", "there is no share in %s", source)
	}
	return out, nil
}

func shareFlag() cli.Flag {
	return &cli.StringFlag{Name: "share-file", Usage: "shares, one a line; - is stdin; without it they are asked for (`F|-`)"}
}

func unsealCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "unseal", Usage: "give shares to the sealed nodes",
		Description: `Each holder of a share runs this once. Every sealed node of MAYFLY_ADDR gets
the share. A share never stands on the command line.

Examples:
  mayfly operator unseal
  mayfly operator unseal --share-file - < share.txt
  mayfly operator unseal --reset                   # forget the shares given so far`,
		Flags: []cli.Flag{shareFlag(), &cli.BoolFlag{Name: "reset", Usage: "forget the shares given so far"}},
		Action: func(c *cli.Context) error {
			if c.Args().Len() > 0 {
				s.warnArgv("a share", "it was not used; the command asks for it, or reads --share-file")
				return usage("unseal takes no arguments")
			}
			return s.with(0, 0, s.unseal)(c)
		},
	}
}

func (s *shell) unseal(c *cli.Context, cl *client.Client, _ []string) error {
	in := []wire.UnsealRequest{{Reset: true}}
	if !c.Bool("reset") {
		shares, err := s.shares(c.String("share-file"), 1)
		if err != nil {
			return err
		}
		in = nil
		for _, share := range shares {
			in = append(in, wire.UnsealRequest{Share: share})
		}
	}
	out := []nodeStatus{}
	for _, node := range cl.Nodes() {
		st, err := cl.Status(c.Context, node)
		for _, step := range in {
			if err != nil || !st.Sealed {
				break
			}
			st, err = cl.Unseal(c.Context, node, step)
		}
		out = append(out, newNodeStatus(node, st, err))
	}
	return s.showStatus(out)
}

// nodeStatus is one node's state, or why it could not be had.
type nodeStatus struct {
	Address string `json:"address"`
	wire.Status
	Problem *wire.Problem `json:"problem,omitempty"`
	err     error
}

func newNodeStatus(address string, st wire.Status, err error) nodeStatus {
	n := nodeStatus{Address: address, Status: st, err: err}
	if err != nil {
		p, _, _ := problemOf(err)
		n.Problem = &p
	}
	return n
}

// showStatus prints the nodes' states and fails with the first error.
func (s *shell) showStatus(list []nodeStatus) error {
	err := s.show(list, func(p *page) {
		var rows [][]cell
		for _, n := range list {
			if n.err != nil {
				rows = append(rows, []cell{plain(n.Address), plain(""), {"problem", red}, plain(brief(n.err))})
				continue
			}
			role, ink := n.Role, green
			detail := "ledger " + strconv.FormatUint(n.Size, 10) + ", barrier key " + strconv.FormatUint(uint64(n.Barrier), 10)
			switch {
			case !n.Initialised:
				role, ink, detail = "uninitialised", yellow, "mayfly operator init"
			case n.Sealed:
				role, ink, detail = "sealed", yellow, fmt.Sprintf("%d of %d shares given", n.Have, n.Threshold)
			case !n.Fresh:
				ink, detail = yellow, detail+", not in contact with a quorum"
			}
			rows = append(rows, []cell{plain(n.Address), plain(n.Node), {role, ink}, plain(detail + ", version " + or(n.Version, "?"))})
		}
		p.table("no nodes", []string{"ADDRESS", "NODE", "STATE", "DETAIL"}, rows)
	})
	if err != nil {
		return err
	}
	for _, n := range list {
		if n.err != nil {
			_, code, _ := problemOf(n.err)
			return told(code)
		}
	}
	return nil
}

func statusCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "the state of each node of MAYFLY_ADDR",
		Description: `Needs no session. -o json prints one object for one node, an array for several.

Examples:
  mayfly operator status
  mayfly operator status --retry 0 -o json`,
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			out := []nodeStatus{}
			for _, node := range cl.Nodes() {
				st, err := cl.Status(c.Context, node)
				out = append(out, newNodeStatus(node, st, err))
			}
			if len(out) == 1 && (s.output != asTable || s.field != "") {
				if out[0].err != nil {
					return out[0].err
				}
				return s.show(out[0], nil)
			}
			return s.showStatus(out)
		}),
	}
}

func sealCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "seal", Usage: "seal the nodes of MAYFLY_ADDR: they forget the root key until unsealed",
		Description: `Examples:
  mayfly operator seal --yes --reason "the machine is being moved"`,
		Flags: confirmFlags(),
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			nodes := cl.Nodes()
			if c.Bool("dry-run") {
				return s.show(map[string]any{"would_seal": nodes}, func(p *page) { p.line("would seal " + strings.Join(nodes, ", ")) })
			}
			reason, err := s.confirm(c, "seal "+strings.Join(nodes, ", ")+", which then serve nothing")
			if err != nil {
				return err
			}
			for _, node := range nodes {
				if err := cl.Seal(client.WithReason(c.Context, reason), node); err != nil {
					return err
				}
			}
			return s.show(map[string]any{"sealed": nodes}, func(p *page) { p.line("sealed " + strings.Join(nodes, ", ")) })
		}),
	}
}

func joinTokenCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "join-token", Usage: "make a one-time token by which a node joins",
		Description: `Examples:
  mayfly operator join-token
  mayfly operator join-token --field token > join.txt`,
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			a, err := cl.JoinToken(c.Context)
			if err != nil {
				return err
			}
			return s.show(a, func(p *page) {
				p.card("token", a.Token, "use until", p.both(a.ExpiresAt))
				p.line("\nOn the new node:\n  " + a.Command)
			})
		}),
	}
}

func peersCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "peers", Usage: "the cluster's nodes",
		Description: `Examples:
  mayfly operator peers`,
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			list, err := cl.Peers(c.Context)
			if err != nil {
				return err
			}
			if list == nil {
				list = []wire.Peer{}
			}
			return s.show(list, func(p *page) {
				var rows [][]cell
				for _, n := range list {
					role := map[bool]string{true: "voter", false: "learner"}[n.Voter]
					if n.Leader {
						role = "leader"
					}
					rows = append(rows, []cell{plain(n.ID), plain(n.Addr), plain(role)})
				}
				p.table("no peers", []string{"NODE", "ADDRESS", "ROLE"}, rows)
			})
		}),
	}
}

func removePeerCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "remove-peer", Usage: "remove a node from the cluster", ArgsUsage: "NODE",
		Description: `Examples:
  mayfly operator remove-peer n3 --yes --reason "its disk died"`,
		Flags: confirmFlags(),
		Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
			peers, err := cl.Peers(c.Context)
			if err != nil {
				return err
			}
			voters, found := 0, false
			for _, p := range peers {
				found = found || p.ID == args[0]
				if p.Voter && p.ID != args[0] {
					voters++
				}
			}
			if !found {
				return failed("peer_not_found", "the cluster has no node %q; see: mayfly operator peers", args[0])
			}
			what := fmt.Sprintf("remove node %s; %s would remain", clean(args[0]), count(voters, "voter"))
			if c.Bool("dry-run") {
				return s.show(map[string]any{"would_remove": args[0], "voters_left": voters}, func(p *page) { p.line("would " + what) })
			}
			reason, err := s.confirm(c, what)
			if err != nil {
				return err
			}
			if err := cl.RemovePeer(client.WithReason(c.Context, reason), args[0]); err != nil {
				return err
			}
			return s.show(map[string]any{"removed": args[0], "voters_left": voters}, func(p *page) { p.line("removed " + args[0]) })
		}),
	}
}

func stepDownCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "step-down", Usage: "have the leader hand its place to another node",
		Description: `Examples:
  mayfly operator step-down`,
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			if err := cl.StepDown(c.Context); err != nil {
				return err
			}
			return s.show(map[string]bool{"stepped_down": true}, func(p *page) { p.line("the leader has stepped down") })
		}),
	}
}

func rekeyCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "rekey", Usage: "share the root key anew",
		Description: `Takes a threshold of the present shares and prints new ones, once; the old ones
are worthless then.

Examples:
  mayfly operator rekey --shares 5 --threshold 3
  mayfly operator rekey --shares 3 --threshold 2 --share-file - < old-shares.txt`,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "shares", Usage: "how many new shares (`N`)"},
			&cli.IntFlag{Name: "threshold", Usage: "how many of them unseal (`N`)"},
			shareFlag(),
		},
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			if c.Int("shares") < 1 || c.Int("threshold") < 1 || c.Int("threshold") > c.Int("shares") {
				return usage("want --shares N and --threshold M, M at most N")
			}
			old, err := s.threshold(c, cl)
			if err != nil {
				return err
			}
			shares, err := cl.Rekey(c.Context, wire.RekeyRequest{Shares: old, Count: c.Int("shares"), Threshold: c.Int("threshold")})
			if err != nil {
				return err
			}
			return s.show(map[string]any{"shares": shares}, func(p *page) {
				for i, share := range shares {
					p.card(fmt.Sprintf("share %d", i+1), share)
				}
				p.line("\nNone of this is shown again, and the old shares open nothing now.")
			})
		}),
	}
}

// threshold reads as many shares as the cluster wants.
func (s *shell) threshold(c *cli.Context, cl *client.Client) ([]string, error) {
	st, err := cl.Status(c.Context, "")
	if err != nil {
		return nil, err
	}
	return s.shares(c.String("share-file"), max(st.Threshold, 1))
}

func recoverCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "recover", Usage: "make a new administrator's enrolment token out of a threshold of shares", ArgsUsage: "human:NAME",
		Description: `For when nobody can log in any more. It stands in the record, loudly.

Examples:
  mayfly operator recover human:ann
  mayfly operator recover human:ann --share-file - < shares.txt`,
		Flags: []cli.Flag{shareFlag()},
		Action: s.with(1, 2, func(c *cli.Context, cl *client.Client, args []string) error {
			shares, err := s.threshold(c, cl)
			if err != nil {
				return err
			}
			a, err := cl.Recover(c.Context, wire.RecoverRequest{Principal: principalName(args), Shares: shares})
			if err != nil {
				return err
			}
			return s.show(a, func(p *page) {
				p.card("principal", a.Principal, "token", a.Token, "use until", p.both(a.ExpiresAt))
				p.line("\nThere:\n  " + a.Command)
			})
		}),
	}
}
