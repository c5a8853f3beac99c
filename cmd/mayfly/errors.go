package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// Exit codes (CONTRACT, "Exit codes"); the others come from [client.Error].
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitWaiting = 4
	// beforeChild is added to the code of whatever kept exec's CMD from starting.
	beforeChild = 120
)

// failure is an error with an exit code of the command's own.
type failure struct {
	code   int // exit code
	kind   string
	word   string // stable code
	detail string
	next   string // what to do, "" if the detail says it
	// silent failures have been told already, on stdout or stderr.
	silent bool
	err    error
}

func (f *failure) Error() string { return f.detail }
func (f *failure) Unwrap() error { return f.err }

// usage is an error in how the command was called: exit code 2.
func usage(format string, args ...any) error {
	return &failure{code: exitUsage, kind: client.KindInvalid, word: "usage", detail: fmt.Sprintf(format, args...)}
}

// failed is an error with exit code 1.
func failed(word, format string, args ...any) error {
	return &failure{code: exitFailed, kind: client.KindInternal, word: word, detail: fmt.Sprintf(format, args...)}
}

// told ends the command with a code, everything being said.
func told(code int) error { return &failure{code: code, silent: true} }

func unknownCommand(name string, list []*cli.Command) error {
	detail := fmt.Sprintf("there is no command %q", name)
	if s := cli.SuggestCommand(list, name); s != "" { // a sentence of its own
		detail += "; " + strings.ToLower(s[:1]) + s[1:]
	}
	return usage("%s", detail)
}

// unknownFlag names the command by path, as it was typed. What sounds alike is only
// offered where it is as long a flag: every word sounds like some single letter.
func unknownFlag(word string, path []string, command *cli.Command, app *cli.App) error {
	flags := app.Flags
	where := "mayfly"
	if command != nil {
		flags = append(append([]cli.Flag{}, command.Flags...), app.Flags...)
		where = "mayfly " + strings.Join(path, " ")
	}
	name, _, _ := strings.Cut(word, "=")
	detail := fmt.Sprintf("%s has no flag %s", where, name)
	if s := cli.SuggestFlag(flags, strings.TrimLeft(name, "-"), true); s != "" && strings.HasPrefix(s, "--") == strings.HasPrefix(word, "--") {
		detail += fmt.Sprintf("; did you mean %s?", s)
	}
	return usage("%s", detail)
}

// fail tells on stderr why a command failed and returns its exit code.
func (s *shell) fail(err error) int {
	var f *failure
	if !s.acted && !errors.As(err, &f) {
		err = usage("%s", err.Error()) // a flag's or a variable's value could not be read
	}
	p, code, next := problemOf(err)
	if errors.As(err, &f) && f.silent {
		return f.code
	}
	if s.output == asJSON {
		s.problemJSON(p)
		return code
	}
	paint := s.painter(s.err)
	fmt.Fprintf(s.err, "%s %s\n", paint(red, "mayfly:"), clean(sentence(p)))
	if next != "" {
		fmt.Fprintf(s.err, "  next: %s\n", clean(next))
	}
	if p.DecisionID != "" {
		fmt.Fprintf(s.err, "  decision: %s\n  explain:  mayfly policy explain %s\n", clean(p.DecisionID), clean(p.DecisionID))
	}
	return code
}

// problemJSON writes a problem document as one line of stderr.
func (s *shell) problemJSON(p wire.Problem) {
	b, err := json.Marshal(p)
	if err != nil {
		b = []byte(`{"code":"internal"}`)
	}
	fmt.Fprintf(s.err, "%s\n", escapeJSON(b))
}

// problemOf makes any error a problem document, with its exit code and what to
// do next.
func problemOf(err error) (p wire.Problem, code int, next string) {
	var f *failure
	var e *client.Error
	var a *approve.Error
	switch {
	case errors.As(err, &a):
		return wire.Problem{Type: "about:blank", Title: "Failed", Detail: a.Error(), Code: a.Code, Kind: client.KindInternal}, exitFailed, ""
	case errors.As(err, &f):
		return wire.Problem{Type: "about:blank", Title: "Failed", Detail: f.detail, Code: f.word, Kind: f.kind}, f.code, f.next
	case errors.As(err, &e):
		p = e.Problem
		if p.Type == "" {
			p.Type = "about:blank"
		}
		if e.Err != nil && e.Problem.Status == 0 { // the client's own: its cause is not secret
			p.Detail = strings.TrimSpace(p.Detail + " (" + strings.TrimPrefix(e.Node+": ", ": ") + e.Err.Error() + ")")
		}
		return p, e.ExitCode(), nextStep(p)
	case errors.Is(err, context.Canceled):
		return wire.Problem{Type: "about:blank", Title: "Interrupted", Detail: "interrupted", Code: "interrupted"}, exitFailed, ""
	default:
		return wire.Problem{Type: "about:blank", Title: "Failed", Detail: err.Error(), Code: "failed"}, exitFailed, ""
	}
}

// sentence is a problem in a line: what happened and why.
func sentence(p wire.Problem) string {
	switch {
	case p.Detail == "":
		return p.Code + ": " + p.Title
	case p.Code == "" || p.Code == "usage" || p.Code == "failed" || p.Code == "interrupted":
		return p.Detail
	default:
		return p.Code + ": " + p.Detail
	}
}

// brief is an error in few words, for notices.
func brief(err error) string {
	p, _, _ := problemOf(err)
	return clean(sentence(p))
}

// nextStep is what a person can do about a problem, where its detail cannot
// know it.
func nextStep(p wire.Problem) string {
	switch {
	case p.RetryAfter > 0 && (p.Kind == client.KindRateLimited || p.Kind == client.KindUnavailable):
		return fmt.Sprintf("try again in %d s", p.RetryAfter)
	case p.Code == "sealed":
		return "mayfly operator unseal"
	case p.Code == "uninitialised":
		return "mayfly operator init"
	case p.Code == client.CodeUnreachable:
		return "check MAYFLY_ADDR, then: mayfly operator diagnose"
	case p.Kind == client.KindIndeterminate:
		return "repeat the command; with the same --idempotency-key where it has one"
	case p.Kind == client.KindUnauthenticated && p.Code != client.CodeNoEvidence:
		return "mayfly login, or look at how this machine logs in: mayfly operator diagnose"
	case p.Code == client.CodeGrantOver, p.Code == client.CodeGrantVoid:
		return "" // who one is was not the question
	case p.Kind == client.KindDenied && p.DecisionID == "":
		return "mayfly whoami shows who you are here"
	default:
		return ""
	}
}

// notice writes one line for a person to stderr.
func (s *shell) notice(format string, args ...any) {
	fmt.Fprintf(s.err, "mayfly: "+format+"\n", args...)
}

// require returns the arguments of a command that takes from least to most.
func require(c *cli.Context, least, most int) ([]string, error) {
	args := c.Args().Slice()
	if len(args) < least || (most >= 0 && len(args) > most) {
		return nil, usage("usage: mayfly %s", strings.TrimSpace(c.Command.HelpName[strings.Index(c.Command.HelpName, " ")+1:]+" "+c.Command.ArgsUsage))
	}
	return args, nil
}
