// Package x509 is the kind of target whose credentials are short-lived X.509
// certificates that the broker signs with a CA of the target's own.
//
// Nothing is kept: names, serial and dates of a certificate are a pure function
// of its lease. The package must know nothing of the cluster's internal CA, nor
// of who trusts the one it has.
//
// # Why nothing is revoked
//
// A CRL lists what was revoked and has not yet expired. The issuer is given the
// leases to withdraw, one batch at a time, and keeps no store; after a change of
// leader it would publish a list that lacks what its predecessor withdrew, and a
// verifier would read that as "not revoked". So it publishes no CRL, not even an
// empty one: certificates are short instead, and receipts say expires-only
// (HAZARDS 18). The CA may sign CRLs (its key usage says so), so that a broker
// which hands over all withdrawn, unexpired serials from its ledger can have
// them published without a new CA.
package x509

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// Limits of a spec.
const (
	maxSpecBytes   = 16 << 10
	maxConstraints = 32

	defaultMaxTTL = 24 * time.Hour
	minMaxTTL     = time.Minute
	longestMaxTTL = 30 * 24 * time.Hour // beyond, it is a static key that nobody can revoke

	defaultCATTL = 365 * 24 * time.Hour
	minCATTL     = 24 * time.Hour
	longestCATTL = 10 * 365 * 24 * time.Hour

	// how long verifiers may trust the CA as it is before they fetch it again
	defaultPublish = time.Hour
	minPublish     = time.Minute
	longestPublish = 720 * time.Hour
)

// spec is a Target's spec.
type spec struct {
	// CATTL is how long the CA that MakeSecrets makes is valid; a year when empty.
	CATTL string `json:"ca_ttl"`
	// CAName is the CA's common name; "Mayfly CA" when empty.
	CAName string `json:"ca_name"`
	// MaxTTL caps a certificate's life; 24h when empty.
	MaxTTL string `json:"max_ttl"`
	// CommonNames says that certificates carry a subject common name. Every
	// scope then names one in `identifier`; otherwise none may.
	CommonNames bool `json:"common_names"`
	// NameConstraints, where given, bound every name; they also go into the CA.
	NameConstraints *constraints `json:"name_constraints"`
	// KeyPublish is how long a new CA is published before it signs; 1h when empty.
	KeyPublish string `json:"key_publish"`

	caTTL, maxTTL, publish time.Duration
}

const allowedKeys = "allowed keys are ca_ttl, ca_name, max_ttl, common_names, name_constraints (dns, ip, email, spiffe) and key_publish"

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		return s, errors.New("spec: an object is needed; " + allowedKeys)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("spec: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); err != io.EOF {
		return s, errors.New("spec: more follows after the object")
	}
	var err error
	if s.maxTTL, err = duration("max_ttl", s.MaxTTL, defaultMaxTTL, minMaxTTL, longestMaxTTL); err != nil {
		return s, err
	}
	if s.caTTL, err = duration("ca_ttl", s.CATTL, defaultCATTL, minCATTL, longestCATTL); err != nil {
		return s, err
	}
	if s.publish, err = duration("key_publish", s.KeyPublish, defaultPublish, minPublish, longestPublish); err != nil {
		return s, err
	}
	if s.caTTL <= s.maxTTL {
		return s, fmt.Errorf("ca_ttl: %s is not longer than max_ttl, %s", s.caTTL, s.maxTTL)
	}
	if s.CAName == "" {
		s.CAName = "Mayfly CA"
	}
	if err := checkCommonName(s.CAName); err != nil {
		return s, fmt.Errorf("ca_name: %w", err)
	}
	if s.NameConstraints != nil {
		if err := s.NameConstraints.parse(); err != nil {
			return s, fmt.Errorf("name_constraints: %w", err)
		}
	}
	return s, nil
}

