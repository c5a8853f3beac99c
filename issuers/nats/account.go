package nats

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// A revocation in an account's JWT is a user's key and a moment: what was issued
// to the key up to it is revoked. The keys that this package makes are used for
// one generation of one lease, so that all that was or ever will be issued to them
// may be: the moment lies far ahead, and says at the same time that the entry is
// ours and when the credential would have ended, so that whoever sees it later
// knows when it may go. The year is 6325, which servers can still print.
const ourMoments = 1 << 37

// maxMoment is the last of our moments: some two hundred and fifty years of
// credentials.
const maxMoment = ourMoments + 1<<33

// keepRevoked is how long an entry stays beyond its credential's end: for a
// server whose clock is behind it has not ended yet.
const keepRevoked = 10 * time.Minute

// moment is the entry for a credential that ends at end.
func moment(end time.Time) int64 { return ourMoments + max(0, min(end.Unix(), 1<<33)) }

// ourEnd is when the credential of an entry ends; false where the entry is not
// of this package's making.
func ourEnd(moment int64) (time.Time, bool) {
	if moment < ourMoments || moment > maxMoment {
		return time.Time{}, false
	}
	return time.Unix(moment-ourMoments, 0), true
}

// account is an account's JWT, verified. What this package does not know of it is
// kept to the letter when it is signed anew: a library that is older than the
// JWT would lose members without a word.
type account struct {
	token       string
	claims      map[string]json.RawMessage
	nats        map[string]json.RawMessage // claims["nats"]
	issued      int64
	revocations map[string]int64
	signers     map[string]signer // signing keys that may sign users, by public key
	signing     []json.RawMessage // nats["signing_keys"]: a key each, or an object about one
}

// change is what is to be made of an account's JWT. What it does not name stays.
type change struct {
	revoke map[string]int64 // moments, by user key
	list   []string         // signing keys, as ones without a role
	unlist []string         // signing keys
}

// signer is one of an account's signing keys.
type signer struct {
	scoped bool // whose users may have no permissions of their own
}

// readAccount verifies an account's JWT: it is the account's, and one of the
// operator's keys has signed it. Without that, whoever answers a look-up would
// have the broker sign what it likes with the operator's key.
func readAccount(token, public string, trusted map[string]bool) (*account, error) {
	ac, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		return nil, fmt.Errorf("the account's JWT: %w", err)
	}
	switch {
	case ac.Subject != public:
		return nil, errors.New("the account's JWT is another account's")
	case !trusted[ac.Issuer]:
		return nil, fmt.Errorf("the account's JWT is signed by %s, which is no key of the operator's that may sign accounts", ac.Issuer)
	}
	parts := strings.Split(token, ".")
	body, err := base64.RawURLEncoding.DecodeString(parts[1]) // there are three: it was decoded above
	if err != nil {
		return nil, fmt.Errorf("the account's JWT: %w", err)
	}
	a := &account{token: token, issued: ac.IssuedAt, revocations: map[string]int64{}, signers: map[string]signer{public: {}}}
	if err := json.Unmarshal(body, &a.claims); err != nil {
		return nil, fmt.Errorf("the account's JWT: %w", err)
	}
	if err := json.Unmarshal(a.claims["nats"], &a.nats); err != nil {
		return nil, fmt.Errorf("the account's JWT: %w", err)
	}
	var version int
	if err := json.Unmarshal(a.nats["version"], &version); err != nil || version != 2 {
		return nil, errors.New("the account's JWT is not of version 2")
	}
	if list := a.nats["signing_keys"]; len(list) > 0 {
		if err := json.Unmarshal(list, &a.signing); err != nil {
			return nil, fmt.Errorf("the account's JWT: %w", err)
		}
	}
	maps.Copy(a.revocations, ac.Revocations)
	for key, scope := range ac.SigningKeys {
		a.signers[key] = signer{scoped: scope != nil}
	}
	return a, nil
}

