package ledger

import (
	"encoding/json"
	"slices"
)

// EndLeases sets open leases to end. From this instant the leader withdraws
// them, again and again until the target confirms (law 2).
type EndLeases struct {
	IDs    []string `json:"ids"`
	Reason string   `json:"reason"`
}

// Type implements [Body].
func (*EndLeases) Type() string { return "end_leases" }

func (b *EndLeases) apply(s *state, c *context) Result {
	if len(b.IDs) == 0 || len(b.IDs) > MaxEndBatch {
		return refuse(CodeInvalid, "One command ends 1 to %d leases.", MaxEndBatch)
	}
	if !slices.Contains([]string{EndExpired, EndRevoked, EndDone, EndContained, EndMintFailed}, b.Reason) {
		return refuse(CodeInvalid, "A lease does not end for the reason %q.", b.Reason)
	}
	var ended []string
	for _, id := range b.IDs {
		l, ok := s.lease(id)
		if !ok || l.State != LeaseOpen || b.Reason == EndExpired && l.ExpiresMS > c.now || b.Reason == EndDone && !s.taskOver(l) {
			continue // renewed or ended meanwhile: the ledger's order decides
		}
		s.endLease(c, l, b.Reason)
		ended = append(ended, id)
	}
	return Result{Code: CodeOK, Also: ended}
}

func (s *state) taskOver(l Lease) bool {
	t, ok := s.task(l.Grant.TaskID)
	return !ok || t.State == TaskEnded
}

// endLease takes an open lease out of the live indexes and queues it for
// withdrawal. Its implicit task ends with it.
func (s *state) endLease(c *context, l Lease, reason string) {
	g := l.Grant
	s.del(bucketLeaseDue, due(l.ExpiresMS, l.ID))
	s.del(bucketLeaseTask, key(g.TaskID, l.ID))
	s.del(bucketLeaseOf, key(g.Principal, l.ID))
	s.countLease(l, -1)
	l.State = LeaseEnding
	l.End = &End{Reason: reason, By: c.Actor.Principal, SinceMS: c.now}
	s.save(bucketLease, []byte(l.ID), l)
	s.put(bucketEnding, key(l.Target, l.ID), beUint(0)) // at once, by whatever clock
	if account, on := AccountOf(l); on {
		r, _ := s.rotation(RotationSubject(KindAccount, account))
		s.put(bucketLetGo, []byte(l.ID), beUint(r.Turns))
	}

	t, ok := s.task(g.TaskID)
	switch {
	case !ok || reason == EndMintFailed && s.giveBack(c, l):
	case t.Implicit && t.State == TaskOpen:
		s.closeTask(c, t, EndWithLease)
	case t.State == TaskEnded && len(s.ids(bucketLeaseTask, prefix(t.ID), 1)) == 0:
		s.del(bucketTaskEnds, []byte(t.ID)) // drained
	}
}

// RecordWithdrawals records what targets said about ending leases.
type RecordWithdrawals struct {
	Items []Withdrawal `json:"items"`
}

// Withdrawal is the outcome of one look at the target.
type Withdrawal struct {
	LeaseID string `json:"lease_id"`
	// LookedMS is when the look began, by the leader's clock. A look that began
	// before the mint deadline proves nothing about a mint still in flight.
	LookedMS int64 `json:"looked_ms"`
	// Settled says that the proposer opened the lease itself, in its present
	// term, and saw every mint of it return before it looked: nothing can be in
	// flight, and the look is the last one.
	Settled bool            `json:"settled,omitempty"`
	Receipt json.RawMessage `json:"receipt,omitempty"`
	// Problem, where set, says why the lease cannot end without a person.
	Problem string `json:"problem,omitempty"`
}

// Type implements [Body].
func (*RecordWithdrawals) Type() string { return "record_withdrawals" }

