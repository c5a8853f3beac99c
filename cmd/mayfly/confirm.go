package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// confirmFlags are the flags of what destroys or reaches many.
func confirmFlags(extra ...cli.Flag) []cli.Flag {
	return append(extra,
		&cli.BoolFlag{Name: "dry-run", Usage: "only say what would happen"},
		&cli.BoolFlag{Name: "yes", Usage: "go on without being asked"},
		&cli.StringFlag{Name: "reason", Usage: "why, for the record (`R`)"},
	)
}

// confirm tells what is about to happen, and returns the reason for it: from
// --reason with --yes, or asked of a person.
func (s *shell) confirm(c *cli.Context, what string) (reason string, err error) {
	reason = strings.TrimSpace(c.String("reason"))
	if c.Bool("yes") && reason != "" {
		return reason, nil
	}
	if !s.interactive() {
		return "", usage("this would %s; give --yes and --reason R to do it, --dry-run to look", what)
	}
	s.notice("this will %s", what)
	if reason == "" {
		if reason, err = s.question("Reason: "); err != nil {
			return "", err
		}
		if reason == "" {
			return "", usage("a reason is needed; nothing was done")
		}
	}
	if c.Bool("yes") {
		return reason, nil
	}
	answer, err := s.question("Type yes to go on: ")
	if err != nil {
		return "", err
	}
	if strings.ToLower(answer) != "yes" {
		return "", failed("not_confirmed", "nothing was done")
	}
	return reason, nil
}

// question asks a person and reads one line.
func (s *shell) question(prompt string) (string, error) {
	if _, err := s.err.Write([]byte(prompt)); err != nil {
		return "", err
	}
	line, err := s.readLine(1024)
	return strings.TrimSpace(line), err
}
