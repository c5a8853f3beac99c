package issuertest_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers/issuertest"
)

// faultVariable names the fault in the child process that TestBrokenKindFails starts.
const faultVariable = "ISSUERTEST_FAULT"

func TestSoundKindPasses(t *testing.T) {
	issuertest.Run(t, harness(os.Getenv(faultVariable)))
}

// TestBrokenKindFails shows that the suite can fail: each way of breaking a
// promise is noticed by the case that is named for it.
func TestBrokenKindFails(t *testing.T) {
	for fault, noticedBy := range map[string]string{
		"lax spec":                    "Spec",
		"truncated names":             "Names",
		"mints any scope":             "RefusedScopeMintsNothing",
		"acts after the deadline":     "Hazard8DeadlineInThePast",
		"lower generation wins":       "Hazard9LowerGenerationIsSuperseded",
		"secret in public":            "CredentialFields",
		"secret in log":               "MintUseWithdraw",
		"outcomes out of order":       "OutcomesInOrder",
		"gone is an error":            "WithdrawNeverMinted",
		"sessions survive":            "Law2SessionsEnd",
		"withdraws nothing":           "MintUseWithdraw",
		"no proof":                    "Hazard18ReceiptsSayHow",
		"open after close":            "Closed",
		"extend revives":              "ExtendNeverRevives",
		"list forgets the generation": "ListerShowsTheLive",

		"replace does nothing":             "RotateReplaces",
		"replace leaves a second secret":   "RotateReplaces",
		"replace ends sessions":            "RotateReplaces",
		"replace quotes the secret":        "RotateReplaces",
		"any secret is taken":              "RotateReplaces",
		"replace makes accounts":           "RotateNeverMakes",
		"replaces a lease's secret":        "Hazard16RotateLeavesLeasesAlone",
		"replaces after the deadline":      "Hazard8LateRotation",
		"replace says done when cancelled": "RotateCrash",
		"hang is refused":                  "RotateHang",
		"admin is never asked":             "RotateAdmin",
		"a second key is published":        "KeysTurn",
		"a new key signs at once":          "KeysTurn",
		"use forgets the old key":          "KeysTurn",
		"retire forgets nothing":           "KeysTurn",
		"an old key is forgotten early":    "KeyTimes",
		"a turn quotes the keys":           "KeysGarbage",
	} {
		t.Run(fault, func(t *testing.T) {
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSoundKindPasses$/^"+noticedBy+"$")
			child.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := child.CombinedOutput()
			if err == nil {
				t.Fatal("the suite passes a kind that breaks its promise")
			}
			if !strings.Contains(string(out), "--- FAIL: TestSoundKindPasses/"+noticedBy+" ") {
				t.Errorf("the case %s did not notice:\n%s", noticedBy, out)
			}
		})
	}
}
