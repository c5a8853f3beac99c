package e2e_test

import (
	"flag"
	"os"
	"testing"

	"github.com/mayfly-broker/mayfly/e2e/harness"
)

var (
	kills       = flag.Int("kills", 4, "how often TestOrphansSingleNode kills its node; one round of TestBadDayTargetOutage for each 20")
	leaderKills = flag.Int("leaderkills", 3, "how often TestOrphansThreeNodes kills the leader")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.Main(m))
}
