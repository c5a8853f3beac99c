package issuertest

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Keys is what the suite needs to try an [issuers.KeyTurner].
type Keys struct {
	// Verify has a verifier judge a credential that knows the published documents
	// and nothing else of the target. An error says that it refuses.
	Verify func(ctx context.Context, documents map[string][]byte, c issuers.Credential) error
	// Old are the target's secrets in shapes of earlier versions. The suite rotates
	// each, beside what MakeSecrets makes.
	Old []map[string]secret.Text
	// CrossSigned says that a verifier which knows the old key alone accepts what
	// the new one signs, if the old key was made by this version.
	CrossSigned bool
}

// turning is a target whose keys are being rotated.
type turning struct {
	*suite
	turner  issuers.KeyTurner
	secrets map[string]secret.Text
}

// turn takes one step, which must fit.
func (k *turning) turn(t *testing.T, step issuers.KeyTurn) {
	t.Helper()
	before := maps.Clone(k.secrets)
	changed, err := k.turner.TurnKeys(t.Context(), k.Target.Spec, k.secrets, step)
	if err != nil {
		t.Fatalf("TurnKeys step %d: %v", step, err)
	}
	if !maps.Equal(before, k.secrets) {
		t.Fatalf("TurnKeys step %d changed the map that it was given", step)
	}
	for name, v := range changed {
		k.said.addSecret(v)
		before[name] = v
	}
	if maps.Equal(before, k.secrets) {
		t.Fatalf("TurnKeys step %d changed nothing", step)
	}
	k.secrets = before
}

// mustNotFit fails the case unless the steps are refused, without a quotation.
func (k *turning) mustNotFit(t *testing.T, steps ...issuers.KeyTurn) {
	t.Helper()
	for _, step := range steps {
		changed, err := k.turner.TurnKeys(t.Context(), k.Target.Spec, k.secrets, step)
		k.said.sayError(err)
		if err == nil || changed != nil {
			t.Fatalf("TurnKeys takes step %d out of order", step)
		}
	}
}

// now opens the target with its secrets of this moment.
func (k *turning) now(t *testing.T) *recorder {
	t.Helper()
	s := *k.suite
	s.Target.Secrets = k.secrets
	return s.open(t, nextTerm())
}

// documents are what is published at this moment, with those leases withdrawn.
func (k *turning) documents(t *testing.T, r *recorder, withdrawn ...issuers.Lease) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	if p, ok := r.inner.(issuers.Publisher); ok {
		docs, err := p.Publish(k.ctx)
		if err != nil {
			t.Fatalf("Publish: %v", err)
		}
		maps.Copy(out, docs)
	}
	if p, ok := r.inner.(issuers.RevocationPublisher); ok {
		docs, err := p.PublishRevoked(k.ctx, slices.Values(withdrawn))
		if err != nil {
			t.Fatalf("PublishRevoked: %v", err)
		}
		maps.Copy(out, docs)
	}
	for _, text := range out {
		_, _ = k.said.Write(text)
	}
	return out
}

func (k *turning) mintBy(t *testing.T, r *recorder) (issuers.Lease, issuers.Credential) {
	t.Helper()
	l := k.lease(t)
	c, err := r.Mint(k.ctx, l)
	if err != nil {
		t.Fatalf("Mint: %v", err)
	}
	return l, c
}

// mustJudge has a verifier with those documents judge credentials.
func (k *turning) mustJudge(t *testing.T, documents map[string][]byte, when string, accepts bool, creds ...issuers.Credential) {
	t.Helper()
	for i, c := range creds {
		if err := k.Keys.Verify(k.ctx, documents, c); (err == nil) != accepts {
			t.Errorf("%s, credential %d is judged %v; accepted should be %t", when, i, err, accepts)
		}
	}
}

// testKeysTurn: what was signed before, between and after the steps is accepted by
// what is published at that time, until the old key is retired.
func testKeysTurn(t *testing.T, s *suite) {
	turner, ok, none := issuers.TurnsKeys(s.Kind, s.Target.Spec)
	if !ok {
		return
	}
	if none != nil {
		for step := issuers.KeyPublish; step <= issuers.KeyRetire; step++ {
			if _, err := turner.TurnKeys(t.Context(), s.Target.Spec, s.Target.Secrets, step); err == nil {
				t.Errorf("TurnKeys takes step %d on a target that has no keys to turn: %v", step, none)
			}
		}
		return
	}
	if s.Keys == nil {
		t.Fatal("issuertest: the kind is a KeyTurner, and needs Harness.Keys")
	}
	maker, ok := s.Kind.(issuers.SecretMaker)
	if !ok {
		t.Fatal("issuertest: a KeyTurner turns keys that it has made; it is no SecretMaker")
	}
	made, err := maker.MakeSecrets(s.Target.Spec)
	if err != nil {
		t.Fatalf("MakeSecrets: %v", err)
	}
	for i, secrets := range append([]map[string]secret.Text{made}, s.Keys.Old...) {
		for _, v := range secrets {
			s.said.addSecret(v)
		}
		k := &turning{suite: s, turner: turner, secrets: secrets}
		k.wholeTurn(t, i == 0)
		k.wholeTurn(t, true) // and once more
	}
}

