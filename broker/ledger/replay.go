package ledger

import "fmt"

// A Replayer executes a recorded ledger again from its genesis record, by the
// code of [Machine.Apply], for an auditor who has the public part of each command
// and the outcome that was recorded, and neither a broker nor a secret. It writes
// the state and not the record: where every outcome agrees, the leaves are those
// that were exported. It is as pure as Apply, and not safe for concurrent use.
type Replayer struct {
	m Machine
	w Writer
}

// NewReplayer begins on a state, which must be empty.
func NewReplayer(w Writer) *Replayer { return &Replayer{w: w} }

// Query reads the state as it stands after the entries so far.
func (r *Replayer) Query() Query { return NewQuery(r.w) }

// Replayed is what the rules give for one entry.
type Replayed struct {
	Result
	// TimeMS is ledger time, Unix milliseconds.
	TimeMS int64
	// SizeAssumed says that the recorded refusal agrees only if a secret was too
	// long, which nobody without the secret can tell.
	SizeAssumed bool
}

// Outcome is what the record should hold (see [Entry.Outcome]).
func (r Replayed) Outcome() string { return outcome(r.Code, r.TimeMS) }

// Apply executes the next entry again. recorded is its recorded outcome, which
// decides nothing but how long the secrets are taken to have been: empty, or, for
// a refusal as invalid, too long. An error means that every node would have
// stopped here: the entry was never applied by this program, and nothing that
// follows can be known.
func (r *Replayer) Apply(d Decoded, recorded string) (Replayed, error) {
	code, _, err := SplitOutcome(recorded)
	switch {
	case err != nil:
		return Replayed{}, err
	case len(d.Public) > MaxCommandBytes:
		return Replayed{}, fmt.Errorf("ledger: a command of %d bytes; at most %d are allowed", len(d.Public), MaxCommandBytes)
	}
	tooLong := code == CodeInvalid && len(d.Header.Commitments) > 0
	d.secrets = standIns(d.Header.Commitments, tooLong)
	s, c, res, _ := r.m.execute(r.w, d)
	s.put(bucketMeta, metaSize, beUint(c.seq+1))
	if s.err != nil {
		return Replayed{}, s.err
	}
	return Replayed{Result: res, TimeMS: c.now, SizeAssumed: tooLong && res.Code == code}, nil
}

// standIns are secrets of the committed names. Apply looks at no more of a secret
// than its name and length; that it fitted its commitment was checked before
// the command was recorded, or every node would have stopped.
func standIns(commitments []Commitment, tooLong bool) []Secret {
	value := []byte{} // not nil: a state's value may be empty, and nil is absent
	if tooLong {
		value = make([]byte, MaxSecretBytes+1)
	}
	var out []Secret
	for _, c := range commitments {
		out = append(out, Secret{Name: c.Name, Value: value})
	}
	return out
}
