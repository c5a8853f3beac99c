package main

import (
	"sort"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func loginCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "login", Category: forWorkloads,
		Usage: "open a session, or enrol this machine's key",
		Description: `Every command logs in by itself when it must; this shows how it goes, or opens
a fresh session. The order is MAYFLY_METHOD, MAYFLY_JWT_FILE, the CI provider,
a projected token, a SPIFFE socket, the home's key: the first that is there
counts, and when it is refused nothing else is tried.

Examples:
  mayfly login
  mayfly login --enroll-token-file token.txt      # once, with what an administrator gave you
  mayfly principal enroll human:ann --field token | ssh laptop mayfly login --enroll-token-file -
  mayfly login --method github`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "enroll-token-file", Usage: "a one-time enrolment token; - reads it from stdin (`F|-`)"},
		},
		Action: func(c *cli.Context) error {
			if err := s.formats(); err != nil {
				return err
			}
			if args, err := require(c, 0, 0); err != nil {
				if len(c.Args().Slice()) == 1 && strings.HasPrefix(c.Args().First(), "mfe_") {
					return usage("an enrolment token does not belong on the command line; write it to a file and give --enroll-token-file FILE")
				}
				_ = args
				return err
			}
			answer, err := s.login(c)
			if err != nil {
				return err
			}
			return s.show(sessionView(answer), func(p *page) {
				p.printf("%s as %s, by %s, until %s\n", p.paint(green, "logged in"), clean(answer.Principal), clean(or(answer.Method, "its key")), p.both(answer.ExpiresAt))
			})
		},
	}
}

func (s *shell) login(c *cli.Context) (wire.LoginAnswer, error) {
	cfg, err := s.config(c)
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	if source := c.String("enroll-token-file"); source != "" {
		token, err := s.secretFrom(source, "The enrolment token", "--enroll-token-file")
		if err != nil {
			return wire.LoginAnswer{}, err
		}
		return client.Enrol(c.Context, cfg, token)
	}
	cl, err := client.New(cfg)
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	defer cl.Close()
	return cl.Login(c.Context)
}

// sessionView is a session without its token: nobody needs it on a screen.
func sessionView(a wire.LoginAnswer) map[string]any {
	return map[string]any{"principal": a.Principal, "instance": a.Instance, "method": a.Method, "session_id": a.SessionID, "token_type": a.TokenType, "expires_at": a.ExpiresAt}
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func logoutCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "logout", Category: forWorkloads,
		Usage: "end the session; the key stays",
		Description: `Examples:
  mayfly logout`,
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			if err := cl.Logout(c.Context); err != nil {
				return err
			}
			return s.show(map[string]bool{"logged_out": true}, func(p *page) { p.line("logged out") })
		}),
	}
}

func whoamiCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "whoami", Category: forWorkloads,
		Usage: "who you are here, and what proves it",
		Description: `Examples:
  mayfly whoami
  mayfly whoami --field principal`,
		Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
			me, err := cl.Whoami(c.Context)
			if err != nil {
				return err
			}
			if me.Groups == nil {
				me.Groups = []string{}
			}
			return s.show(me, func(p *page) {
				p.card(append([]string{
					"principal", me.Principal, "instance", me.Instance, "groups", strings.Join(me.Groups, ", "), "owner", me.Owner,
					"cluster", me.Cluster, "logged in by", or(me.Method, "its key"), "session", me.SessionID,
					"bound by", me.Binding + attested(me.AttestedKey), "until", p.both(me.ExpiresAt),
				}, facts(me.Facts)...)...)
			})
		}),
	}
}

func attested(yes bool) string {
	if yes {
		return ", key attested"
	}
	return ", key not attested"
}

// facts are what the attestation proved, for a card.
func facts(m map[string]string) []string {
	out := pairs(m)
	for i := 0; i < len(out); i += 2 {
		out[i] = "fact " + out[i]
	}
	return out
}

// pairs lists a map's members in order, for a card.
func pairs(m map[string]string) []string {
	var names []string
	for k := range m {
		names = append(names, k)
	}
	sort.Strings(names)
	var out []string
	for _, k := range names {
		out = append(out, clean(k), m[k])
	}
	return out
}

// with is an Action that needs a client and between least and most arguments;
// most < 0 means any number.
func (s *shell) with(least, most int, do func(*cli.Context, *client.Client, []string) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := s.formats(); err != nil {
			return err
		}
		args, err := require(c, least, most)
		if err != nil {
			return err
		}
		cl, err := s.open(c)
		if err != nil {
			return err
		}
		defer cl.Close()
		return do(c, cl, args)
	}
}
