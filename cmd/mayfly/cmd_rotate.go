package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func rotateCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "rotate", Category: forOperators, ArgsUsage: "KIND NAME",
		Usage: "replace a secret that lives on: an account's, a target's own, the cluster's",
		Description: `An account's secret is replaced by one that the broker makes, tells the target
and proves by logging in. Where an account has two names that take turns, what
was given out before goes on working for its grace. A target's own is that of
the account the broker enters it by, or its signing keys. The cluster's are the
barrier key, which its disks are sealed by, and the nodes' certificates.

A rotation that fails is tried again by itself. What stands when is shown by
"mayfly get rotations" and "mayfly get account NAME".

Examples:
  mayfly rotate account billing
  mayfly rotate target orders
  mayfly rotate cluster barrier
  mayfly rotate account billing --now     also ends the grace of what leaked`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "now", Usage: "what was given out before stops working at once, its grace too"}},
		Action: s.with(1, 2, func(c *cli.Context, cl *client.Client, args []string) error {
			kind, name, err := kindName(args)
			if err != nil {
				return err
			}
			if name == "" {
				return usage("rotate takes one object: KIND NAME")
			}
			r, err := cl.Rotate(c.Context, wire.RotateRequest{Kind: kind, Name: name, Now: c.Bool("now")})
			if err != nil {
				return err
			}
			if err := s.show(r, func(p *page) { p.rotation(r) }); err != nil {
				return err
			}
			if r.Problem != "" {
				return told(exitFailed)
			}
			return nil
		}),
	}
}

// showRotations lists what turns when, and what last happened.
func showRotations(s *shell, c *cli.Context, cl *client.Client) error {
	list, err := cl.Rotations(c.Context)
	if err != nil {
		return err
	}
	if list == nil {
		list = []wire.Rotation{}
	}
	return s.show(list, func(p *page) {
		var rows [][]cell
		var problems []string // below: one of them would make the table as wide as itself
		for _, r := range list {
			state := plain(r.State)
			if r.Problem != "" {
				state = cell{r.State + ", failing", red}
				problems = append(problems, strings.ToLower(r.Kind)+"/"+r.Name+": "+r.Problem)
			}
			rows = append(rows, []cell{plain(strings.ToLower(r.Kind) + "/" + r.Name), plain(r.Target), state, plain(p.whenPtr(r.NextAt)), plain(p.whenPtr(r.DoneAt)), plain(r.Reason), plain(strconv.FormatUint(r.Turns, 10))})
		}
		p.table("nothing rotates; give an Account or a Target a rotation schedule", []string{"WHAT", "TARGET", "STATE", "NEXT", "LAST", "WHY", "TURNS"}, rows)
		for i, text := range problems {
			if i == 0 {
				p.line("")
			}
			p.line(clean(text))
		}
	})
}

// whenPtr is [page.when], or nothing.
func (p *page) whenPtr(t *time.Time) string {
	if t == nil {
		return ""
	}
	return p.when(*t)
}

// rotation shows where one rotation stands.
func (p *page) rotation(r wire.Rotation) {
	tries := ""
	if r.Tries > 0 {
		tries = strconv.Itoa(r.Tries)
	}
	p.card("rotation", strings.ToLower(r.Kind)+"/"+r.Name, "target", r.Target, "username", r.Username, "state", r.State, "why", r.Reason, "wanted", r.Wanted,
		"turns", strconv.FormatUint(r.Turns, 10), "begun", p.bothPtr(r.BegunAt), "last", p.bothPtr(r.DoneAt), "due", p.bothPtr(r.DueAt), "next", p.bothPtr(r.NextAt),
		"failures", tries, "problem", r.Problem)
}
