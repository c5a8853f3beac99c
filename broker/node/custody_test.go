package node

import (
	"testing"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// A quorum that could never be met would lock everybody out for good.
func TestHazard1InitRefusesAQuorumThatNobodyCouldFill(t *testing.T) {
	for name, c := range map[string]struct {
		in   wire.InitRequest
		code string
	}{
		"none":                     {wire.InitRequest{Admins: []string{"human:a"}}, ""},
		"one other":                {wire.InitRequest{Admins: []string{"human:a"}, Approvers: []string{"human:b"}}, ""},
		"each other":               {wire.InitRequest{Admins: []string{"human:a", "human:b"}, Approvers: []string{"human:a", "human:b"}}, ""},
		"only oneself":             {wire.InitRequest{Admins: []string{"human:a"}, Approvers: []string{"human:a"}}, "approvers_too_few"},
		"oneself and one, of two":  {wire.InitRequest{Admins: []string{"human:a"}, Approvers: []string{"human:a", "human:b"}, Approvals: 2}, "approvers_too_few"},
		"approvals without people": {wire.InitRequest{Admins: []string{"human:a"}, Approvals: 1}, "approvers_missing"},
		"a workload":               {wire.InitRequest{Admins: []string{"human:a"}, Approvers: []string{"workload:b"}}, "approvers_malformed"},
	} {
		err := checkApprovers(&c.in)
		if c.code == "" && err != nil || c.code != "" && (err == nil || fault.As(err).StableCode() != c.code) {
			t.Errorf("%s: %v, wanted %q", name, err, c.code)
		}
		if c.code == "" && len(c.in.Approvers) > 0 && c.in.Approvals != 1 {
			t.Errorf("%s: %d approvals", name, c.in.Approvals)
		}
	}
}
