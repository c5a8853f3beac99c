package raftstore

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"sync"
	"time"
)

// Node certificates live in memory only and are renewed long before they end.
// They reach back an hour so that a node whose clock is behind still takes part.
const (
	certBackdate = time.Hour
	certLifetime = 4 * time.Hour
	certRenewAt  = time.Hour // age at which a new one is minted
	// nodeServerName is in every node certificate: peers are dialled by
	// address, known by node id, and verified against the cluster CA.
	nodeServerName = "node.mayfly.internal"
)

// Application protocols on the cluster port (RFC 7301). Each connection speaks one.
const (
	protoRaft    = "mayfly-raft/1"    // raft's own transport
	protoForward = "mayfly-forward/1" // HTTP/1.1 to Config.Handler
	protoBeacon  = "mayfly-beacon/1"  // frames of beacon.go
	protoJoin    = "mayfly-join/1"    // HTTP/1.1; no client certificate needed
)

// identity mints and renews this node's certificate.
type identity struct {
	ca     Authority
	nodeID string
	pool   *x509.CertPool

	mu     sync.Mutex
	cert   *tls.Certificate
	minted time.Time
}

func newIdentity(ca Authority, nodeID string) (*identity, error) {
	if !ca.Certificate.IsCA {
		return nil, errors.New("raftstore: CA certificate is not a CA's")
	}
	id := &identity{ca: ca, nodeID: nodeID, pool: x509.NewCertPool()}
	id.pool.AddCert(ca.Certificate)
	_, err := id.certificate()
	return id, err
}

// certificate returns the current certificate, minting one when it is due.
func (id *identity) certificate() (*tls.Certificate, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	now := time.Now().Round(0) // by the wall: a suspended machine's monotonic clock stands still
	if age := now.Sub(id.minted); id.cert != nil && age >= 0 && age < certRenewAt {
		return id.cert, nil
	}
	cert, err := mintNodeCert(id.ca, id.nodeID, now)
	if err != nil {
		return nil, err
	}
	id.cert, id.minted = cert, now
	return cert, nil
}

// renew has the next connection made with a new key and certificate.
func (id *identity) renew() {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.minted = time.Time{}
}

func mintNodeCert(ca Authority, nodeID string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("raftstore: node key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("raftstore: node certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: nodeID},
		DNSNames:     []string{nodeServerName},
		NotBefore:    now.Add(-certBackdate),
		NotAfter:     now.Add(certLifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate, key.Public(), ca.Signer)
	if err != nil {
		return nil, fmt.Errorf("raftstore: node certificate: %w", err)
	}
	// The CA goes along so that a joiner, who knows only its hash, can see it.
	return &tls.Certificate{Certificate: [][]byte{der, ca.Certificate.Raw}, PrivateKey: key}, nil
}

// CAHash returns the SHA-256 of a CA certificate (its DER): what a joiner's token pins.
func CAHash(ca *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(ca.Raw) }

// serverTLS serves each protocol on its own terms.
func (id *identity) serverTLS() *tls.Config {
	get := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.certificate() }
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         get,
		SessionTicketsDisabled: true,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if len(hello.SupportedProtos) != 1 {
				return nil, errors.New("raftstore: a connection speaks exactly one protocol")
			}
			cfg := &tls.Config{
				MinVersion: tls.VersionTLS13, GetCertificate: get, SessionTicketsDisabled: true,
				NextProtos: hello.SupportedProtos, ClientCAs: id.pool, ClientAuth: tls.RequireAndVerifyClientCert,
			}
			switch hello.SupportedProtos[0] {
			case protoRaft, protoForward, protoBeacon:
			case protoJoin:
				cfg.ClientAuth = tls.VerifyClientCertIfGiven
			default:
				return nil, errors.New("raftstore: unknown protocol")
			}
			return cfg, nil
		},
	}
}

// clientTLS is for a mutually authenticated connection that speaks proto to the
// node wantID, or to any node of the cluster when wantID is empty.
func (id *identity) clientTLS(proto, wantID string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{proto}, ServerName: nodeServerName, RootCAs: id.pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.certificate() },
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != proto {
				return errors.New("raftstore: peer speaks another protocol")
			}
			if got := peerID(&cs); wantID != "" && got != wantID {
				return fmt.Errorf("raftstore: reached node %q instead of %q", got, wantID)
			}
			return nil
		},
	}
}

// peerID returns the node id that a verified peer proved, "" when it proved none.
func peerID(cs *tls.ConnectionState) string {
	if cs == nil || len(cs.VerifiedChains) == 0 {
		return ""
	}
	return cs.VerifiedChains[0][0].Subject.CommonName
}

// PeerID returns the id of the node that forwarded r, "" when r did not come
// over the cluster port.
func PeerID(r *http.Request) string { return peerID(r.TLS) }