// wholeTurn is one rotation; recent says that the key before it was made by this
// version.
func (k *turning) wholeTurn(t *testing.T, recent bool) {
	t.Helper()
	before := k.now(t)
	docs0 := k.documents(t, before)
	l0, c0 := k.mintBy(t, before)
	k.mustJudge(t, docs0, "before the rotation", true, c0)
	k.mustNotFit(t, issuers.KeyUse, issuers.KeyRetire, 0, 99)

	k.turn(t, issuers.KeyPublish)
	published := k.now(t)
	docs1 := k.documents(t, published)
	_, c1 := k.mintBy(t, published)
	k.mustJudge(t, docs1, "while the new key is published", true, c0, c1)
	k.mustJudge(t, docs0, "by a verifier that has not looked again", true, c1)
	k.mustNotFit(t, issuers.KeyPublish, issuers.KeyRetire)

	k.turn(t, issuers.KeyUse)
	used := k.now(t)
	docs2 := k.documents(t, used)
	_, c2 := k.mintBy(t, used)
	_, late := k.mintBy(t, published) // by a leader that has not heard of it yet
	k.mustJudge(t, docs2, "while the new key signs", true, c0, c1, c2, late)
	k.mustJudge(t, docs1, "by what was published before the new key signed", true, c0, c1, c2, late)
	if recent {
		k.mustJudge(t, docs0, "by a verifier that has not looked since before", k.Keys.CrossSigned, c2)
	}
	k.mustNotFit(t, issuers.KeyPublish, issuers.KeyUse)
	if _, ok := used.inner.(issuers.RevocationPublisher); ok {
		withdrawn := k.documents(t, used, l0)
		k.mustJudge(t, withdrawn, "withdrawn while both keys are honoured", false, c0)
		k.mustJudge(t, withdrawn, "beside one that is withdrawn", true, c1, c2)
	}

	k.turn(t, issuers.KeyRetire)
	retired := k.now(t)
	docs3 := k.documents(t, retired)
	_, c3 := k.mintBy(t, retired)
	_, forged := k.mintBy(t, before)
	k.mustJudge(t, docs3, "after the old key was retired, by the new one", true, c2, c3)
	k.mustJudge(t, docs3, "after the old key was retired, by the old one", false, c0, forged)
	k.mustNotFit(t, issuers.KeyUse, issuers.KeyRetire)
}

func testKeyTimes(t *testing.T, s *suite) {
	turner, ok := s.Kind.(issuers.KeyTurner)
	if !ok {
		return
	}
	publish, honour := turner.KeyTimes(s.Target.Spec)
	if publish <= 0 || honour <= 0 {
		t.Errorf("KeyTimes are %s and %s; both must be positive", publish, honour)
	}
	bounder, ok := s.Kind.(issuers.Bounder)
	if !ok {
		t.Fatal("issuertest: what a KeyTurner's keys sign must end; it is no Bounder")
	}
	if most := bounder.MaxTTL(s.Target.Spec); most <= 0 || honour <= most {
		t.Errorf("an old key is honoured for %s; what it signed lives up to %s, and clocks differ", honour, most)
	}
}

// testTurnGarbage: secrets that do not read are an error that quotes none of them.
func testTurnGarbage(t *testing.T, s *suite) {
	turner, ok := s.Kind.(issuers.KeyTurner)
	if !ok {
		return
	}
	garbage := secret.New("a-secret-that-must-not-be-quoted")
	s.said.addSecret(garbage)
	for name := range s.Target.Secrets {
		secrets := maps.Clone(s.Target.Secrets)
		for _, bad := range []secret.Text{garbage, {}} {
			secrets[name] = bad
			for step := issuers.KeyPublish; step <= issuers.KeyRetire; step++ {
				_, err := turner.TurnKeys(t.Context(), s.Target.Spec, secrets, step)
				s.said.sayError(err)
				if err == nil {
					t.Errorf("TurnKeys step %d takes a %s that is garbage", step, name)
				}
			}
		}
	}
	if _, err := turner.TurnKeys(t.Context(), json.RawMessage(`{"no_such_key":1}`), s.Target.Secrets, issuers.KeyPublish); err == nil {
		t.Error("TurnKeys takes a spec that CheckSpec refuses")
	}
}
