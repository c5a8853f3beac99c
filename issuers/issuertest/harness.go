// Package issuertest is the conformance suite that every kind of target passes:
// what package issuers promises to the broker, tried against the real system.
//
// A kind's own test makes a [Harness] around a private instance of its target
// and calls [Run]. The package must know nothing of any particular kind; what
// differs between kinds is said by the Harness, never guessed.
package issuertest

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// Harness is one kind of target, ready to be tried. The fields up to Gone are
// required.
type Harness struct {
	Kind issuers.Kind
	// Target is opened by the suite, several times and with several terms;
	// its Term and Log are the suite's. The instance behind it is private to the
	// test, or at least holds nothing of another test's that bears our mark.
	Target issuers.Target

	// Scope is a scope that the kind accepts and that Use can work with, and
	// Narrower one strictly within it that Use can work with too.
	Scope, Narrower scope.Scope
	// Invalid are scopes that CheckScope must refuse. The suite adds a foreign
	// type, an unknown action, a row filter on tables without a name and the empty
	// scope by itself.
	Invalid []scope.Scope

	// Use proves that a credential works on the real system: it logs in, does a
	// handshake, has a token verified. It returns an error when the system
	// refuses the credential.
	Use func(ctx context.Context, c issuers.Credential) error
	// Gone asks the real system, without the issuer's help, whether anything of
	// the lease is there. Nil means that there is nothing. For a kind that is not
	// Revocable it may return nil always.
	Gone func(ctx context.Context, l issuers.Lease) error

	// ---- what the kind can do beyond that; the zero value leaves it untried ----

	// Prepare completes a fresh lease: CSR, PublicKey, RoleSpec.
	Prepare func(t *testing.T, l *issuers.Lease)
	// Accepted are further scopes that CheckScope accepts: each is minted and
	// withdrawn, but not used.
	Accepted []scope.Scope
	// Hostile are scopes whose strings attack the scope compiler. Each is either
	// refused by CheckScope or minted without harm.
	Hostile []scope.Scope
	// Intact reports harm done to the target by a hostile input.
	Intact func(ctx context.Context) error
	// RefusesOlder says that the target remembers generations and refuses a
	// lower one (HAZARDS 9). Leave it false only where the target has no state.
	RefusesOlder bool
	// NoSecret says that a credential may have no secret field, as a certificate
	// for the requester's own key has none.
	NoSecret bool
	// Unreachable is a spec of a target where nobody answers. Every kind that
	// uses a network gives one.
	Unreachable json.RawMessage
	// Hold opens a session with a credential and keeps it open.
	Hold func(ctx context.Context, c issuers.Credential) (Session, error)
	// Stick makes a minted credential one that cannot be ended without a person,
	// and returns the function that frees it again.
	Stick func(ctx context.Context, l issuers.Lease, c issuers.Credential) (free func() error, err error)
	// Expires returns the credential's own expiry. Required where the kind is
	// not Revocable.
	Expires func(c issuers.Credential) (time.Time, error)
	// Grace is how long the real system may go on accepting a withdrawn
	// credential after Withdraw has returned. 0 means not at all.
	Grace time.Duration
	// Rotation is needed where the issuer is an [issuers.Rotator].
	Rotation *Rotation
	// Keys is needed where the kind is an [issuers.KeyTurner].
	Keys *Keys
}

// Forgetful is implemented by a Harness's Kind whose target cannot be asked what
// there is. The suite then takes an error of which Forgotten says true for the
// withdrawal of a lease; every minted credential must still be refused after its own.
type Forgetful interface {
	// Forgotten reports whether an error of Withdraw's means: the credential, if there
	// is one, was minted by another process, which alone could end it, and it has not
	// ended by itself yet.
	Forgotten(err error) bool
}

// Session is a live session that was opened with a credential.
type Session interface {
	// Alive returns an error once the target has ended the session.
	Alive(ctx context.Context) error
	Close() error
}

// Run tries everything the interface promises. Each promise is a subtest, so
// that one that is broken does not hide the others.
func Run(t *testing.T, h Harness) {
	t.Helper()
	requireComplete(t, h)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, h)
			c.run(t, s)
			s.checkNothingLeaked(t)
		})
	}
}

// cases are the promises, in the order in which they are easiest to debug.
var cases = []struct {
	name string
	run  func(t *testing.T, s *suite)
}{
	{"Spec", testSpec},
	{"Scope", testScope},
	{"Names", testNames},
	{"MintUseWithdraw", testMintUseWithdraw},
	{"NarrowerScope", testNarrowerScope},
	{"CredentialFields", testCredentialFields},
	{"MintTwiceIsOneAccount", testMintTwice},
	{"Hazard9LowerGenerationIsSuperseded", testLowerGeneration},
	{"WithdrawTwice", testWithdrawTwice},
	{"WithdrawNeverMinted", testWithdrawNeverMinted},
	{"WithdrawNothing", testWithdrawNothing},
	{"MixedBatch", testMixedBatch},
	{"OutcomesInOrder", testOutcomeOrder},
	{"Law2SessionsEnd", testSessionsEnd},
	{"Hazard12OneStuckCredential", testStuck},
	{"Hazard8DeadlineInThePast", testPastDeadline},
	{"Law2EndedLeaseOpensNothing", testEndedLease},
	{"Law2CredentialCarriesItsEnd", testExpiry},
	{"Hazard18ReceiptsSayHow", testReceipts},
	{"RefusedScopeMintsNothing", testRefusedScope},
	{"AcceptedScopesCompile", testAcceptedScopes},
	{"HostileScopes", testHostileScopes},
	{"HostileNames", testHostileNames},
	{"ConcurrentMints", testConcurrentMints},
	{"ConcurrentGenerations", testConcurrentGenerations},
	{"ConcurrentMintAndWithdraw", testConcurrentMintAndWithdraw},
	{"CancelledContext", testCancelledContext},
	{"HigherTermTakesOver", testHigherTerm},
	{"ListerShowsTheLive", testLister},
	{"ExtendNeverRevives", testExtend},
	{"OtherAbilities", testOtherAbilities},
	{"RotateReplaces", testReplace},
	{"RotateNeverMakes", testReplaceNeverMakes},
	{"Hazard16RotateLeavesLeasesAlone", testReplaceForeign},
	{"Hazard8LateRotation", testLateReplace},
	{"RotateCrash", testReplaceCrash},
	{"RotateHang", testReplaceHang},
	{"RotateConcurrently", testConcurrentReplaces},
	{"RotateHostile", testReplaceHostile},
	{"RotateAdmin", testReplaceAdmin},
	{"RotateUnreachable", testRotateUnreachable},
	{"KeysTurn", testKeysTurn},
	{"KeyTimes", testKeyTimes},
	{"KeysGarbage", testTurnGarbage},
	{"Unreachable", testUnreachable},
	{"Closed", testClosed},
}

func requireComplete(t *testing.T, h Harness) {
	t.Helper()
	switch {
	case h.Kind == nil, h.Use == nil, h.Gone == nil, len(h.Scope) == 0, len(h.Narrower) == 0, len(h.Invalid) == 0:
		t.Fatal("issuertest: the Harness needs Kind, Target, Scope, Narrower, Invalid, Use and Gone")
	case !issuers.Revocable(h.Kind, h.Target.Spec) && h.Expires == nil:
		t.Fatal("issuertest: a kind that cannot revoke needs Harness.Expires")
	}
}
