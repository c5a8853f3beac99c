package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// AdminGroup is the group that a new cluster's administrators are in.
const AdminGroup = "mayfly-admins"

// adminPolicy is what a new cluster begins with where the configuration names
// nothing else. Administrators do not thereby get credentials.
const adminPolicy = `@id("mayfly-admins")
@description("Administrators configure and contain. They get no credentials by this.")
permit (
  principal in Group::"mayfly-admins",
  action in [Action::"administer", Action::"read", Action::"revoke", Action::"contain", Action::"release"],
  resource
);
`

// Init makes a new cluster of this one node: keyring, shares, genesis record,
// and an enrolment token for each administrator. All of it is shown once.
func (n *Node) Init(ctx context.Context, in wire.InitRequest) (wire.InitAnswer, error) {
	defer n.begin()()
	if n.condition.state != uninitialised {
		return wire.InitAnswer{}, fault.New(fault.Conflict, ledger.CodeNotGenesis, "This node belongs to a cluster already.")
	}
	if err := checkAdmins(in.Admins); err != nil {
		return wire.InitAnswer{}, err
	}
	answer, err := n.initialise(ctx, in)
	if err != nil {
		// Nothing was given out: an unfinished beginning is taken back.
		return wire.InitAnswer{}, errors.Join(err, n.close(), n.forgetInit())
	}
	return answer, nil
}

func (n *Node) forgetInit() error {
	n.condition = condition{}
	return n.wipe()
}

func checkAdmins(admins []string) error {
	if len(admins) == 0 || len(admins) > 16 {
		return fault.New(fault.Invalid, "admins_missing", "Name 1 to 16 administrators, as --admin human:name.")
	}
	for _, a := range admins {
		if kind, err := ledger.PrincipalKind(a); err != nil || kind != "human" {
			return fault.New(fault.Invalid, "admins_malformed", "%q cannot administer a new cluster; name people, as human:name.", a)
		}
	}
	return nil
}

func (n *Node) initialise(ctx context.Context, in wire.InitRequest) (wire.InitAnswer, error) {
	var answer wire.InitAnswer
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	k, err := seal.New("c-"+hex.EncodeToString(id), time.Now())
	if err != nil {
		return answer, err
	}
	if err := newSecrets(k, time.Now()); err != nil {
		return answer, err
	}
	if err := os.WriteFile(n.path(pendingFile), nil, 0o600); err != nil {
		return answer, fmt.Errorf("node: %w", err)
	}
	if n.condition.wrapped, answer.Shares, err = n.wrap(k, in); err != nil {
		return answer, err
	}
	if err := n.condition.wrapped.WriteFile(n.path(keyringFile)); err != nil {
		return answer, err
	}
	n.condition.state = sealed
	if err := n.open(ctx, k, true); err != nil {
		return answer, err
	}
	if err := n.condition.run.awaitLeader(ctx); err != nil {
		return answer, err
	}
	answer.Cluster = k.ClusterID()
	_, verifier, err := signer(k)
	if err != nil {
		return answer, err
	}
	g := ledger.Genesis{Cluster: k.ClusterID(), Incarnation: int(k.Incarnation()), VerifierKey: verifier, Objects: n.firstObjects(in.Admins)}
	if err := n.condition.run.engine.Begin(ctx, g); err != nil {
		return answer, err
	}
	for _, a := range in.Admins {
		n.log.Info("a first administrator gets an enrolment token", "principal", a)
		tok, err := n.condition.run.engine.EnrolByQuorum(ctx, a, "init")
		if err != nil {
			return answer, err
		}
		answer.Admins = append(answer.Admins, tok)
	}
	return answer, os.Remove(n.path(pendingFile))
}

// wrap seals the keyring under a local key or under fresh shares.
func (n *Node) wrap(k *seal.Keyring, in wire.InitRequest) (*seal.Wrapped, []string, error) {
	if n.cfg.LocalKey != "" {
		if in.Shares != 0 || in.Threshold != 0 {
			return nil, nil, fault.New(fault.Invalid, "seal_is_local", "This node is sealed by a key file; it has no shares. Leave --shares and --threshold out.")
		}
		// A key left by an initialisation that was cut short opens nothing.
		if err := os.Remove(n.cfg.LocalKey); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, fmt.Errorf("node: %w", err)
		}
		w, err := seal.InitLocal(k, n.cfg.LocalKey)
		return w, nil, err
	}
	if in.Shares == 0 && in.Threshold == 0 {
		in.Shares, in.Threshold = 5, 3
	}
	w, shares, err := seal.InitShamir(k, seal.Params{Shares: in.Shares, Threshold: in.Threshold})
	if err != nil {
		return nil, nil, err
	}
	var texts []string
	for _, s := range shares {
		texts = append(texts, s.Text().Reveal())
	}
	return w, texts, nil
}

// firstObjects are the administrators, their group and the first policy.
func (n *Node) firstObjects(admins []string) []ledger.ObjectChange {
	var out []ledger.ObjectChange
	var group ledger.GroupSpec
	add := func(kind, name string, spec any) {
		b, err := json.Marshal(spec)
		if err == nil { // plain structs
			out = append(out, ledger.ObjectChange{Kind: kind, Name: name, Spec: b})
		}
	}
	for _, a := range admins {
		add(ledger.KindPrincipal, a, ledger.PrincipalSpec{})
		group.Members = append(group.Members, ledger.Member{Name: a})
	}
	text := n.cfg.FirstPolicy
	if strings.TrimSpace(text) == "" {
		text = adminPolicy
	}
	add(ledger.KindGroup, AdminGroup, group)
	add(ledger.KindPolicy, "mayfly", ledger.PolicySpec{Text: text})
	return out
}
