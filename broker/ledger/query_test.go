package ledger_test

import (
	"slices"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

func TestLeasesBetweenAreOnePrincipals(t *testing.T) {
	b := newBook(t)
	actors := []string{app, other, app, app}
	for i, name := range []string{"a1", "a2", "a3", "a4"} {
		b.ok(actors[i], b.open(actors[i], "db/rw", name, ""))
	}
	at := func(name string) string { return id(ledger.PrefixLease, name) }
	walk := func(from, to string, most int) (found []string, looked int, whole bool) {
		whole = b.q().LeasesBetween(app, from, to, func() bool { looked++; return looked <= most },
			func(l ledger.Lease) { found = append(found, l.ID) })
		return found, looked, whole
	}
	for name, c := range map[string]struct {
		from, to string
		most     int
		want     []string
		looked   int
		whole    bool
	}{
		"all":             {"", "m", 9, []string{at("a1"), at("a3"), at("a4")}, 4, true},
		"from one to one": {at("a1"), at("a4"), 9, []string{at("a1"), at("a3")}, 3, true},
		"cut short":       {"", "m", 2, []string{at("a1")}, 3, false},
		"nothing":         {at("a4"), at("a1"), 9, nil, 0, true},
	} {
		found, looked, whole := walk(c.from, c.to, c.most)
		slices.Sort(c.want)
		if !slices.Equal(found, c.want) || looked != c.looked || whole != c.whole {
			t.Errorf("%s: %v, looked at %d, whole %v", name, found, looked, whole)
		}
	}
}

func TestUnexpiredLeasesOfOneTarget(t *testing.T) {
	b := newBook(t)
	for _, name := range []string{"a1", "a2", "a3", "a4"} {
		b.ok(app, b.open(app, "db/rw", name, ""))
	}
	at := func(name string) string { return id(ledger.PrefixLease, name) }
	b.ok(app, &ledger.EndLeases{IDs: []string{at("a1"), at("a2"), at("a4")}, Reason: ledger.EndRevoked})
	b.ok(app, &ledger.ForceEnd{IDs: []string{at("a2")}, Reason: "gone for good"})
	a1, _ := b.q().Lease(at("a1"))
	for name, c := range map[string]struct {
		target, after string
		ms            int64
		want          []string
	}{
		"open, ending and ended": {"db", "", a1.ExpiresMS - 1, []string{at("a1"), at("a2"), at("a3"), at("a4")}},
		"time is up":             {"db", "", a1.ExpiresMS, []string{at("a3")}},
		"after one":              {"db", at("a1"), 0, []string{at("a2"), at("a3"), at("a4")}},
		"another target":         {"d", "", 0, nil},
		"its whole name":         {`d"b`, "", 0, nil},
	} {
		var found []string
		b.q().Unexpired(c.target, c.after, c.ms, func(id string) { found = append(found, id) })
		slices.Sort(c.want)
		if !slices.Equal(found, c.want) {
			t.Errorf("%s: %v, want %v", name, found, c.want)
		}
	}
}

func TestDecisionOfAnEntry(t *testing.T) {
	b := newBook(t)
	h := b.header(app)
	h.DecisionID, h.Decision = id(ledger.PrefixDecision, "d1"), []byte(`{"decision":{},"request":{}}`)
	body := &ledger.RecordDecision{Action: "request", Resource: "Role/db/rw", Code: "denied"}
	if res := b.apply(h, body); !res.OK() {
		t.Fatal(res.Detail)
	}
	b.ok(app, b.open(app, "db/rw", "a1", ""))
	decided, _ := b.q().Entry(1)
	if got, raw, ok := decided.Decision(); !ok || got != h.DecisionID || string(raw) != string(h.Decision) || decided.Type() != body.Type() {
		t.Errorf("%q %s %v", got, raw, ok)
	}
	for _, x := range []ledger.Entry{{}, {Public: []byte("{\n{}\n{}")}, {Public: []byte("{}\n{}")}} {
		if got, raw, ok := x.Decision(); ok {
			t.Errorf("%s has the decision %q %s", x.Public, got, raw)
		}
	}
	if undecided, _ := b.q().Entry(2); undecided.Type() != "open_lease" {
		t.Error(undecided.Type())
	} else if _, _, ok := undecided.Decision(); ok {
		t.Error("a command that nothing was decided about has a decision")
	}
}
