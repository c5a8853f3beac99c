package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// AdminGroup is the group that a new cluster's administrators are in.
const AdminGroup = "mayfly-admins"

// ApproverGroup is the group whose approval changes need under dual control.
const ApproverGroup = "mayfly-approvers"

// adminPolicy is what a new cluster begins with where the configuration names
// nothing else. Administrators do not thereby get credentials.
const adminPolicy = `@id("mayfly-admins")
@description("Administrators configure, contain, and have secrets replaced. They get no credentials by this.")
permit (
  principal in Group::"mayfly-admins",
  action in [Action::"administer", Action::"read", Action::"revoke", Action::"contain", Action::"release", Action::"rotate"],
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
	if err := checkApprovers(&in); err != nil {
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

// checkApprovers fills in how many must approve, and refuses what could never be
// met: whoever asks for a change does not approve it.
func checkApprovers(in *wire.InitRequest) error {
	if len(in.Approvers) == 0 {
		if in.Approvals != 0 {
			return fault.New(fault.Invalid, "approvers_missing", "Approvals need people who give them: name them, as --approver human:name.")
		}
		return nil
	}
	if err := checkAdmins(in.Approvers); err != nil {
		return fault.New(fault.Invalid, "approvers_malformed", "Name 1 to 16 approvers, people all, as --approver human:name.")
	}
	in.Approvals = max(in.Approvals, 1)
	for _, a := range in.Admins {
		others := 0
		for _, p := range in.Approvers {
			if p != a {
				others++
			}
		}
		if others < in.Approvals {
			return fault.New(fault.Invalid, "approvers_too_few", "A change by %s would need %d approvals, and only %d other approvers are named. Name more, or ask for fewer.", a, in.Approvals, others)
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
	g := ledger.Genesis{Cluster: k.ClusterID(), Incarnation: int(k.Incarnation()), VerifierKey: verifier, Objects: n.firstObjects(in)}
	if err := n.found(ctx, in, g, &answer); err != nil {
		return answer, err
	}
	return answer, os.Remove(n.path(pendingFile))
}

// found commits the genesis record and makes the first tokens. The approvers'
// tokens come first: the record names what derives from them.
func (n *Node) found(ctx context.Context, in wire.InitRequest, g ledger.Genesis, answer *wire.InitAnswer) error {
	engine := n.condition.run.engine
	tokens := map[string]identity.EnrolToken{}
	for _, p := range slices.Concat(in.Admins, in.Approvers) {
		if _, ok := tokens[p]; ok {
			continue
		}
		tok, err := engine.NewEnrolToken()
		if err != nil {
			return err
		}
		tokens[p] = tok
	}
	for _, p := range in.Approvers {
		g.Founders = append(g.Founders, ledger.Founder{Principal: p, JWK: tokens[p].FounderJWK()})
	}
	if in.Approvals > 0 {
		g.Approvals = []ledger.Approval{{Group: ApproverGroup, Count: in.Approvals}}
	}
	if err := engine.Begin(ctx, g); err != nil {
		return err
	}
	for _, p := range in.Admins {
		n.log.Info("a first administrator gets an enrolment token", "principal", p)
		tok, err := engine.EnrolWith(ctx, tokens[p], p, "init")
		if err != nil {
			return err
		}
		answer.Admins = append(answer.Admins, tok)
	}
	for _, p := range in.Approvers {
		if slices.Contains(in.Admins, p) {
			continue
		}
		n.log.Info("a first approver gets an enrolment token", "principal", p)
		tok, err := engine.EnrolWith(ctx, tokens[p], p, "init")
		if err != nil {
			return err
		}
		answer.Approvers = append(answer.Approvers, tok)
	}
	return nil
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
func (n *Node) firstObjects(in wire.InitRequest) []ledger.ObjectChange {
	var out []ledger.ObjectChange
	var admins, approvers ledger.GroupSpec
	add := func(kind, name string, spec any) {
		b, err := json.Marshal(spec)
		if err == nil { // plain structs
			out = append(out, ledger.ObjectChange{Kind: kind, Name: name, Spec: b})
		}
	}
	for _, p := range in.Admins {
		add(ledger.KindPrincipal, p, ledger.PrincipalSpec{})
		admins.Members = append(admins.Members, ledger.Member{Name: p})
	}
	for _, p := range in.Approvers {
		if !slices.Contains(in.Admins, p) {
			add(ledger.KindPrincipal, p, ledger.PrincipalSpec{})
		}
		approvers.Members = append(approvers.Members, ledger.Member{Name: p})
	}
	text := n.cfg.FirstPolicy
	if strings.TrimSpace(text) == "" {
		text = adminPolicy
	}
	add(ledger.KindGroup, AdminGroup, admins)
	if len(approvers.Members) > 0 {
		add(ledger.KindGroup, ApproverGroup, approvers)
	}
	add(ledger.KindPolicy, "mayfly", ledger.PolicySpec{Text: text})
	return out
}
