package broker_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// silentKind is a kind whose targets never answer a check.
type silentKind struct{ *turning }

func (k silentKind) Open(t issuers.Target) (issuers.Issuer, error) {
	i, err := k.turning.Open(t)
	return silentIssuer{i}, err
}

type silentIssuer struct{ issuers.Issuer }

func (silentIssuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	<-ctx.Done()
	return nil, &issuers.Error{Kind: issuers.Unknown, Detail: "no answer", Err: ctx.Err()}
}

// TestCheckOfASilentTargetIsAnswered: before a client stops waiting, which it does
// after 30 seconds, it is told that the target is what says nothing.
func TestCheckOfASilentTargetIsAnswered(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		r.stop()
		r.engine.Close()
		r.becomeOf(silentKind{k})
		r.lead()
		for name, ask := range map[string]func() (wire.TargetReport, error){
			"check": func() (wire.TargetReport, error) { return r.engine.CheckTarget(t.Context(), opCaller, "t1") },
			"preview": func() (wire.TargetReport, error) {
				return r.engine.PreviewTarget(t.Context(), opCaller, wire.TargetPreview{Name: "t9", Spec: json.RawMessage(`{"type":"memory","system":"t1"}`)})
			},
		} {
			began := time.Now()
			report, err := ask()
			if took := time.Since(began); took > 25*time.Second || err != nil || report.OK || len(report.Findings) != 1 || !strings.Contains(report.Findings[0].Detail, "no answer") {
				t.Errorf("%s: after %s: %+v %v", name, took, report, err)
			}
		}
	})
}

// heldKind knows whether what was opened first is closed, and holds the mints of that
// one between their end on the target and their return for as long as hold is open.
type heldKind struct {
	*turning
	hold        chan struct{}
	minted      chan struct{}
	opened      *atomic.Int32
	firstClosed *atomic.Bool
}

func (k heldKind) Open(t issuers.Target) (issuers.Issuer, error) {
	i, err := k.turning.Open(t)
	first := err == nil && t.Name == "t1" && k.opened.Add(1) == 1
	return heldIssuer{i, k, first}, err
}

type heldIssuer struct {
	issuers.Issuer
	kind  heldKind
	first bool
}

func (i heldIssuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	c, err := i.Issuer.Mint(ctx, l)
	if i.first && err == nil {
		i.kind.minted <- struct{}{}
		<-i.kind.hold
	}
	return c, err
}

func (i heldIssuer) Close() error {
	if i.first {
		i.kind.firstClosed.Store(true)
	}
	return i.Issuer.Close()
}

// TestChangedTargetIsOpenedAnew: the target's administrator has set another password.
// It is in force with the change of the Target, without a restart; a mint that is
// under way ends on the connections that it began on, and those close after it.
func TestChangedTargetIsOpenedAnew(t *testing.T) {
	turnings(t, func(t *testing.T, r *rig, k *turning) {
		held := heldKind{k, make(chan struct{}), make(chan struct{}, 1), new(atomic.Int32), new(atomic.Bool)}
		r.stop()
		r.engine.Close()
		r.becomeOf(held)
		r.lead()
		type result struct {
			answer wire.AccessAnswer
			err    error
		}
		first := make(chan result, 1)
		go func() {
			a, err := r.request(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "before"})
			first <- result{a, err}
		}()
		<-held.minted
		k.mu.Lock()
		k.secrets["admin"] = "second"
		k.mu.Unlock()
		r.apply(wire.Object{Kind: "Target", Name: "t1", Spec: json.RawMessage(`{"type":"memory","zone":"z1","system":"t1"}`), Secrets: map[string]string{"admin_password": "second"}})
		r.must(appCaller, wire.AccessRequest{Role: "t1/ro", Purpose: "after"}) // by the password before it would be refused
		if held.opened.Load() < 2 || held.firstClosed.Load() {
			t.Errorf("opened %d times; closed while a mint is under way: %v", held.opened.Load(), held.firstClosed.Load())
		}
		close(held.hold)
		if x := <-first; x.err != nil || x.answer.Credential["password"] == "" {
			t.Errorf("the mint that was under way: %+v", x.err)
		}
		synctest.Wait()
		if !held.firstClosed.Load() {
			t.Error("nobody is on the target as it was, and its connections stay")
		}
	})
}
