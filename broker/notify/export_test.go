package notify

import (
	"context"
	"net/netip"
	"time"

	"github.com/mayfly-broker/mayfly/secret"
)

// What the tests look at and nobody else may.

// Bounds that tests count on.
const (
	GiveUpAfter  = giveUpAfter
	RefusedAfter = refusedAfter
	MaxBackoff   = maxBackoff
	RecordEvery  = recordEvery
	RecordBehind = recordBehind
	MaxText      = maxText
	ReadEntries  = readEntries
)

// Answer is an attempt's outcome.
type Answer struct {
	Problem string
	Refused bool
	After   time.Duration
}

// Post is a webhook that a test plays.
type Post func(ctx context.Context, s Sink, eventID string, body []byte) Answer

func (p Post) post(ctx context.Context, s Sink, eventID string, body []byte) outcome {
	a := p(ctx, s, eventID, body)
	return outcome{problem: a.Problem, refused: a.Refused, after: a.After}
}

// NewPlayed is New with a webhook that the test plays.
func NewPlayed(source Source, o Options, p Post) *Teller {
	t := New(source, o)
	t.post = p
	return t
}

// SendOnce makes one real attempt and returns its problem.
func SendOnce(ctx context.Context, o Options, s Sink, eventID string, body []byte) Answer {
	out := New(nil, o).post.post(ctx, s, eventID, body)
	return Answer{out.problem, out.refused, out.after}
}

// Encode is a message's body.
func Encode(format, cluster string, e Event) ([]byte, error) {
	return compose(cluster, e).encode(format)
}

// Clean and SlackCode are how texts become harmless.
func Clean(text string, limit int) string { return clean(text, limit) }

// SlackCode is how a clean text stands in Slack's markup.
func SlackCode(text string) string { return slackCode(text) }

// SlackLink is how an address stands in a link of Slack's.
func SlackLink(page string) string { return slackLink(link(page)) }

// MayDial says whether a message may go to an address.
func MayDial(a netip.Addr, secure bool) error { return mayDial(a, secure) }

// Sign is the signature header's value.
func Sign(key secret.Text, at time.Time, body []byte) string { return sign(key, at, body) }

// Translate says which event an entry is.
func Translate(e Entry, v View) string { return translate(e, v) }

// Agenda is a bounded agenda.
type Agenda struct{ agenda }

// NewAgenda bounds one.
func NewAgenda(limit int) *Agenda { return &Agenda{agenda{limit: limit}} }

// Add takes a timer.
func (a *Agenda) Add(due time.Time, grant string) { a.add(timer{due, GrantReminder, grant}) }

// Take takes the earliest timer out.
func (a *Agenda) Take() (grant string, ok bool) {
	t, ok := a.next()
	a.drop()
	return t.grant, ok
}

// Held is how many timers are held; Exhausted that others were left out.
func (a *Agenda) Held() int { a.settle(); return len(a.list) }

// Exhausted says that what was left out must be read.
func (a *Agenda) Exhausted() bool { return a.exhausted() }
