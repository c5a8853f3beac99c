// Package ssh is the kind of target whose credentials are short-lived OpenSSH
// certificates, for users and for hosts, that the broker signs with a CA of the
// target's own.
//
// Nothing is kept: what a certificate says is a pure function of its lease and
// the requester's key. The package must know nothing of the servers that trust
// the CA; it never connects to one.
//
// # What is revoked, and what that proves
//
// OpenSSH servers read a key revocation list (KRL) at each login. The issuer
// keeps no store, so it makes the list from the leases that it is handed
// ([issuers.RevocationPublisher]): all that the ledger knows as withdrawn and
// that a server might still accept. A list from one leader's memory would say
// of its predecessors' withdrawals "not revoked" (ADR 8). Whether servers fetch
// the list is their affair: nobody asks them, so receipts say expires-only
// (HAZARDS 18), and where the target's spec says how soon servers have the list,
// from when on it should bite.
package ssh

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// Limits of a spec.
const (
	maxSpecBytes = 16 << 10

	defaultMaxTTL = 24 * time.Hour
	minMaxTTL     = time.Minute
	longestUser   = 24 * time.Hour      // beyond, it is a static key that most servers cannot revoke
	longestHost   = 30 * 24 * time.Hour // a server takes a new certificate by a reload, so it is asked for less

	// how long servers may trust the CA's keys as they are before they fetch them again
	defaultPublish = time.Hour
	minPublish     = time.Minute
	longestPublish = 720 * time.Hour

	minMaxAge     = time.Second
	longestMaxAge = 24 * time.Hour
)

// CA algorithms.
const (
	algEd25519 = "ed25519"
	algP256    = "ecdsa-p256"
)

// spec is a Target's spec.
type spec struct {
	// CAAlgorithm is ed25519 (also when empty) or ecdsa-p256.
	CAAlgorithm string `json:"ca_algorithm"`
	// Types are the certificates the target issues: user (also when empty), host,
	// or both.
	Types []string `json:"types"`
	// MaxTTL caps a certificate's life; 24h when empty.
	MaxTTL string `json:"max_ttl"`
	// Principals, where given, are the only ones that roles may name.
	Principals []string `json:"principals"`
	// KRL, where given, says that servers fetch the revocation list.
	KRL *krlSpec `json:"krl"`
	// KeyPublish is how long a new key is published before it signs; 1h when empty.
	KeyPublish string `json:"key_publish"`

	maxTTL  time.Duration
	maxAge  time.Duration // 0: nothing is known of the servers
	publish time.Duration
}

// krlSpec is the administrator's word on the servers.
type krlSpec struct {
	// MaxAge is the longest time from a certificate's entry in the published list
	// until every server has that list.
	MaxAge string `json:"max_age"`
}

const allowedKeys = "allowed keys are ca_algorithm (ed25519 or ecdsa-p256), types (user, host), max_ttl, principals, krl (max_age) and key_publish"

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if err := decodeStrictly(raw, &s); err != nil {
		return s, err
	}
	switch s.CAAlgorithm {
	case "":
		s.CAAlgorithm = algEd25519
	case algEd25519, algP256:
	default:
		return s, fmt.Errorf("ca_algorithm: %q; allowed are %s and %s", s.CAAlgorithm, algEd25519, algP256)
	}
	if len(s.Types) == 0 {
		s.Types = []string{typeUser}
	}
	for _, t := range s.Types {
		if t != typeUser && t != typeHost {
			return s, fmt.Errorf("types: %q; allowed are %s and %s", t, typeUser, typeHost)
		}
	}
	longest, why := longestHost, ""
	if slices.Contains(s.Types, typeUser) {
		longest, why = longestUser, ", since servers may not revoke; a target with types [host] alone may have 720h"
	}
	var err error
	if s.maxTTL, err = duration("max_ttl", s.MaxTTL, defaultMaxTTL, minMaxTTL, longest); err != nil {
		return s, fmt.Errorf("%w%s", err, why)
	}
	if s.publish, err = duration("key_publish", s.KeyPublish, defaultPublish, minPublish, longestPublish); err != nil {
		return s, err
	}
	if s.KRL != nil {
		if s.KRL.MaxAge == "" {
			return s, errors.New("krl: max_age is needed: how long until every server has a new list, such as 60s")
		}
		if s.maxAge, err = duration("krl: max_age", s.KRL.MaxAge, 0, minMaxAge, longestMaxAge); err != nil {
			return s, err
		}
	}
	return s, s.checkOwnPrincipals()
}

