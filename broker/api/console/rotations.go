package console

import (
	"context"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// turns is what replaces secrets that live on, and what runs outside the broker.
type turns interface {
	Rotations(ctx context.Context, c broker.Caller) ([]wire.Rotation, error)
	NodePlugins(ctx context.Context, c broker.Caller) ([]wire.NodePlugin, error)
}

// Turn is a rotation as a line of a page.
type Turn struct {
	wire.Rotation
	Title string
	// Word is its state, and Tone the class of its pill.
	Word, Tone string
	// Then is what happens at NextAt.
	Then string
	// Why is what the last turn was for, or what a present one is for.
	Why string
	// Page is where what it belongs to is shown; empty: nowhere.
	Page string
}

// turnWords are a rotation's states as people read them, and what comes next.
var turnWords = map[string]struct{ word, tone, then string }{
	ledger.RotationIdle:       {"in force", "open", "replaced next"},
	ledger.RotationTurning:    {"being replaced", "waiting", "next step"},
	ledger.RotationGrace:      {"old one still works", "waiting", "the old one ends"},
	ledger.RotationRetiring:   {"old one is ended", "waiting", "next step"},
	ledger.RotationPublishing: {"new key is published", "waiting", "the new one signs"},
}

// turnReasons are what a turn was for. What a newer version adds is shown as it is.
var turnReasons = map[string]string{
	ledger.RotateFirst: "nobody had told its secret", ledger.RotateScheduled: "by its schedule", ledger.RotateDemanded: "somebody asked for it",
	ledger.RotateUsed: "after its use", ledger.RotateWithdrawn: "what was given out was withdrawn", ledger.RotateOverride: "somebody had reset it by hand",
}

// turnOf reads a rotation for people.
func turnOf(r wire.Rotation) Turn {
	t := Turn{Rotation: r, Title: r.Kind + " " + r.Name, Word: r.State, Tone: "waiting", Then: "next step"}
	if w, ok := turnWords[r.State]; ok {
		t.Word, t.Tone, t.Then = w.word, w.tone, w.then
	}
	switch r.Kind {
	case ledger.KindCluster:
		names := map[string]string{ledger.ClusterBarrier: "Barrier key", ledger.ClusterCertificates: "Node certificates"}
		if name := names[r.Name]; name != "" {
			t.Title = name
		}
		t.Page = "/cluster"
	case ledger.KindTarget:
		t.Title = "Own secret of target " + r.Name
	}
	if t.Page == "" && r.Target != "" {
		t.Page = "/targets/" + escapePath(r.Target)
	}
	if r.Problem != "" {
		t.Word, t.Tone, t.Then = "failing", "denied", "tried again"
	}
	reason := r.Reason
	if r.Wanted != "" {
		reason = r.Wanted
	}
	t.Why = reason
	if words := turnReasons[reason]; words != "" {
		t.Why = words
	}
	return t
}

type rotationsBody struct {
	Turns []Turn
	// Failing are those that cannot get on; they stand first.
	Failing int
}

// turnsFor lists what the caller may read, failing ones first; of one target alone
// where it is named.
func (x *exchange) turnsFor(target string) (out []Turn, failing int, err error) {
	list, err := x.engine.Rotations(x.r.Context(), x.caller)
	if err != nil {
		return nil, 0, err
	}
	var well []Turn
	for _, r := range list {
		switch t := turnOf(r); {
		case target != "" && r.Target != target:
		case r.Problem != "":
			out = append(out, t)
		default:
			well = append(well, t)
		}
	}
	return append(out, well...), len(out), nil
}

func (s *Console) listRotations(x *exchange) (err error) {
	var b rotationsBody
	if b.Turns, b.Failing, err = x.turnsFor(""); err != nil {
		return err
	}
	return x.show("rotations", page{Title: "Rotations", Nav: "rotations", Body: b})
}
