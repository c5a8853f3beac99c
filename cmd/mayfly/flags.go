package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
)

// confirming are the flags without a twin in the environment: what confirms
// must be typed each time.
var confirming = []string{"yes", "force", "reason", "emergency", "hash", "help", "version"}

// globalFlags may stand anywhere on the command line.
func globalFlags() []cli.Flag {
	flags := plainGlobals()
	twins(flags, nil)
	return flags
}

func plainGlobals() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: asTable, Usage: "how to print the result: `table|json|yaml`"},
		&cli.StringFlag{Name: "field", Usage: "print only this part of the result, as in lease_id or leases[0].id (`PATH`)"},
		&cli.DurationFlag{Name: "retry", Value: client.DefaultRetry, Usage: "how long to retry on other nodes while the cluster is unavailable (`D`)"},
		&cli.StringFlag{Name: "addr", Usage: "nodes as host:port, separated by commas (`LIST`)"},
		&cli.StringFlag{Name: "cacert", Usage: "the cluster's CA in PEM (`FILE`)"},
		&cli.StringFlag{Name: "home", Usage: "keys and session live here (`DIR`; default ~/.mayfly)"},
		&cli.StringFlag{Name: "jwt-file", Usage: "an ID token to log in with (`FILE`)"},
		&cli.StringFlag{Name: "method", Usage: "the AuthMethod to log in by; key is the home's key (`NAME`)"},
	}
}

// twins gives each flag its variable: --dry-run is MAYFLY_DRY_RUN. Where a
// command has a flag of a global one's name, the variable stays the global
// one's: `dev --home` must never start inside MAYFLY_HOME.
func twins(flags, globals []cli.Flag) {
	for _, f := range flags {
		name := f.Names()[0]
		if slices.Contains(confirming, name) || find(globals, name) != nil {
			continue
		}
		env := []string{"MAYFLY_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))}
		switch f := f.(type) {
		case *cli.StringFlag:
			f.EnvVars = env
		case *cli.BoolFlag:
			f.EnvVars = env
		case *cli.DurationFlag:
			f.EnvVars = env
		case *cli.IntFlag:
			f.EnvVars = env
		case *cli.Uint64Flag:
			f.EnvVars = env
		case *cli.StringSliceFlag:
			f.EnvVars = env
		}
	}
}

// arrange puts flags in front of arguments, global ones in front of the
// command: the flag package stops at the first argument, people do not. What
// follows "--" stays as it is. Unknown flags stay where they are, to be refused
// by name.
func arrange(app *cli.App, argv []string) ([]string, error) {
	if len(argv) == 0 {
		return []string{"mayfly"}, nil
	}
	a := &arranging{app: app, level: app.Commands}
	rest := argv[1:]
	for i := 0; i < len(rest); i++ {
		word := rest[i]
		switch {
		case word == "--":
			a.tail = rest[i:]
			i = len(rest)
		case len(word) > 1 && word[0] == '-':
			takes, err := a.flag(word)
			if err != nil {
				return nil, err
			}
			if takes && i+1 < len(rest) {
				i++
				*a.into = append(*a.into, rest[i])
			}
		default:
			a.word(word)
		}
	}
	return a.result(argv[0]), nil
}

// commandOf returns the name of the command that argv calls, "" if none: the
// first word that is neither a flag nor a flag's value.
func commandOf(app *cli.App, argv []string) string {
	for i := 1; i < len(argv); i++ {
		word := argv[i]
		if len(word) < 2 || word[0] != '-' {
			return word
		}
		name, _, inline := strings.Cut(strings.TrimLeft(word, "-"), "=")
		if f := find(app.Flags, name); f != nil && !inline && takesValue(f) {
			i++
		}
	}
	return ""
}

// arranging is the state of [arrange].
type arranging struct {
	app                         *cli.App
	level                       []*cli.Command // what a next word may name
	command                     *cli.Command
	global, path, local, others []string
	tail                        []string
	into                        *[]string // where the last flag went
}

// flag files one flag and reports whether the next word is its value.
func (a *arranging) flag(word string) (takesNext bool, err error) {
	name, _, inline := strings.Cut(strings.TrimLeft(word, "-"), "=")
	if a.command != nil {
		if f := find(a.command.Flags, name); f != nil {
			a.local, a.into = append(a.local, word), &a.local
			return !inline && takesValue(f), nil
		}
	}
	if f := find(a.app.Flags, name); f != nil {
		a.global, a.into = append(a.global, word), &a.global
		return !inline && takesValue(f), nil
	}
	if slices.Contains([]string{"help", "h"}, name) {
		a.local, a.into = append(a.local, word), &a.local
		return false, nil
	}
	if slices.Contains([]string{"version", "v"}, name) && a.command == nil {
		a.global, a.into = append(a.global, word), &a.global
		return false, nil
	}
	return false, unknownFlag(word, a.path, a.command, a.app)
}

// word files a word: part of the command's name, or an argument.
func (a *arranging) word(word string) {
	if len(a.others) == 0 {
		for _, c := range a.level {
			if c.HasName(word) {
				a.command, a.level = c, c.Subcommands
				a.path = append(a.path, word)
				return
			}
		}
	}
	a.others = append(a.others, word)
}

func (a *arranging) result(program string) []string {
	out := slices.Concat([]string{program}, a.global, a.path, a.local)
	if len(a.others) == 0 && len(a.tail) == 0 {
		return out
	}
	if a.command == nil { // the first word names no command: let it be refused by name
		return append(out, a.others...)
	}
	if len(a.command.Subcommands) == 0 {
		out = append(out, "--")
	}
	out = append(out, a.others...)
	if a.command.Name == "exec" {
		return append(out, a.tail...) // it tells its own arguments from CMD's
	}
	if len(a.tail) > 1 {
		out = append(out, a.tail[1:]...)
	}
	return out
}

func find(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	_, isBool := f.(*cli.BoolFlag)
	return !isBool
}

// outputOf guesses the format of an invocation whose flags were not read yet.
func outputOf(args []string, lookup func(string) (string, bool)) string {
	for i, a := range args {
		switch {
		case a == "--":
			return asTable
		case (a == "-o" || a == "--output") && i+1 < len(args):
			return args[i+1]
		case strings.HasPrefix(a, "-o="), strings.HasPrefix(a, "--output="):
			_, v, _ := strings.Cut(a, "=")
			return v
		}
	}
	v, _ := lookup("MAYFLY_OUTPUT")
	return v
}

func names(list []*cli.Command) []string {
	var out []string
	for _, c := range list {
		if !c.Hidden {
			out = append(out, c.Name)
		}
	}
	return out
}
