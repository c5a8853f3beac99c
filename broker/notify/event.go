package notify

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// Event is one thing to tell.
type Event struct {
	// ID is the same for every webhook, attempt and leader.
	ID   string
	Kind string
	Seq  uint64 // the entry that caused it; 0 for what comes by time
	// At is when it happened by the ledger's clock, or was due.
	At time.Time
	// Grant is the grant as it stood when the event was last looked at; without
	// an ID for a containment.
	Grant     View
	Contained *Containment
}

// translate says which event an entry is, given its grant as it stands now; ""
// for none. This is the one place that knows what commands mean to people.
func translate(e Entry, v View) string {
	switch {
	case e.Type == "freeze" && e.Contained != nil:
		return Contained
	case v.ID == "":
		return ""
	case e.Type == "request_grant" && v.Kind != kindEmergency:
		return GrantWaiting
	case e.Type == "approve_grant" && v.ApprovedSeq == e.Seq:
		return GrantApproved // an approval that leaves it waiting tells nobody anything to do
	case e.Type == "end_grant" && e.Reason == "denied":
		return GrantDenied
	case e.Type == "end_grant" && e.Reason == "revoked":
		return GrantRevoked
	case e.Type == "open_lease" && v.Kind == kindEmergency:
		return GrantEmergency
	}
	return ""
}

// still says whether what is due by time is still worth telling.
func still(kind string, v View, now time.Time) bool {
	switch kind {
	case GrantReminder:
		return v.State == stateWaiting && now.Before(v.CollectBefore)
	case ReviewOverdue:
		return v.Review != nil && !v.Review.Done
	}
	return true
}

// identity names a cluster in ids: a restored cluster is another incarnation,
// whose entries have the same numbers.
type identity struct {
	cluster     string
	incarnation int
}

// eventID derives an id that every leader derives again. Parts are set apart by
// their lengths.
func (i identity) eventID(kind string, n uint64, parts ...string) string {
	h := sha256.New()
	put := func(s string) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s))))
		h.Write([]byte(s))
	}
	put("mayfly.event.v1")
	put(i.cluster)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(i.incarnation)))
	put(kind)
	h.Write(binary.BigEndian.AppendUint64(nil, n))
	for _, p := range parts {
		put(p)
	}
	return "evt_" + hex.EncodeToString(h.Sum(nil)[:16])
}

// ofEntry is the event that an entry is; false for none.
func (i identity) ofEntry(e Entry, v View) (Event, bool) {
	kind := translate(e, v)
	return Event{ID: i.eventID(kind, e.Seq), Kind: kind, Seq: e.Seq, At: e.At, Grant: v, Contained: e.Contained}, kind != ""
}

// ofTimer is the event that a timer is.
func (i identity) ofTimer(t timer) Event {
	return Event{ID: i.eventID(t.kind, uint64(t.due.UnixMilli()), t.grant), Kind: t.kind, At: t.due, Grant: View{ID: t.grant}}
}
