package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Rotation replaces secrets that live on: accounts', targets' own, signing keys.
// The leader reads what is due from an index, takes each one step on, and writes
// down where it stands before and after the target hears of anything. Whatever
// instant it dies at, the next leader finds the state, and all that the account may
// hold, in the ledger.

const (
	// dueRotations is how many subjects one look takes up.
	dueRotations = 1024
	// stepTimeout bounds one step on a target.
	stepTimeout = 45 * time.Second
	// firstRetry and lastRetry bound the pause after a failed step.
	firstRetry, lastRetry = 5 * time.Second, 10 * time.Minute
	// maxSteps is more than any rotation has in a row.
	maxSteps = 8
)

// rotator takes rotations on, each subject by itself and a few per target, so that
// a dead target delays its own alone (law 8). It lives as long as one leadership.
type rotator struct {
	e    *Engine
	wg   sync.WaitGroup
	mu   sync.Mutex
	busy map[string]bool // subjects
	on   map[string]int  // steps running, by target
	// until holds subjects whose last step failed: not even that may have been
	// written down, and a log that takes nothing is not to be asked without end.
	until map[string]time.Time
}

// turning is a subject that is taken on.
type turning struct{ subject, target string }

func newRotator(e *Engine) *rotator {
	return &rotator{e: e, busy: map[string]bool{}, on: map[string]int{}, until: map[string]time.Time{}}
}

func (r *rotator) wait() { r.wg.Wait() }

// start takes up what is due. It shortens sleep to when the next is.
func (r *rotator) start(ctx context.Context, sleep *time.Duration) {
	now := r.e.now()
	var due []turning
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.e.view(func(q ledger.Query) error {
		taken := maps.Clone(r.on)
		next := q.DueRotations(now.UnixMilli(), func(subject, target string) bool {
			// What waits for its turn hides nothing that is due on other targets.
			if !r.busy[subject] && taken[target] < ledger.MaxTurning && !now.Before(r.until[subject]) {
				taken[target]++
				due = append(due, turning{subject, target})
			}
			return len(due) < dueRotations
		})
		shorten(sleep, now.UnixMilli(), next)
		return nil
	})
	if err != nil {
		r.e.log.Error("cannot read what is to be rotated", "error", err)
		return
	}
	for _, x := range due {
		delete(r.until, x.subject)
		r.busy[x.subject] = true
		r.on[x.target]++
		r.wg.Go(func() { r.done(x, r.run(ctx, x.subject)) })
	}
}