// trustedKeys reads the operator's JWT, which its identity has signed, and
// returns the keys that may sign accounts.
func trustedKeys(token, identity string) (map[string]bool, error) {
	oc, err := jwt.DecodeOperatorClaims(token)
	if err != nil {
		return nil, fmt.Errorf("the operator's JWT: %w", err)
	}
	if oc.Subject != identity || oc.Issuer != identity {
		return nil, fmt.Errorf("the servers trust the operator %s; the target's spec names %s", oc.Subject, identity)
	}
	out := map[string]bool{}
	for _, k := range oc.SigningKeys {
		out[k] = true
	}
	if !oc.StrictSigningKeyUsage {
		out[identity] = true
	}
	return out, nil
}

// edit makes a change, drops those of our revocations whose credentials are long
// over, and says whether anything was changed. Other people's entries are left as
// they are.
func (a *account) edit(c change, now time.Time) bool {
	changed := a.editSigners(c)
	for key, m := range c.revoke {
		if a.revocations[key] < m {
			a.revocations[key], changed = m, true
		}
	}
	if !changed {
		return false // dropping alone is not worth a push
	}
	maps.DeleteFunc(a.revocations, func(_ string, m int64) bool {
		end, ours := ourEnd(m)
		return ours && now.After(end.Add(keepRevoked))
	})
	return true
}

// editSigners lists signing keys and takes others from the list. A key that the
// account lists with a role stays as it is: that is somebody's decision.
func (a *account) editSigners(c change) (changed bool) {
	for _, key := range c.list {
		if _, there := a.signers[key]; there {
			continue
		}
		text, err := json.Marshal(key)
		if err != nil {
			continue // a string always encodes
		}
		a.signing, a.signers[key], changed = append(a.signing, text), signer{}, true
	}
	before := len(a.signing)
	a.signing = slices.DeleteFunc(a.signing, func(raw json.RawMessage) bool { return slices.Contains(c.unlist, signingKey(raw)) })
	for _, key := range c.unlist {
		delete(a.signers, key)
	}
	return changed || len(a.signing) != before
}

// signingKey is the key that an entry of an account's list is about: the entry is
// the key itself, or an object with its role.
func signingKey(raw json.RawMessage) string {
	var key string
	if json.Unmarshal(raw, &key) == nil {
		return key
	}
	var scoped struct {
		Key string `json:"key"`
	}
	if json.Unmarshal(raw, &scoped) != nil {
		return ""
	}
	return scoped.Key
}

// sign writes the account's JWT with its revocations and signing keys as they are
// now. The moment of issue only grows, also where clocks do not: servers that
// compare their copies keep the later one, and take two of one id for the same.
func (a *account) sign(operator nkeys.KeyPair, now time.Time) (string, error) {
	issuer, err := operator.PublicKey()
	if err != nil {
		return "", err
	}
	claims, body := maps.Clone(a.claims), maps.Clone(a.nats)
	set := func(to map[string]json.RawMessage, key string, v any) {
		if err == nil {
			to[key], err = json.Marshal(v)
		}
	}
	set(body, "revocations", a.revocations)
	delete(body, "signing_keys")
	if len(a.signing) > 0 {
		set(body, "signing_keys", a.signing)
	}
	set(claims, "nats", body)
	set(claims, "iss", issuer)
	set(claims, "iat", max(now.Unix(), a.issued+1))
	delete(claims, "jti")
	text, err2 := json.Marshal(claims)
	if err = errors.Join(err, err2); err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	set(claims, "jti", base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))
	if text, err2 = json.Marshal(claims); errors.Join(err, err2) != nil {
		return "", errors.Join(err, err2)
	}
	head := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"` + jwt.TokenTypeJwt + `","alg":"` + jwt.AlgorithmNkey + `"}`))
	signed := head + "." + base64.RawURLEncoding.EncodeToString(text)
	signature, err := operator.Sign([]byte(signed))
	if err != nil {
		return "", err
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// newest picks the account's JWT that was issued last. Servers of one cluster may
// answer differently for a while; one that cannot be trusted spoils nothing but
// its own answer.
func newest(tokens [][]byte, public string, trusted map[string]bool) (*account, error) {
	var best *account
	var errs []error
	slices.SortFunc(tokens, bytes.Compare)
	for _, t := range slices.CompactFunc(tokens, bytes.Equal) {
		a, err := readAccount(string(t), public, trusted)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if best == nil || a.issued > best.issued {
			best = a
		}
	}
	if best == nil {
		return nil, errors.Join(append(errs, errors.New("no server knows the account's JWT"))...)
	}
	return best, nil
}
