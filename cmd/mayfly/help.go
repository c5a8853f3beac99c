package main

import (
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v2"
)

// The help pages. The flags that every command has are named once, briefly.
const appHelp = `mayfly: {{.Usage}}

Usage:
  mayfly COMMAND …
{{range .VisibleCategories}}{{if .Name}}
{{.Name}}:{{range .VisibleCommands}}
  {{join .Names ", "}}{{"\t"}}{{.Usage}}{{end}}
{{end}}{{end}}
Flags of every command:{{range .VisibleFlags}}
  {{.}}{{end}}

Each flag has a twin in the environment (--cacert is MAYFLY_CACERT), except
those that confirm. mayfly COMMAND --help has examples.
`

const groupHelp = `mayfly {{.Name}}: {{.Usage}}

Usage:
  {{.HelpName}} SUBCOMMAND …

Subcommands:{{range .VisibleCommands}}
  {{join .Names ", "}}{{"\t"}}{{.Usage}}{{end}}
{{if .Description}}
{{.Description}}
{{end}}`

const commandHelp = `{{.HelpName}}: {{.Usage}}

Usage:
  {{.HelpName}}{{if .VisibleFlags}} [flags]{{end}}{{if .ArgsUsage}} {{.ArgsUsage}}{{end}}
{{if .VisibleFlags}}
Flags:{{range .VisibleFlags}}
  {{.}}{{end}}
{{end}}
Also -o table|json|yaml, --field PATH, --retry D and the other flags of mayfly --help.

{{.Description}}
`

// buildVersion is set by the linker: see the Makefile.
var buildVersion string

// version is what the build recorded of its origin.
func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}

// In a flag's usage, `X` names its value: "how long (`D`)", "(`D`; default 1h)".
var (
	valueName  = regexp.MustCompile("`([^`]+)`")
	valueAside = regexp.MustCompile(" \\(`[^`]+`\\)|`[^`]+`; ")
)

// flagLine is a flag on a help page: its names and value, and what it is for.
func flagLine(f cli.Flag) string {
	doc, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return f.String()
	}
	var names []string
	for _, n := range f.Names() {
		names = append(names, map[bool]string{true: "-", false: "--"}[len(n) == 1]+n)
	}
	head, text := strings.Join(names, ", "), doc.GetUsage()
	if m := valueName.FindStringSubmatch(text); m != nil {
		head += " " + m[1]
	}
	text = strings.ReplaceAll(valueAside.ReplaceAllString(text, ""), "`", "")
	if v := strings.Trim(doc.GetDefaultText(), `"`); doc.TakesValue() && v != "" && v != "0" && v != "0s" {
		text += fmt.Sprintf(" (default %s)", v)
	}
	return head + "\t" + text
}
