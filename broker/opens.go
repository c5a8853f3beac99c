package broker

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

// opens says what a grant on an account lets its requester into: the scope names
// the account alone, and who approves may not read the objects. nil where the grant
// is on none.
func opens(q ledger.Query, role, target string, granted scope.Scope) *wire.Opens {
	if !slices.ContainsFunc(granted, func(d scope.Detail) bool { return d.Type == "account" }) {
		return nil // most are none, and lists of grants are long
	}
	var r ledger.RoleSpec
	var a ledger.AccountSpec
	if _, ok := q.Spec(ledger.KindRole, role, &r); !ok || r.Account == "" || scope.Covers(ledger.AccountScope(r.Account), granted) != nil {
		return nil
	}
	if _, ok := q.Spec(ledger.KindAccount, r.Account, &a); !ok || a.Target != target {
		return nil
	}
	return &wire.Opens{
		Account: r.Account, Usernames: a.Usernames, Target: target, System: systemOf(q, target),
		OneHolder: a.RotateAfterUse, Secret: custodyText(a),
	}
}

// systemOf is a target's type, and its address where it has one.
func systemOf(q ledger.Query, target string) string {
	o, _ := q.Object(ledger.KindTarget, target)
	spec, rest, err := ledger.SplitTarget(o.Spec)
	if err != nil {
		return "unknown"
	}
	var place struct {
		Address   string   `json:"address"`
		Addresses []string `json:"addresses"`
	}
	if json.Unmarshal(rest, &place) != nil { // the kind's own part: it may mean something else there
		return spec.Type
	}
	if place.Address != "" {
		place.Addresses = []string{place.Address}
	}
	if len(place.Addresses) == 0 {
		return spec.Type
	}
	return spec.Type + " at " + strings.Join(place.Addresses, ", ")
}

// custodyText says who else has an account's secret, and until when it works.
func custodyText(a ledger.AccountSpec) string {
	if a.RotateAfterUse {
		return "One holder at a time has its secret, which is replaced when the lease has ended."
	}
	until := "the next rotation"
	if len(a.Usernames) == ledger.MaxSlots {
		until = time.Duration(a.Grace).String() + " after " + until
	}
	text := "Its secret is shared: all who are given the account get the same one, and it works until " + until + ", longer than the leases"
	if a.Rotation == nil {
		text += "; none is scheduled"
	}
	return text + "."
}
