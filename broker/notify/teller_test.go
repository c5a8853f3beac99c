package notify_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker/notify"
)

// The table from commands to events, with what each looks at.
func TestWhatCommandsMean(t *testing.T) {
	access := notify.View{ID: "g", Kind: "access", ApprovedSeq: 9}
	emergency := notify.View{ID: "g", Kind: "emergency"}
	for _, c := range []struct {
		entry notify.Entry
		view  notify.View
		want  string
	}{
		{notify.Entry{Type: "request_grant", Grant: "g"}, access, notify.GrantWaiting},
		{notify.Entry{Type: "request_grant", Grant: "g"}, notify.View{ID: "g", Kind: "change"}, notify.GrantWaiting},
		{notify.Entry{Type: "request_grant", Grant: "g"}, emergency, ""},
		{notify.Entry{Type: "request_grant", Grant: "gone"}, notify.View{}, ""},
		{notify.Entry{Type: "approve_grant", Grant: "g", Seq: 8}, access, ""},
		{notify.Entry{Type: "approve_grant", Grant: "g", Seq: 9}, access, notify.GrantApproved},
		{notify.Entry{Type: "end_grant", Grant: "g", Reason: "denied"}, access, notify.GrantDenied},
		{notify.Entry{Type: "end_grant", Grant: "g", Reason: "revoked"}, access, notify.GrantRevoked},
		{notify.Entry{Type: "end_grant", Grant: "g", Reason: "cancelled"}, access, ""},
		{notify.Entry{Type: "end_grant", Grant: "g", Reason: "expired"}, access, ""},
		{notify.Entry{Type: "open_lease", Grant: "g"}, access, ""},
		{notify.Entry{Type: "open_lease", Grant: "g"}, emergency, notify.GrantEmergency},
		{notify.Entry{Type: "freeze", Contained: &notify.Containment{Kind: "Zone", Name: "eu"}}, notify.View{}, notify.Contained},
		{notify.Entry{Type: "freeze"}, notify.View{}, ""},
		{notify.Entry{Type: "release", Grant: "g"}, access, ""},
	} {
		if got := notify.Translate(c.entry, c.view); got != c.want {
			t.Errorf("%+v of %+v is %q, wanted %q", c.entry, c.view, got, c.want)
		}
	}
}

// A webhook that fails gets every message, in order, when it works again, with
// waits that double up to five minutes and are not shortened by a busy ledger.
func TestOrderHoldsOverFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat")), newHooks()
		h.set("chat", broken)
		teller := notify.NewPlayed(b, notify.Options{}, h.post)
		defer lead(t, teller)()
		b.request("a")
		b.approve("a")
		b.request("b")
		b.end("b", "denied")
		b.end("a", "revoked")
		b.add(notify.Entry{Type: "freeze", Contained: &notify.Containment{Kind: "Zone", Name: "eu"}}, nil)
		for range 60 * 60 {
			time.Sleep(time.Second)
			teller.Wake()
		}
		tries := h.attempts("chat")
		if n := len(tries); n < 12 || n > 40 {
			t.Fatalf("%d attempts in an hour", n)
		}
		for i := 1; i < len(tries); i++ {
			if wait := tries[i].Sub(tries[i-1]); wait > notify.MaxBackoff || wait < 500*time.Millisecond || i > 12 && wait < notify.MaxBackoff/2 {
				t.Errorf("wait %d is %v", i, wait)
			}
		}
		st := teller.Status()
		if len(st) != 1 || st[0].Failed != uint64(len(tries)) || st[0].Delivered != 0 || st[0].Problem != "status 503" || st[0].Lag < 59*time.Minute {
			t.Errorf("%+v", st)
		}
		h.set("chat", nil)
		time.Sleep(notify.MaxBackoff + time.Second)
		h.wants(t, "chat", "grant.waiting a", "grant.approved a", "grant.waiting b", "grant.denied b", "grant.revoked a", "contained eu")
		if st := teller.Status()[0]; st.Delivered != 6 || st.Failures != 0 || st.Problem != "" || st.Lag != 0 {
			t.Errorf("%+v", st)
		}
		if g := h.messages("chat")[0]; g.Grant.State != "revoked" {
			t.Errorf("a message that waited says that its grant is %s, not how it stands now", g.Grant.State)
		}
	})
}

