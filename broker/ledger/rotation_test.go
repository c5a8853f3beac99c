package ledger_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
)

// write writes and deletes objects of any version.
func (b *book) write(objects ...ledger.ObjectChange) {
	b.t.Helper()
	for i := range objects {
		objects[i].AnyVersion = true
	}
	b.ok(admin, &ledger.ChangeObjects{Changes: objects})
}

func object(kind, name, spec string) ledger.ObjectChange {
	return ledger.ObjectChange{Kind: kind, Name: name, Spec: rawJSON(spec)}
}

// beginTurn seals the next secret of a subject.
func (b *book) beginTurn(subject, name string, slot int) ledger.Result {
	cmd := &ledger.BeginRotation{Subject: subject, ID: id(ledger.PrefixRotation, name), Reason: ledger.RotateScheduled, Slot: slot}
	return b.apply(b.header(""), cmd, ledger.Secret{Name: "Rotation/" + subject + "/next", Salt: make([]byte, 16), Value: []byte("next " + name)})
}

// turnOnce takes a subject's secret through a whole replacement.
func (b *book) turnOnce(subject, name string, slot int) {
	b.t.Helper()
	if res := b.beginTurn(subject, name, slot); !res.OK() {
		b.t.Fatal(res)
	}
	b.ok("", &ledger.FinishRotation{Subject: subject, ID: id(ledger.PrefixRotation, name)})
}

// TestDeletingATargetLeavesOthersSecrets: an account may have a target's name.
func TestDeletingATargetLeavesOthersSecrets(t *testing.T) {
	b := newBook(t)
	b.write(object("Target", "billing", `{"type":"memory","rotation":{"cron":"0 0 * * *"}}`), object("Account", "billing", `{"target":"db","usernames":["app"]}`))
	b.turnOnce("Account/billing", "a", 0)
	b.write(ledger.ObjectChange{Kind: "Target", Name: "billing", Delete: true})
	if got := string(b.q().SlotSecret("billing", 0)); got != "next a" {
		t.Errorf("the account's secret has become %q", got)
	}
}
