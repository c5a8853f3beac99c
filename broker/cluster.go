package broker

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// What turns of the cluster as a whole. The leader writes down that it has turned,
// and every node does its part when it reads that: it takes the barrier key from the
// ledger, or makes itself a new certificate.

// A Barrier makes the keys that nodes seal their disks by.
type Barrier interface {
	// NextKey makes the key after the newest and after the number last, sealed so
	// that the nodes of the cluster alone can open it. Nobody uses it before it was
	// given out.
	NextKey(now time.Time, last uint32) (number uint32, sealed []byte, err error)
}

const (
	// clusterTicks is how many turns of a schedule are looked at for their pace.
	clusterTicks = 64
	// barrierPace and certificatePace are the shortest times between two turns: old
	// barrier keys stay, and are counted; certificates end by themselves in hours.
	barrierPace, certificatePace = 6 * 24 * time.Hour, time.Hour
)

var errNoBarrier = fault.New(fault.Invalid, "does_not_rotate", "This node has no barrier key.")

// clusterTurn reads what a step of the cluster's own rotation stands on.
func (t *turn) clusterTurn(q ledger.Query, name string) {
	t.object, _ = q.Object(ledger.KindCluster, name) // none: no schedule
	t.object.Kind, t.object.Name = ledger.KindCluster, name
	var spec ledger.ClusterSpec
	q.Spec(ledger.KindCluster, name, &spec)
	t.schedule, t.known = spec.Rotation, true
}

// turnCluster turns something of the cluster's.
func (e *Engine) turnCluster(ctx context.Context, t turn) error {
	now := e.now()
	due, err := nextDue(t.schedule, t.rotation.Subject, now)
	if err != nil {
		return err
	}
	cmd := ledger.TurnCluster{Subject: t.rotation.Subject, Reason: t.reason(), Turn: t.rotation.Turns + 1, DueMS: dueMS(due)}
	if cmd.ID, err = e.newID(ledger.PrefixRotation); err != nil {
		return err
	}
	var secrets []ledger.Secret
	if cmd.Subject == ledger.SubjectBarrier {
		if e.cfg.Barrier == nil {
			return errNoBarrier
		}
		number, key, err := e.cfg.Barrier.NextKey(now, uint32(t.rotation.Number)) // which Apply keeps within 32 bits
		if err != nil {
			return err
		}
		cmd.Number = uint64(number)
		secrets = append(secrets, travels(ledger.BarrierSecret(cmd.Number), key))
	}
	if _, err = e.commit(ctx, e.header(Caller{}), &cmd, secrets...); err != nil {
		return err
	}
	e.log.Info("turned", "subject", cmd.Subject, "rotation", cmd.ID, "reason", cmd.Reason, "number", cmd.Number)
	return nil
}

// checkClusterObject: a schedule that can be reckoned, at a pace that can be kept.
func checkClusterObject(name string, s *ledger.Schedule, now time.Time) error {
	if err := checkCron(s); err != nil {
		return err
	}
	pace, word := certificatePace, "hour"
	if name == ledger.ClusterBarrier {
		pace, word = barrierPace, "six days"
	}
	even := *s
	even.Jitter = 0
	last, err := nextDue(&even, "", now)
	for range clusterTicks {
		if err != nil {
			return err
		}
		var next time.Time
		if next, err = nextDue(&even, "", last); err == nil && next.Sub(last) < pace {
			return fmt.Errorf("rotation.cron %q comes at %s and again at %s; once every %s is the most for the cluster's %s", s.Cron,
				last.Format(time.DateTime), next.Format(time.DateTime), word, name)
		}
		last = next
	}
	return err
}

// rotates refuses what has nothing to replace.
func (e *Engine) rotates(q ledger.Query, kind, name string, now bool) error {
	switch kind {
	case ledger.KindCluster:
		if _, ok := q.Rotation(ledger.RotationSubject(kind, name)); !ok {
			return fault.New(fault.NotFound, "not_found", "Of the cluster turn %s and %s: mayfly rotate cluster %s", ledger.ClusterBarrier, ledger.ClusterCertificates, ledger.ClusterBarrier)
		}
		if now {
			return fault.New(fault.Invalid, "no_grace", "Nothing of the cluster's has a grace that could be ended; leave --now out.")
		}
		if name == ledger.ClusterBarrier && e.cfg.Barrier == nil {
			return errNoBarrier
		}
		return nil
	case ledger.KindAccount, ledger.KindTarget:
		o, ok := q.Object(kind, name)
		if !ok {
			return fault.New(fault.NotFound, "not_found", "%s %s does not exist. List them with: mayfly get %s", kind, name, strings.ToLower(kind))
		}
		return e.rotatable(q, o)
	}
	return fault.New(fault.Invalid, "does_not_rotate", "%s is not rotated. What rotates is an account, a target, or the cluster's own: mayfly rotate account NAME, mayfly rotate target NAME, mayfly rotate cluster barrier", kind)
}