// Law 8: a webhook that hangs and one that fails delay neither the ledger nor the
// webhook that works, and lose nothing.
func TestLaw8DeadWebhookBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("good"), sink("hung"), sink("broken")), newHooks()
		h.set("broken", broken)
		h.set("hung", func(ctx context.Context, _ got) notify.Answer {
			<-ctx.Done()
			return notify.Answer{Problem: "no answer"}
		})
		teller := notify.NewPlayed(b, notify.Options{}, func(ctx context.Context, s notify.Sink, id string, body []byte) notify.Answer {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return h.post(ctx, s, id, body)
		})
		stop := lead(t, teller)
		began := time.Now()
		var all []string
		for i := range 2000 {
			id := fmt.Sprintf("g%d", i)
			b.request(id)
			teller.Wake() // the ledger: records, marks, goes on
			all = append(all, "grant.waiting "+id)
		}
		if took := time.Since(began); took != 0 {
			t.Fatalf("the ledger waited for %v", took)
		}
		time.Sleep(time.Second)
		h.wants(t, "good", all...)
		for _, name := range []string{"hung", "broken"} {
			if n := len(h.messages(name)); n != 0 {
				t.Fatalf("%s took %d", name, n)
			}
			h.set(name, nil)
		}
		// Within the attempt that hangs and the longest backoff so far.
		time.Sleep(20 * time.Second)
		h.wants(t, "hung", all...)
		h.wants(t, "broken", all...)
		stop()
	})
}

// A leader that dies between a delivery and its record: the next one tells again,
// under the same id, and leaves nothing out.
func TestCrashBetweenDeliveryAndRecordLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat")), newHooks()
		b.set(func() { b.mute = true })
		stop := lead(t, notify.NewPlayed(b, notify.Options{}, h.post))
		b.request("a")
		b.request("b")
		time.Sleep(10 * time.Second)
		h.wants(t, "chat", "grant.waiting a", "grant.waiting b")
		stop()
		b.request("c")
		b.set(func() { b.mute = false })
		stop = lead(t, notify.NewPlayed(b, notify.Options{}, h.post))
		time.Sleep(10 * time.Second)
		stop()
		h.wants(t, "chat", "grant.waiting a", "grant.waiting b", "grant.waiting a", "grant.waiting b", "grant.waiting c")
		m := h.messages("chat")
		if m[0].ID != m[2].ID || m[1].ID != m[3].ID {
			t.Error("what is told twice has two ids")
		}
		if m[0].ID == m[1].ID || m[3].ID == m[4].ID || !strings.HasPrefix(m[0].ID, "evt_") {
			t.Errorf("ids %q %q %q", m[0].ID, m[1].ID, m[4].ID)
		}
	})
}

// A leader that is deposed in the middle of an attempt does not know what became
// of it: the next one sends it again.
func TestNewLeaderGoesOnWhereTheOldOneStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat")), newHooks()
		stop := lead(t, notify.NewPlayed(b, notify.Options{}, h.post))
		b.request("a")
		b.request("b")
		time.Sleep(11 * time.Second)
		h.set("chat", func(ctx context.Context, g got) notify.Answer {
			<-ctx.Done()
			return notify.Answer{Problem: "cut off"}
		})
		b.request("c")
		time.Sleep(6 * time.Second)
		stop()
		h.set("chat", nil)
		b.request("d")
		stop = lead(t, notify.NewPlayed(b, notify.Options{}, h.post))
		time.Sleep(6 * time.Second)
		stop()
		h.wants(t, "chat", "grant.waiting a", "grant.waiting b", "grant.waiting c", "grant.waiting d")
	})
}

