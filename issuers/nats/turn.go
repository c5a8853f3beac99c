package nats

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Times of a signing key's rotation.
const (
	// publishTime is how long a new key waits before the servers are told of it.
	// Nobody fetches it: all of them must list it before it signs.
	publishTime = time.Second
	// honourSlack is how much longer than a user's life the old key stays in the
	// account: clocks differ, and a leader that has not heard of the turn signs a
	// little longer.
	honourSlack = 5 * time.Minute
	// tellTime bounds what a step says to the servers.
	tellTime = 30 * time.Second
)

// Phases of a rotation, as the sealed ring says them. A ring without one is in none.
const (
	turnPublished = "published" // the last key is new and does not sign
	turnUsed      = "used"      // the keys after the first sign no more
)

// maxRetired is how many retired keys are remembered: of an account's older copies,
// those with one of them are known as such.
const maxRetired = 8

// ring is a target's signing keys and where their rotation stands: the secret
// [SecretMadeSigning] once it has begun. It is never logged.
type ring struct {
	Keys    []string `json:"keys"` // seeds; the first one signs
	Turn    string   `json:"turn,omitempty"`
	Retired []string `json:"retired,omitempty"` // public keys, the last one last
}

// readRing reads the signing keys. made says that the only one was made by the
// broker, and that nobody but a person can have put it into the account.
func readRing(secrets map[string]secret.Text) (r ring, made bool, err error) {
	given, own := secrets[SecretSigning], secrets[SecretMadeSigning]
	if !strings.HasPrefix(own.Reveal(), "{") {
		if made = given.IsZero(); made {
			given = own
		}
		pair, err := readSeed(SecretSigning, given, nkeys.PrefixByteAccount)
		if err != nil {
			return r, made, err
		}
		seed, err := pair.Seed()
		return ring{Keys: []string{string(seed)}}, made, err
	}
	bad := fmt.Errorf("%s: it is not what the broker made of it", SecretMadeSigning)
	dec := json.NewDecoder(bytes.NewReader([]byte(own.Reveal())))
	dec.DisallowUnknownFields()
	if len(own.Reveal()) > maxSeedBytes || dec.Decode(&r) != nil {
		return ring{}, false, bad
	}
	keys := 2
	if r.Turn == "" {
		keys = 1
	}
	if len(r.Keys) != keys || !slices.Contains([]string{"", turnPublished, turnUsed}, r.Turn) {
		return ring{}, false, bad
	}
	if _, err := r.public(); err != nil {
		return ring{}, false, bad
	}
	return r, false, nil
}

// pair is the i-th key.
func (r ring) pair(i int) (nkeys.KeyPair, error) {
	return readSeed(SecretMadeSigning, secret.New(r.Keys[i]), nkeys.PrefixByteAccount)
}

// public are the keys' public halves.
func (r ring) public() ([]string, error) {
	out := make([]string, len(r.Keys))
	for i := range r.Keys {
		pair, err := r.pair(i)
		if err == nil {
			out[i], err = pair.PublicKey()
		}
		if err != nil {
			return nil, errors.New("a signing key has no public key")
		}
	}
	return out, nil
}

// turned is the ring after one step.
func (r ring) turned(step issuers.KeyTurn) (ring, error) {
	switch {
	case step == issuers.KeyPublish && r.Turn == "":
		pair, err := nkeys.CreateAccount()
		if err != nil {
			return r, err
		}
		seed, err := pair.Seed()
		return ring{Keys: []string{r.Keys[0], string(seed)}, Turn: turnPublished, Retired: r.Retired}, err
	case step == issuers.KeyUse && r.Turn == turnPublished:
		return ring{Keys: []string{r.Keys[1], r.Keys[0]}, Turn: turnUsed, Retired: r.Retired}, nil
	case step == issuers.KeyRetire && r.Turn == turnUsed:
		public, err := r.public()
		retired := append(slices.Clone(r.Retired), public[1:]...)
		return ring{Keys: r.Keys[:1], Retired: retired[max(0, len(retired)-maxRetired):]}, err
	}
	return r, errors.New("the step does not fit the target's keys: a new key is published, then used, then the old one retired")
}

// overtaken says whether somebody has pushed an older copy of the account: it lacks
// the key that signs, and lists one that this key has replaced. One that lists
// neither was taken from us on purpose.
func (k keyring) overtaken(a *account) bool {
	public, err := k.ring.public()
	if err != nil {
		return false
	}
	older := k.ring.Retired
	if k.ring.Turn == turnUsed {
		older = append(slices.Clone(older), public[1])
	}
	_, listed := a.signers[public[0]]
	return !listed && slices.ContainsFunc(older, func(key string) bool { _, there := a.signers[key]; return there })
}

// relist puts the signing keys back into an account that was overtaken, and takes
// the retired ones out.
func (r *revoker) relist(ctx context.Context) error {
	public, err := r.is.keys.ring.public()
	if err != nil {
		return refused("%v", err)
	}
	r.is.log.Warn("the account's JWT lists an older signing key and not the present one, perhaps by a push of an older copy; putting it back", "key", public[0])
	return r.list(ctx, public, r.is.keys.ring.Retired)
}

