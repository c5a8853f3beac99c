package ssh

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// backdate lets a server whose clock is a little behind accept a certificate at
// once.
const backdate = time.Minute

// keepRevoked is how long a revoked certificate stays in the list beyond its own
// end: for a server whose clock is behind it has not ended yet.
const keepRevoked = 10 * time.Minute

// issuer signs certificates for one target.
type issuer struct {
	name   string // the target's
	draft  bool   // the target is not written yet
	spec   spec
	ca     authority
	closed atomic.Bool
}

var (
	_ issuers.Publisher           = (*issuer)(nil)
	_ issuers.RevocationPublisher = (*issuer)(nil)
	_ issuers.Checker             = (*issuer)(nil)
)

// Open implements [issuers.Kind]. It needs the target's [SecretKey].
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	sp, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	ca, err := readCA(t.Secrets[SecretKey], sp.CAAlgorithm)
	if err != nil {
		return nil, fmt.Errorf("ssh: %w", err)
	}
	return &issuer{name: t.Name, draft: t.Draft, spec: sp, ca: ca}, nil
}

// Mint implements [issuers.Issuer]. The clock of the target is this machine's.
// With the requester's key, minting the same lease again yields a certificate
// that says the same, for the same key. Without one, each mint makes a new
// private key, since the last one was never stored. There is no generation to
// compare with: a late re-mint has a key id of its own, and the lease's end
// revokes all of them by their one serial (HAZARDS 9).
func (i *issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	if i.closed.Load() {
		return none, refused(errors.New("the issuer is closed"))
	}
	now := time.Now()
	switch {
	case ctx.Err() != nil:
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "the caller no longer waits; nothing was signed", Err: ctx.Err()}
	case !now.Before(l.MintDeadline):
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "the mint deadline has passed; nothing was signed"}
	case !now.Before(i.end(l)):
		return none, &issuers.Error{Kind: issuers.TooLate, Detail: "the lease, or the target's max_ttl from its start on, has ended; nothing was signed"}
	case l.Name != Kind{}.CredentialName(l.ID, l.Generation):
		return none, refused(errors.New("the lease's name is not the one of its id and generation"))
	}
	g, err := i.spec.compile(l.Scope)
	if err != nil {
		return none, refused(err)
	}
	c, err := i.issue(l, g)
	if err != nil {
		return none, refused(err)
	}
	return c, nil
}

// issue signs the certificate, for the requester's key or for one made here.
func (i *issuer) issue(l issuers.Lease, g grant) (issuers.Credential, error) {
	var c issuers.Credential
	var holder ssh.PublicKey
	var err error
	if len(l.PublicKey) > 0 {
		holder, err = holderKey(l.PublicKey)
	} else {
		var text secret.Text
		holder, text, err = newHolder()
		c.Secret = map[string]secret.Text{"private_key": text}
	}
	if err != nil {
		return issuers.Credential{}, err
	}
	start, end := l.NotBefore.Add(-backdate), i.end(l)
	if start.Unix() < 0 || end.Unix() < 0 {
		return issuers.Credential{}, errors.New("the lease lies before 1970") // as an unsigned number it would lie far ahead
	}
	cert := &ssh.Certificate{
		Key: holder, Serial: serialNumber(l.ID), CertType: g.certType, KeyId: l.Name,
		ValidPrincipals: g.principals,
		ValidAfter:      uint64(start.Unix()), ValidBefore: uint64(end.Unix()),
		Permissions: ssh.Permissions{CriticalOptions: g.critical, Extensions: g.extensions},
	}
	if err := cert.SignCert(rand.Reader, i.ca.signer); err != nil {
		return issuers.Credential{}, errors.New("the CA could not sign")
	}
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(cert)), "\n")
	c.Public = map[string]string{
		"certificate":   line + " " + l.Name + "\n",
		"ca_public_key": string(i.ca.public()),
		"key_id":        l.Name,
		"serial":        strconv.FormatUint(cert.Serial, 10),
		"principals":    strings.Join(g.principals, ","),
		"expires_at":    end.Format(time.RFC3339),
	}
	return c, nil
}

