package harness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// certVerifier is a server that asks its clients for a certificate of a target's CA,
// as a [Server].
type certVerifier struct {
	apart
	*trusted
	own tls.Certificate
}

func startCertVerifier(context.Context) (Server, error) {
	ca, err := servertest.NewAuthority()
	if err != nil {
		return nil, err
	}
	cert, key, err := ca.ForServer()
	if err != nil {
		return nil, err
	}
	own, err := tls.X509KeyPair([]byte(cert), []byte(key))
	return certVerifier{trusted: &trusted{}, own: own}, err
}

// Add trusts the CA that the target publishes.
func (v certVerifier) Add(t testing.TB, admin CLI, _, target string) string {
	t.Helper()
	admin.Must(t, "target", "add", "x509", "--name", target)
	admin.Apply(t, "kind: Role\nname: "+target+"/client\nspec:\n  scope: [{type: x509, locations: [\"dns:billing.internal\"], actions: [client]}]\n  ttl: {default: 10m, max: 1h}\n")
	v.public = newPublic(t, admin, target)
	v.document = v.public.must(t, "ca")
	return target + "/client"
}

// Name is the certificate's serial number.
func (v certVerifier) Name(credential map[string]string) string {
	block, _ := pem.Decode([]byte(credential["certificate"]))
	if block == nil {
		return "no certificate"
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%040x", cert.SerialNumber)
}

// Login shakes hands.
func (v certVerifier) Login(ctx context.Context, credential map[string]string) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(v.document) {
		return errors.New("the target publishes no CA")
	}
	pair, err := tls.X509KeyPair([]byte(credential["certificate"]), []byte(credential["private_key"]))
	if err != nil {
		return err
	}
	ours, theirs := net.Pipe()
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	if at, ok := ctx.Deadline(); ok {
		if err := errors.Join(ours.SetDeadline(at), theirs.SetDeadline(at)); err != nil {
			return err
		}
	}
	server := tls.Server(ours, &tls.Config{Certificates: []tls.Certificate{v.own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, Time: time.Now, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true})
	own, err := x509.ParseCertificate(v.own.Certificate[0])
	if err != nil {
		return err
	}
	trust := x509.NewCertPool()
	trust.AddCert(own)
	client := tls.Client(theirs, &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: trust, ServerName: "localhost", MinVersion: tls.VersionTLS12})
	told := make(chan struct{})
	go func() {
		defer close(told)
		if client.HandshakeContext(ctx) == nil {
			_, _ = client.Read(make([]byte, 1)) // what the server thinks of the certificate comes after the client's own handshake
		}
	}()
	err = server.HandshakeContext(ctx)
	_ = ours.Close()
	<-told
	return err
}

// Ours is nothing; the CA is the one of before.
func (v certVerifier) Ours(ctx context.Context) ([]string, error) {
	return v.public.unchanged(ctx, "ca", v.document)
}
