package clienttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// Domains of what approvers sign.
const (
	domainGrant  = "mayfly.grant.v1"
	domainChange = "mayfly.change.v1"
	domainKey    = "mayfly.key.v1"
)

// grant is a grant with what the cluster alone knows of it.
type grant struct {
	wire.Grant
	body json.RawMessage // of a change
}

// Waiting is what a request for it is answered with.
func (g *grant) Waiting() wire.Waiting {
	return wire.Waiting{Hash: g.Hash, CollectBefore: g.CollectBefore, URL: g.URL, Needs: g.Needs}
}

// ask makes a grant that waits for two people of dba. The lock is held.
func (c *Cluster) ask(principal, role, purpose, kind string) *grant {
	return c.askWith(principal, role, purpose, kind, nil)
}

// askWith adds to the document that approvers sign, or changes it.
func (c *Cluster) askWith(principal, role, purpose, kind string, extra map[string]any) *grant {
	now := time.Now().UTC().Truncate(time.Second)
	before := now.Add(time.Hour)
	g := &grant{Grant: wire.Grant{
		ID: "g_" + word(), Kind: kind, State: wire.GrantWaiting, Principal: principal, Role: role, Purpose: purpose, DecisionID: "d_" + word()[:8], TaskID: "t_" + word(),
		RequestedAt: now, CollectBefore: &before, MaxLeases: 1, Leases: []string{}, Domain: domainGrant, Version: 1, MayApprove: true,
		Needs: []wire.Need{{Group: "dba", Required: 2, Eligible: 3, By: "role"}},
	}}
	g.Target, _, _ = strings.Cut(role, "/")
	g.URL = Issuer + "/grants/" + g.ID
	doc := map[string]any{
		"cluster": "test", "incarnation": 1, "grant_id": g.ID, "nonce": word(), "requested_ms": now.UnixMilli(), "collect_before_ms": before.UnixMilli(),
		"requester": map[string]any{"principal": principal, "method": "key", "binding": "dpop", "key": "thumb", "attested_key": false},
		"decision":  g.DecisionID, "policies": []any{map[string]any{"id": "dba-write", "object": "writes", "version": 3, "hash": "ab"}},
		"needs": []any{map[string]any{"group": "dba", "count": 2, "by": "role"}},
	}
	if kind == wire.GrantChange {
		g.Domain = domainChange
	} else {
		maps.Copy(doc, map[string]any{
			"role": role, "role_version": 4, "target": g.Target, "target_version": 2, "whole_role": false,
			"scope": []any{map[string]any{"type": "database", "identifier": g.Target, "actions": []any{"insert", "select"}, "tables": []any{map[string]any{"name": "public.orders"}}}},
			"task":  map[string]any{"id": g.TaskID, "deadline_ms": now.Add(2 * time.Hour).UnixMilli()}, "purpose": purpose,
			"ttl_s": 900, "total_s": 3600, "ends_by_ms": now.Add(2 * time.Hour).UnixMilli(), "max_leases": 1,
		})
	}
	doc["type"] = g.Domain
	maps.Copy(doc, extra)
	g.Document = canonical(doc)
	g.Hash = sum(g.Domain, g.Document)
	c.state.grants = append(c.state.grants, g)
	return g
}

func canonical(doc any) json.RawMessage {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(doc) // maps of what JSON has
	return bytes.TrimSpace(b.Bytes())
}

func sum(domain string, doc []byte) string {
	h := sha256.Sum256(slices.Concat([]byte(domain), []byte{0}, doc))
	return hex.EncodeToString(h[:])
}

// Ask makes a grant that waits for two people of dba and returns its id. Extra
// is laid over the document that they sign.
func (c *Cluster) Ask(principal, role, purpose, kind string, extra map[string]any) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.askWith(principal, role, purpose, kind, extra).ID
}

// Alter changes a grant as seen from outside, and wakes who waits for it.
func (c *Cluster) Alter(id string, change func(*wire.Grant)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.grant(id); g != nil {
		change(&g.Grant)
		c.touch(g)
	}
}

// Approve adds a person's approval to a grant, "" being the one that was asked
// for last; two are enough.
func (c *Cluster) Approve(id, principal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.grant(id)
	if g == nil {
		return
	}
	approved(&g.Grant, wire.Approval{Principal: principal, Kind: "ssh", Key: "k", At: time.Now().UTC(), Counts: true})
	c.makeChange(g)
	c.touch(g)
}

// makeChange makes a change with its last approval.
func (c *Cluster) makeChange(g *grant) {
	if g.Kind != wire.GrantChange || g.State != wire.GrantApproved {
		return
	}
	if len(g.body) > 0 {
		c.apply(&Call{Body: g.body, collecting: true})
	}
	g.State = wire.GrantEnded
}

