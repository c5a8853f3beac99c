package x509

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// turnHeader is the PEM header of what a rotation has put beside the CA that
// signs. What bears no such header is that CA's own, as it always was.
const turnHeader = "Mayfly-Turn"

// Its values.
const (
	turnNext      = "next"       // key and certificate: published, and does not sign yet
	turnOld       = "old"        // key and certificate: signs no more
	turnCross     = "cross"      // certificate: the signing key, certified by the other one
	turnCrossNext = "cross-next" // certificate: the next key, certified by the signing one
)

// skew is how much later than its end a certificate may be accepted, by verifiers
// whose clock is behind.
const skew = 10 * time.Minute

// KeyTimes implements [issuers.KeyTurner]: the spec's key_publish, and max_ttl with
// what clocks may differ.
func (Kind) KeyTimes(raw json.RawMessage) (publish, honour time.Duration) {
	sp, err := parseSpec(raw)
	if err != nil {
		return defaultPublish, longestMaxTTL + skew
	}
	return sp.publish, sp.maxTTL + skew
}

// TurnKeys implements [issuers.KeyTurner]. Beside the randomness of the new key it
// takes the clock, for the dates of certificates.
//
// Old and new CA have one name and sign each other (RFC 4210 §4.4.1), so that a
// verifier which knows either accepts what either signs. The certificate by which
// the new one vouches for the old ends with the rotation: it must not outlive the
// old key.
func (Kind) TurnKeys(_ context.Context, raw json.RawMessage, secrets map[string]secret.Text, turn issuers.KeyTurn) (map[string]secret.Text, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, fmt.Errorf("x509: %w", err)
	}
	ca, err := readCA(secrets)
	if err != nil {
		return nil, fmt.Errorf("x509: %w", err)
	}
	switch {
	case turn == issuers.KeyPublish && ca.other == nil:
		return ca.publish(sp)
	case turn == issuers.KeyUse && ca.other != nil && ca.phase == turnNext:
		var chain []byte
		chain = append(chain, encodeTurned(ca.other.Raw, "")...)
		chain = append(chain, encodeTurned(ca.cert.Raw, turnOld)...)
		if ca.crossNext != nil {
			chain = append(chain, encodeTurned(ca.crossNext.Raw, turnCross)...)
		}
		return seal(ca.otherKey, ca.key, turnOld, chain)
	case turn == issuers.KeyRetire && ca.other != nil && ca.phase == turnOld:
		return seal(ca.key, nil, "", encodeTurned(ca.cert.Raw, ""))
	}
	return nil, errors.New("x509: the step does not fit the target's keys: a new CA is published, then used, then the old one retired")
}

// publish makes the next CA and both cross-certificates.
func (ca authority) publish(sp spec) (map[string]secret.Text, error) {
	if len(ca.certs) > 1 || ca.cert.CheckSignatureFrom(ca.cert) != nil {
		return nil, errors.New("x509: this CA was brought and stands below another, which alone can certify a new key; write the target with a new ca_key and ca_certificate")
	}
	key, der, err := sp.makeCA(ca.cert)
	if err != nil {
		return nil, fmt.Errorf("x509: %w", err)
	}
	next, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("x509: the new CA's certificate is not readable")
	}
	chain := append(encodeTurned(ca.cert.Raw, ""), encodeTurned(der, turnNext)...)
	now := time.Now()
	publish, honour := sp.publish, sp.maxTTL+skew
	for _, x := range []struct {
		subject, by *x509.Certificate
		key         crypto.Signer
		end         time.Time
		turn        string
	}{
		{ca.cert, next, key, now.Add(publish + honour), turnCross},
		{next, ca.cert, ca.key, ca.cert.NotAfter, turnCrossNext},
	} {
		if !now.Before(x.by.NotAfter) || !now.Before(x.end) {
			continue // an expired CA vouches for nobody
		}
		cross, err := crossSign(x.subject, x.by, x.key, x.end)
		if err != nil {
			return nil, err
		}
		chain = append(chain, encodeTurned(cross, x.turn)...)
	}
	return seal(ca.key, key, turnNext, chain)
}

