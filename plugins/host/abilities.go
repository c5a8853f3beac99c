package host

import (
	"golang.org/x/sync/semaphore"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
)

// Issuers that can more: whoever asks whether a target can extend, list or publish
// asks its type. So there is a type for each combination.
type (
	extends   struct{ i *issuer }
	lists     struct{ i *issuer }
	publishes struct{ i *issuer }
	revokes   struct{ i *issuer }

	extending struct {
		*issuer
		extends
	}
	listing struct {
		*issuer
		lists
	}
	extendingListing struct {
		*issuer
		extends
		lists
	}
)

func newIssuer(k *kind, t issuers.Target) issuers.Issuer {
	i := &issuer{k: k, target: t, forget: k.s.keep(t.Secrets), opening: semaphore.NewWeighted(1)}
	e, l := k.manifest.Can(protocol.AbleExtend), k.manifest.Can(protocol.AbleList)
	p, r := k.manifest.Can(protocol.AblePublish), k.manifest.Can(protocol.AbleRevoked)
	switch {
	case p && r:
		return i.publishingRevoking(e, l)
	case p:
		return i.publishing(e, l)
	case r:
		return i.revoking(e, l)
	case e && l:
		return extendingListing{i, extends{i}, lists{i}}
	case e:
		return extending{i, extends{i}}
	case l:
		return listing{i, lists{i}}
	}
	return i
}

// publishing is the issuer of a plugin that publishes.
func (i *issuer) publishing(e, l bool) issuers.Issuer {
	switch {
	case e && l:
		return struct {
			extendingListing
			publishes
		}{extendingListing{i, extends{i}, lists{i}}, publishes{i}}
	case e:
		return struct {
			extending
			publishes
		}{extending{i, extends{i}}, publishes{i}}
	case l:
		return struct {
			listing
			publishes
		}{listing{i, lists{i}}, publishes{i}}
	}
	return struct {
		*issuer
		publishes
	}{i, publishes{i}}
}

// revoking is the issuer of a plugin that publishes revocations.
func (i *issuer) revoking(e, l bool) issuers.Issuer {
	switch {
	case e && l:
		return struct {
			extendingListing
			revokes
		}{extendingListing{i, extends{i}, lists{i}}, revokes{i}}
	case e:
		return struct {
			extending
			revokes
		}{extending{i, extends{i}}, revokes{i}}
	case l:
		return struct {
			listing
			revokes
		}{listing{i, lists{i}}, revokes{i}}
	}
	return struct {
		*issuer
		revokes
	}{i, revokes{i}}
}

// publishingRevoking is the issuer of a plugin that does both.
func (i *issuer) publishingRevoking(e, l bool) issuers.Issuer {
	switch {
	case e && l:
		return struct {
			extendingListing
			publishes
			revokes
		}{extendingListing{i, extends{i}, lists{i}}, publishes{i}, revokes{i}}
	case e:
		return struct {
			extending
			publishes
			revokes
		}{extending{i, extends{i}}, publishes{i}, revokes{i}}
	case l:
		return struct {
			listing
			publishes
			revokes
		}{listing{i, lists{i}}, publishes{i}, revokes{i}}
	}
	return struct {
		*issuer
		publishes
		revokes
	}{i, publishes{i}, revokes{i}}
}