// End ends a grant as somebody.
func (c *Cluster) End(id, state, by, reason string) {
	c.Alter(id, func(g *wire.Grant) { g.State, g.EndedBy, g.EndReason = state, by, reason })
}

func approved(g *wire.Grant, a wire.Approval) {
	g.Approvals = append(g.Approvals, a)
	g.Needs[0].Have = len(g.Approvals)
	if g.Needs[0].Have >= g.Needs[0].Required && g.State == wire.GrantWaiting {
		g.State = wire.GrantApproved
	}
}

func (c *Cluster) touch(g *grant) {
	g.Version++
	c.changed.Broadcast()
}

// grant finds a grant; "" is the last one.
func (c *Cluster) grant(id string) *grant {
	for _, g := range slices.Backward(c.state.grants) {
		if g.ID == id || id == "" {
			return g
		}
	}
	return nil
}

func (c *Cluster) waiting(g *grant, role string) (int, any) {
	return 202, wire.AccessAnswer{Status: "waiting", Role: role, TaskID: g.TaskID, GrantID: g.ID, DecisionID: g.DecisionID, Waiting: g.Waiting()}
}

// grants is the inside of /grants.
func (c *Cluster) grants(r *http.Request, parts []string, k *Call) (int, any) {
	if len(parts) == 1 {
		return 200, c.listGrants(r.URL.Query(), k)
	}
	g := c.grant(parts[1])
	if g == nil {
		// One that needed no approval is known by its leases.
		for _, plain := range c.listGrants(url.Values{}, k) {
			switch {
			case plain.ID != parts[1]:
			case len(parts) == 2:
				return 200, plain
			case parts[2] == "previous":
				return 200, wire.PreviousAccess{GrantID: plain.ID, Principal: plain.Principal, Role: plain.Role, Target: plain.Target, Days: 30, Seen: wire.SeenNever, Wider: true, Text: "first time on this role"}
			}
		}
	}
	if g == nil || parts[1] == "" {
		return 404, problem(404, "not_found", "grant_not_found", "There is no such grant.")
	}
	if len(parts) == 2 {
		c.await(r, g)
		return 200, g.Grant
	}
	switch parts[2] {
	case "collect":
		return c.collect(g, k)
	case "previous":
		return 200, wire.PreviousAccess{GrantID: g.ID, Principal: g.Principal, Role: g.Role, Target: g.Target, Days: 30, Seen: wire.SeenNever, Wider: true, Text: "first time on this role"}
	}
	var in struct { // any of the requests
		Hash, Verdict, Note, Reason string
		Signature                   wire.Signature
	}
	if json.Unmarshal(k.Body, &in) != nil {
		return 400, problem(400, "invalid", "malformed", "Not a request.")
	}
	now := time.Now().UTC()
	switch parts[2] {
	case "approve":
		switch {
		case g.Principal == k.Principal:
			return 403, problem(403, "denied", "self_approval", "Nobody approves what they asked for.")
		case in.Hash != g.Hash:
			return 409, problem(409, "conflict", "hash_mismatch", "This is not the document that waits.")
		case slices.ContainsFunc(g.Approvals, func(a wire.Approval) bool { return a.Principal == k.Principal }):
			return 409, problem(409, "conflict", "already_approved", "One person counts once.")
		}
		approved(&g.Grant, wire.Approval{Principal: k.Principal, Key: in.Signature.Key, Kind: in.Signature.Kind, At: now, Counts: true})
		c.makeChange(g)
	case "review":
		g.Review.Done = true
		g.Review.Verdicts = append(g.Review.Verdicts, wire.Verdict{Principal: k.Principal, Verdict: in.Verdict, Note: in.Note, At: now})
	default:
		g.State = map[string]string{"deny": wire.GrantDenied, "cancel": wire.GrantCancelled, "revoke": wire.GrantRevoked}[parts[2]]
		g.EndedAt, g.EndedBy, g.EndReason = &now, k.Principal, in.Reason
	}
	c.touch(g)
	return 200, g.Grant
}

func (c *Cluster) listGrants(q url.Values, k *Call) []wire.Grant {
	out := []wire.Grant{}
	for _, l := range c.state.leases {
		if c.grant(l.GrantID) != nil {
			continue
		}
		state := wire.GrantOpen
		if l.State != "open" {
			state = wire.GrantEnded
		}
		out = append(out, wire.Grant{ID: l.GrantID, Kind: wire.GrantAccess, State: state, Principal: l.Principal, Role: l.Role, Target: l.Target, TaskID: l.TaskID,
			Purpose: l.Purpose, DecisionID: l.DecisionID, RequestedAt: l.OpenedAt, EndsBy: &l.NotAfter, Leases: []string{l.ID}})
	}
	for _, g := range c.state.grants {
		out = append(out, g.Grant)
	}
	return slices.DeleteFunc(out, func(g wire.Grant) bool {
		return q.Get("mine") != "" && g.Principal != k.Principal || q.Get("pending") != "" && (g.State != wire.GrantWaiting || g.Principal == k.Principal) ||
			q.Get("overdue") != "" && (g.Review == nil || !g.Review.Overdue) || q.Get("state") != "" && g.State != q.Get("state") || q.Get("principal") != "" && g.Principal != q.Get("principal") || q.Get("after") != ""
	})
}

