package main

import (
	"context"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
	"github.com/mayfly-broker/mayfly/raftstore"
)

// limits is what the machine itself can do, measured in this run.
type limits struct {
	fsync    time.Duration // median of one
	commits1 float64       // bare commits per second, one node, 64 clients
	commits3 float64       // three nodes in one process
	echo     float64       // HTTPS requests per second, 64 clients
}

// measureMachine measures the limits that other rows stand beside.
func measureMachine(ctx context.Context, b *bench, _ section) error {
	if err := b.measureFsync(); err != nil {
		return err
	}
	for _, nodes := range []int{1, 3} {
		out, err := b.bareCommits(ctx, nodes)
		if err != nil {
			return err
		}
		if nodes == 1 {
			b.limits.commits1 = out.rate
		} else {
			b.limits.commits3 = out.rate
		}
		b.add(row{what: fmt.Sprintf("bare commits of 1 KiB, %s in this process, 64 clients", map[bool]string{true: "one node", false: "three nodes"}[nodes == 1]), got: perSecond(out.rate), detail: out.quantiles()})
	}
	return b.measureEcho(ctx)
}

// measureFsync writes and syncs 4 KiB, one after the other.
func (b *bench) measureFsync() error {
	f, err := os.Create(filepath.Join(b.dir, "fsync"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	page := make([]byte, 4096)
	var took []time.Duration
	began := time.Now()
	for time.Since(began) < b.cell/2 {
		at := time.Now()
		if _, err := f.WriteAt(page, int64(len(took)%16)*4096); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		took = append(took, time.Since(at))
	}
	out := summarise(took, time.Since(began))
	b.limits.fsync = out.p50
	b.add(row{what: "write and fsync of 4 KiB", got: perSecond(out.rate), detail: out.quantiles()})
	return nil
}

// bareMachine puts each command once.
type bareMachine struct{}

func (bareMachine) Apply(tx *raftstore.Tx, command []byte) (any, error) {
	tx.Put("commands", command[:26], command)
	return nil, nil
}

// bareSealer seals with one key of this process.
type bareSealer struct{ aead cipher.AEAD }

func (s bareSealer) Seal(place, plaintext []byte) []byte {
	nonce := make([]byte, chacha20poly1305.NonceSizeX, chacha20poly1305.NonceSizeX+len(plaintext)+chacha20poly1305.Overhead)
	_, _ = rand.Read(nonce) // never fails: crypto/rand ends the process instead
	return s.aead.Seal(nonce, nonce, plaintext, place)
}

func (s bareSealer) Open(place, sealed []byte) ([]byte, error) {
	if len(sealed) < chacha20poly1305.NonceSizeX {
		return nil, errors.New("too short")
	}
	return s.aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], place)
}

// bareCommits drives the replicated store with nothing above it.
func (b *bench) bareCommits(ctx context.Context, nodes int) (outcome, error) {
	stores, err := openStores(ctx, b.dir, nodes)
	defer func() {
		for _, s := range stores {
			_ = s.Close()
		}
	}()
	if err != nil {
		return outcome{}, err
	}
	leader := stores[0]
	return drive(ctx, most, b.cell, func(ctx context.Context, _ int) error {
		command := make([]byte, 1024)
		copy(command, rand.Text())
		_, err := leader.Propose(ctx, raftstore.Proposal{Command: command})
		return err
	})
}

func openStores(ctx context.Context, dir string, nodes int) ([]*raftstore.Store, error) {
	dir, err := os.MkdirTemp(dir, "bare-")
	if err != nil {
		return nil, err
	}
	ca, err := clusterCA()
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(make([]byte, chacha20poly1305.KeySize))
	if err != nil {
		return nil, err
	}
	var stores []*raftstore.Store
	var first string
	for i := range nodes {
		at, err := servertest.Address()
		if err != nil {
			return stores, err
		}
		id := fmt.Sprintf("n%d", i+1)
		s, err := raftstore.Open(raftstore.Config{
			NodeID: id, Dir: filepath.Join(dir, id), Listen: at, CA: ca, Sealer: bareSealer{aead}, Bootstrap: i == 0,
			Logger: slog.New(slog.DiscardHandler),
			OnJoin: func(context.Context, raftstore.JoinRequest) ([]byte, error) { return nil, nil },
		}, bareMachine{})
		if err != nil {
			return stores, err
		}
		stores = append(stores, s)
		if i == 0 {
			first = at
			err = poll(ctx, readyTimeout, func(context.Context) error {
				if !s.IsLeader() {
					return errors.New("no leader")
				}
				return nil
			})
		} else if _, err = raftstore.Join(ctx, []string{first}, raftstore.CAHash(ca.Certificate), raftstore.JoinRequest{Token: "t", NodeID: id, Addr: at}); err == nil {
			err = s.JoinCluster(ctx, []string{first})
		}
		if err != nil {
			return stores, err
		}
	}
	return stores, nil
}

func clusterCA() (raftstore.Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return raftstore.Authority{}, err
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench cluster"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		return raftstore.Authority{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return raftstore.Authority{Certificate: cert, Signer: key}, err
}

// measureEcho drives an HTTPS server that answers every request with the same
// few hundred bytes: a process of its own, like a node.
func (b *bench) measureEcho(ctx context.Context) error {
	dir, err := os.MkdirTemp(b.dir, "echo-")
	if err != nil {
		return err
	}
	ca, err := newAuthority(dir)
	if err != nil {
		return err
	}
	if _, _, err := ca.issue(dir, "echo"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p, err := start(filepath.Join(dir, "echo.log"), self, "-echo", dir)
	if err != nil {
		return err
	}
	defer func() { _ = p.kill() }()
	url := ""
	err = poll(ctx, readyTimeout, func(context.Context) error {
		at, err := os.ReadFile(filepath.Join(dir, "url"))
		url = string(at)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.tail())
	}
	out, err := driveEcho(ctx, ca, url, b.cell)
	if err != nil {
		return err
	}
	b.limits.echo = out.rate
	b.add(row{what: "HTTPS echo, 64 clients", got: perSecond(out.rate), detail: out.quantiles()})
	return nil
}

func driveEcho(ctx context.Context, ca *authority, url string, cell time.Duration) (outcome, error) {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	clients := make([]*http.Client, most)
	for i := range clients {
		t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
		defer t.CloseIdleConnections()
		clients[i] = &http.Client{Transport: t}
	}
	return drive(ctx, most, cell, func(ctx context.Context, i int) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := clients[i].Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return errors.Join(err, resp.Body.Close())
	})
}

// serveEcho is the other process: it serves until it is ended.
func serveEcho(ctx context.Context, dir string) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "echo.crt"), filepath.Join(dir, "echo.key"))
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return err
	}
	answer := []byte(`{"echo":"` + strings.Repeat("x", 400) + `"}`)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer) // a client that left is no error here
	})}
	var wg sync.WaitGroup
	wg.Go(func() {
		<-ctx.Done()
		_ = server.Close()
	})
	defer wg.Wait()
	// Renamed into place, so that whoever waits for it finds it whole.
	tmp := filepath.Join(dir, "url.tmp")
	if err := os.WriteFile(tmp, []byte("https://"+l.Addr().String()), 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "url")); err != nil {
		return err
	}
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
