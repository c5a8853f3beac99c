package client

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// An enrolment token is `mfe_` and base64url of
//
//	version (1) ‖ length of the whole (2) ‖ secret (32) ‖ CA hash (32) ‖
//	addresses: count (1), each length (1) and bytes ‖ checksum (4)
//
// A client hands it in with another secret, which derives from the token's
// (HMAC-SHA256): no node learns what else derives from it, which is a
// first approver's way to vouch for a key of theirs.
const (
	enrolPrefix  = "mfe_"
	enrolVersion = 1
	enrolHead    = 3 + 32
	enrolSum     = 4
	maxEnrolText = 8 << 10
)

// enrolment is what a client reads of an enrolment token.
type enrolment struct {
	text      secret.Text // as it is handed in
	voucher   []byte      // seed of the key that vouches
	caHash    [32]byte
	addresses []string
}

var errEnrolment = errors.New("not an enrolment token")

// parseEnrolment reads what a person pasted; white space anywhere is ignored.
func parseEnrolment(token secret.Text) (enrolment, error) {
	text := token.Reveal()
	if len(text) > maxEnrolText {
		return enrolment{}, errEnrolment
	}
	text = strings.Join(strings.Fields(text), "")
	body, ok := strings.CutPrefix(text, enrolPrefix)
	if !ok {
		return enrolment{}, errEnrolment
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(raw) < enrolHead+32+1+enrolSum || raw[0] != enrolVersion || int(binary.BigEndian.Uint16(raw[1:3])) != len(raw) {
		return enrolment{}, errEnrolment
	}
	cut := len(raw) - enrolSum
	if sum := sha256.Sum256(raw[:cut]); !bytes.Equal(sum[:enrolSum], raw[cut:]) {
		return enrolment{}, errEnrolment
	}
	var e enrolment
	e.text, e.voucher = derived(raw)
	rest := raw[enrolHead:cut]
	rest = rest[copy(e.caHash[:], rest):]
	count := int(rest[0])
	rest = rest[1:]
	for range count {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return enrolment{}, errEnrolment
		}
		e.addresses = append(e.addresses, string(rest[1:1+rest[0]]))
		rest = rest[1+int(rest[0]):]
	}
	if len(rest) != 0 {
		return enrolment{}, errEnrolment
	}
	return e, nil
}

// derived returns the token as it is handed in, and the seed of the key that vouches.
func derived(raw []byte) (text secret.Text, voucher []byte) {
	derive := func(purpose string) []byte {
		mac := hmac.New(sha256.New, raw[3:enrolHead])
		mac.Write([]byte(purpose))
		return mac.Sum(nil)
	}
	out := slices.Clone(raw[:len(raw)-enrolSum])
	copy(out[3:], derive("mayfly.enrol.login.v1"))
	sum := sha256.Sum256(out)
	text = secret.New(enrolPrefix + base64.RawURLEncoding.EncodeToString(append(out, sum[:enrolSum]...)))
	return text, derive("mayfly.enrol.approve.v1")
}

// Enrol redeems an enrolment token: it finds the cluster by the token's
// addresses (after cfg's own), knows it by the token's CA hash, registers the
// home's key, and leaves identity, CA and session in the home. The home must be
// given.
func Enrol(ctx context.Context, cfg Config, token secret.Text) (wire.LoginAnswer, error) {
	var none wire.LoginAnswer
	e, err := parseEnrolment(token)
	if err != nil {
		return none, newError(KindUnauthenticated, "enrol_token_invalid", "This is not a whole enrolment token; it starts with %s and must be copied to its end.", enrolPrefix)
	}
	if cfg.Home == "" {
		return none, newError(KindInvalid, CodeConfiguration, "Enrolment needs a home to keep the key in; set MAYFLY_HOME.")
	}
	home, err := OpenHome(cfg.Home)
	if err != nil {
		return none, err
	}
	for _, a := range e.addresses {
		if !slices.Contains(cfg.Addresses, a) {
			cfg.Addresses = append(cfg.Addresses, a)
		}
	}
	urls, err := baseURLs(cfg.Addresses)
	if err != nil {
		return none, err
	}
	ca, err := findCA(ctx, urls, e.caHash)
	if err != nil {
		return none, err
	}
	cfg.CAFile, cfg.caPEM = "", ca
	c, err := New(cfg)
	if err != nil {
		return none, err
	}
	defer c.Close()
	answer, err := c.enrol(ctx, e.text)
	if err != nil {
		return none, err
	}
	if answer.Founder {
		if err := home.saveVoucher(e.voucher); err != nil {
			return none, err
		}
	}
	if err := home.SaveIdentity(Identity{Principal: answer.Principal, Addresses: cfg.Addresses}, ca); err != nil {
		return none, err
	}
	fresh, err := opened(answer, time.Now())
	if err != nil {
		return none, err
	}
	return answer, c.store(fresh)
}

func (c *Client) enrol(ctx context.Context, token secret.Text) (wire.LoginAnswer, error) {
	jwk, err := c.key.PublicJWK()
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	body, err := json.Marshal(wire.LoginRequest{EnrolmentToken: token.Reveal(), JWK: jwk})
	if err != nil {
		return wire.LoginAnswer{}, err
	}
	var a wire.LoginAnswer
	// Trying again does no harm: where an answer was lost, the broker says that
	// the token is spent.
	k := call{method: "POST", path: apiBase + "/login", auth: authProof, out: &a, fresh: func() ([]byte, error) { return body, nil }}
	if err := c.do(ctx, k); err != nil {
		return wire.LoginAnswer{}, err
	}
	return a, nil
}

// findCA connects to the nodes until one shows the CA certificate with the
// hash, and returns it in PEM. Nothing is sent on these connections: each fails
// by design at the verification of a certificate that nothing vouches for yet,
// and the failure carries what the node has shown.
func findCA(ctx context.Context, nodes []string, hash [32]byte) ([]byte, error) {
	var last error
	for _, node := range nodes {
		shown, err := shownCertificates(ctx, node)
		if err != nil {
			last = connectionError(node, err)
			continue
		}
		for _, cert := range shown {
			if sha256.Sum256(cert.Raw) == hash && cert.IsCA {
				return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), nil
			}
		}
		e := newError(KindUnauthenticated, "untrusted", "The node does not show the CA that the enrolment token names: it is not the cluster that made the token.")
		e.Node, last = node, e
	}
	if last == nil {
		last = newError(KindInvalid, CodeConfiguration, "The enrolment token names no node; set MAYFLY_ADDR.")
	}
	return nil, last
}

func shownCertificates(ctx context.Context, node string) ([]*x509.Certificate, error) {
	u, err := url.Parse(node)
	if err != nil {
		return nil, err
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "443")
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout+handshakeTimeout)
	defer cancel()
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: dialTimeout},
		Config:    &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool(), ServerName: u.Hostname()},
	}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	var unverified *tls.CertificateVerificationError
	switch {
	case err == nil: // impossible with no root at all
		_ = conn.Close()
		return nil, errors.New("a certificate was accepted that nothing vouches for")
	case errors.As(err, &unverified):
		return unverified.UnverifiedCertificates, nil
	default:
		return nil, err
	}
}