func newHolder() (ssh.PublicKey, secret.Text, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, secret.Text{}, fmt.Errorf("make a private key: %w", err)
	}
	text, err := encodeKey(private)
	if err != nil {
		return nil, secret.Text{}, err
	}
	holder, err := ssh.NewPublicKey(public)
	return holder, text, err
}

// end is when a lease's certificate ends: never after its lease, in whole
// seconds. That second itself is refused by servers.
func (i *issuer) end(l issuers.Lease) time.Time {
	end := l.NotAfter
	if capped := l.NotBefore.Add(i.spec.maxTTL); capped.Before(end) {
		end = capped
	}
	return end.UTC().Truncate(time.Second)
}

// Withdraw asks nobody: the ledger, which knows the lease as ending, puts it into
// the published list. The receipt says what follows from that and what does not
// (HAZARDS 18). It never fails, also on a lease that was never minted.
func (i *issuer) Withdraw(_ context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	now := time.Now()
	for n, l := range leases {
		end := l.NotAfter.UTC().Truncate(time.Second)
		bites := now.Add(i.spec.maxAge).UTC().Truncate(time.Second).Add(time.Second)
		detail := "no server was asked; one that does not fetch the revocation list accepts the certificate until " + end.Format(time.RFC3339)
		if i.spec.maxAge > 0 && bites.Before(end) {
			detail = fmt.Sprintf("no server was asked; one that fetches the revocation list within %s, as the target's spec says of all, refuses the certificate from %s on; it ends by itself at %s",
				i.spec.maxAge, bites.Format(time.RFC3339), end.Format(time.RFC3339))
		}
		out[n].Receipt = issuers.Receipt{Proof: issuers.ProofExpiresOnly, Detail: detail}
	}
	return out
}

// Publish returns "ca.pub": the CA's public keys, one a line, as TrustedUserCAKeys
// reads them.
func (i *issuer) Publish(context.Context) (map[string][]byte, error) {
	return map[string][]byte{"ca.pub": i.ca.public()}, nil
}

// PublishRevoked returns "krl": OpenSSH's key revocation list of the leases whose
// certificates a server might still accept, as RevokedKeys reads it.
func (i *issuer) PublishRevoked(ctx context.Context, withdrawn iter.Seq[issuers.Lease]) (map[string][]byte, error) {
	now := time.Now()
	var serials []uint64
	for l := range withdrawn {
		if len(serials) > maxRevoked || ctx.Err() != nil {
			break // krl says so, or nobody waits
		}
		// by the lease's end and not by max_ttl, which may have been longer when the
		// certificate was signed
		if now.Before(l.NotAfter.Add(keepRevoked)) {
			serials = append(serials, serialNumber(l.ID))
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	list, err := krl(i.ca.keys, serials, now)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"krl": list}, nil
}

// Check implements [issuers.Checker]: it shows the CA's public keys, and warns of
// a revocation that rests on nobody's word. Nobody is shown a draft's key: servers
// that were told to trust it would trust nothing.
func (i *issuer) Check(context.Context) ([]issuers.Finding, error) {
	var out []issuers.Finding
	if i.draft {
		out = append(out, issuers.Finding{Name: "ca", OK: true, Detail: "once the target is written, mayfly target check " + i.name + " shows the line by which servers trust its key"})
	} else {
		for n, k := range i.ca.keys {
			name, role := "ca", "signs"
			if n > 0 {
				name, role = "ca "+strconv.Itoa(n+1), "is trusted, but does not sign"
			}
			line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(k)), "\n")
			out = append(out, issuers.Finding{Name: name, OK: true, Detail: role + " (" + ssh.FingerprintSHA256(k) + "); servers trust it by the line " + line})
		}
	}
	if i.spec.maxAge == 0 {
		out = append(out, issuers.Finding{Name: "krl", Warning: true, Detail: "nothing says that servers fetch the revocation list, so a withdrawn certificate counts as good until it expires; where they do, say krl: {max_age: …}"})
	}
	return out, nil
}

// Close implements [issuers.Issuer]; it may be called again.
func (i *issuer) Close() error {
	i.closed.Store(true)
	return nil
}

func refused(err error) error {
	return &issuers.Error{Kind: issuers.Refused, Detail: err.Error()}
}
