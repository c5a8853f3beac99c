package notify_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker/notify"
	"github.com/mayfly-broker/mayfly/secret"
)

// book is a ledger in memory, as a Teller sees it. Its numbers go on over several
// Tellers, as a cluster's do over leaders.
type book struct {
	mu      sync.Mutex
	size    uint64
	told    []notify.Entry
	grants  map[string]notify.View
	cursors map[string]notify.Cursor
	sinks   []notify.Sink
	given   int  // entries read
	records int  // of cursors
	mute    bool // nothing can be recorded
	listed  int
}

func newBook(sinks ...notify.Sink) *book {
	b := &book{grants: map[string]notify.View{}, cursors: map[string]notify.Cursor{}, size: 7}
	b.configure(sinks...)
	return b
}

// configure sets the webhooks; a new one begins with the present.
func (b *book) configure(sinks ...notify.Sink) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sinks = sinks
	for _, s := range sinks {
		if _, ok := b.cursors[s.Name]; !ok {
			b.cursors[s.Name] = notify.Cursor{Seq: b.size, Due: time.Now()}
		}
	}
}

func sink(name string, change ...func(*notify.Sink)) notify.Sink {
	s := notify.Sink{Name: name, Version: 1, URL: secret.New("https://hooks.example/" + name), Secret: secret.New("0123456789abcdef0123456789abcdef")}
	for _, c := range change {
		c(&s)
	}
	return s
}

// add records a command; change alters its grant.
func (b *book) add(e notify.Entry, change func(*notify.View)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.Seq, e.At = b.size, time.Now()
	b.size++
	if change != nil {
		v := b.grants[e.Grant]
		v.ID = e.Grant
		change(&v)
		if v.ApprovedSeq == now {
			v.ApprovedSeq = e.Seq
		}
		b.grants[e.Grant] = v
	}
	if e.Type != "other" {
		b.told = append(b.told, e)
	}
}

// now stands for the number of the entry that is being added.
const now = ^uint64(0)

const ttl = time.Hour

func (b *book) request(id string, groups ...string) {
	b.add(notify.Entry{Type: "request_grant", Grant: id}, func(v *notify.View) {
		v.Kind, v.State, v.Principal, v.Role = "access", "waiting", "agent:coder", "orders/readwrite"
		v.RequestedAt, v.CollectBefore = time.Now(), time.Now().Add(ttl)
		for _, g := range groups {
			v.Needs = append(v.Needs, notify.Need{Group: g, Required: 1})
		}
	})
}

func (b *book) approve(id string) {
	b.add(notify.Entry{Type: "approve_grant", Grant: id}, func(v *notify.View) { v.State, v.ApprovedSeq = "approved", now })
}

func (b *book) end(id, state string) {
	b.add(notify.Entry{Type: "end_grant", Grant: id, Reason: state}, func(v *notify.View) { v.State = state })
}

func (b *book) emergency(id string, due time.Duration) {
	b.add(notify.Entry{Type: "open_lease", Grant: id}, func(v *notify.View) {
		v.Kind, v.State, v.Principal = "emergency", "open", "human:ann"
		v.Review = &notify.Review{Due: time.Now().Add(due), Needs: []notify.Need{{Group: "leads", Required: 1}}}
	})
}

func (b *book) change(id string, change func(*notify.View)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.grants[id]
	change(&v)
	b.grants[id] = v
}

func (b *book) Cluster(context.Context) (string, int, error) { return "c-1", 1, nil }

func (b *book) Sinks(context.Context) ([]notify.Sink, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.sinks), nil
}

func (b *book) Entries(_ context.Context, from uint64, limit int) (out []notify.Entry, next uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next = max(from, min(b.size, from+uint64(limit)))
	for _, e := range b.told {
		if e.Seq >= from && e.Seq < next {
			out = append(out, e)
			b.given++
		}
	}
	return out, next, nil
}

func (b *book) Grant(_ context.Context, id string) (notify.View, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.grants[id]
	return v, ok, nil
}

func (b *book) Pending(_ context.Context, fn func(notify.View) bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listed++
	for _, v := range b.grants {
		if (v.State == "waiting" || v.Review != nil && !v.Review.Done) && !fn(v) {
			return nil
		}
	}
	return nil
}

func (b *book) Cursor(_ context.Context, name string) (notify.Cursor, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cursors[name], nil
}

func (b *book) Record(_ context.Context, cursors []notify.Delivery) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mute {
		return errors.New("no leader")
	}
	b.records++
	b.size++ // a record is a command, too
	for _, d := range cursors {
		b.cursors[d.Sink] = d.Cursor
	}
	return nil
}

func (b *book) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// got is a message that a webhook took.
type got struct {
	ID    string `json:"id"`
	Event string `json:"event"`
	Grant struct {
		ID    string `json:"id"`
		State string `json:"state"`
	} `json:"grant"`
	Contained struct {
		Name string `json:"name"`
	} `json:"contained"`
	when time.Time
}

func (g got) String() string { return g.Event + " " + g.Grant.ID + g.Contained.Name }

// hooks plays webhooks: answer, where set for one, is asked before a message is taken.
type hooks struct {
	mu     sync.Mutex
	took   map[string][]got
	tries  map[string][]time.Time
	answer map[string]func(ctx context.Context, g got) notify.Answer
}

func newHooks() *hooks {
	return &hooks{took: map[string][]got{}, tries: map[string][]time.Time{}, answer: map[string]func(context.Context, got) notify.Answer{}}
}

func (h *hooks) post(ctx context.Context, s notify.Sink, id string, body []byte) notify.Answer {
	var g got
	if err := json.Unmarshal(body, &g); err != nil || g.ID != id {
		return notify.Answer{Problem: fmt.Sprintf("the body is not the message of %s: %v", id, err)}
	}
	g.when = time.Now()
	h.mu.Lock()
	ask := h.answer[s.Name]
	h.tries[s.Name] = append(h.tries[s.Name], g.when)
	h.mu.Unlock()
	if ask != nil {
		if a := ask(ctx, g); a.Problem != "" {
			return a
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.took[s.Name] = append(h.took[s.Name], g)
	return notify.Answer{}
}

func (h *hooks) set(name string, ask func(context.Context, got) notify.Answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer[name] = ask
}

func (h *hooks) messages(name string) []got {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.took[name])
}

func (h *hooks) attempts(name string) []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.tries[name])
}

func broken(context.Context, got) notify.Answer { return notify.Answer{Problem: "status 503"} }

// lead begins a time of leadership, which stop ends.
func lead(t *testing.T, teller *notify.Teller) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		teller.Run(ctx)
	}()
	synctest.Wait()
	return func() {
		cancel()
		<-done
	}
}

// wants compares what a webhook took with lines of got.String.
func (h *hooks) wants(t *testing.T, name string, lines ...string) {
	t.Helper()
	var have []string
	for _, g := range h.messages(name) {
		have = append(have, g.String())
	}
	if !slices.Equal(have, lines) {
		t.Fatalf("%s took\n%q, wanted\n%q", name, have, lines)
	}
}
