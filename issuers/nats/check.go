package nats

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Check implements [issuers.Checker].
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	if is.closed.Load() {
		return nil, &issuers.Error{Kind: issuers.Unreachable, Detail: "check", Err: errClosed}
	}
	x := &examination{is: is}
	own, err := is.keys.signer.PublicKey()
	if err != nil {
		return nil, refused("the signing key has no public key")
	}
	if err := x.account(ctx, own); err != nil {
		return nil, err
	}
	if is.revoker == nil {
		x.add("revocation", false, true, fmt.Sprintf("the target has no means to revoke: what is minted lives until it expires, at most %s; the end of a lease ends nothing before. "+
			"See the key revocation in docs/issuers/nats.md", is.spec.maxTTL), "")
		x.rotation()
		return x.findings, nil
	}
	return x.findings, x.revocation(ctx, own)
}

// examination collects findings.
type examination struct {
	is       *Issuer
	findings []issuers.Finding
}

func (x *examination) add(name string, ok, warning bool, detail, fix string) {
	if ok {
		fix = ""
	}
	x.findings = append(x.findings, issuers.Finding{Name: name, OK: ok, Warning: warning && !ok, Detail: detail, Fix: fix})
}

// account logs in as a user that may do nothing. That works only where the
// servers know the account, and the account lists the key.
func (x *examination) account(ctx context.Context, own string) error {
	l, err := x.is.nobody(x.is.keys.signer)
	if err != nil {
		return refused("a user to check with cannot be made")
	}
	c, err := x.is.dialer.dial(ctx, l)
	var said *serverError
	switch {
	case err == nil:
		defer c.close()
		x.add("connect", true, false, fmt.Sprintf("nats-server %.40s, max_payload %d", c.info.Version, c.info.MaxPayload), "")
		x.add("signing key", true, false, "the account "+x.is.keys.account+" accepts users that "+own+" has signed", "")
		return nil
	case errors.As(err, &said) && !passing(said.text):
		x.add("connect", true, false, "a server answers", "")
		detail := fmt.Sprintf("the servers refuse a user of account %s that %s has signed (%v): the account is unknown to them, or does not list that key, or lists it with a role", x.is.keys.account, own, err)
		if x.is.keys.made {
			detail = "until the account lists it, nothing that is minted works. " + detail +
				". (If the target is only being added, its own key is yet to be made: see mayfly target check)"
		}
		x.add("signing key", false, x.is.keys.made, detail, "nsc edit account --name ACCOUNT --sk "+own+" && nsc push --account ACCOUNT")
		return nil
	default:
		return beforeError("connect", err)
	}
}

// nobody is the login of a user with no rights at all, signed by signer.
func (is *Issuer) nobody(signer nkeys.KeyPair) (login, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return login{}, err
	}
	public, err := pair.PublicKey()
	if err != nil {
		return login{}, err
	}
	c := jwt.NewUserClaims(public)
	c.Name, c.IssuerAccount, c.Tags = "mayfly-check", is.keys.account, jwt.TagList{"mayfly"}
	c.Expires = time.Now().Add(writerLife).Unix()
	c.Pub.Deny = jwt.StringList{">"}
	c.Sub.Deny = jwt.StringList{">"} // the inbox is refused as well; nothing is asked
	token, err := c.Encode(signer)
	return login{jwt: token, name: "mayfly-check", sign: pair.Sign}, err
}

// revocation goes through what a revocation does, up to the push itself.
func (x *examination) revocation(ctx context.Context, own string) error {
	r := x.is.revoker
	c, err := r.read(ctx)
	if issuers.KindOf(err) == issuers.Refused {
		x.add("system account", false, false, fmt.Sprintf("the servers refuse a user of the system account %s that the system_key has signed: %v", r.sys.systemAccount, err),
			"nsc edit account --name SYS --sk generate && nsc push --account SYS")
		return nil
	}
	if err != nil {
		return err
	}
	ids, err := r.sys.servers(ctx, c)
	if err != nil {
		return beforeError("find the servers", err)
	}
	x.add("system account", true, false, "in reach: "+count(len(ids)), "")
	keys, err := r.sys.trusted(ctx, c, ids)
	if err != nil {
		x.add("operator", false, false, err.Error(), "")
		return nil
	}
	operator, err := x.is.keys.operator.PublicKey()
	if err != nil {
		return refused("the operator_key has no public key")
	}
	x.add("operator key", keys[operator], false, operator+" is a key by which every server lets accounts be signed: "+yes(keys[operator]),
		"nsc edit operator --sk "+operator+", then give every server the new operator JWT and restart it")
	tokens, err := r.sys.lookups(ctx, c, len(ids))
	if err != nil {
		x.add("resolver", false, false, err.Error(), "")
		return nil
	}
	x.add("resolver", len(tokens) == len(ids), true, fmt.Sprintf("of %s, %d answer look-ups of accounts (resolver: full)", count(len(ids)), len(tokens)), "")
	a, err := newest(tokens, x.is.keys.account, keys)
	if err != nil {
		x.add("account", false, false, err.Error(), "")
		return nil
	}
	x.room(a, c.info.MaxPayload, own)
	x.rotation()
	return nil
}

// rotation says whether the signing key can be turned, and what is lacking.
func (x *examination) rotation() {
	err := turnsKeys(x.is.spec)
	if err == nil {
		err = x.is.turnsThisKey()
	}
	if err != nil {
		x.add("rotation", false, true, err.Error(), "")
		return
	}
	said := map[string]string{"": "no turn is under way", turnPublished: "the next key is made, and the account is to list it before it signs", turnUsed: "the new key signs, and the account lists the one before yet"}
	x.add("rotation", true, false, "mayfly rotate target, or the target's schedule, turns the signing key; "+said[x.is.keys.ring.Turn], "")
}

// room says how much of the account's JWT is taken.
func (x *examination) room(a *account, maxPayload int, own string) {
	s, listed := a.signers[own]
	if listed && s.scoped {
		x.add("signing key scope", false, x.is.keys.made, "the account lists "+own+" with a role, so that its users may have no permissions of their own; list it without", "")
	}
	ours := 0
	for _, m := range a.revocations {
		if _, is := ourEnd(m); is {
			ours++
		}
	}
	x.add("room for revocations", len(a.token) <= maxPayload*payloadShare/100, false,
		fmt.Sprintf("the account's JWT takes %d of max_payload's %d bytes, with %d revocations, %d of them Mayfly's; nothing is minted beyond half", len(a.token), maxPayload, len(a.revocations), ours), "")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
