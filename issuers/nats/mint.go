package nats

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Times of a user's JWT.
const (
	// backdate lets a server whose clock is a little behind accept a JWT at once.
	backdate = time.Minute
	// lastSecond: servers compare whole seconds and accept the last one to its end.
	lastSecond = time.Second
)

// Issuer mints users of one account, and revokes them where the target's spec
// says so. It is safe for concurrent use; [Kind.Open] makes one.
type Issuer struct {
	spec    spec
	keys    keyring
	dialer  dialer
	revoker *revoker // nil where nothing can be revoked
	log     *slog.Logger
	closed  atomic.Bool
}

// Close implements [issuers.Issuer]; it may be called again.
func (is *Issuer) Close() error {
	is.closed.Store(true)
	if is.revoker != nil {
		is.revoker.close()
	}
	return nil
}

// end is when a lease's JWT ends: never after its lease, in whole seconds, of
// which the last one is still good to a server.
func (is *Issuer) end(l issuers.Lease) time.Time {
	end := l.NotAfter
	if capped := l.NotBefore.Add(is.spec.maxTTL); capped.Before(end) {
		end = capped
	}
	return end.UTC().Truncate(time.Second).Add(-lastSecond)
}

// Mint implements [issuers.Issuer]. Where nothing can be revoked no server is
// asked, and a late re-mint gets a JWT of its own, which ends with the lease.
// Where it can, the account's JWT says whether this generation was taken back
// before it was made, and earlier generations are taken back now (HAZARDS 9).
func (is *Issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	p, err := is.prepare(ctx, l)
	if err != nil {
		return none, err
	}
	u, pair, err := is.holder(l)
	if err != nil {
		return none, err
	}
	if is.revoker != nil {
		if !l.MintDeadline.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, l.MintDeadline)
			defer cancel()
		}
		if err := is.revoker.admit(ctx, l, u.key); err != nil {
			return none, err
		}
		if err := is.inTime(ctx, l); err != nil { // that took time
			return none, err
		}
	}
	token, err := p.claims(is.spec, u).Encode(is.keys.signer)
	if err != nil {
		return none, refused("the account's key cannot sign the user")
	}
	return is.credential(u, pair, token)
}

// prepare refuses what need not be asked of anybody.
func (is *Issuer) prepare(ctx context.Context, l issuers.Lease) (permissions, error) {
	if is.closed.Load() {
		return permissions{}, &issuers.Error{Kind: issuers.Unreachable, Detail: "mint", Err: errClosed}
	}
	if err := checkLease(l); err != nil {
		return permissions{}, err
	}
	p, err := compile(is.spec, l.Scope)
	if err != nil {
		return p, &issuers.Error{Kind: issuers.Refused, Detail: "the scope is not one for this target", Err: err}
	}
	return p, is.inTime(ctx, l)
}

func (is *Issuer) inTime(ctx context.Context, l issuers.Lease) error {
	now := time.Now()
	switch {
	case !l.MintDeadline.IsZero() && !now.Before(l.MintDeadline):
		return tooLate("the mint deadline has passed")
	case !now.Before(is.end(l)):
		return tooLate("the lease, or the target's max_ttl from its start on, has ended or ends within a second")
	case ctx.Err() != nil:
		return tooLate("the caller no longer waits")
	}
	return nil
}

// holder is the user of a lease and, where the broker makes it, its key pair.
func (is *Issuer) holder(l issuers.Lease) (user, nkeys.KeyPair, error) {
	u := user{name: l.Name, account: is.keys.account, inbox: is.spec.InboxPrefix + "." + l.ID, start: l.NotBefore.Add(-backdate), end: is.end(l)}
	var err error
	if is.spec.RequesterKeys && len(l.PublicKey) > 0 {
		if u.key, err = holderKey(l.PublicKey); err != nil {
			return u, nil, refused("%v", err)
		}
		return u, nil, nil
	}
	pair, err := is.keys.users.pair(l.ID, l.Generation)
	if err == nil {
		u.key, err = pair.PublicKey()
	}
	if err != nil {
		return u, nil, refused("the user's key cannot be made")
	}
	return u, pair, nil
}

// credential is what the requester gets.
func (is *Issuer) credential(u user, pair nkeys.KeyPair, token string) (issuers.Credential, error) {
	scheme := "nats://"
	if is.spec.TLS.Mode != tlsDisable {
		scheme = "tls://"
	}
	c := issuers.Credential{
		Public: map[string]string{
			"username": u.name, "user_key": u.key, "account": u.account, "url": scheme + is.spec.addresses[0], "inbox_prefix": u.inbox,
			"tls": is.spec.TLS.Mode, "expires_at": u.end.Add(lastSecond).Format(time.RFC3339),
		},
		Secret: map[string]secret.Text{"jwt": secret.New(token)},
		Env:    map[string]string{"NATS_URL": "url", "NATS_INBOX_PREFIX": "inbox_prefix", "NATS_USER_JWT": "jwt"},
	}
	for i, a := range is.spec.addresses {
		if i > 0 {
			c.Public["url"] += "," + scheme + a
		}
	}
	if is.spec.TLS.CA != "" {
		c.Public["ca"] = is.spec.TLS.CA
	}
	if is.spec.TLS.CAFile != "" {
		c.Public["ca_file"] = is.spec.TLS.CAFile
	}
	if pair == nil {
		return c, nil
	}
	seed, err := pair.Seed()
	if err != nil {
		return issuers.Credential{}, refused("the user's key cannot be written")
	}
	file, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		return issuers.Credential{}, refused("the user's .creds cannot be written")
	}
	c.Secret["seed"], c.Secret["creds"] = secret.New(string(seed)), secret.New(string(file))
	c.Env["NATS_USER_SEED"] = "seed"
	return c, nil
}

// Withdraw implements [issuers.Issuer]. Without the means to revoke there is
// nothing to ask: servers accept the JWT until its exp, and end its connections
// then (HAZARDS 18).
func (is *Issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	if is.revoker != nil {
		is.revoker.withdraw(ctx, leases, out)
		return out
	}
	for i, l := range leases {
		if err := checkLease(l); err != nil {
			out[i].Err = err
			continue
		}
		end := is.end(l).Add(lastSecond).Format(time.RFC3339)
		out[i].Receipt = issuers.Receipt{
			Proof:  issuers.ProofExpiresOnly,
			Detail: "nothing to ask: the target has no means to revoke; servers accept the user's JWT, and keep its connections, until its exp, at the latest " + end,
		}
	}
	return out
}

// Publish implements [issuers.Publisher]: "account-signing-key" is the public key
// that the account must list, for its operator to add. In a rotation the other one
// stands on a second line.
func (is *Issuer) Publish(context.Context) (map[string][]byte, error) {
	public, err := is.keys.ring.public()
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	return map[string][]byte{"account-signing-key": []byte(strings.Join(public, "\n") + "\n")}, nil
}
