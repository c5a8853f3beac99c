package replay_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/audit/replay"
	"github.com/mayfly-broker/mayfly/broker/audit/tree"
	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
	"github.com/mayfly-broker/mayfly/scope"
)

const (
	ann, bo, kim, eve = "human:ann", "human:bo", "human:kim", "human:eve"
	app               = "workload:app"
	cluster           = "c-1"
)

// record is a recorded ledger, and the key that signs its checkpoints: what a
// thief of the leader has.
type record struct {
	entries []ledger.Entry
	signer  note.Signer
	vkey    string
}

func newRecord(t testing.TB) *record {
	signer, vkey, err := audit.NewSigner(cluster, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return &record{signer: signer, vkey: vkey}
}

// export writes the record by the real exporter, as a tree of its own.
func (r *record) export(t testing.TB, from, to int64) []byte {
	t.Helper()
	src := &source{signer: r.signer}
	for i, e := range r.entries {
		leaf := tree.LeafData(e.Outcome(), e.Public)
		more, err := tree.Append(src, int64(i), leaf)
		if err != nil {
			t.Fatal(err)
		}
		s, err := replay.Describe(e.Outcome(), e.Public)
		if err != nil {
			t.Fatal(err)
		}
		src.hashes = append(src.hashes, more...)
		src.entries = append(src.entries, audit.Entry{Seq: int64(i), Summary: s, Result: e.Outcome(), Command: e.Public})
	}
	var out bytes.Buffer
	if _, err := audit.Export(t.Context(), &out, src, audit.ExportOptions{From: from, To: to, Keys: []string{r.vkey}}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// clone copies the record, to be tampered with.
func (r *record) clone() *record {
	c := *r
	c.entries = nil
	for _, e := range r.entries {
		e.Public = slices.Clone(e.Public)
		c.entries = append(c.entries, e)
	}
	return &c
}

// source is what audit.Export reads.
type source struct {
	entries []audit.Entry
	hashes  []tlog.Hash
	signer  note.Signer
}

func (s *source) Size(context.Context) (int64, error) { return int64(len(s.entries)), nil }

func (s *source) Entry(_ context.Context, seq int64) (audit.Entry, error) { return s.entries[seq], nil }

func (s *source) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range indexes {
		out = append(out, s.hashes[i])
	}
	return out, nil
}

func (s *source) Checkpoint(context.Context) ([]byte, error) {
	root, err := tree.Root(s, int64(len(s.entries)))
	if err != nil {
		return nil, err
	}
	return audit.SignCheckpoint(audit.Checkpoint{Origin: audit.Origin(cluster, 1), Size: int64(len(s.entries)), Root: root}, s.signer)
}

// world is a cluster under dual control whose every command is recorded.
type world struct {
	t        testing.TB
	rec      *record
	mem      ledgertest.Mem
	now      int64
	ids      int
	keys     map[string]*cosigntest.Person
	founders map[string]*cosigntest.Person
	sessions map[string]ledger.Session
}

func object(kind, name, spec string) ledger.ObjectChange {
	return ledger.ObjectChange{Kind: kind, Name: name, Spec: json.RawMessage(spec)}
}

const roleSpec = `{"scope":[{"type":"memory","actions":["read"]}],"ttl":{"default":"10m","max":"1h"}%s}`

// newWorld has administrators ann, bo and kim, of whom ann and bo founded it, and
// whose group dba are bo and kim. Everybody has a session, ann and bo have keys.
func newWorld(t testing.TB) *world {
	w := &world{
		t: t, rec: newRecord(t), now: 1_800_000_000_000, keys: map[string]*cosigntest.Person{}, founders: map[string]*cosigntest.Person{}, sessions: map[string]ledger.Session{},
	}
	g := &ledger.Genesis{Cluster: cluster, Incarnation: 1, VerifierKey: w.rec.vkey, Approvals: []ledger.Approval{{Group: "administrators", Count: 2}}}
	for _, who := range []string{ann, bo, kim, eve, app} {
		g.Objects = append(g.Objects, object("Principal", who, `{}`))
	}
	for i, who := range []string{ann, bo} {
		w.founders[who] = cosigntest.Seeded(cosign.KindJWS, fmt.Sprint("token", i))
		g.Founders = append(g.Founders, ledger.Founder{Principal: who, JWK: w.founders[who].Key().JWK})
	}
	g.Objects = append(g.Objects,
		object("Group", "administrators", `{"members":[{"name":"human:ann"},{"name":"human:bo"},{"name":"human:kim"}]}`),
		object("Group", "dba", `{"members":[{"name":"human:bo"},{"name":"human:kim"}]}`),
		object("Target", "db", `{"type":"memory"}`),
		object("Role", "db/rw", fmt.Sprintf(roleSpec, "")),
		object("Role", "db/priv", fmt.Sprintf(roleSpec, `,"approvals":[{"group":"dba","count":2}],"emergency":{"max_ttl":"10m","review":[{"group":"dba","count":2}]}`)),
		object("Policy", "p", `{"text":"permit (principal, action, resource);"}`),
	)
	w.ok("", g)
	for _, who := range []string{ann, bo, kim, eve, app} {
		w.login(who)
	}
	for i, who := range []string{ann, bo, kim} {
		w.keys[who] = cosigntest.Seeded([]string{cosign.KindSSH, cosign.KindJWS, cosign.KindPasskey}[i], who)
	}
	w.ok(ann, w.addKey(ann, w.keys[ann], w.founders[ann]))
	w.ok(bo, w.addKey(bo, w.keys[bo], w.founders[bo]))
	return w
}

func (w *world) id(prefix string) string {
	w.ids++
	return prefix + fmt.Sprintf("%0*d", ledger.BareIDLen, w.ids)
}

func (w *world) q() ledger.Query { return ledger.NewQuery(&w.mem) }

func (w *world) version(kind, name string) uint64 {
	o, _ := w.q().Object(kind, name)
	return o.Version
}

// do commits a command and records it.
func (w *world) do(h ledger.Header, b ledger.Body, secrets ...ledger.Secret) ledger.Result {
	w.t.Helper()
	w.now += 10
	h.AtMS, h.Node, h.Term = w.now, "n1", 1
	h.Actor.Session = w.sessions[h.Actor.Principal].ID
	raw, err := ledger.Encode(h, b, secrets...)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := ledger.Apply(&w.mem, raw)
	if err != nil {
		w.t.Fatal(err)
	}
	e, ok := w.q().Entry(res.Seq)
	if !ok {
		w.t.Fatal("no entry")
	}
	w.rec.entries = append(w.rec.entries, e)
	return res
}

func by(who string) ledger.Header { return ledger.Header{Actor: ledger.Actor{Principal: who}} }

func (w *world) ok(who string, b ledger.Body) ledger.Result {
	w.t.Helper()
	res := w.do(by(who), b)
	if !res.OK() {
		w.t.Fatalf("%s by %s: %s %s", b.Type(), who, res.Code, res.Detail)
	}
	return res
}

func (w *world) refused(code, who string, b ledger.Body) {
	w.t.Helper()
	if res := w.do(by(who), b); res.Code != code {
		w.t.Fatalf("%s by %s: %s %s, wanted %s", b.Type(), who, res.Code, res.Detail, code)
	}
}

func (w *world) login(who string) {
	hash := sha256.Sum256([]byte(who))
	s := ledger.Session{ID: ledger.SessionID(hash), TokenHash: hex.EncodeToString(hash[:]), Principal: who, Binding: "dpop", Thumbprint: "jkt-" + who,
		Method: "key", ExpiresMS: w.now + 24*3_600_000}
	w.ok(who, &ledger.OpenSession{Session: s})
	w.sessions[who] = s
}

// addKey composes the registration of a key, vouched for by another.
func (w *world) addKey(who string, k, vouch *cosigntest.Person) *ledger.AddKey {
	key := k.Key()
	text, err := cosign.Canonical(cosign.KeyDocument{Type: cosign.DomainKey, Cluster: cluster, Principal: who, Key: key})
	if err != nil {
		w.t.Fatal(err)
	}
	hash := cosign.Sum(cosign.DomainKey, text)
	proof := k.Sign(cosign.DomainKey, hash)
	cmd := &ledger.AddKey{Key: ledger.Key{Thumbprint: k.Thumbprint(), Principal: who, Use: ledger.UseApprove, JWK: key.JWK, Approve: &key}, Proof: &proof}
	if vouch != nil {
		s := vouch.Sign(cosign.DomainKey, hash)
		cmd.Vouch = &s
	}
	return cmd
}

func (w *world) common(who, domain string) cosign.Common {
	s := w.sessions[who]
	return cosign.Common{
		Type: domain, Cluster: cluster, Incarnation: 1, GrantID: w.id(ledger.PrefixGrant), Nonce: strings.Repeat("n", 43), RequestedMS: w.now,
		CollectBeforeMS: w.now + 3_600_000, Decision: w.id(ledger.PrefixDecision), Needs: []cosign.Need{},
		Requester: cosign.Requester{Principal: who, Method: s.Method, Binding: s.Binding, Key: s.Thumbprint},
		Policies:  []cosign.Policy{{ID: "p", Object: "p", Version: w.version("Policy", "p"), Hash: "h"}},
	}
}

// ask asks for db/priv; change may alter the document.
func (w *world) ask(who string, change ...func(*cosign.GrantDocument)) string {
	w.t.Helper()
	d := &cosign.GrantDocument{
		Common: w.common(who, cosign.DomainGrant), Role: "db/priv", RoleVersion: w.version("Role", "db/priv"), Target: "db", TargetVersion: w.version("Target", "db"),
		Scope: json.RawMessage(`[{"type":"memory","actions":["read"]}]`), Purpose: "incident", TTLS: 600, TotalS: 600, EndsByMS: w.now + 3_900_000, MaxLeases: 1,
	}
	d.Needs = []cosign.Need{{Group: "dba", Count: 2, By: "role"}}
	for _, f := range change {
		f(d)
	}
	d.Task = cosign.Task{ID: w.id(ledger.PrefixTask), DeadlineMS: d.EndsByMS}
	h := by(who)
	h.DecisionID = d.Decision
	res := w.do(h, &ledger.RequestGrant{Access: d, PolicyEpoch: w.q().PolicyEpoch(),
		ImplicitTask: &ledger.Task{ID: d.Task.ID, Principal: who, Role: d.Role, Implicit: true, DeadlineMS: d.EndsByMS}})
	if !res.OK() {
		w.t.Fatalf("%s: %s", res.Code, res.Detail)
	}
	return res.ID
}

func emergency(d *cosign.GrantDocument) {
	d.Emergency, d.Reason, d.Needs, d.CollectBeforeMS, d.EndsByMS = true, "on fire", []cosign.Need{}, d.RequestedMS+60_000, d.RequestedMS+600_000
}

// askChange asks for a change of configuration.
func (w *world) askChange(who string, fill func(*cosign.ChangeDocument), secrets ...ledger.Secret) string {
	w.t.Helper()
	d := &cosign.ChangeDocument{Common: w.common(who, cosign.DomainChange), Reason: "needed"}
	d.Needs = []cosign.Need{{Group: "administrators", Count: 2, By: "genesis"}}
	fill(d)
	h := by(who)
	h.DecisionID = d.Decision
	res := w.do(h, &ledger.RequestGrant{Change: d, PolicyEpoch: w.q().PolicyEpoch()}, secrets...)
	if !res.OK() {
		w.t.Fatalf("%s: %s", res.Code, res.Detail)
	}
	return res.ID
}

// approval composes a signature on a grant.
func (w *world) approval(who, id string) *ledger.ApproveGrant {
	g, ok := w.q().Cosigned(id)
	if !ok {
		w.t.Fatalf("no grant %s", id)
	}
	return &ledger.ApproveGrant{GrantID: id, Signature: w.keys[who].Sign(g.Domain, cosign.Sum(g.Domain, g.Document))}
}

func (w *world) review(who, id string) *ledger.ReviewGrant {
	g, _ := w.q().Cosigned(id)
	text, err := cosign.Canonical(cosign.ReviewDocument{Type: cosign.DomainReview, Cluster: cluster, GrantID: id, Grant: g.Hash, Verdict: ledger.Justified})
	if err != nil {
		w.t.Fatal(err)
	}
	return &ledger.ReviewGrant{GrantID: id, Verdict: ledger.Justified, Signature: w.keys[who].Sign(cosign.DomainReview, cosign.Sum(cosign.DomainReview, text))}
}

// open composes the lease of a grant; grant "" is one that nobody needs to sign.
func (w *world) open(who, role, grant string) *ledger.OpenLease {
	end := w.now + 500_000
	cmd := &ledger.OpenLease{
		Lease: ledger.Lease{
			ID: w.id(ledger.PrefixLease), Target: "db", Name: "acc-" + w.id(""), ExpiresMS: end, NotAfterMS: end, MintDeadlineMS: w.now + 15_000, Revocable: true,
			Grant: ledger.Grant{ID: grant, Principal: who, Role: role, RoleVersion: w.version("Role", role), Scope: scope.Scope{{Type: "memory", Actions: []string{"read"}}}, BoundedBy: "role"},
		},
		Read: ledger.Read{PolicyEpoch: w.q().PolicyEpoch(), TargetVersion: w.version("Target", "db")},
	}
	g := &cmd.Lease.Grant
	if c, ok := w.q().Cosigned(grant); ok {
		g.TaskID = c.TaskID
		return cmd
	}
	g.ID, g.TaskID = w.id(ledger.PrefixGrant), w.id(ledger.PrefixTask)
	cmd.ImplicitTask = &ledger.Task{ID: g.TaskID, Principal: who, Role: role, Implicit: true, DeadlineMS: end}
	return cmd
}

// live plays all that happens to grants, and some that is refused.
func (w *world) live() {
	change := w.askChange(eve, func(d *cosign.ChangeDocument) {
		d.Keys = []cosign.NewKey{{Principal: kim, Key: w.keys[kim].Key()}}
		d.Objects = []cosign.ObjectChange{{Kind: "Target", Name: "db2", Spec: json.RawMessage(`{"type":"memory"}`),
			Secrets: []cosign.SecretChange{{Name: "Target/db2/password", SHA256: hex.EncodeToString(password.Commitment().SHA256)}}}}
	}, password)
	w.refused(ledger.CodeGrantOver, eve, &ledger.MakeChange{GrantID: change})
	w.ok(ann, w.approval(ann, change))
	w.ok(bo, w.approval(bo, change))
	w.ok(eve, &ledger.MakeChange{GrantID: change})

	granted := w.ask(app)
	w.refused(ledger.CodeApprovalRequired, app, w.open(app, "db/priv", granted))
	w.ok(bo, w.approval(bo, granted))
	w.refused(ledger.CodeTwice, bo, w.approval(bo, granted))
	w.refused(ledger.CodeNotEligible, ann, w.approval(ann, granted))
	w.ok(kim, w.approval(kim, granted))
	lease := w.ok(app, w.open(app, "db/priv", granted)).ID
	w.ok(app, &ledger.RemintLease{ID: lease, Generation: 2, Name: "acc-again", MintDeadlineMS: w.now + 15_000})

	denied := w.ask(app)
	w.ok(kim, &ledger.EndGrant{GrantID: denied, State: ledger.GrantDenied, Note: "no"})

	fire := w.ask(ann, emergency)
	w.ok(ann, w.open(ann, "db/priv", fire))
	w.ok(bo, w.review(bo, fire))
	w.ok(kim, w.review(kim, fire))

	once := by(app)
	once.Idem = &ledger.Idem{Key: "k", Hash: "h"}
	first := w.open(app, "db/rw", "")
	w.do(once, first)
	w.do(once, first)
	w.refused(ledger.CodeApprovalRequired, ann, &ledger.ChangeObjects{Changes: []ledger.ObjectChange{object("Group", "mine", `{}`)}})
	w.refused(ledger.CodeApprovalRequired, app, w.open(app, "db/priv", ""))
	long := ledger.Secret{Name: "Principal/workload:z/x", Salt: make([]byte, 16), Value: make([]byte, ledger.MaxSecretBytes+1)}
	o := object("Principal", "workload:z", `{}`)
	o.Secrets = []string{long.Name}
	w.do(by(ann), &ledger.ChangeObjects{Changes: []ledger.ObjectChange{o}}, long)
}

var password = ledger.Secret{Name: "Target/db2/password", Salt: make([]byte, 16), Value: []byte("hunter2")}

func verify(t testing.TB, export []byte) (replay.Report, error) {
	t.Helper()
	return replay.Verify(t.Context(), bytes.NewReader(export), replay.Options{Dir: t.TempDir()})
}

func at(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