// list has the account list those signing keys and not the others, and waits until
// every server does.
func (r *revoker) list(ctx context.Context, keys, not []string) error {
	ids, err := r.update(ctx, change{list: keys, unlist: not})
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		c, err := r.read(ctx)
		if err != nil {
			return sentError("look after a change of signing keys", err)
		}
		done, err := r.sys.lists(ctx, c, keys, not, ids)
		if err != nil {
			return sentError("look after a change of signing keys", err)
		}
		if done {
			return nil
		}
		if i == looks || pause(ctx, i) != nil {
			return &issuers.Error{Kind: issuers.Unknown, Detail: "not every server has taken the change of the account's signing keys yet"}
		}
	}
}

// KeyTimes implements [issuers.KeyTurner].
func (Kind) KeyTimes(raw json.RawMessage) (publish, honour time.Duration) {
	sp, err := parseSpec(raw)
	if err != nil {
		return publishTime, longestHeld + honourSlack
	}
	return publishTime, sp.maxTTL + honourSlack
}

// TurnsKeysOn implements [issuers.SometimesKeyTurner].
func (Kind) TurnsKeysOn(raw json.RawMessage) error {
	sp, err := parseSpec(raw)
	if err != nil {
		return err
	}
	return turnsKeys(sp)
}

// turnsKeys says what a target lacks for its signing key to turn.
func turnsKeys(sp spec) error {
	switch {
	case sp.Revocation == nil:
		return errors.New("its signing key turns by hand: the account's JWT must list each new one, and to sign that JWT and to push it the target lacks " +
			"revocation: {system_account: A…, operator: O…} in its spec, operator_key (the seed of a signing key of the operator, SO…) and system_key " +
			"(the seed of one of the system account, SA…); docs/issuers/nats.md says how to make them, and how to turn the key by hand")
	case sp.Account == "":
		return errors.New("account: the account's public key is needed in its spec, since the next signing key does not say whose it is: nsc describe account")
	}
	return nil
}

// SigningKeys implements [issuers.KeyHolder]. The same key in another account is
// another's: it is retired in the JWT of one account alone.
func (Kind) SigningKeys(raw json.RawMessage, secrets map[string]secret.Text) []string {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil
	}
	r, _, err := readRing(secrets)
	if err != nil {
		return nil
	}
	public, err := r.public()
	if err != nil {
		return nil
	}
	for i, key := range public {
		account := sp.Account
		if account == "" {
			account = key // the seed is the account's identity
		}
		public[i] = "signing key " + key + " of account " + account
	}
	return public
}

// TurnKeys implements [issuers.KeyTurner]. Before the new key signs, and before the
// old one is forgotten, the account is changed on the servers. Both are tried again
// by whoever comes after a crash: what stands there already is not pushed again.
func (k Kind) TurnKeys(ctx context.Context, raw json.RawMessage, secrets map[string]secret.Text, step issuers.KeyTurn) (map[string]secret.Text, error) {
	if err := k.TurnsKeysOn(raw); err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	is, err := open(issuers.Target{Spec: raw, Secrets: secrets})
	if err != nil {
		return nil, err
	}
	defer func() { _ = is.Close() }()
	// What the step leaves as it is must be whole too: leases end by it.
	if _, err := hex.DecodeString(secrets[SecretUsers].Reveal()); err != nil {
		return nil, errors.New("nats: user_key: it is not what the broker made")
	}
	next, err := is.keys.ring.turned(step)
	if err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	if err := is.tell(ctx, next, step); err != nil {
		return nil, fmt.Errorf("nats: %w", err)
	}
	text, err := json.Marshal(next)
	if err != nil {
		return nil, errors.New("nats: the keys could not be encoded")
	}
	return map[string]secret.Text{SecretMadeSigning: secret.New(string(text))}, nil
}

// tell has the servers take a step, and proves by a login that they did.
func (is *Issuer) tell(ctx context.Context, next ring, step issuers.KeyTurn) error {
	if step == issuers.KeyPublish {
		return is.turnsThisKey()
	}
	signer, err := next.pair(0)
	if err != nil {
		return err
	}
	key, err := signer.PublicKey()
	if err != nil {
		return errors.New("a signing key has no public key")
	}
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	var old []string
	if step == issuers.KeyRetire {
		old = next.Retired // earlier ones too: a leader that was deposed may have put one back
	}
	if err := is.revoker.list(ctx, []string{key}, old); err != nil {
		return err
	}
	return is.tryLogin(ctx, signer)
}

// turnsThisKey refuses a key that would be good for ever, rotated or not.
func (is *Issuer) turnsThisKey() error {
	if public, err := is.keys.signer.PublicKey(); err != nil || public == is.keys.account {
		return errors.New("signing_key is the account's identity, which no account can stop to accept: write the target with the seed of a signing key instead (nsc edit account --name ACCOUNT --sk generate)")
	}
	return nil
}

// tryLogin logs in as a user that signer has signed, and may do nothing: on every
// address, since a server that has not loaded the account says nothing of its keys.
// One address must let it in, and none turn it down; one that does not answer lets
// nobody else in either.
func (is *Issuer) tryLogin(ctx context.Context, signer nkeys.KeyPair) error {
	l, err := is.nobody(signer)
	if err != nil {
		return refused("a user to try the key with cannot be made")
	}
	in := false
	var all []error
	for _, addr := range is.dialer.addresses {
		c, err := is.dialer.dialOne(ctx, addr, l)
		if err == nil {
			c.close()
			in = true
			continue
		}
		err = beforeError("the account lists the new signing key, and on "+addr+" a user that it signed cannot log in", err)
		if issuers.KindOf(err) == issuers.Refused {
			return err
		}
		all = append(all, err)
	}
	if !in {
		return errors.Join(all...)
	}
	return nil
}
