package main

import (
	"context"
	"slices"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// registerApproveKey gives a home's person a key to approve with, made there, if
// they have none: what `key add --use approve` does, for a dev node's second person.
func registerApproveKey(ctx context.Context, cl *client.Client) error {
	keys, err := cl.Keys(ctx, "")
	if err != nil || slices.ContainsFunc(keys, func(k wire.Key) bool { return k.Use == useApprove }) {
		return err
	}
	me, err := cl.Whoami(ctx)
	if err != nil {
		return err
	}
	nobody := func(file string) ([]byte, error) {
		return nil, failed(approve.CodeKey, "%s is protected by a passphrase", clean(file))
	}
	signer, _, err := approve.OpenOrGenerate(cl.Home().Path(approveKeyName), "mayfly "+me.Principal, nobody)
	if err != nil {
		return err
	}
	doc, err := cl.KeyDocument(ctx, "", signer.Key().ApproveKey)
	if err != nil {
		return err
	}
	hash, err := approve.CheckKey(doc, me.Principal, signer.Key())
	if err != nil {
		return err
	}
	proof, err := signer.Sign(approve.DomainKey, hash)
	if err != nil {
		return err
	}
	key := signer.Key().ApproveKey
	in := wire.AddKeyRequest{Use: useApprove, Approve: &key, Proof: &proof}
	founder, err := cl.Home().Voucher()
	if err != nil {
		return err
	}
	if founder != nil {
		vouching, err := approve.FromEd25519(founder, "the enrolment")
		if err != nil {
			return err
		}
		vouch, err := vouching.Sign(approve.DomainKey, hash)
		if err != nil {
			return err
		}
		in.Vouch = &vouch
	}
	if _, err := cl.AddKey(ctx, in); err != nil {
		return err
	}
	return cl.Home().ForgetVoucher()
}
