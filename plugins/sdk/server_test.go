package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
	"github.com/mayfly-broker/mayfly/scope"
)

// plain is a kind of the least abilities; opens says what it opens.
type plain struct {
	opens issuers.Issuer
	name  func(string, uint64) string
}

func (plain) Name() string                                   { return "plain" }
func (plain) Revocable() bool                                { return true }
func (plain) CheckSpec(json.RawMessage) error                { return errors.New("") }
func (plain) CheckScope(json.RawMessage, scope.Scope) error  { return nil }
func (k plain) Open(issuers.Target) (issuers.Issuer, error)  { return k.opens, nil }
func (k plain) CredentialName(lease string, g uint64) string { return k.name(lease, g) }

type least struct{ closed bool }

func (*least) Mint(context.Context, issuers.Lease) (issuers.Credential, error) {
	panic("a mistake")
}
func (*least) Withdraw(context.Context, []issuers.Lease) []issuers.Outcome { return nil }
func (l *least) Close() error                                              { l.closed = true; return nil }

// more can list besides.
type more struct{ least }

func (*more) List(context.Context) ([]issuers.Found, error) { return nil, nil }

func usual(lease string, _ uint64) string { return "mf-" + lease }

// TestManifestSaysWhatTheTypesCan: the abilities are read off the types.
func TestManifestSaysWhatTheTypesCan(t *testing.T) {
	m, err := manifest(plain{name: usual}, &more{})
	if err != nil || m.Name != "plain" || m.CredentialName != "mf-{lease}" || !slices.Equal(m.Abilities, []protocol.Ability{protocol.AbleList}) {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := manifest(plain{name: func(string, uint64) string { return "root" }}, &more{}); err == nil {
		t.Error("a kind that names others' accounts is served")
	}
	if _, err := manifest(plain{name: usual}, nil); err == nil {
		t.Error("a kind without an issuer is served")
	}
}

// sometimes is a kind with an ability that only the broker's own kinds have.
type sometimes struct{ plain }

func (sometimes) RevocableOn(json.RawMessage) bool { return true }

// TestUnservedIsSaid: an author would wait in vain for it to be used.
func TestUnservedIsSaid(t *testing.T) {
	if got := unserved(sometimes{}, &least{}); !slices.Equal(got, []string{"SometimesRevocable"}) {
		t.Errorf("unserved: %v", got)
	}
	if got := unserved(plain{}, &more{}); len(got) > 0 {
		t.Errorf("unserved: %v", got)
	}
}

// TestRevokedCarriesEveryLease: a list that lacks one would revive it.
func TestRevokedCarriesEveryLease(t *testing.T) {
	s, err := newServer(plain{name: usual, opens: &revoker{}}, &revoker{}, newLogger(&bytes.Buffer{}))
	if err != nil || !s.manifest.Can(protocol.AbleRevoked) {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := s.Open(t.Context(), protocol.OpenRequest{Handle: 1}); err != nil {
		t.Fatal(err)
	}
	a, err := s.Revoked(t.Context(), protocol.RevokedRequest{Handle: 1, Withdrawn: []protocol.Ending{{ID: "a"}, {ID: "b"}}})
	if err != nil || a.Error != nil || string(a.Documents["krl"]) != "a b " {
		t.Errorf("%+v, %v", a, err)
	}
	a, err = s.Revoked(t.Context(), protocol.RevokedRequest{Handle: 1, Withdrawn: []protocol.Ending{{ID: "unreadable"}}})
	if err != nil || a.Error == nil {
		t.Errorf("a list that cannot be made: %+v, %v", a, err)
	}
}

// revoker names what was withdrawn.
type revoker struct{ least }

func (*revoker) PublishRevoked(_ context.Context, withdrawn iter.Seq[issuers.Lease]) (map[string][]byte, error) {
	text := ""
	for l := range withdrawn {
		if l.ID == "unreadable" {
			return nil, errors.New("no")
		}
		text += l.ID + " "
	}
	return map[string][]byte{"krl": []byte(text)}, nil
}

// TestOpenNoticesAForgottenAbility: an issuer that can more than Serve was told
// would have it never used, and nobody would know.
func TestOpenNoticesAForgottenAbility(t *testing.T) {
	opened := &more{}
	s, err := newServer(plain{name: usual, opens: opened}, &least{}, newLogger(&bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), protocol.OpenRequest{Handle: 1}); err == nil || !opened.closed {
		t.Errorf("Open: %v; closed: %t", err, opened.closed)
	}
}

// TestPanicIsAnErrorOfItsCall: the other calls go on, and the log says where.
func TestPanicIsAnErrorOfItsCall(t *testing.T) {
	var log bytes.Buffer
	s, err := newServer(plain{name: usual, opens: &least{}}, &least{}, newLogger(&log))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), protocol.OpenRequest{Handle: 1}); err != nil {
		t.Fatal(err)
	}
	mint := func(ctx context.Context, q any) (any, error) {
		return s.Mint(ctx, q.(protocol.LeaseRequest))
	}
	_, err = s.survive(t.Context(), protocol.LeaseRequest{Handle: 1}, &grpc.UnaryServerInfo{FullMethod: "Mint"}, mint)
	if err == nil || strings.Contains(err.Error(), "a mistake") {
		t.Errorf("the error is %v; want one that does not repeat the panic", err)
	}
	if !strings.HasPrefix(log.String(), "level=ERROR") || !strings.Contains(log.String(), "a mistake") || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("the log says %q", log.String())
	}
}

// TestRefusalWithoutAWordStaysOne: an empty text would read as consent.
func TestRefusalWithoutAWordStaysOne(t *testing.T) {
	s, err := newServer(plain{name: usual}, &least{}, newLogger(&bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	if x, err := s.Examine(t.Context(), protocol.SpecRequest{}); err != nil || x.Problem == "" {
		t.Errorf("%+v, %v", x, err)
	}
	for _, handle := range []uint64{0, 7} {
		if a, _ := s.Mint(t.Context(), protocol.LeaseRequest{Handle: handle}); a.Error == nil || a.Error.KindOf() != issuers.Unreachable {
			t.Errorf("a target that is not open: %+v", a)
		}
	}
	if a, _ := s.Extend(t.Context(), protocol.LeaseRequest{}); a.Error == nil {
		t.Error("an ability that is not there says yes")
	}
}