// checkOwnPrincipals asks that each could stand in a certificate of some type
// the target issues.
func (s spec) checkOwnPrincipals() error {
	if len(s.Principals) > scope.MaxMembers {
		return fmt.Errorf("principals: %d; at most %d are allowed", len(s.Principals), scope.MaxMembers)
	}
	for _, p := range s.Principals {
		var err error
		for _, t := range s.Types {
			if err = checkPrincipal(t, p); err == nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("principals: %w", err)
		}
	}
	return nil
}

// decodeStrictly reads one JSON object without unknown keys.
func decodeStrictly(raw []byte, into any) error {
	if len(raw) > maxSpecBytes {
		return fmt.Errorf("spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		return errors.New("spec: an object is needed; " + allowedKeys)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(into)); err != nil {
		return fmt.Errorf("spec: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("spec: more follows after the object")
	}
	return nil
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

// Kind is the kind "ssh". The zero value is ready to use.
type Kind struct{}

var (
	_ issuers.Kind        = Kind{}
	_ issuers.SecretMaker = Kind{}
	_ issuers.RoleWriter  = Kind{}
	_ issuers.Bounder     = Kind{}
	_ issuers.KeyTurner   = Kind{}
)

// Name implements [issuers.Kind].
func (Kind) Name() string { return "ssh" }

// Revocable is false: servers are free to fetch the revocation list or not, and
// none is asked whether it has.
func (Kind) Revocable() bool { return false }

// CheckSpec implements [issuers.Kind].
func (Kind) CheckSpec(raw json.RawMessage) error {
	_, err := parseSpec(raw)
	return err
}

// CheckScope implements [issuers.Kind].
func (Kind) CheckScope(raw json.RawMessage, s scope.Scope) error {
	sp, err := parseSpec(raw)
	if err != nil {
		return err
	}
	_, err = sp.compile(s)
	return err
}

// CredentialName is the certificate's key id, which servers write into their log
// at each login. It differs between generations, since none can take an earlier
// one back; their serial is the same.
func (Kind) CredentialName(leaseID string, generation uint64) string {
	return "mf-" + leaseID + "-" + strconv.FormatUint(generation, 10)
}

// serialNumber derives a certificate's serial from its lease alone, so that one
// entry in the revocation list ends every generation. Of two leases that should
// meet in 64 bits, the end of one ends the other too: the safe way to be wrong.
// A list cannot hold serial 0, which means "no serial" (PROTOCOL.certkeys).
func serialNumber(leaseID string) uint64 {
	sum := sha256.Sum256([]byte("mayfly.ssh.serial.v1\x00" + leaseID))
	return max(1, binary.BigEndian.Uint64(sum[:8]))
}

// Roles offers, where the spec names principals, one role for each type of
// certificate: "user" with a terminal and nothing else, and "host".
func (Kind) Roles(raw json.RawMessage) ([]issuers.RoleTemplate, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	var out []issuers.RoleTemplate
	for _, t := range []string{typeUser, typeHost} {
		var names []string
		for _, p := range sp.Principals {
			if checkPrincipal(t, p) == nil {
				names = append(names, p)
			}
		}
		if !slices.Contains(sp.Types, t) || len(names) == 0 {
			continue
		}
		actions := []string{t}
		life := min(time.Hour, sp.maxTTL)
		if t == typeUser {
			actions = append(actions, "permit-pty")
		} else {
			life = sp.maxTTL
		}
		s, err := scope.Scope{{Type: scopeType, Actions: actions, Privileges: names}}.Normalise()
		if err != nil {
			return nil, err
		}
		out = append(out, issuers.RoleTemplate{Suffix: t, Scope: s, DefaultTTL: life, MaxTTL: sp.maxTTL})
	}
	return out, nil
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
