package ledger_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// TestHazard2ReplicasJudgeAlike: hundreds of requests, signatures, mints and changes
// of what they rest on, in any order; the three replicas answer and hold the same.
func TestHazard2ReplicasJudgeAlike(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			x := newCourt(t, false)
			r := rand.New(rand.NewPCG(seed, 4))
			pick := func(from ...string) string { return from[r.IntN(len(from))] }
			var grants []string
			codes := map[string]int{}
			for n := range 250 {
				if len(grants) == 0 || r.IntN(6) == 0 {
					name := fmt.Sprintf("g%03d", n)
					who := pick(app, other, helper, bo)
					if res := x.do(who, x.ask(who, pick("db/two", "db/both", "db/priv"), name, "")); res.OK() {
						grants = append(grants, name)
					}
					continue
				}
				name := grants[max(0, len(grants)-1-r.IntN(4))]
				g := x.grant(name)
				var actor string
				var b ledger.Body
				switch r.IntN(12) {
				case 0:
					actor, b = ann, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Group", Name: "dba", AnyVersion: true,
						Spec: rawJSON(pick(dbaOfThree, `{"members":[{"name":"human:bo"},{"name":"agent:bobot"}]}`, dbaOfThree))}}}
				case 1:
					actor, b = ann, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{{Kind: "Policy", Name: pick("p", "q", "q", "q"), AnyVersion: true, Spec: rawJSON(`{"text":"x"}`)}}}
				case 2:
					actor, b = pick(bo, g.Principal), &ledger.EndGrant{GrantID: g.ID, State: pick(ledger.GrantDenied, ledger.GrantCancelled, ledger.GrantRevoked, ledger.GrantVoid)}
				case 3:
					x.now += r.Int64N(20_000)
					actor, b = "", &ledger.EndGrant{GrantID: g.ID, State: ledger.GrantExpired}
				case 4, 5, 6:
					actor, b = g.Principal, x.collect(g.Principal, name, fmt.Sprintf("n%03d", n))
				default:
					actor = pick(ann, bo, kim, eve, bobot)
					b = x.sign(actor, name)
				}
				codes[b.Type()+" "+x.do(actor, b).Code]++
			}
			if codes["open_lease ok"] == 0 || codes["approve_grant ok"] < 10 || len(codes) < 10 {
				t.Errorf("too little happens: %v", codes)
			}
		})
	}
}
