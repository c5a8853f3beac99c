package ledger

import (
	"fmt"
	"math"
	"slices"
)

// What of the cluster as a whole turns like accounts and targets do. It turns on
// demand without an object; an object of kind Cluster and of its name gives it a
// schedule.
const (
	// ClusterBarrier is the key that every node seals its disk by.
	ClusterBarrier = "barrier"
	// ClusterCertificates are what the nodes know each other by.
	ClusterCertificates = "certificates"
)

// Subjects of the cluster's own rotations.
const (
	SubjectBarrier      = KindCluster + "/" + ClusterBarrier
	SubjectCertificates = KindCluster + "/" + ClusterCertificates
)

// clusterSubjects lists them, in order.
var clusterSubjects = []string{SubjectBarrier, SubjectCertificates}

const (
	// MaxBarrierKeys bounds the barrier keys that are ever given out: what they
	// sealed stays, so they do too, and all of them travel at the head of a snapshot.
	// At one a week they last nineteen years.
	MaxBarrierKeys = 1000
	// maxBarrierBytes bounds one key on its way.
	maxBarrierBytes = 256
	// maxBarrierGap bounds how far ahead of the last number a node's own keyring may
	// be: as far as a restored backup can have put the ledger behind it.
	maxBarrierGap = 1024
)

// ClusterSpec is the spec of an object of kind Cluster.
type ClusterSpec struct {
	Rotation *Schedule `json:"rotation"`
}

func checkCluster(name string, spec []byte) error {
	if !slices.Contains(clusterSubjects, RotationSubject(KindCluster, name)) {
		return fmt.Errorf("what of the cluster turns is %s and %s", ClusterBarrier, ClusterCertificates)
	}
	var x ClusterSpec
	if err := strict(spec, &x); err != nil {
		return err
	}
	if x.Rotation == nil {
		return fmt.Errorf("rotation is missing: when does it turn? Without a schedule, delete the object")
	}
	return checkSchedule(x.Rotation)
}

// unturned is the rotation of something of the cluster's that has never turned.
func unturned(subject string) (r Rotation, ok bool) {
	if !slices.Contains(clusterSubjects, subject) {
		return r, false
	}
	return Rotation{Subject: subject, State: RotationIdle}, true
}

// TurnCluster turns something of the cluster's as a whole: every node does so when
// it sees this here. A barrier key travels, sealed under the root key, as the secret
// that [BarrierSecret] names; nothing is sealed by it before it stands on the disk.
type TurnCluster struct {
	Subject string `json:"subject"`
	ID      string `json:"id"`
	Reason  string `json:"reason"`
	// Turn counts: a command that is proposed twice turns once.
	Turn uint64 `json:"turn"`
	// Number is the barrier key's; 0 for what has none.
	Number uint64 `json:"number,omitempty"`
	DueMS  int64  `json:"due_ms,omitempty"` // of the turn after this one; 0: none
}

// Type implements [Body].
func (*TurnCluster) Type() string { return "turn_cluster" }

// BarrierSecret names a barrier key among the secrets that travel with commands.
// The names sort as the numbers do.
func BarrierSecret(number uint64) string { return fmt.Sprintf("%s/%010d", SubjectBarrier, number) }

func (b *TurnCluster) apply(s *state, c *context) Result {
	r, _, res := s.rotating(b.Subject)
	switch {
	case !res.OK():
		return res
	case !slices.Contains(clusterSubjects, b.Subject) || !validID(PrefixRotation, b.ID) || b.Reason != RotateDemanded && b.Reason != RotateScheduled:
		return refuse(CodeInvalid, "The turn is not well formed.")
	case b.Turn != r.Turns+1:
		return refuse(CodeRotating, "%s has turned %d times; this is turn %d.", b.Subject, r.Turns, b.Turn)
	}
	if b.Subject == SubjectBarrier {
		res = s.giveOut(c, b.Number, r)
	} else if b.Number != 0 || len(c.secrets) != 0 {
		res = refuse(CodeInvalid, "Nothing travels with this turn.")
	}
	if !res.OK() {
		return res
	}
	r.ID, r.Reason, r.BegunMS, r.DoneMS, r.DueMS, r.Number = b.ID, b.Reason, c.now, c.now, b.DueMS, b.Number
	r.Turns, r.Tries, r.Problem, r.Wanted, r.Urgent = b.Turn, 0, "", "", false
	s.saveRotation(r, r.rest(c.now))
	return done(b.ID)
}

// giveOut keeps a barrier key for the nodes, which take it from here.
func (s *state) giveOut(c *context, number uint64, r Rotation) Result {
	name := BarrierSecret(number)
	switch {
	case len(c.secrets) != 1 || c.secrets[0].Name != name || len(c.secrets[0].Value) > maxBarrierBytes:
		return refuse(CodeInvalid, "The barrier key travels with the command that gives it out.")
	case number < 2 || number <= r.Number || number > r.Number+maxBarrierGap || number > math.MaxUint32:
		return refuse(CodeInvalid, "Barrier key %d does not come after key %d.", number, r.Number)
	case r.Turns >= MaxBarrierKeys:
		return refuse(CodeInvalid, "A cluster has at most %d barrier keys, and all have been given out.", MaxBarrierKeys)
	}
	s.put(bucketSecret, []byte(name), slices.Clone(c.secrets[0].Value))
	return done("")
}
