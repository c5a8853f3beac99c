package broker

import (
	"fmt"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// TestScheduleMeetsClockChanges: an hour that does not exist, or exists twice, has
// its turns all the same, and no schedule "never comes" because of one.
func TestScheduleMeetsClockChanges(t *testing.T) {
	for _, x := range []struct{ cron, zone, after, want string }{
		{"30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:30:00Z"}, // 02:30 does not exist
		{"30 2 * * *", "Europe/Berlin", "2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"},
		{"30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T01:30:00Z"}, // 02:30 comes twice
		{"30 2 * * *", "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"}, // and counts once
		{"0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00Z", "2018-11-04T02:00:00Z"},
		{"59 23 31 12 *", "America/Asuncion", "2023-09-30T22:01:00-04:00", "2024-01-01T02:59:00Z"}, // no midnight in between
		{"0 0 1 * *", "Pacific/Apia", "2011-12-29T12:00:00Z", "2011-12-31T10:00:00Z"},              // a whole day does not exist
		{"0 0 29 2 *", "", "2096-03-01T00:00:00Z", "2104-02-29T00:00:00Z"},                         // 2100 is no leap year
		{"*/7 * * * *", "Asia/Kathmandu", "2026-03-23T12:56:00Z", "2026-03-23T12:57:00Z"},          // 18:42: three quarters of an hour off
	} {
		after, err := time.Parse(time.RFC3339, x.after)
		if err != nil {
			t.Fatal(err)
		}
		got, err := nextDue(&ledger.Schedule{Cron: x.cron, TimeZone: x.zone}, "Account/x", after)
		if err != nil || got.UTC().Format(time.RFC3339) != x.want {
			t.Errorf("%s in %q after %s: %s %v; want %s", x.cron, x.zone, x.after, got.UTC().Format(time.RFC3339), err, x.want)
		}
	}
}

// TestJitterIsEvenAndEverybodysOwn: a hundred accounts of one schedule do not turn at
// once, each turns at every tick, no earlier than it and within the jitter, and
// whoever reckons, and whenever, comes to the same instant.
func TestJitterIsEvenAndEverybodysOwn(t *testing.T) {
	const jitter, accounts = 30 * time.Minute, 300
	every := &ledger.Schedule{Cron: "0 3 * * *", TimeZone: "Europe/Berlin", Jitter: ledger.Duration(jitter)}
	day := func(n int) time.Time { return time.Date(2026, 6, n, 1, 0, 0, 0, time.UTC) } // three o'clock in Berlin
	due := func(subject string, after time.Time) time.Time {
		t.Helper()
		at, err := nextDue(every, subject, after)
		if err != nil {
			t.Fatal(err)
		}
		return at.UTC()
	}
	quarters, moved := map[int]int{}, 0
	for i := range accounts {
		subject := fmt.Sprintf("Account/a%d", i)
		first := due(subject, day(1).Add(-time.Second))
		share := first.Sub(day(1))
		if share < 0 || share >= jitter {
			t.Fatalf("%s turns %s after three o'clock", subject, share)
		}
		quarters[int(4*share/jitter)]++
		// a leader that comes later, even after the tick itself, waits for the same instant
		for _, later := range []time.Duration{0, share / 2, share - time.Nanosecond} {
			if share > 0 && !due(subject, day(1).Add(later)).Equal(first) {
				t.Errorf("%s: %s after three o'clock it is to turn at %s, before at %s", subject, later, due(subject, day(1).Add(later)), first)
			}
		}
		next := due(subject, first)
		if next.Before(day(2)) || !next.Before(day(2).Add(jitter)) {
			t.Errorf("%s turns at %s, and then at %s", subject, first, next)
		}
		if next.Sub(day(2)) != share {
			moved++
		}
	}
	for q := range 4 {
		if n := quarters[q]; n < accounts/8 || n > accounts/2 {
			t.Errorf("%d of %d turn in quarter %d of the jitter", n, accounts, q+1)
		}
	}
	if moved < accounts/2 {
		t.Errorf("%d of %d turn at another minute the next day", moved, accounts)
	}
}