func (b *RecordWithdrawals) apply(s *state, c *context) Result {
	if len(b.Items) == 0 || len(b.Items) > MaxEndBatch {
		return refuse(CodeInvalid, "One command records 1 to %d withdrawals.", MaxEndBatch)
	}
	var ended []string
	for _, w := range b.Items {
		l, ok := s.lease(w.LeaseID)
		if !ok || l.State != LeaseEnding {
			continue
		}
		last := l.MintDeadlineMS + WithdrawMarginMS
		switch {
		case w.Problem != "":
			l.End.Problem = w.Problem
			s.save(bucketLease, []byte(l.ID), l)
		case w.LookedMS < last && !w.Settled:
			l.End.Receipt = w.Receipt
			s.save(bucketLease, []byte(l.ID), l)
			s.put(bucketEnding, key(l.Target, l.ID), beUint(uint64(last)))
		default:
			s.closeLease(c, l, w.Receipt)
			ended = append(ended, l.ID)
		}
	}
	return Result{Code: CodeOK, Also: ended}
}

// closeLease is the end of a lease's life; its record stays, so that whohas
// can name any credential ever minted.
func (s *state) closeLease(c *context, l Lease, receipt json.RawMessage) {
	l.State = LeaseEnded
	l.End.EndedMS, l.End.Receipt, l.End.Problem = c.now, receipt, ""
	s.save(bucketLease, []byte(l.ID), l)
	s.del(bucketEnding, key(l.Target, l.ID))
	s.del(bucketLetGo, []byte(l.ID))
	s.del(bucketLeaseOn, key(l.Target, l.ID))
	if account, on := AccountOf(l); on {
		s.del(bucketHolder, key(account, l.ID))
	}
}

// ForceEnd ends a lease without the target's word, for a target that is gone
// for good. The reason is the receipt.
type ForceEnd struct {
	IDs    []string `json:"ids"`
	Reason string   `json:"reason"`
}

// Type implements [Body].
func (*ForceEnd) Type() string { return "force_end" }

func (b *ForceEnd) apply(s *state, c *context) Result {
	if len(b.IDs) == 0 || len(b.IDs) > MaxEndBatch {
		return refuse(CodeInvalid, "One command ends 1 to %d leases.", MaxEndBatch)
	}
	if b.Reason == "" || len(b.Reason) > MaxReasonBytes {
		return refuse(CodeInvalid, "A reason of 1 to %d bytes is needed.", MaxReasonBytes)
	}
	for _, id := range b.IDs {
		if _, ok := s.lease(id); !ok {
			return refuse(CodeNotFound, "Lease %s does not exist.", id)
		}
	}
	receipt, err := json.Marshal(map[string]string{"proof": "forced", "detail": b.Reason, "by": c.Actor.Principal})
	if err != nil {
		return refuse(CodeInvalid, "The reason cannot be recorded.")
	}
	var ended []string
	for _, id := range b.IDs {
		l, _ := s.lease(id)
		if l.State == LeaseOpen {
			s.endLease(c, l, EndRevoked)
			l, _ = s.lease(id)
		}
		if l.State == LeaseEnding {
			s.closeLease(c, l, receipt)
			ended = append(ended, id)
		}
	}
	return Result{Code: CodeOK, Also: ended}
}

// RecordDecision records a decision that led to no other command: a denial.
// The decision itself stands in the header.
type RecordDecision struct {
	Action   string `json:"action"`
	Resource string `json:"resource"`
	// Code is what the caller was told.
	Code string `json:"code"`
	// Repeats counts identical denials that this record stands for, beyond the
	// first (HAZARDS 17).
	Repeats int `json:"repeats,omitempty"`
}

// Type implements [Body].
func (*RecordDecision) Type() string { return "record_decision" }

func (b *RecordDecision) apply(_ *state, c *context) Result {
	if c.DecisionID == "" {
		return refuse(CodeInvalid, "A decision has an id.")
	}
	return done(c.DecisionID)
}
