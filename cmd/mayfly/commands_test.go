package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

var update = flag.Bool("update", false, "write the golden files anew")

func testShell(env map[string]string) *shell {
	return &shell{in: strings.NewReader(""), out: &strings.Builder{}, err: &strings.Builder{}, releaseSignals: func() {},
		lookup: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
}

// each visits every command that does something, with its path.
func each(list []*cli.Command, path string, visit func(path string, c *cli.Command)) {
	for _, c := range list {
		p := strings.TrimSpace(path + " " + c.Name)
		if len(c.Subcommands) > 0 {
			each(c.Subcommands, p, visit)
			continue
		}
		visit(p, c)
	}
}

// TestHelp keeps the list of commands, arguments and flags as people see it.
func TestHelp(t *testing.T) {
	app := testShell(nil).app()
	var b strings.Builder
	each(app.Commands, "", func(path string, c *cli.Command) {
		fmt.Fprintf(&b, "mayfly %s %s\n    %s\n", path, c.ArgsUsage, c.Usage)
		for _, f := range c.Flags {
			fmt.Fprintf(&b, "    %s\n", strings.ReplaceAll(flagLine(f), "\t", "  "))
		}
	})
	const golden = "testdata/help.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the commands have changed; if they should, run: go test ./cmd/mayfly -run TestHelp -update\n%s", b.String())
	}
}

// TestEveryCommandHasExamples also reads each example as the command line
// would: its flags exist.
func TestEveryCommandHasExamples(t *testing.T) {
	app := testShell(nil).app()
	each(app.Commands, "", func(path string, c *cli.Command) {
		_, examples, ok := strings.Cut(c.Description, "Examples:\n")
		if !ok || !strings.Contains(examples, "mayfly "+path) {
			t.Errorf("mayfly %s --help shows no example of it", path)
		}
		for _, line := range strings.Split(strings.ReplaceAll(examples, "\\\n", " "), "\n") {
			line, _, _ = strings.Cut(line, " # ")
			at := strings.Index(line, "mayfly "+path)
			if at < 0 {
				continue
			}
			words := strings.Fields(line[at:])
			if end := slices.IndexFunc(words, func(w string) bool { return w == "|" || w == ">" || w == "<" || w == "&&" }); end > 0 {
				words = words[:end]
			}
			if _, err := arrange(app, words); err != nil {
				t.Errorf("the example %q: %v", strings.TrimSpace(line), err)
			}
		}
	})
}

// TestTwins: a MAYFLY_ variable for every flag, except for those that confirm.
func TestTwins(t *testing.T) {
	app := testShell(nil).app()
	check := func(path string, f cli.Flag) {
		name := f.Names()[0]
		env := f.(interface{ GetEnvVars() []string }).GetEnvVars()
		want := []string{"MAYFLY_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))}
		if slices.Contains([]string{"yes", "force", "reason", "emergency", "hash", "help", "version"}, name) {
			want = nil
		}
		if path == "dev" && name == "home" { // never inside production's identity
			want = nil
		}
		if !slices.Equal(env, want) {
			t.Errorf("mayfly %s --%s reads %v, want %v", path, name, env, want)
		}
	}
	for _, f := range app.Flags {
		check("", f)
	}
	each(app.Commands, "", func(path string, c *cli.Command) {
		for _, f := range c.Flags {
			check(path, f)
		}
	})
}

func TestContractsCommandsAreThere(t *testing.T) {
	var have []string
	each(testShell(nil).app().Commands, "", func(path string, _ *cli.Command) { have = append(have, path) })
	for _, want := range []string{"login", "logout", "whoami", "key list", "key add", "key remove", "principal enroll", "target add", "target check",
		"task start", "task heartbeat", "task end", "task show", "task list", "request", "exec", "grant list", "grant show", "grant collect", "grant approve", "grant deny", "grant cancel", "grant revoke", "grant review",
		"lease list", "lease show", "lease renew", "lease revoke", "whohas", "reconcile", "apply", "diff", "get", "delete", "policy test", "policy explain", "policy replay",
		"audit tail", "audit show", "audit export", "audit verify", "contain", "release", "operator init", "operator unseal", "operator seal", "operator status",
		"operator diagnose", "operator join-token", "operator peers", "operator remove-peer", "operator step-down", "operator rekey", "operator recover", "api", "completion"} {
		if !slices.Contains(have, want) {
			t.Errorf("mayfly %s is missing", want)
		}
	}
}

func TestFlagsMayStandAnywhere(t *testing.T) {
	app := testShell(nil).app()
	for in, want := range map[string]string{
		"mayfly request orders/x --ttl 5m":                     "mayfly request --ttl 5m -- orders/x",
		"mayfly request --ttl=5m orders/x -o json":             "mayfly -o json request --ttl=5m -- orders/x",
		"mayfly task start a --purpose p --lapse 1m":           "mayfly task start --purpose p --lapse 1m -- a",
		"mayfly --retry 1s lease list":                         "mayfly --retry 1s lease list",
		"mayfly exec r --ttl 1m -- env --ttl 2m":               "mayfly exec --ttl 1m -- r -- env --ttl 2m",
		"mayfly exec r -- mayfly -o json whoami":               "mayfly exec -- r -- mayfly -o json whoami",
		"mayfly get role get":                                  "mayfly get -- role get",
		"mayfly apply -f - --dry-run":                          "mayfly apply -f - --dry-run",
		"mayfly lease show -- --odd":                           "mayfly lease show -- --odd",
		"mayfly lease revoke --force l --reason --yes":         "mayfly lease revoke --force --reason --yes -- l",
		"mayfly dev --home x":                                  "mayfly dev --home x",
		"mayfly --home y whoami":                               "mayfly --home y whoami",
		"mayfly operator init --admin human:a --admin human:b": "mayfly operator init --admin human:a --admin human:b",
		"mayfly audit tail -n 5 --follow":                      "mayfly audit tail -n 5 --follow",
		"mayfly api POST tasks -d {}":                          "mayfly api -d {} -- POST tasks",
		"mayfly whoami --help":                                 "mayfly whoami --help",
	} {
		got, err := arrange(app, strings.Fields(in))
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s:\n got %s (%v)\nwant %s", in, strings.Join(got, " "), err, want)
		}
	}
}

func TestArgumentsOfBothForms(t *testing.T) {
	for in, want := range map[string]string{
		"role orders/x": "Role orders/x", "Role/orders/x": "Role orders/x", "principals": "Principal ", "Principal/agent:a/b": "Principal agent:a/b", "policies": "Policy ",
	} {
		kind, name, err := kindName(strings.Fields(in))
		if err != nil || kind+" "+name != want {
			t.Errorf("%s: %s %s, %v", in, kind, name, err)
		}
	}
	for in, want := range map[string]string{
		"agent:a": "agent:a", "Principal agent:a": "agent:a", "target/orders": "target/orders", "Target orders": "target/orders", "zone/eu": "zone/eu", "workload:a/b": "workload:a/b",
	} {
		if got, err := whom(strings.Fields(in)); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"orders", "role/orders/x", "nonsense x"} {
		if got, err := whom(strings.Fields(in)); err == nil {
			t.Errorf("%s: %s", in, got)
		}
	}
}
