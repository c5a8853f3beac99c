package ledger

// Delivery is how far a webhook has come. It stands in the state so that a new
// leader goes on where the old one stopped.
type Delivery struct {
	Sink string `json:"sink"`
	// Seq is the entry it is told of next: what comes before needs no telling any more.
	Seq uint64 `json:"seq"`
	// DueMS is the instant up to which reminders, which are no entries, need no
	// telling any more.
	DueMS int64 `json:"due_ms"`
}

// RecordDelivery notes how far webhooks have come. The leader proposes it from
// time to time, so that what it names was delivered, and a little beyond it may
// have been.
type RecordDelivery struct {
	Items []Delivery `json:"items"`
}

// Type implements [Body].
func (*RecordDelivery) Type() string { return "record_delivery" }

func (b *RecordDelivery) apply(s *state, c *context) Result {
	if len(b.Items) == 0 || len(b.Items) > MaxWebhooks {
		return refuse(CodeInvalid, "One record holds 1 to %d sinks.", MaxWebhooks)
	}
	for _, d := range b.Items {
		if d.Seq > c.seq || d.DueMS < 0 {
			return refuse(CodeInvalid, "Sink %s cannot have been told of entry %d: this is entry %d.", d.Sink, d.Seq, c.seq)
		}
	}
	var moved []string
	for _, d := range b.Items {
		// A sink that was deleted meanwhile has no record; nothing moves back.
		old, ok := s.delivery(d.Sink)
		next := Delivery{Sink: d.Sink, Seq: max(old.Seq, d.Seq), DueMS: max(old.DueMS, min(d.DueMS, c.now))}
		if ok && next != old {
			s.save(bucketDelivery, []byte(d.Sink), next)
			moved = append(moved, d.Sink)
		}
	}
	return done("", moved...)
}

func (v *view) delivery(sink string) (Delivery, bool) {
	var d Delivery
	ok := v.load(bucketDelivery, []byte(sink), &d)
	return d, ok
}

// beginDelivery lets a new webhook begin with the present and forgets one that
// is none any more. A change of one that stays keeps its place.
func (s *state) beginDelivery(c *context, o ObjectChange, old Object) {
	_, was := webhook(old.Spec)
	_, is := webhook(o.Spec)
	is = is && !o.Delete
	switch {
	case is && !was:
		s.save(bucketDelivery, []byte(o.Name), Delivery{Sink: o.Name, Seq: c.seq + 1, DueMS: c.now})
	case was && !is:
		s.del(bucketDelivery, []byte(o.Name))
	}
}
