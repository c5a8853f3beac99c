package notify

import (
	"context"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/secret"
)

// Events that a webhook can be told of. Their names are public and stable.
const (
	GrantWaiting   = "grant.waiting"   // for approvals
	GrantReminder  = "grant.reminder"  // still, after half of the time it has
	GrantApproved  = "grant.approved"  // by everybody whom it needs
	GrantDenied    = "grant.denied"    // by an approver
	GrantRevoked   = "grant.revoked"   // by an approver, afterwards
	GrantEmergency = "grant.emergency" // access was taken without approvals
	ReviewOverdue  = "review.overdue"  // of emergency access; once a day
	Contained      = "contained"       // a principal, target or zone
)

// Formats of messages.
const (
	FormatPlain = "plain"
	FormatSlack = "slack"
)

// Sink is one webhook as it is configured.
type Sink struct {
	Name string
	// Version is that of its object; another one is another configuration.
	Version uint64
	// URL may hold a secret in its path, as Slack's do.
	URL secret.Text
	// Secret signs the messages; the zero Text leaves them unsigned.
	Secret secret.Text
	Format string   // FormatPlain if ""
	Events []string // none: all
	// Groups keeps messages to grants that need one of these groups, or none at
	// all; none: all.
	Groups []string
}

func (s Sink) wants(event string) bool {
	return len(s.Events) == 0 || slices.Contains(s.Events, event)
}

// concerns says whether one of the sink's groups is needed. What needs no group
// concerns everybody.
func (s Sink) concerns(needs []Need) bool {
	return len(s.Groups) == 0 || len(needs) == 0 || slices.ContainsFunc(needs, func(n Need) bool { return slices.Contains(s.Groups, n.Group) })
}

// Cursor is how far a webhook has come.
type Cursor struct {
	Seq uint64 // the entry it is told of next
	// Due is the instant up to which what comes by time is told; whole milliseconds.
	Due time.Time
}

// beyond returns the further of two cursors.
func (c Cursor) beyond(o Cursor) Cursor {
	c.Seq = max(c.Seq, o.Seq)
	if o.Due.After(c.Due) {
		c.Due = o.Due
	}
	return c
}

// Delivery is a webhook's cursor, to be recorded.
type Delivery struct {
	Sink string
	Cursor
}

// Entry is one command of the ledger that took effect and may be worth telling.
type Entry struct {
	Seq uint64
	At  time.Time // ledger time
	// Type is the command's: request_grant, approve_grant, end_grant, open_lease, freeze.
	Type string
	// Grant is the grant it made or changed; for open_lease, of emergency
	// grants only.
	Grant string
	// Reason is the command's own word for why, such as end_grant's "denied".
	Reason string
	// Contained is what a freeze contained.
	Contained *Containment
}

// Containment is what was contained.
type Containment struct {
	Kind, Name string
	By         string // a principal
	Reason     string // claimed
}

// Need is one quorum of a grant.
type Need struct {
	Group    string
	Required int
	Have     int
}

// View is a grant as it stands now. It has no scope: a scope's literals may be data.
type View struct {
	ID    string
	Kind  string // access, change or emergency
	State string // waiting, approved, open, ended, denied, cancelled, expired, void or revoked
	// Role is empty for a change.
	Role      string
	Principal string
	Purpose   string // claimed
	Reason    string // claimed; of an emergency or a change
	Needs     []Need
	// RequestedAt and CollectBefore bound the waiting.
	RequestedAt, CollectBefore time.Time
	Hash                       string // of the document, in hex
	URL                        string // its page in the console
	// ApprovedSeq is the entry that completed its quorum; 0 while none has.
	ApprovedSeq uint64
	Review      *Review // of an emergency
}

// Review is the second look at an emergency grant.
type Review struct {
	Due   time.Time
	Done  bool
	Needs []Need
}

// States and kinds of grants that decide what is told.
const (
	stateWaiting  = "waiting"
	kindEmergency = "emergency"
)

// asked are the groups whose people have something to do.
func (v View) asked() []Need {
	if v.Review != nil {
		return v.Review.Needs
	}
	return v.Needs
}

// Source is the ledger as this package needs it. It is used by several
// goroutines at once, on the leader only. Errors are those of a store that is
// closing or cut off: the call is made again.
type Source interface {
	// Cluster returns the cluster's id and incarnation.
	Cluster(ctx context.Context) (id string, incarnation int, err error)
	// Sinks returns the webhooks that are configured now. Names differ.
	Sinks(ctx context.Context) ([]Sink, error)
	// Entries reads up to limit entries of the ledger from seq on and returns
	// those that took effect and may be worth telling, in order, and the first
	// that was not read; next is from where there are none yet.
	Entries(ctx context.Context, from uint64, limit int) (told []Entry, next uint64, err error)
	// Grant returns a grant as it stands now; false where there is none.
	Grant(ctx context.Context, id string) (View, bool, error)
	// Pending calls fn for every grant that waits for approvals, or for a review,
	// in any order, until it returns false. fn reads nothing from the Source.
	Pending(ctx context.Context, fn func(View) bool) error
	// Cursor returns what was recorded for a webhook or, where nothing was, where
	// it began.
	Cursor(ctx context.Context, sink string) (Cursor, error)
	// Record keeps cursors over a change of leader. A sink that is gone is left out.
	Record(ctx context.Context, cursors []Delivery) error
}
