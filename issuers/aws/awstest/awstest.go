// Package awstest runs real MinIO servers, which speak S3 and STS, as private
// processes for tests. It knows how the server starts and how to ask it for
// objects, and nothing of issuers.
package awstest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1" // as MinIO names a provider's role
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

const (
	// Region is what requests to the server are signed for.
	Region = "us-east-1"
	// RoleARN names the role of the broker's own key; MinIO does not read it.
	RoleARN = "arn:minio:iam:::role/mayfly"
	// Audience is what the server's identity provider knows itself by.
	Audience = "sts.amazonaws.com"

	startTimeout = 60 * time.Second // a loaded machine takes its time
)

// Keys are an access key, of a session where Token is set.
type Keys struct{ ID, Secret, Token string }

// Server is a running MinIO under TLS.
type Server struct {
	URL   string
	CAPEM string
	Root  Keys

	account servertest.Account
	dir     string
	command servertest.Command
	process *servertest.Process
	client  *http.Client
}

// Provider is an OpenID provider that the server is to trust: the URL of its
// discovery document. The role that its tokens give may do all of S3.
type Provider struct{ ConfigURL string }

// WebRoleARN is the role that a trusted provider's tokens give.
func WebRoleARN() string {
	sum := sha1.Sum([]byte(Audience))
	return "arn:minio:iam:::role/" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// Run starts a server whose certificate is of ca's making, and waits until it
// answers. A provider's documents must stand before.
func Run(ctx context.Context, ca *CA, p *Provider) (*Server, error) {
	program, err := servertest.Built("minio")
	if err != nil {
		return nil, err
	}
	s := &Server{CAPEM: ca.PEM, Root: Keys{ID: "root" + rand.Text()[:8], Secret: rand.Text()}}
	if s.account, err = servertest.Choose("minio-user"); err != nil {
		return nil, err
	}
	if s.dir, err = s.account.Dir("mayfly-minio-"); err != nil {
		return nil, err
	}
	address, err := servertest.Address()
	if err != nil {
		return nil, err
	}
	console, err := servertest.Address()
	if err != nil {
		return nil, err
	}
	if err := s.writeCertificates(ca); err != nil {
		return nil, err
	}
	env := []string{"MINIO_ROOT_USER=" + s.Root.ID, "MINIO_ROOT_PASSWORD=" + s.Root.Secret, "MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_REGION_NAME="}
	if p != nil {
		env = append(env, "MINIO_IDENTITY_OPENID_CONFIG_URL="+p.ConfigURL, "MINIO_IDENTITY_OPENID_CLIENT_ID="+Audience, "MINIO_IDENTITY_OPENID_ROLE_POLICY=readwrite")
	}
	s.URL = "https://" + address
	s.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}}, Timeout: 30 * time.Second}
	s.command = servertest.Command{
		Path: program, Dir: s.dir, Env: env, Account: s.account,
		Args: []string{"server", "--quiet", "--address", address, "--console-address", console, "--certs-dir", filepath.Join(s.dir, "certs"), filepath.Join(s.dir, "data")},
	}
	if err := s.StartAgain(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// StartAgain starts the server after [Server.Stop] or [Server.Kill], on the same
// address and data, and waits until it answers.
func (s *Server) StartAgain(ctx context.Context) error {
	p, err := servertest.Start(s.command)
	if err != nil {
		return err
	}
	s.process = p
	return s.wait(ctx)
}

func (s *Server) writeCertificates(ca *CA) error {
	cert, key, err := ca.Issue()
	if err != nil {
		return err
	}
	for _, d := range []string{"data", "certs", "certs/CAs"} {
		path := filepath.Join(s.dir, d)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := s.account.Own(path); err != nil {
			return err
		}
	}
	for name, content := range map[string][]byte{"public.crt": cert, "private.key": key, "CAs/ca.crt": []byte(ca.PEM)} {
		if err := s.account.WriteFile(filepath.Join(s.dir, "certs", name), content); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		// Listing the buckets needs the store and the accounts, not the port alone.
		if status, _, err := s.Do(ctx, s.Root, http.MethodGet, "", "", nil); err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.process.Done():
			return errors.New("minio ended: " + s.process.Output())
		case <-ctx.Done():
			return fmt.Errorf("minio does not answer within %s: %s", startTimeout, s.process.Output())
		}
	}
}

// Stop ends the server in order and keeps its data.
func (s *Server) Stop() error { return s.process.Stop(syscall.SIGTERM) }

// Kill ends the server without warning and keeps its data.
func (s *Server) Kill() error { return s.process.Stop(syscall.SIGKILL) }

// Signal sends a signal: SIGSTOP makes a server that hangs rather than fails.
func (s *Server) Signal(sig syscall.Signal) error { return s.process.Signal(sig) }

// Close ends the server and removes its data.
func (s *Server) Close() error {
	if s.process == nil {
		return os.RemoveAll(s.dir)
	}
	return errors.Join(s.Stop(), os.RemoveAll(s.dir))
}

// Hang stops the server without ending it, until the function that it returns is called.
func (s *Server) Hang() (func() error, error) {
	return func() error { return s.process.Signal(syscall.SIGCONT) }, s.process.Signal(syscall.SIGSTOP)
}

// Do asks S3 as keys: path is "bucket/key", query without "?". It returns the
// status and the body.
func (s *Server) Do(ctx context.Context, k Keys, method, path, query string, body []byte) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, s.URL+"/"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.URL.RawQuery = query
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	r.Header.Set("X-Amz-Content-Sha256", hash)
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	creds := sdk.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret, SessionToken: k.Token}
	if err := signer.SignHTTP(ctx, creds, r, hash, "s3", Region, time.Now()); err != nil {
		return 0, nil, err
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, text, err
}

// As has a server that is none of MinIO's be asked, under a certificate of ca's.
func (s *Server) As(ca *CA) *Server {
	s.client = ca.Client()
	return s
}

// Put writes objects as root, and makes their buckets.
func (s *Server) Put(ctx context.Context, paths ...string) error {
	for _, p := range paths {
		bucket, _, _ := strings.Cut(p, "/")
		if status, text, err := s.Do(ctx, s.Root, http.MethodPut, bucket, "", nil); err != nil || status != http.StatusOK && status != http.StatusConflict {
			return fmt.Errorf("make bucket %s: status %d, %s, %w", bucket, status, text, err)
		}
		if status, text, err := s.Do(ctx, s.Root, http.MethodPut, p, "", []byte("content of "+p)); err != nil || status != http.StatusOK {
			return fmt.Errorf("put %s: status %d, %s, %w", p, status, text, err)
		}
	}
	return nil
}

// Nobody returns an address on which nobody listens.
func Nobody() (string, error) {
	port, err := servertest.Port()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}

// Client returns an HTTP client that trusts ca alone.
func (ca *CA) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}}}
}

// Pool holds the CA's certificate.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ca.PEM))
	return pool
}