// Records are commands: few, none without cause, and none because of another.
func TestRecordsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat"), sink("more")), newHooks()
		teller := notify.NewPlayed(b, notify.Options{}, h.post)
		stop := lead(t, teller)
		for i := range 600 {
			b.request(fmt.Sprintf("g%d", i))
			teller.Wake()
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(notify.RecordEvery)
		b.set(func() {
			if b.records < 10 || b.records > 14 {
				t.Errorf("%d records in a minute", b.records)
			}
			b.records = 0
		})
		time.Sleep(20 * time.Minute)
		b.set(func() {
			if b.records != 0 {
				t.Errorf("%d records while nothing was told", b.records)
			}
		})
		for range notify.RecordBehind + 10 {
			b.add(notify.Entry{Type: "other"}, nil)
		}
		time.Sleep(time.Minute)
		b.set(func() {
			if b.records < 1 || b.records > 2 || b.cursors["chat"].Seq < b.size-20 || b.cursors["more"].Seq < b.size-20 {
				t.Errorf("after %d entries of no interest: %d records, cursors %+v, size %d", notify.RecordBehind+10, b.records, b.cursors, b.size)
			}
		})
		stop()
	})
}

// Each gets what it asked for.
func TestEventsAndGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dba := func(s *notify.Sink) { s.Groups = []string{"dba"} }
		b := newBook(sink("all"), sink("dba", dba), sink("ends", func(s *notify.Sink) { s.Events = []string{notify.GrantDenied, notify.Contained} }))
		h := newHooks()
		defer lead(t, notify.NewPlayed(b, notify.Options{}, h.post))()
		b.request("d", "net", "dba")
		b.request("n", "net")
		b.end("d", "denied")
		b.emergency("e", time.Hour) // reviewed by leads
		b.add(notify.Entry{Type: "freeze", Contained: &notify.Containment{Kind: "Principal", Name: "agent:x"}}, nil)
		time.Sleep(10 * time.Second)
		h.wants(t, "all", "grant.waiting d", "grant.waiting n", "grant.denied d", "grant.emergency e", "contained agent:x")
		h.wants(t, "dba", "grant.waiting d", "grant.denied d", "contained agent:x")
		h.wants(t, "ends", "grant.denied d", "contained agent:x")
	})
}

// A message that nobody takes for a day is given up, loudly, and the next ones go on.
func TestGivenUpAfterADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat")), newHooks()
		var logged bytes.Buffer
		teller := notify.NewPlayed(b, notify.Options{Logger: slog.New(slog.NewTextHandler(&logged, nil))}, h.post)
		h.set("chat", broken)
		stop := lead(t, teller)
		b.request("a")
		time.Sleep(notify.GiveUpAfter - time.Hour)
		b.request("b")
		time.Sleep(time.Hour - time.Minute)
		if s := teller.Status()[0]; s.GivenUp != 0 {
			t.Fatalf("given up too early: %+v", s)
		}
		time.Sleep(10 * time.Minute)
		if s := teller.Status()[0]; s.GivenUp != 1 || s.Lag < 50*time.Minute || s.Lag > 80*time.Minute {
			t.Fatalf("%+v", s)
		}
		h.set("chat", nil)
		time.Sleep(10 * time.Minute)
		stop()
		h.wants(t, "chat", "grant.waiting b") // the time to approve a is long over
		if s := logged.String(); strings.Count(s, "GIVEN UP") != 1 || !strings.Contains(s, "level=ERROR") || !strings.Contains(s, "grant_id=a") {
			t.Errorf("the log says\n%s", s)
		}
		if strings.Contains(logged.String(), "hooks.example") {
			t.Error("the address is in the log")
		}
	})
}

// A message that the receiver calls wrong does not hold up the others for a day.
func TestRefusedMessageMakesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat")), newHooks()
		h.set("chat", func(_ context.Context, g got) notify.Answer {
			if g.Grant.ID == "bad" {
				return notify.Answer{Problem: "status 400", Refused: true}
			}
			return notify.Answer{}
		})
		teller := notify.NewPlayed(b, notify.Options{}, h.post)
		defer lead(t, teller)()
		b.request("bad")
		b.request("fine")
		time.Sleep(notify.RefusedAfter - time.Second)
		h.wants(t, "chat")
		time.Sleep(notify.MaxBackoff + time.Second)
		h.wants(t, "chat", "grant.waiting fine")
		if s := teller.Status()[0]; s.GivenUp != 1 || s.Delivered != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// A receiver that says when to come back is left alone until then.
func TestRetryAfterIsHeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat")), newHooks()
		h.set("chat", func(context.Context, got) notify.Answer {
			return notify.Answer{Problem: "status 429", After: 2 * time.Minute}
		})
		defer lead(t, notify.NewPlayed(b, notify.Options{}, h.post))()
		b.request("a")
		time.Sleep(time.Minute)
		h.set("chat", nil)
		time.Sleep(time.Minute + 10*time.Second)
		tries := h.attempts("chat")
		if len(tries) != 2 || tries[1].Sub(tries[0]) != 2*time.Minute {
			t.Errorf("attempts at %v", tries)
		}
	})
}

// A webhook that is changed goes on with the message that the old address did not
// take; one that is deleted is told no more; one that is new begins with the present.
func TestWebhooksChangeWhileTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("chat"), sink("gone")), newHooks()
		b.set(func() { b.mute = true }) // what is in memory counts
		h.set("chat", broken)
		teller := notify.NewPlayed(b, notify.Options{}, func(ctx context.Context, s notify.Sink, id string, body []byte) notify.Answer {
			if s.Version == 2 {
				s.Name += "2"
			}
			return h.post(ctx, s, id, body)
		})
		defer lead(t, teller)()
		b.request("a")
		time.Sleep(time.Minute)
		b.configure(sink("chat", func(s *notify.Sink) { s.Version = 2 }), sink("late"))
		time.Sleep(2 * time.Second)
		b.request("b")
		time.Sleep(6 * time.Second)
		h.wants(t, "chat2", "grant.waiting a", "grant.waiting b")
		h.wants(t, "gone", "grant.waiting a")
		h.wants(t, "late", "grant.waiting b")
		names := []string{}
		for _, s := range teller.Status() {
			names = append(names, s.Sink)
		}
		if !slices.Equal(names, []string{"chat", "late"}) {
			t.Errorf("status of %q", names)
		}
		b.configure(sink("chat", func(s *notify.Sink) { s.Version = 3 }), sink("late"))
		h.set("chat", nil)
		b.request("c")
		time.Sleep(6 * time.Second)
		h.wants(t, "chat", "grant.waiting c") // what the second version took is not told again
	})
}

// Webhooks that keep up share one reading of the ledger.
func TestManyWebhooksReadTheLedgerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sinks []notify.Sink
		for i := range 50 {
			sinks = append(sinks, sink(fmt.Sprintf("s%d", i)))
		}
		b, h := newBook(sinks...), newHooks()
		teller := notify.NewPlayed(b, notify.Options{}, h.post)
		stop := lead(t, teller)
		for i := range 200 {
			b.request(fmt.Sprint(i))
			teller.Wake()
			time.Sleep(100 * time.Millisecond)
		}
		stop()
		for _, s := range sinks {
			if n := len(h.messages(s.Name)); n != 200 {
				t.Fatalf("%s took %d", s.Name, n)
			}
		}
		if b.given > 220 {
			t.Errorf("200 entries were read %d times by %d webhooks", b.given, len(sinks))
		}
	})
}

// One that lags reads for itself, and disturbs nobody.
func TestLaggingWebhookReadsForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, h := newBook(sink("fast"), sink("slow")), newHooks()
		h.set("slow", broken)
		teller := notify.NewPlayed(b, notify.Options{}, h.post)
		defer lead(t, teller)()
		var all []string
		for i := range 5 * notify.ReadEntries {
			b.request(fmt.Sprint(i))
			all = append(all, fmt.Sprintf("grant.waiting %d", i))
			if i%100 == 0 {
				teller.Wake()
				time.Sleep(50 * time.Millisecond)
			}
		}
		time.Sleep(10 * time.Second)
		h.wants(t, "fast", all...)
		h.set("slow", nil)
		time.Sleep(notify.MaxBackoff)
		h.wants(t, "slow", all...)
	})
}