// run takes one subject on until it has nothing due.
func (r *rotator) run(ctx context.Context, subject string) error {
	for range maxSteps {
		more, err := r.e.rotateStep(ctx, subject)
		if err != nil && ctx.Err() == nil {
			r.e.log.Warn("rotation failed; trying again", "subject", subject, "error", err)
		}
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// done makes room for another subject of the target.
func (r *rotator) done(x turning, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, x.subject)
	if r.on[x.target]--; r.on[x.target] == 0 {
		delete(r.on, x.target)
	}
	if err != nil {
		r.until[x.subject] = r.e.now().Add(firstRetry)
		return
	}
	r.e.wake() // another may have waited for its turn
}

// turn is one look at a rotation: all that a step stands on, of one state.
type turn struct {
	rotation ledger.Rotation
	object   ledger.Object
	schedule *ledger.Schedule
	account  ledger.AccountSpec // of an Account
	kind     issuers.Kind       // of its target
	rest     []byte             // the target's own part of its spec
	next     secret.Text
	known    bool // the broker was told, or has set, a secret that it can give out
	secrets  map[string]secret.Text
}

// rotateStep takes a subject one step on. more says that there may be another at
// once.
func (e *Engine) rotateStep(ctx context.Context, subject string) (more bool, err error) {
	now := e.now()
	t, err := e.turnOf(subject)
	if err != nil {
		return false, e.failed(ctx, t, err)
	}
	r := t.rotation
	atOnce := r.AtMS <= now.UnixMilli()
	switch {
	case r.Version != t.object.Version:
		err = e.reckon(ctx, t, now)
	case r.InFlight():
		if !atOnce {
			return false, nil
		}
		err = e.replace(ctx, t, false)
	case r.State == ledger.RotationPublishing && atOnce:
		err = e.turnKeys(ctx, t, ledger.KeyUsed)
	case r.State == ledger.RotationGrace && atOnce:
		if _, keys := t.turnsKeys(); keys {
			err = e.turnKeys(ctx, t, ledger.KeyRetired)
		} else {
			err = e.begin(ctx, t)
		}
	case r.State == ledger.RotationIdle && (r.Wanted != "" || r.DueMS > 0 && r.DueMS <= now.UnixMilli()) && atOnce:
		if _, keys := t.turnsKeys(); keys {
			err = e.turnKeys(ctx, t, ledger.KeyPublished)
		} else if t.object.Kind == ledger.KindCluster {
			err = e.turnCluster(ctx, t)
		} else {
			err = e.begin(ctx, t)
		}
	default:
		return false, nil
	}
	if err != nil {
		return false, e.failed(ctx, t, err)
	}
	e.changed.tell()
	return true, nil
}

// turnOf reads what a step stands on.
func (e *Engine) turnOf(subject string) (t turn, err error) {
	err = e.view(func(q ledger.Query) error {
		var ok bool
		if t.rotation, ok = q.Rotation(subject); !ok {
			return fault.New(fault.NotFound, "not_found", "%s does not rotate.", subject)
		}
		kind, name := ledger.SplitSubject(subject)
		if kind == ledger.KindCluster {
			t.clusterTurn(q, name)
			return nil
		}
		if t.object, ok = q.Object(kind, name); !ok {
			return fault.New(fault.NotFound, "not_found", "%s does not exist.", subject)
		}
		target := t.object
		if kind == ledger.KindAccount {
			q.Spec(kind, name, &t.account)
			t.schedule = t.account.Rotation
			t.known = q.SlotSecret(name, t.rotation.Active) != nil
			if target, ok = q.Object(ledger.KindTarget, t.account.Target); !ok {
				return fault.New(fault.NotFound, "not_found", "Target %s does not exist.", t.account.Target)
			}
		}
		spec, rest, err := ledger.SplitTarget(target.Spec)
		if err != nil {
			return err
		}
		if kind == ledger.KindTarget {
			t.schedule, t.known = spec.Rotation, true
		}
		t.rest = rest
		if t.kind, err = e.kind(spec.Type); err != nil {
			return err
		}
		t.secrets = map[string]secret.Text{}
		for _, f := range target.Secrets {
			t.secrets[f] = secret.New(string(q.Secret(ledger.KindTarget, target.Name, f)))
		}
		t.next = secret.New(string(q.NextSecret(subject)))
		return nil
	})
	return t, err
}

// turnsKeys says whether what rotates is the target's own signing keys.
func (t turn) turnsKeys() (issuers.KeyTurner, bool) {
	k, ok := t.kind.(issuers.KeyTurner)
	return k, ok && t.object.Kind == ledger.KindTarget
}

// login is the account whose secret is replaced, and the sealed field of the
// target that holds it where it is the broker's own.
func (t turn) login(slot int) (username, field string, err error) {
	if t.object.Kind == ledger.KindAccount {
		if slot >= len(t.account.Usernames) {
			return "", "", fmt.Errorf("account %s has no slot %d", t.object.Name, slot)
		}
		return t.account.Usernames[slot], "", nil
	}
	holder, ok := t.kind.(issuers.AdminHolder)
	if !ok {
		return "", "", fmt.Errorf("targets of type %s have no secret that can be rotated", t.kind.Name())
	}
	username, field, err = holder.Admin(t.rest)
	if err == nil && field == "" {
		err = errors.New("this target is not entered by a secret that can be rotated")
	}
	return username, field, err
}

// reckon writes down when the next turn is due. An account of which nobody has told
// a secret turns at once: until then it cannot be given out.
func (e *Engine) reckon(ctx context.Context, t turn, now time.Time) error {
	due, err := nextDue(t.schedule, t.rotation.Subject, now)
	if err != nil {
		return err
	}
	cmd := ledger.ScheduleRotation{Subject: t.rotation.Subject, Version: t.object.Version, DueMS: dueMS(due)}
	if !t.known {
		cmd.DueMS = now.UnixMilli()
	}
	res, err := e.commit(ctx, e.header(Caller{}), &cmd)
	if res.Code == ledger.CodeStale {
		return nil // written again meanwhile; the next look reads it
	}
	return err
}

func dueMS(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// reason says why a turn begins now.
func (t turn) reason() string {
	switch {
	case t.rotation.State == ledger.RotationGrace:
		return t.rotation.Reason
	case t.rotation.Wanted != "":
		return t.rotation.Wanted
	case !t.known:
		return ledger.RotateFirst
	}
	return ledger.RotateScheduled
}

// begin seals the next secret, and then tells the target of it.
func (e *Engine) begin(ctx context.Context, t turn) error {
	slots := max(len(t.account.Usernames), 1)
	cmd := ledger.BeginRotation{Subject: t.rotation.Subject, Reason: t.reason(), Slot: (t.rotation.Active + 1) % slots}
	_, field, err := t.login(cmd.Slot)
	if err != nil {
		return err
	}
	cmd.Field = field
	if cmd.ID, err = e.newID(ledger.PrefixRotation); err != nil {
		return err
	}
	next := newSecret()
	_, err = e.commit(ctx, e.header(Caller{}), &cmd, sealed("Rotation/"+t.rotation.Subject+"/next", next))
	if err != nil {
		return err
	}
	if t, err = e.turnOf(t.rotation.Subject); err != nil {
		return err
	}
	if t.rotation.ID != cmd.ID {
		return nil
	}
	return e.replace(ctx, t, true)
}

// newSecret is 230 random bits that pass the usual rules for passwords: lower and
// upper case, digits, a sign, and nothing that any target or URL would quote.
func newSecret() secret.Text {
	return secret.New(strings.ToLower(rand.Text()[:20]) + "-7" + rand.Text())
}

// sealed is a secret that travels beside a command.
func sealed(name string, value secret.Text) ledger.Secret {
	return travels(name, []byte(value.Reveal()))
}

// travels is sealed for bytes.
func travels(name string, value []byte) ledger.Secret {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	return ledger.Secret{Name: name, Salt: salt, Value: value}
}

// replace has the target take the next secret, proves that it did by logging in,
// and records it. fresh says that nobody can have told the target of it yet; else
// it is asked first.
func (e *Engine) replace(ctx context.Context, t turn, fresh bool) error {
	username, field, err := t.login(t.rotation.Slot)
	if err != nil {
		return err
	}
	// Before the target hears of anything: what it has taken is to be written down.
	due, err := nextDue(t.schedule, t.rotation.Subject, e.now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	x, err := e.rotatorOf(t)
	if err != nil {
		return err
	}
	defer e.targets.release(x.target)
	if fresh || x.TryLogin(ctx, username, t.next) != nil {
		if err := e.handOver(ctx, t, x, username, field, fresh); err != nil {
			if e.saidNo(ctx, t, x, username, fresh, err) {
				return &saidNo{err, t.rotation.ID}
			}
			return err
		}
		if err := x.TryLogin(ctx, username, t.next); err != nil {
			return fmt.Errorf("the target was told of the new secret and does not take it: %w", err)
		}
	}
	_, err = e.commit(ctx, e.header(Caller{}), &ledger.FinishRotation{Subject: t.rotation.Subject, ID: t.rotation.ID, DueMS: dueMS(due)})
	if err == nil {
		e.log.Info("secret replaced", "subject", t.rotation.Subject, "rotation", t.rotation.ID, "reason", t.rotation.Reason)
	}
	return err
}

// saidNo is what a target answered that did nothing with an account's next secret.
type saidNo struct {
	error
	id string // the rotation's
}

// Unwrap returns the target's own error.
func (x *saidNo) Unwrap() error { return x.error }

// saidNo says whether a turn of an account can be taken back: the target said no, and
// takes the secret that is given out, where that is the one to be replaced. Nothing
// that was sent of it before may arrive yet: it is fenced, or there was none.
func (e *Engine) saidNo(ctx context.Context, t turn, x opened, username string, fresh bool, err error) bool {
	var late *unfenced
	_, fences := x.issuer.(issuers.Fencer)
	no := []issuers.ErrorKind{issuers.Refused, issuers.Foreign, issuers.Gone, issuers.BadScope}
	if t.object.Kind != ledger.KindAccount || !slices.Contains(no, issuers.KindOf(err)) || errors.As(err, &late) || !fresh && !fences {
		return false
	}
	if len(t.account.Usernames) > 1 || !t.known {
		return true // the secret in question is nobody's
	}
	var present secret.Text
	if err := e.view(func(q ledger.Query) error {
		present = secret.New(string(q.SlotSecret(t.object.Name, t.rotation.Slot)))
		return nil
	}); err != nil {
		return false
	}
	return x.TryLogin(ctx, username, present) == nil
}

// opened is a target that can replace secrets.
type opened struct {
	*target
	issuers.Rotator
}

func asRotator(t *target) (opened, error) {
	r, ok := t.issuer.(issuers.Rotator)
	if !ok {
		return opened{}, fmt.Errorf("targets of type %s cannot rotate accounts", t.kind.Name())
	}
	return opened{t, r}, nil
}

// replace fences what older terms may still be replacing (HAZARDS 8), and replaces.
func (x opened) replace(ctx context.Context, r issuers.Replacement) error {
	if err := x.fence(ctx); err != nil {
		return &unfenced{err}
	}
	return x.Replace(ctx, r)
}

// unfenced is the error of a target that was not told of the next secret, since an
// older term may be telling it yet.
type unfenced struct{ error }

// Unwrap returns the target's own error.
func (x *unfenced) Unwrap() error { return x.error }

// rotatorOf opens the turn's target; the caller releases it.
func (e *Engine) rotatorOf(t turn) (opened, error) {
	var x *target
	err := e.view(func(q ledger.Query) (err error) { x, err = e.targets.acquire(q, t.rotation.Target); return err })
	if err != nil {
		return opened{}, err
	}
	open, err := asRotator(x)
	if err != nil {
		e.targets.release(x)
	}
	return open, err
}

// handOver tells the target of the next secret: by the admin account's present one,
// or, where that is what rotates and is in doubt, by the one before.
func (e *Engine) handOver(ctx context.Context, t turn, x opened, username, field string, fresh bool) error {
	r := issuers.Replacement{Username: username, Next: t.next, Deadline: e.now().Add(e.cfg.Timing.Mint)}
	if field == "" || fresh || x.TryLogin(ctx, username, t.secrets[field]) == nil {
		return x.replace(ctx, r)
	}
	var old secret.Text
	if err := e.view(func(q ledger.Query) error { old = secret.New(string(q.OldSecret(t.rotation))); return nil }); err != nil {
		return err
	}
	if old.Reveal() == "" || x.TryLogin(ctx, username, old) != nil {
		return x.replace(ctx, r) // its error says what is wrong
	}
	secrets := maps.Clone(t.secrets)
	secrets[field] = old
	by, err := e.openTarget(t.object, secrets, e.cfg.Log.Term())
	if err != nil {
		return err
	}
	defer by.close()
	open, err := asRotator(by)
	if err != nil {
		return err
	}
	return open.replace(ctx, r)
}

// keyTurns names the steps of a key's rotation for the kinds.
var keyTurns = map[string]issuers.KeyTurn{ledger.KeyPublished: issuers.KeyPublish, ledger.KeyUsed: issuers.KeyUse, ledger.KeyRetired: issuers.KeyRetire}

// turnKeys takes a target's signing keys one step on.
func (e *Engine) turnKeys(ctx context.Context, t turn, step string) error {
	turner, _ := t.turnsKeys()
	changed, err := turner.TurnKeys(ctx, t.rest, t.secrets, keyTurns[step])
	if err != nil {
		return err
	}
	cmd := ledger.TurnKeys{Subject: t.rotation.Subject, ID: t.rotation.ID, Reason: t.reason(), Step: step}
	publish, honour := turner.KeyTimes(t.rest)
	now := e.now()
	switch step {
	case ledger.KeyPublished:
		cmd.UntilMS = now.Add(publish).UnixMilli()
		if cmd.ID, err = e.newID(ledger.PrefixRotation); err != nil {
			return err
		}
	case ledger.KeyUsed:
		cmd.UntilMS = now.Add(honour).UnixMilli()
	case ledger.KeyRetired:
		due, err := nextDue(t.schedule, t.rotation.Subject, now)
		if err != nil {
			return err
		}
		cmd.DueMS = dueMS(due)
	}
	if t.rotation.Urgent && step != ledger.KeyRetired {
		cmd.UntilMS = now.UnixMilli()
	}
	var secrets []ledger.Secret
	for _, f := range slices.Sorted(maps.Keys(changed)) {
		cmd.Fields = append(cmd.Fields, f)
		secrets = append(secrets, sealed("Target/"+t.object.Name+"/"+f, changed[f]))
	}
	_, err = e.commit(ctx, e.header(Caller{}), &cmd, secrets...)
	return err
}

// failed records that a step failed and when it is tried again; law 8 and a
// person's eyes want both. It returns what went wrong.
func (e *Engine) failed(ctx context.Context, t turn, err error) error {
	if t.rotation.Subject == "" || ctx.Err() != nil {
		return err
	}
	pause := min(firstRetry<<min(t.rotation.Tries, 10), lastRetry)
	if issuers.KindOf(err) == issuers.Unknown {
		// What is in flight yet must have failed before anything else is tried, or it
		// might put this secret in place of a later one (HAZARDS 8).
		pause = max(pause, e.cfg.Timing.Mint+ledger.WithdrawMarginMS*time.Millisecond)
	}
	cmd := ledger.FailRotation{Subject: t.rotation.Subject, Problem: clip(err.Error(), ledger.MaxReasonBytes), RetryMS: e.now().Add(pause).UnixMilli()}
	var no *saidNo
	if errors.As(err, &no) {
		cmd.ID, cmd.Undone = no.id, true
	}
	if _, ferr := e.commit(ctx, e.header(Caller{}), &cmd); ferr != nil {
		return errors.Join(err, ferr)
	}
	e.changed.tell()
	return err
}

// clip bounds a text and keeps it readable.
func clip(s string, n int) string { return strings.ToValidUTF8(s[:min(len(s), n)], "") }

// reopened returns a target opened by its new secret, where one was replaced
// between the opening of t and a login that failed for it; the caller releases it.
func (e *Engine) reopened(ctx context.Context, t *target, err error) *target {
	if err == nil || issuers.KindOf(err) == issuers.Unknown {
		return nil // whatever was done stands
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timing.Slot)
	defer cancel()
	subject := ledger.RotationSubject(ledger.KindTarget, t.name)
	for {
		changed := e.changed.next()
		var turning bool
		var fresh *target
		verr := e.view(func(q ledger.Query) (err error) {
			r, _ := q.Rotation(subject)
			if turning = r.InFlight() && r.Tries == 0; !turning && q.Rotated(subject) != t.rotated {
				fresh, err = e.targets.acquire(q, t.name)
			}
			return err
		})
		if verr != nil || !turning {
			return fresh
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