func duration(key, text string, fallback, low, high time.Duration) (time.Duration, error) {
	if text == "" {
		return fallback, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %q is not a duration such as 12h", key, text)
	}
	if d < low || d > high {
		return 0, fmt.Errorf("%s: %s; allowed are %s to %s", key, d, low, high)
	}
	return d, nil
}

// Kind is the kind "x509". The zero value is ready to use.
type Kind struct{}

var (
	_ issuers.Kind        = Kind{}
	_ issuers.SecretMaker = Kind{}
	_ issuers.RoleWriter  = Kind{}
	_ issuers.KeyTurner   = Kind{}
)

// Name implements [issuers.Kind].
func (Kind) Name() string { return "x509" }

// Revocable is false; the package comment says why.
func (Kind) Revocable() bool { return false }

// CheckSpec implements [issuers.Kind].
func (Kind) CheckSpec(raw json.RawMessage) error {
	_, err := parseSpec(raw)
	return err
}

// CheckScope implements [issuers.Kind]. A scope may leave names open
// (spiffe://td/ns/*): then the lease's CSR chooses, and without a CSR Mint
// refuses.
func (Kind) CheckScope(raw json.RawMessage, s scope.Scope) error {
	sp, err := parseSpec(raw)
	if err != nil {
		return err
	}
	_, err = sp.compile(s)
	return err
}

// CredentialName is the certificate's serial number in hex, 40 digits.
func (Kind) CredentialName(leaseID string, generation uint64) string {
	sum := serialBytes(leaseID, generation)
	return hex.EncodeToString(sum[:])
}

// serialBytes derives a serial: 20 octets, positive, never zero (RFC 5280
// §4.1.2.2). Of SHA-256 over lease id and generation 158 bits remain, so two
// leases do not meet. A lease id has 128 random bits that nobody chooses, which
// is more than the 64 that public CAs must put into a serial; and since leases
// are committed before they are minted, the ledger can name the serial first.
func serialBytes(leaseID string, generation uint64) [20]byte {
	h := sha256.New()
	h.Write([]byte("mayfly.x509.serial.v1\x00"))
	h.Write([]byte(leaseID))
	h.Write(binary.BigEndian.AppendUint64([]byte{0}, generation))
	var out [20]byte
	copy(out[:], h.Sum(nil))
	out[0] = out[0]&0x3f | 0x40 // the sign bit is clear and the length always the same
	return out
}

func serialNumber(leaseID string, generation uint64) *big.Int {
	sum := serialBytes(leaseID, generation)
	return new(big.Int).SetBytes(sum[:])
}

// Roles offers a role for each trust domain that the name constraints permit:
// any workload of it, chosen by its CSR. DNS names cannot be offered, since a
// scope's pattern is open at the end, where the domain would have to stand.
func (Kind) Roles(raw json.RawMessage) ([]issuers.RoleTemplate, error) {
	sp, err := parseSpec(raw)
	if err != nil || sp.NameConstraints == nil || len(sp.NameConstraints.SPIFFE) == 0 || sp.CommonNames {
		return nil, err
	}
	var locations []string
	for _, td := range sp.NameConstraints.SPIFFE {
		locations = append(locations, "spiffe://"+td+"/*")
	}
	s, err := scope.Scope{{Type: "x509", Locations: locations, Actions: []string{actionClient, actionServer}}}.Normalise()
	if err != nil {
		return nil, err
	}
	return []issuers.RoleTemplate{{
		Suffix: "workload", Scope: s, DefaultTTL: min(time.Hour, sp.maxTTL), MaxTTL: sp.maxTTL,
	}}, nil
}

// MaxTTL implements [issuers.Bounder]: the spec's max_ttl. A spec that does not
// read allows nothing longer than a millisecond; CheckSpec refused it before.
func (Kind) MaxTTL(raw json.RawMessage) time.Duration {
	s, err := parseSpec(raw)
	if err != nil {
		return time.Millisecond
	}
	return s.maxTTL
}
