package broker

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// KeyDocument is what a new approval key signs, and who must vouch for it.
func (e *Engine) KeyDocument(ctx context.Context, c Caller, principal string, in wire.ApproveKey) (wire.KeyDocument, error) {
	if err := e.overPrincipal(ctx, c, &principal, policy.ActionAdminister, e.allowProposing, nil); err != nil {
		return wire.KeyDocument{}, err
	}
	key, err := approveKey(in)
	if err != nil {
		return wire.KeyDocument{}, err
	}
	return e.documentOf(principal, key)
}

// documentOf is what a new key of principal signs, and who must vouch for it.
func (e *Engine) documentOf(principal string, key cosign.Key) (out wire.KeyDocument, err error) {
	err = e.view(func(q ledger.Query) error {
		text, hash, err := keyDocument(q, principal, key)
		if err != nil {
			return fault.Wrap(err, fault.Invalid, "key_malformed", "The key cannot be registered: %v.", err)
		}
		out = wire.KeyDocument{Document: text, Hash: hex.EncodeToString(hash[:]), Domain: cosign.DomainKey, Vouch: q.Voucher(principal)}
		return nil
	})
	return out, err
}

func keyDocument(q ledger.Query, principal string, key cosign.Key) ([]byte, cosign.Hash, error) {
	g, _ := q.Genesis()
	text, err := cosign.Canonical(cosign.KeyDocument{Type: cosign.DomainKey, Cluster: g.Cluster, Principal: principal, Key: key})
	return text, cosign.Sum(cosign.DomainKey, text), err
}

// approveKey reads a key to approve with as it came in.
func approveKey(in wire.ApproveKey) (cosign.Key, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "key_malformed", "%s Allowed are Ed25519 and P-256, as an SSH key or a JWK.", fmt.Sprintf(format, args...))
	}
	switch {
	case (in.SSH == "") == (len(in.JWK) == 0):
		return cosign.Key{}, bad("Give one key, as ssh or as jwk.")
	case in.SSH != "":
		k, err := cosign.ParseSSH(in.SSH)
		if err != nil {
			return k, bad("The SSH key does not read: %v.", err)
		}
		return k, nil
	}
	jwk, err := publicJWK(in.JWK, "")
	if err != nil {
		return cosign.Key{}, err
	}
	k := cosign.Key{Kind: cosign.KindJWS, JWK: jwk}
	if err := k.Check(); err != nil {
		return k, bad("The JWK does not serve: %v.", err)
	}
	return k, nil
}

// addKeyToApprove registers an SSH or JWS key to approve with.
func (e *Engine) addKeyToApprove(ctx context.Context, c Caller, in wire.AddKeyRequest) (wire.Key, error) {
	if in.Approve == nil {
		return wire.Key{}, fault.New(fault.Invalid, "key_missing", "Give the key to approve with in approve, as ssh or as jwk.")
	}
	key, err := approveKey(*in.Approve)
	if err != nil {
		return wire.Key{}, err
	}
	return e.addApproveKey(ctx, c, in.Principal, key, optional(in.Proof), optional(in.Vouch))
}

func optional(s *wire.Signature) *cosign.Signature {
	if s == nil {
		return nil
	}
	out := signature(*s)
	return &out
}

// addApproveKey registers a key to approve with. Where the approvers must agree
// to it, it becomes a change that waits.
func (e *Engine) addApproveKey(ctx context.Context, c Caller, principal string, key cosign.Key, proof, vouch *cosign.Signature) (wire.Key, error) {
	h := e.header(c)
	if principal == "" {
		principal = c.Session.Principal
	}
	var voucher string
	if err := e.view(func(q ledger.Query) error { voucher = q.Voucher(principal); return nil }); err != nil {
		return wire.Key{}, err
	}
	allow := e.allow
	if voucher == ledger.VouchApprovers && vouch == nil { // it becomes a change
		allow = e.allowProposing
	}
	if err := e.overPrincipal(ctx, c, &principal, policy.ActionAdminister, allow, &h); err != nil {
		return wire.Key{}, err
	}
	thumb, err := cosign.Thumbprint(key.JWK)
	if err != nil {
		return wire.Key{}, fault.Wrap(err, fault.Invalid, "key_malformed", "The key does not read: %v.", err)
	}
	rec := ledger.Key{Thumbprint: thumb, Principal: principal, Use: ledger.UseApprove, JWK: key.JWK, Approve: &key}
	if voucher == ledger.VouchApprovers && vouch == nil {
		id, err := e.askForKey(ctx, c, principal, key, proof)
		out := wireKey(rec)
		out.GrantID = id
		return out, err
	}
	if _, err := e.commit(ctx, h, &ledger.AddKey{Key: rec, Proof: proof, Vouch: vouch}); err != nil {
		return wire.Key{}, err
	}
	err = e.view(func(q ledger.Query) error { rec, _ = q.Key(thumb); return nil })
	return wireKey(rec), err
}
