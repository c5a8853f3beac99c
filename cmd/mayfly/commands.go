package main

import "github.com/urfave/cli/v2"

// Categories under which `mayfly --help` lists the commands.
const (
	forWorkloads = "Getting access"
	forOperators = "Configuring"
	forWatchers  = "Looking into it"
	forCluster   = "Running a cluster"
)

// commands is the list of every command. One line here and its function
// elsewhere is all that a new one takes.
func commands(s *shell) []*cli.Command {
	return []*cli.Command{
		loginCommand(s),
		logoutCommand(s),
		whoamiCommand(s),
		requestCommand(s),
		execCommand(s),
		taskCommand(s),
		leaseCommand(s),
		grantCommand(s),

		targetCommand(s),
		applyCommand(s),
		diffCommand(s),
		getCommand(s),
		deleteCommand(s),
		keyCommand(s),
		principalCommand(s),
		policyCommand(s),

		whohasCommand(s),
		auditCommand(s),
		rotateCommand(s),
		reconcileCommand(s),
		containCommand(s),
		releaseCommand(s),

		devCommand(s),
		serverCommand(s),
		operatorCommand(s),
		apiCommand(s),
		completionCommand(s),
		completeCommand(s),
	}
}
