package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/mayfly-broker/mayfly/client"
)

// Output formats that every command knows, and those of `request` alone.
const (
	asTable             = "table"
	asJSON              = "json"
	asYAML              = "yaml"
	asEnv               = "env"
	asCredentialProcess = "credential-process"
	asExecCredential    = "exec-credential"
)

// quiet is how long the first retries go on before a person is told.
const quiet = 2 * time.Second

// shell is one invocation: its streams, its environment, its global flags.
type shell struct {
	in             io.Reader
	out, err       io.Writer
	lookup         func(string) (string, bool)
	releaseSignals func()

	output string // format, [asTable] when not given
	field  string
	acted  bool // a command has begun: its errors are not about how it was called
	began  time.Time
	lines  *bufio.Reader // over in, once something was read of it
}

// run runs one command line and returns its exit code.
func (s *shell) run(ctx context.Context, argv []string) int {
	s.began = time.Now()
	app := s.app()
	args, err := arrange(app, argv)
	s.output = outputOf(args, s.lookup) // for errors before flags are read
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	if err == nil {
		return exitDone
	}
	var child childExit
	if errors.As(err, &child) {
		return child.code
	}
	code := s.fail(err)
	if len(argv) > 0 && commandOf(app, argv) == "exec" {
		code += beforeChild
	}
	return code
}

func (s *shell) app() *cli.App {
	cli.FlagStringer = flagLine // the library has no other place for it
	app := &cli.App{
		Name:      "mayfly",
		Usage:     "credentials for a task, gone when the task is",
		Version:   version(),
		Reader:    s.in,
		Writer:    s.out,
		ErrWriter: s.err,
		Flags:     globalFlags(),
		Commands:  commands(s),
		Before:    s.before,
		// Exit codes and messages are ours: see fail.
		DisableSliceFlagSeparator: true, // lists in --set have commas
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              func(_ *cli.Context, err error, _ bool) error { return usage("%s", err.Error()) },
		CustomAppHelpTemplate:     appHelp,
	}
	for _, c := range app.Commands {
		s.finish(c)
	}
	return app
}

// finish gives a command and those below it what they all share.
func (s *shell) finish(c *cli.Command) {
	c.HideHelpCommand = true
	c.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return usage("%s", err.Error()) }
	c.CustomHelpTemplate = commandHelp
	if len(c.Subcommands) > 0 {
		c.CustomHelpTemplate = groupHelp
		c.Action = func(ctx *cli.Context) error {
			if ctx.Args().Len() > 0 {
				return unknownCommand(ctx.Args().First(), c.Subcommands)
			}
			_ = cli.ShowSubcommandHelp(ctx)
			return usage("mayfly %s needs a subcommand: %s", c.Name, strings.Join(names(c.Subcommands), ", "))
		}
	}
	twins(c.Flags, plainGlobals())
	if action := c.Action; action != nil {
		c.Action = func(ctx *cli.Context) error {
			s.acted = true
			return action(ctx)
		}
	}
	for _, sub := range c.Subcommands {
		s.finish(sub)
	}
}

// before reads the global flags, in front of any command.
func (s *shell) before(c *cli.Context) error {
	s.output, s.field = or(c.String("output"), asTable), c.String("field") // a variable may be there and empty
	if !slices.Contains([]string{asTable, asJSON, asYAML, asEnv, asCredentialProcess, asExecCredential}, s.output) {
		bad := s.output
		s.output = asTable
		return usage("-o %s: want table, json or yaml", clean(bad))
	}
	if c.Args().Len() == 0 {
		_ = cli.ShowAppHelp(c)
		return usage("which command?")
	}
	if name := c.Args().First(); c.App.Command(name) == nil {
		return unknownCommand(name, c.App.Commands)
	}
	return nil
}

// formats refuses the formats that a command does not have.
func (s *shell) formats(extra ...string) error {
	if slices.Contains([]string{asTable, asJSON, asYAML}, s.output) || slices.Contains(extra, s.output) {
		return nil
	}
	return usage("-o %s: only mayfly request has it; want table, json or yaml", s.output)
}

// config reads where the cluster is from flags and environment.
func (s *shell) config(c *cli.Context) (client.Config, error) {
	cfg, err := client.FromEnvironment(s.lookup)
	if err != nil {
		return cfg, err
	}
	for flag, into := range map[string]*string{"cacert": &cfg.CAFile, "home": &cfg.Home, "method": &cfg.Method, "jwt-file": &cfg.JWTFile} {
		if c.IsSet(flag) {
			*into = c.String(flag)
		}
	}
	if c.IsSet("addr") {
		cfg.Addresses = client.SplitAddresses(c.String("addr"))
	}
	cfg.Retry = c.Duration("retry")
	if cfg.Retry < 0 {
		return cfg, usage("--retry %s: a duration cannot be negative", cfg.Retry)
	}
	cfg.OnRetry = s.retrying()
	return cfg, nil
}

// retrying returns what tells a person why nothing happens, once it has been
// so for a while, and again only when the reason changes.
func (s *shell) retrying() func(error, time.Duration) {
	told := ""
	return func(err error, _ time.Duration) {
		var e *client.Error
		if !errors.As(err, &e) || time.Since(s.began) < quiet || told == e.Problem.Code {
			return
		}
		told = e.Problem.Code
		s.notice("waiting: %s; still trying (--retry 0 fails at once)", brief(e))
	}
}

// open opens the client that a command uses.
func (s *shell) open(c *cli.Context) (*client.Client, error) {
	cfg, err := s.config(c)
	if err != nil {
		return nil, err
	}
	return client.New(cfg)
}

// interactive reports whether a person can be asked.
func (s *shell) interactive() bool {
	in, ok := s.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return false
	}
	return terminal(s.err)
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// coloured reports whether w is a terminal that wants colours.
func (s *shell) coloured(w io.Writer) bool {
	no, _ := s.lookup("NO_COLOR")
	dumb, _ := s.lookup("TERM")
	return no == "" && dumb != "dumb" && terminal(w)
}
