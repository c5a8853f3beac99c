package e2e_test

import (
	"flag"
	"os"
	"testing"

	"github.com/mayfly-broker/mayfly/e2e/harness"
)

var (
	kills       = flag.Int("kills", 4, "how often TestOrphansSingleNode kills its node; from 20 on, every kind of target takes part, and TestBadDayTargetOutage has each fault on each")
	chosen      = flag.String("kinds", "", "the kinds of targets that take part, with commas between; without it two databases and one by chance, or all")
	leaderKills = flag.Int("leaderkills", 3, "how often TestOrphansThreeNodes kills the leader")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.Main(m))
}