// crossSign certifies a CA's key by another's. It allows what the CA's own
// certificate does, and no longer than either CA or end.
func crossSign(subject, by *x509.Certificate, key crypto.Signer, end time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("x509: %w", err)
	}
	for _, limit := range []time.Time{subject.NotAfter, by.NotAfter} {
		if limit.Before(end) {
			end = limit
		}
	}
	template := &x509.Certificate{
		SerialNumber: serial, RawSubject: subject.RawSubject, SubjectKeyId: subject.SubjectKeyId,
		AuthorityKeyId: by.SubjectKeyId, // by one name for both, it would pass for self-signed without
		NotBefore:      time.Now().Add(-backdate), NotAfter: end,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		PermittedDNSDomainsCritical: subject.PermittedDNSDomainsCritical,
		PermittedDNSDomains:         subject.PermittedDNSDomains,
		PermittedEmailAddresses:     subject.PermittedEmailAddresses,
		PermittedURIDomains:         subject.PermittedURIDomains,
		PermittedIPRanges:           subject.PermittedIPRanges,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, subject.PublicKey, key)
	if err != nil {
		return nil, errors.New("x509: a CA could not certify the other")
	}
	return der, nil
}

// seal writes the target's secrets: the signing key and, where there is one, the
// other.
func seal(key, other crypto.Signer, turn string, chain []byte) (map[string]secret.Text, error) {
	text, err := encodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("x509: %w", err)
	}
	if other != nil {
		more, err := encodeKey(other)
		if err != nil {
			return nil, fmt.Errorf("x509: %w", err)
		}
		block, _ := pem.Decode([]byte(more.Reveal()))
		block.Headers = map[string]string{turnHeader: turn}
		text = secret.New(text.Reveal() + string(pem.EncodeToMemory(block)))
	}
	out := map[string]secret.Text{SecretKey: text, SecretCertificate: secret.New(string(chain))}
	if _, err := readCA(out); err != nil {
		return nil, fmt.Errorf("x509: %w", err)
	}
	return out, nil
}

func encodeTurned(der []byte, turn string) []byte {
	b := &pem.Block{Type: "CERTIFICATE", Bytes: der}
	if turn != "" {
		b.Headers = map[string]string{turnHeader: turn}
	}
	return pem.EncodeToMemory(b)
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

// readTurned reads what a rotation has put beside the signing CA.
func (ca *authority) readTurned(blocks []*pem.Block, other *pem.Block) error {
	for _, b := range blocks {
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return errors.New("a certificate that a rotation has put into ca_certificate is not readable")
		}
		into := map[string]**x509.Certificate{turnNext: &ca.other, turnOld: &ca.other, turnCross: &ca.cross, turnCrossNext: &ca.crossNext}[b.Headers[turnHeader]]
		if into == nil || *into != nil {
			return errors.New("ca_certificate holds what no rotation has put there")
		}
		*into = cert
		if into == &ca.other {
			ca.phase = b.Headers[turnHeader]
		}
	}
	if ca.other == nil && other == nil && ca.cross == nil && ca.crossNext == nil {
		return nil
	}
	if ca.other == nil || other == nil || other.Headers[turnHeader] != ca.phase {
		return errors.New("ca_key and ca_certificate are not of the same step of a rotation")
	}
	var err error
	if ca.otherKey, err = parseKey(other); err != nil {
		return err
	}
	same := func(key any, cert *x509.Certificate) bool {
		public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		return ok && public.Equal(key)
	}
	switch {
	case !same(ca.otherKey.Public(), ca.other) || !bytes.Equal(ca.other.RawSubject, ca.cert.RawSubject):
		return errors.New("the second key of ca_key is not the other CA's in ca_certificate")
	case ca.cross != nil && (!same(ca.key.Public(), ca.cross) || ca.cross.CheckSignatureFrom(ca.other) != nil),
		ca.crossNext != nil && (!same(ca.otherKey.Public(), ca.crossNext) || ca.crossNext.CheckSignatureFrom(ca.cert) != nil):
		return errors.New("a cross-certificate in ca_certificate does not join its two CAs")
	}
	return nil
}