// await is the long poll. The lock is given back meanwhile.
func (c *Cluster) await(r *http.Request, g *grant) {
	wait, err := time.ParseDuration(r.URL.Query().Get("wait"))
	if err != nil || wait <= 0 {
		return
	}
	version := r.URL.Query().Get("version")
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})
	defer stop()
	for jsonNumber(g.Version) == version && ctx.Err() == nil {
		c.changed.Wait()
	}
}

func jsonNumber(n uint64) string {
	b, _ := json.Marshal(n)
	return string(b)
}

// collect mints, or makes the change.
func (c *Cluster) collect(g *grant, k *Call) (int, any) {
	if old, ok := c.state.answers[k.Principal+" "+k.Idem]; ok && k.Idem != "" {
		return 200, old
	}
	switch g.State {
	case wire.GrantWaiting:
		return c.waiting(g, g.Role)
	case wire.GrantApproved:
	default:
		return 403, problem(403, "denied", "grant_over", "The grant is "+g.State+".")
	}
	defer c.touch(g)
	now := time.Now().UTC()
	t := &wire.Task{ID: g.TaskID, Implicit: true, Purpose: g.Purpose, Principal: k.Principal, State: "open", StartedAt: now, Deadline: now.Add(time.Hour), DueAt: now.Add(time.Hour)}
	c.state.tasks = append(c.state.tasks, t)
	a := c.mint(g.Role, g.Target, "", t, k.Principal)
	a.GrantID = g.ID
	l := c.state.leases[len(c.state.leases)-1]
	l.GrantID = g.ID
	g.State, g.Leases = wire.GrantOpen, append(g.Leases, l.ID)
	if k.Idem != "" {
		c.state.answers[k.Principal+" "+k.Idem] = a
	}
	return 200, a
}

// approvalKeys is the inside of /keys: keys to approve with, unverified.
func (c *Cluster) approvalKeys(parts []string, k *Call) (int, any) {
	var in wire.AddKeyRequest
	switch {
	case k.Method == http.MethodGet:
		return 200, c.state.approvers
	case json.Unmarshal(k.Body, &in) != nil:
		return 400, problem(400, "invalid", "malformed", "Not a key.")
	case in.Principal == "":
		in.Principal = k.Principal
	}
	if len(parts) == 2 {
		key := keyDocument(in.Approve)
		if key == nil {
			return 400, problem(400, "invalid", "key_malformed", "This is no key to approve with.")
		}
		doc := canonical(map[string]any{"type": domainKey, "cluster": "test", "principal": in.Principal, "key": key})
		vouch := ""
		if slices.ContainsFunc(c.state.approvers, func(k wire.Key) bool { return k.Principal == in.Principal }) {
			vouch = "key"
		}
		return 200, wire.KeyDocument{Document: doc, Hash: sum(domainKey, doc), Domain: domainKey, Vouch: vouch}
	}
	key := wire.Key{Principal: in.Principal, Use: in.Use, JWK: in.JWK, AddedAt: time.Now().UTC(), AddedBy: k.Principal}
	if in.Proof != nil && in.Approve != nil {
		key.Kind, key.Thumbprint, key.SSH, key.JWK = in.Proof.Kind, in.Proof.Key, in.Approve.SSH, in.Approve.JWK
	}
	c.state.approvers = append(c.state.approvers, key)
	return 200, key
}

// sorted has an object's members in the order of their names once it is encoded.
func sorted(object []byte) any {
	var members map[string]any
	_ = json.Unmarshal(object, &members) // what is none becomes null
	return members
}

// keyDocument is a key as its document has it; nil for what is none.
func keyDocument(in *wire.ApproveKey) map[string]any {
	switch {
	case in == nil:
		return nil
	case in.SSH == "":
		return map[string]any{"kind": "jws", "jwk": sorted(in.JWK)}
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(in.SSH))
	if err != nil {
		return nil
	}
	public, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: public.CryptoPublicKey()})
	if err != nil {
		return nil
	}
	return map[string]any{"kind": "ssh", "jwk": sorted(jwk), "ssh_type": key.Type()}
}
