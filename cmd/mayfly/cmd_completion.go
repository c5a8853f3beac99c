package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// completionTime bounds a look at the cluster while somebody holds the tab key.
const completionTime = 800 * time.Millisecond

// The scripts ask `mayfly __complete` with the words typed so far; the answer
// is one candidate a line.
const (
	bashScript = `_mayfly() {
  local IFS=$'\n' cur="${COMP_WORDS[COMP_CWORD]}"
  # Bash splits words at colons; ours hold them.
  declare -F _get_comp_words_by_ref >/dev/null && _get_comp_words_by_ref -n : cur
  local line="${COMP_LINE:0:COMP_POINT}"
  COMPREPLY=($(mayfly __complete bash "$line" 2>/dev/null))
  declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$cur"
  [[ ${#COMPREPLY[@]} -eq 0 ]] && compopt -o default 2>/dev/null
}
complete -F _mayfly mayfly
`
	zshScript = `#compdef mayfly
_mayfly() {
  local -a found
  found=("${(@f)$(mayfly __complete zsh "${LBUFFER}" 2>/dev/null)}")
  if [[ -n "${found[*]}" ]]; then
    compadd -- "${found[@]}"
  else
    _files
  fi
}
compdef _mayfly mayfly
`
	fishScript = `function __mayfly_complete
  mayfly __complete fish (commandline -cp) 2>/dev/null
end
complete -c mayfly -a '(__mayfly_complete)'
`
)

func completionCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "completion", Category: forCluster, ArgsUsage: "bash|zsh|fish",
		Usage: "print the script that completes commands, flags and names",
		Description: `Roles, targets, tasks and their like are completed while a session is open.

Examples:
  source <(mayfly completion bash)
  mayfly completion zsh > "${fpath[1]}/_mayfly"
  mayfly completion fish > ~/.config/fish/completions/mayfly.fish`,
		Action: func(c *cli.Context) error {
			args, err := require(c, 1, 1)
			if err != nil {
				return err
			}
			script, ok := map[string]string{"bash": bashScript, "zsh": zshScript, "fish": fishScript}[args[0]]
			if !ok {
				return usage("no completion for %q; there is bash, zsh and fish", args[0])
			}
			_, err = fmt.Fprint(s.out, script)
			return err
		},
	}
}

func completeCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true, ArgsUsage: "SHELL LINE",
		Usage:       "candidates for the last word of a line",
		Description: "Examples:\n  mayfly __complete bash 'mayfly request ord'",
		Action: func(c *cli.Context) error {
			args, err := require(c, 2, 2)
			if err != nil {
				return err
			}
			for _, word := range s.candidates(c, args[1]) {
				if _, err := fmt.Fprintln(s.out, clean(word)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// candidates are what the last word of a line may become.
func (s *shell) candidates(c *cli.Context, line string) []string {
	words := strings.Fields(line)
	last := ""
	if len(words) > 0 && !strings.HasSuffix(line, " ") {
		last, words = words[len(words)-1], words[:len(words)-1]
	}
	if len(words) > 0 {
		words = words[1:] // mayfly itself
	}
	at := position(c.App, words)
	var all []string
	switch {
	case at.over:
		return nil
	case at.value != nil:
		all = s.valuesOf(c, at.value)
	case strings.HasPrefix(last, "-"):
		all = flagWords(at.flags)
	case at.command == nil || len(at.command.Subcommands) > 0:
		all = names(at.level)
	default:
		all = s.argumentsOf(c, at)
	}
	var out []string
	for _, w := range all {
		if strings.HasPrefix(w, last) {
			out = append(out, w)
		}
	}
	return out
}

// spot is where in a line the next word stands.
type spot struct {
	path    string // command and subcommand
	command *cli.Command
	level   []*cli.Command
	flags   []cli.Flag
	value   cli.Flag // the flag whose value is next
	args    []string // arguments so far
	over    bool     // behind "--": another program's business
}

func position(app *cli.App, words []string) spot {
	at := spot{level: app.Commands, flags: app.Flags}
	for i := 0; i < len(words); i++ {
		word := words[i]
		switch {
		case word == "--":
			at.over = true
			return at
		case len(word) > 1 && word[0] == '-':
			name, _, inline := strings.Cut(strings.TrimLeft(word, "-"), "=")
			f := find(at.flags, name)
			if f == nil || inline || !takesValue(f) {
				continue
			}
			if i == len(words)-1 {
				at.value = f
			}
			i++
		default:
			at.step(app, word)
		}
	}
	return at
}

func (at *spot) step(app *cli.App, word string) {
	if len(at.args) == 0 {
		for _, c := range at.level {
			if c.HasName(word) {
				at.command, at.level = c, c.Subcommands
				at.path = strings.TrimSpace(at.path + " " + c.Name)
				at.flags = append(append([]cli.Flag{}, c.Flags...), app.Flags...)
				return
			}
		}
	}
	at.args = append(at.args, word)
}

func flagWords(flags []cli.Flag) []string {
	var out []string
	for _, f := range flags {
		for _, n := range f.Names() {
			if len(n) > 1 {
				out = append(out, "--"+n)
			}
		}
	}
	return append(out, "--help")
}

// valuesOf completes a flag's value.
func (s *shell) valuesOf(c *cli.Context, f cli.Flag) []string {
	switch f.Names()[0] {
	case "output":
		return []string{asTable, asJSON, asYAML, asEnv, asCredentialProcess, asExecCredential}
	case "task", "parent":
		return s.live(c, "task")
	case "target":
		return s.live(c, "Target")
	case "principal", "for", "admin":
		return s.live(c, "Principal")
	case "zone":
		return s.live(c, "Zone")
	case "method":
		return append(s.live(c, "AuthMethod"), client.MethodKey)
	case "grant":
		return s.live(c, "Group")
	case "verdict":
		return []string{"justified", "unjustified"}
	case "on-change":
		return []string{"exit", "restart", "signal=HUP"}
	case "use":
		return []string{useSession, useApprove}
	case "tls-mode":
		return []string{"verify-full", "verify-ca", "disable"}
	default:
		return nil
	}
}

// argumentsOf completes an argument of a command.
func (s *shell) argumentsOf(c *cli.Context, at spot) []string {
	n := len(at.args)
	if (at.path == "get" || at.path == "delete") && n == 1 {
		if kind, err := kindOf(at.args[0]); err == nil {
			return s.live(c, kind)
		}
	}
	if n > 0 {
		return nil
	}
	switch at.path {
	case "request", "exec":
		return s.live(c, "Role")
	case "get", "delete":
		return lower(kinds)
	case "target check", "reconcile":
		return s.live(c, "Target")
	case "target add":
		return []string{"postgres", "mysql", "kubernetes", "jwt", "x509"}
	case "task end", "task show", "task heartbeat":
		return s.live(c, "task")
	case "lease show", "lease renew", "lease revoke":
		return s.live(c, "lease")
	case "grant show", "grant revoke":
		return s.live(c, "grant")
	case "grant approve", "grant deny":
		return s.live(c, "grant pending")
	case "grant collect", "grant cancel":
		return s.live(c, "grant mine")
	case "grant review":
		return s.live(c, "grant overdue")
	case "principal enroll":
		return s.live(c, "Principal")
	case "contain", "release":
		return append(prefixed("target/", s.live(c, "Target")), s.live(c, "Principal")...)
	case "completion":
		return []string{"bash", "zsh", "fish"}
	case "api":
		return []string{"GET", "POST", "DELETE"}
	default:
		return nil
	}
}

func lower(in []string) []string {
	var out []string
	for _, w := range in {
		out = append(out, strings.ToLower(w))
	}
	return out
}

func prefixed(prefix string, in []string) []string {
	var out []string
	for _, w := range in {
		out = append(out, prefix+w)
	}
	return out
}

// live asks the cluster for names, if a session is open: completing a word is
// no reason to log in. Whatever goes wrong, there are just no names.
func (s *shell) live(c *cli.Context, what string) []string {
	cfg, err := s.config(c)
	if err != nil {
		return nil
	}
	cfg.Retry, cfg.OnRetry = 0, nil
	cl, err := client.New(cfg)
	if err != nil {
		return nil
	}
	defer cl.Close()
	if _, ok := cl.Session(); !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.Context, completionTime)
	defer cancel()
	var out []string
	switch what {
	case "task":
		list, _ := cl.Tasks(ctx, client.Filter{State: "open", Limit: 100})
		for _, t := range list {
			if t.Name != "" {
				out = append(out, t.Name)
			}
		}
	case "lease":
		list, _ := cl.Leases(ctx, client.Filter{State: "open", Limit: 100})
		for _, l := range list {
			out = append(out, l.ID)
		}
	case "grant", "grant pending", "grant mine", "grant overdue":
		list, _ := cl.Grants(ctx, client.GrantFilter{Limit: 100, Pending: what == "grant pending", Mine: what == "grant mine", Overdue: what == "grant overdue"})
		for _, g := range list {
			collectable := g.State == wire.GrantWaiting || g.State == wire.GrantApproved
			if what == "grant" || what == "grant overdue" || what == "grant mine" && collectable || what == "grant pending" && g.State == wire.GrantWaiting {
				out = append(out, g.ID)
			}
		}
	default:
		list, _ := cl.Objects(ctx, what)
		for _, o := range list {
			out = append(out, o.Name)
		}
	}
	return out
}
