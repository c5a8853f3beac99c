// Package azuretest runs a real Azurite, Microsoft's own Blob Storage for tests, as
// a private process, and plays Entra's token endpoint, which nobody can run.
//
// It knows requests and answers, and nothing of issuers.
package azuretest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
)

// Account is the storage account of every Azurite.
const Account = "devstoreaccount1"

const startTimeout = 90 * time.Second // a loaded machine takes its time

// Azurite is a running server under TLS.
type Azurite struct {
	URL    string // with the account's name, as Azurite's are
	dir    string
	admin  string // a token that Azurite takes
	proc   *servertest.Process
	client *http.Client
}

// Run starts one whose certificate is of ca's making; admin returns a token for it.
func Run(ctx context.Context, ca *servertest.Authority, admin func() string) (*Azurite, error) {
	path, err := servertest.Built("azurite")
	if err != nil {
		return nil, err
	}
	node, err := servertest.Find("nodejs npm", "node", "nodejs")
	if err != nil {
		return nil, err
	}
	account, err := servertest.Choose()
	if err != nil {
		return nil, err
	}
	a := &Azurite{admin: admin()}
	if a.dir, err = account.Dir("mayfly-azurite-"); err != nil {
		return nil, err
	}
	files, err := ca.Write(account, a.dir)
	if err != nil {
		return nil, err
	}
	address, err := servertest.Address()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	a.URL = "https://" + address + "/" + Account
	a.client = &http.Client{Transport: &http.Transport{TLSClientConfig: ca.Client()}, Timeout: 30 * time.Second}
	a.proc, err = servertest.Start(servertest.Command{Path: node, Dir: a.dir, Account: account, Args: []string{
		filepath.Join(path, "node_modules", "azurite", "dist", "src", "blob", "main.js"), "--blobHost", host, "--blobPort", port, "--location", a.dir,
		"--oauth", "basic", "--cert", files.Cert, "--key", files.Key, "--silent", "--disableTelemetry"}})
	if err != nil {
		return nil, err
	}
	return a, a.wait(ctx)
}

func (a *Azurite) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if status, _, err := a.Do(ctx, http.MethodGet, "", "comp=list", a.admin, nil); err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-tick.C:
		case <-a.proc.Done():
			return errors.New("azurite ended: " + a.proc.Output())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("azurite does not answer within %s: %s", startTimeout, a.proc.Output()), a.Close())
		}
	}
}

// Do asks for a path ("container/blob") with a query; bearer may be empty.
func (a *Azurite) Do(ctx context.Context, method, path, query, bearer string, body []byte) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, a.URL+"/"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.URL.RawQuery = query
	r.Header.Set("x-ms-version", "2022-11-02")
	if method == http.MethodPut && body != nil {
		r.Header.Set("x-ms-blob-type", "BlockBlob")
	}
	if bearer != "" {
		r.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := a.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, text, err
}

// Put writes a container, or a blob with some content, as the account's owner.
func (a *Azurite) Put(ctx context.Context, path, query string, body []byte) error {
	status, text, err := a.Do(ctx, http.MethodPut, path, query, a.admin, body)
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("put %s: status %d: %s", path, status, text)
	}
	return err
}

// Close ends the server and removes its data.
func (a *Azurite) Close() error {
	return errors.Join(a.proc.Stop(syscall.SIGTERM), os.RemoveAll(a.dir))
}

// certificate is one for 127.0.0.1.
func certificate(ca *servertest.Authority) (tls.Certificate, error) {
	cert, key, err := ca.ForServer()
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair([]byte(cert), []byte(key))
}
