package broker

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/adhocore/gronx"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// checkCron refuses a schedule that this build cannot reckon.
func checkCron(s *ledger.Schedule) error {
	if s == nil {
		return nil
	}
	if _, err := nextDue(s, "", time.Now()); err != nil {
		return err
	}
	return nil
}

// nextDue is the first instant of a schedule after another, with the subject's own
// share of the jitter; zero where there is no schedule. The share is the same
// whoever reckons, so that a new leader waits for what the old one announced.
func nextDue(s *ledger.Schedule, subject string, after time.Time) (time.Time, error) {
	if s == nil {
		return time.Time{}, nil
	}
	zone := time.UTC
	if s.TimeZone != "" {
		var err error
		// "Local" would be each node's own.
		if zone, err = time.LoadLocation(s.TimeZone); err != nil || s.TimeZone == "Local" {
			return time.Time{}, fmt.Errorf("rotation.time_zone %q is not known here; write an IANA name like Europe/Berlin", s.TimeZone)
		}
	}
	if len(strings.Fields(s.Cron)) != 5 || !gronx.IsValid(s.Cron) {
		return time.Time{}, fmt.Errorf("rotation.cron %q is no schedule; write five fields (minute, hour, day of month, month, day of week) like \"0 3 * * 0\"", s.Cron)
	}
	jitter := time.Duration(s.Jitter)
	// A turn of this schedule that the jitter has put after `after` is still to come.
	from := onTheWall(after.Add(-jitter).In(zone), time.UTC)
	for {
		// What the clock on the wall shows is reckoned without its changes: an hour
		// that is left out would have turns left out, and whole schedules end there.
		wall, err := gronx.NextTickAfter(s.Cron, from, false)
		if err != nil {
			return time.Time{}, fmt.Errorf("rotation.cron %q never comes", s.Cron)
		}
		tick := onTheWall(wall, zone)
		if due := tick.Add(share(subject, tick, jitter)); due.After(after) {
			return due, nil
		}
		from = wall
	}
}

// onTheWall is when a clock in zone shows what t shows: once, where it does so twice,
// and as much earlier or later, where that is left out.
func onTheWall(t time.Time, zone *time.Location) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, zone)
}

// share is a subject's part of a jitter at one tick, evenly spread.
func share(subject string, tick time.Time, jitter time.Duration) time.Duration {
	if jitter <= 0 {
		return 0
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", subject, tick.Unix()))
	return time.Duration(binary.BigEndian.Uint64(sum[:8]) % uint64(jitter)).Truncate(time.Second)
}
