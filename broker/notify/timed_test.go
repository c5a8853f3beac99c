package notify_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker/notify"
)

// Half of the time that a grant has to be approved is gone: those who did not
// look are told once more. What is decided reminds nobody.
func TestReminderAtHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat")), newHooks()
		defer lead(t, notify.NewPlayed(b, notify.Options{}, h.post))()
		began := time.Now()
		b.request("waits")
		b.request("done")
		b.request("void")
		time.Sleep(10 * time.Minute)
		b.approve("done")
		b.change("void", func(v *notify.View) { v.State = "void" })
		time.Sleep(ttl)
		h.wants(t, "chat", "grant.waiting waits", "grant.waiting done", "grant.waiting void", "grant.approved done", "grant.reminder waits")
		if at := h.messages("chat")[4].when; at.Sub(began) != ttl/2 {
			t.Errorf("reminded after %v", at.Sub(began))
		}
	})
}

// A new leader reminds of what was due while nobody led, and of nothing twice.
func TestRemindersOverAChangeOfLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat")), newHooks()
		stop := lead(t, notify.NewPlayed(b, notify.Options{}, h.post))
		b.request("a")
		time.Sleep(10 * time.Minute)
		b.request("b")
		time.Sleep(25 * time.Minute) // a is reminded of
		stop()
		time.Sleep(7 * time.Minute) // b is due
		stop = lead(t, notify.NewPlayed(b, notify.Options{}, h.post))
		time.Sleep(time.Hour)
		stop()
		h.wants(t, "chat", "grant.waiting a", "grant.waiting b", "grant.reminder a", "grant.reminder b")
	})
}

// A reminder whose record was lost is told again under the same id.
func TestReminderHasOneID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat", func(s *notify.Sink) { s.Events = []string{notify.GrantReminder} })), newHooks()
		b.set(func() { b.mute = true })
		stop := lead(t, notify.NewPlayed(b, notify.Options{}, h.post))
		b.request("a")
		time.Sleep(ttl/2 + time.Second)
		stop()
		defer lead(t, notify.NewPlayed(b, notify.Options{}, h.post))()
		time.Sleep(time.Second)
		h.wants(t, "chat", "grant.reminder a", "grant.reminder a")
		if m := h.messages("chat"); m[0].ID != m[1].ID {
			t.Errorf("ids %q and %q", m[0].ID, m[1].ID)
		}
	})
}

// A review that is overdue is told of once a day until it is done, and after
// days without a leader once, not once for each.
func TestReviewOverdueDaily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat")), newHooks()
		stop := lead(t, notify.NewPlayed(b, notify.Options{}, h.post))
		began := time.Now()
		b.emergency("e", 2*time.Hour)
		time.Sleep(time.Hour)
		h.wants(t, "chat", "grant.emergency e")
		time.Sleep(72 * time.Hour) // overdue at 2, 26 and 50 hours
		h.wants(t, "chat", "grant.emergency e", "review.overdue e", "review.overdue e", "review.overdue e")
		for i, hours := range []int{2, 26, 50} {
			if at := h.messages("chat")[i+1].when.Sub(began); at != time.Duration(hours)*time.Hour {
				t.Errorf("overdue %d is told after %v", i, at)
			}
		}
		stop()
		time.Sleep(80 * time.Hour) // due at 74, 98, 122 and 146
		stop = lead(t, notify.NewPlayed(b, notify.Options{}, h.post))
		time.Sleep(time.Hour)
		if n := len(h.messages("chat")); n != 5 {
			t.Errorf("%d messages after days without a leader", n)
		}
		b.change("e", func(v *notify.View) { v.Review.Done = true })
		time.Sleep(100 * time.Hour)
		stop()
		if n := len(h.messages("chat")); n != 5 {
			t.Errorf("%d messages after the review", n)
		}
		ids := map[string]bool{}
		for _, m := range h.messages("chat") {
			if ids[m.ID] {
				t.Errorf("the id %s stands for two things", m.ID)
			}
			ids[m.ID] = true
		}
	})
}

// Who wants no reminders costs no look at what waits.
func TestNoTimersForThoseWhoWantNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat", func(s *notify.Sink) { s.Events = []string{notify.Contained} })), newHooks()
		b.request("a")
		defer lead(t, notify.NewPlayed(b, notify.Options{}, h.post))()
		time.Sleep(ttl)
		h.wants(t, "chat")
		if b.listed != 0 {
			t.Errorf("what waits was read %d times", b.listed)
		}
	})
}

// The agenda keeps the earliest, says that it left others out, and never grows.
func TestAgendaIsBounded(t *testing.T) {
	begin := time.Unix(1_000_000, 0)
	const limit = 100
	a := notify.NewAgenda(limit)
	for i := range 10 * limit {
		n := (i * 7919) % (10 * limit) // every number once, in no order
		a.Add(begin.Add(time.Duration(n)*time.Second), fmt.Sprintf("g%04d", n))
		a.Add(begin.Add(time.Duration(n)*time.Second), fmt.Sprintf("g%04d", n))
		if a.Held() > limit {
			t.Fatalf("%d are held", a.Held())
		}
	}
	for i := range limit {
		if g, ok := a.Take(); !ok || g != fmt.Sprintf("g%04d", i) {
			t.Fatalf("timer %d is %q %v", i, g, ok)
		}
		if a.Exhausted() != (i == limit-1) {
			t.Fatalf("after %d: exhausted is %v", i, a.Exhausted())
		}
	}
	// What is due at one instant stays together: a cursor cannot part it.
	a = notify.NewAgenda(2)
	for i := range 6 {
		a.Add(begin.Add(time.Duration(i/3)*time.Second), fmt.Sprint(i))
	}
	if a.Held() != 3 {
		t.Errorf("%d of 3 at one instant are held", a.Held())
	}
}
