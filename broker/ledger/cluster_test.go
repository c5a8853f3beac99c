package ledger_test

import (
	"slices"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// turnBarrier gives out a barrier key.
func (b *book) turnBarrier(turn, number uint64, key string, due int64) ledger.Result {
	cmd := &ledger.TurnCluster{Subject: ledger.SubjectBarrier, ID: id(ledger.PrefixRotation, "a"), Reason: ledger.RotateDemanded, Turn: turn, Number: number, DueMS: due}
	return b.apply(b.header(""), cmd, ledger.Secret{Name: ledger.BarrierSecret(number), Salt: make([]byte, 16), Value: []byte(key)})
}

// barrierKeys are the keys that were given out after a number.
func (b *book) barrierKeys(after uint64) (keys []string) {
	b.q().BarrierKeys(after, func(sealed []byte) bool { keys = append(keys, string(sealed)); return true })
	return keys
}

func TestBarrierKeysAreGivenOutOnceAndInOrder(t *testing.T) {
	b := newBook(t)
	if r, ok := b.q().Rotation(ledger.SubjectBarrier); !ok || r.State != ledger.RotationIdle || r.Turns != 0 {
		t.Fatalf("before any turn: %+v", r)
	}
	b.ok(admin, &ledger.WantRotation{Subject: ledger.SubjectBarrier, Reason: ledger.RotateDemanded})
	if res := b.turnBarrier(1, 2, "two", 0); !res.OK() {
		t.Fatal(res)
	}
	r, _ := b.q().Rotation(ledger.SubjectBarrier)
	if r.Turns != 1 || r.Number != 2 || r.Wanted != "" || r.State != ledger.RotationIdle || r.AtMS != 0 {
		t.Errorf("%+v", r)
	}
	// Proposed again, by one who did not hear that it was taken; or by a deposed leader with a key of its own.
	if res := b.turnBarrier(1, 3, "again", 0); res.Code != ledger.CodeRotating {
		t.Errorf("turned twice by one wish: %+v", res)
	}
	for _, number := range []uint64{0, 1, 2, 2 + 1025, 1 << 32} {
		if res := b.turnBarrier(2, number, "other", 0); res.Code != ledger.CodeInvalid {
			t.Errorf("key %d after key 2: %+v", number, res)
		}
	}
	if res := b.turnBarrier(2, 10, "ten", 0); !res.OK() { // a restored ledger is behind its nodes
		t.Fatal(res)
	}
	if got := b.barrierKeys(0); !slices.Equal(got, []string{"two", "ten"}) {
		t.Errorf("given out: %q", got)
	}
	if got := b.barrierKeys(2); !slices.Equal(got, []string{"ten"}) {
		t.Errorf("after key 2: %q", got)
	}
}

func TestTurnsOfTheClusterThatAreRefused(t *testing.T) {
	b := newBook(t)
	turn := func(change func(*ledger.TurnCluster), secrets ...ledger.Secret) ledger.Result {
		cmd := &ledger.TurnCluster{Subject: ledger.SubjectCertificates, ID: id(ledger.PrefixRotation, "a"), Reason: ledger.RotateDemanded, Turn: 1}
		change(cmd)
		return b.apply(b.header(""), cmd, secrets...)
	}
	key := ledger.Secret{Name: ledger.BarrierSecret(2), Salt: make([]byte, 16), Value: []byte("key")}
	long := key
	long.Value = make([]byte, 257)
	for name, res := range map[string]ledger.Result{
		"of something else":       turn(func(c *ledger.TurnCluster) { c.Subject = "Cluster/cluster" }),
		"of an account":           turn(func(c *ledger.TurnCluster) { c.Subject = "Account/a" }),
		"without an id":           turn(func(c *ledger.TurnCluster) { c.ID = "" }),
		"for no reason":           turn(func(c *ledger.TurnCluster) { c.Reason = ledger.RotateUsed }),
		"out of order":            turn(func(c *ledger.TurnCluster) { c.Turn = 2 }),
		"certificates with a key": turn(func(*ledger.TurnCluster) {}, key),
		"with a number":           turn(func(c *ledger.TurnCluster) { c.Number = 2 }),
		"a barrier without a key": turn(func(c *ledger.TurnCluster) { c.Subject, c.Number = ledger.SubjectBarrier, 2 }),
		"another key's name":      turn(func(c *ledger.TurnCluster) { c.Subject, c.Number = ledger.SubjectBarrier, 3 }, key),
		"a key too long":          turn(func(c *ledger.TurnCluster) { c.Subject, c.Number = ledger.SubjectBarrier, 2 }, long),
	} {
		if res.OK() {
			t.Errorf("%s: taken", name)
		}
	}
	if res := turn(func(*ledger.TurnCluster) {}); !res.OK() {
		t.Error(res)
	}
	if got := b.barrierKeys(0); len(got) != 0 {
		t.Errorf("keys %q", got)
	}
}

// An object of that name must not put another key in the place of one given out.
func TestNoObjectReplacesABarrierKey(t *testing.T) {
	b := newBook(t)
	if res := b.turnBarrier(1, 2, "two", 0); !res.OK() {
		t.Fatal(res)
	}
	o := object("Cluster", "barrier", `{"rotation":{"cron":"0 0 * * 0"}}`)
	o.AnyVersion, o.Secrets = true, []string{ledger.BarrierSecret(2)}
	res := b.apply(b.header(admin), &ledger.ChangeObjects{Changes: []ledger.ObjectChange{o}}, ledger.Secret{Name: ledger.BarrierSecret(2), Salt: make([]byte, 16), Value: []byte("other")})
	if got := b.barrierKeys(0); res.Code != ledger.CodeInvalid || !slices.Equal(got, []string{"two"}) {
		t.Errorf("%+v; keys %q", res, got)
	}
}

func TestTheClustersScheduleIsAnObject(t *testing.T) {
	b := newBook(t)
	for _, bad := range []ledger.ObjectChange{
		object("Cluster", "cluster", `{"rotation":{"cron":"0 0 * * 0"}}`), object("Cluster", "barrier", `{}`),
		object("Cluster", "barrier", `{"rotation":{"cron":""}}`), object("Cluster", "barrier", `{"rotation":{"cron":"0 0 * * 0"},"key":"x"}`),
	} {
		bad.AnyVersion = true
		b.refused(ledger.CodeInvalid, admin, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{bad}})
	}
	b.write(object("Cluster", "barrier", `{"rotation":{"cron":"0 0 * * 0"}}`))
	o, _ := b.q().Object("Cluster", "barrier")
	b.ok("", &ledger.ScheduleRotation{Subject: ledger.SubjectBarrier, Version: o.Version, DueMS: b.now + 1000})
	if r, _ := b.q().Rotation(ledger.SubjectBarrier); r.DueMS != b.now+1000 || r.AtMS != r.DueMS {
		t.Errorf("%+v", r)
	}
	if res := b.turnBarrier(1, 2, "two", b.now+9000); !res.OK() {
		t.Fatal(res)
	}
	b.write(ledger.ObjectChange{Kind: "Cluster", Name: "barrier", Delete: true})
	r, _ := b.q().Rotation(ledger.SubjectBarrier)
	if r.Turns != 1 || r.Number != 2 || r.DueMS != 0 || r.AtMS != 0 || len(b.barrierKeys(0)) != 1 {
		t.Errorf("with its schedule gone, the turns are, too: %+v", r)
	}
}
