package main

import "runtime/debug"

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

// version is what the build recorded of its origin.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}
