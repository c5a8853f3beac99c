package servertest

import (
	"fmt"
	"os/exec"
)

// Find returns the first of the programs that is installed, by name or by path;
// names are looked for where an administrator's shell would, too. packages are
// those of Debian that have it.
func Find(packages string, programs ...string) (string, error) {
	for _, program := range programs {
		for _, where := range []string{program, "/usr/sbin/" + program, "/usr/local/sbin/" + program} {
			if path, err := exec.LookPath(where); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("no %s is installed: make setup, or apt-get update && apt-get install -y --no-install-recommends %s", programs[0], packages)
}
