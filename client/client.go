package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/mayfly-broker/mayfly/client/keys"
)

const (
	dialTimeout      = 3 * time.Second // a node that is cut off must not eat the retry budget
	handshakeTimeout = 5 * time.Second
	idlePerNode      = 64
	certificateLife  = 24 * time.Hour
)

// Client speaks to one cluster as one principal. Safe for concurrent use; close
// it with [Client.Close].
type Client struct {
	cfg       Config
	home      *Home // nil: everything stays in memory
	key       *keys.Key
	x5t       string // the client certificate's thumbprint, with BindMTLS
	privateCA bool
	http      *http.Client
	nodes     nodeList

	logins sync.Mutex // one login at a time
	mu     sync.Mutex // guards the rest
	live   session
	nonces map[string]string // by node
}

// New opens a client. It reads files but makes no connection. Errors are
// *[Error] of kind invalid, or what reading the home gave.
func New(cfg Config) (*Client, error) {
	c := &Client{cfg: cfg, nonces: map[string]string{}}
	switch cfg.Binding {
	case "", BindDPoP, BindMTLS:
	default:
		return nil, newError(KindInvalid, CodeConfiguration, "MAYFLY_BINDING=%q is neither %s nor %s.", cfg.Binding, BindDPoP, BindMTLS)
	}
	if err := c.openHome(); err != nil {
		return nil, err
	}
	if err := c.findNodes(); err != nil {
		return nil, err
	}
	pool, err := c.trust()
	if err != nil {
		return nil, err
	}
	certificate, err := c.certificate()
	if err != nil {
		return nil, err
	}
	c.http = newHTTP(tlsConfig(pool, certificate))
	return c, nil
}

// newHTTP makes an HTTP client that follows no redirect: a proof is made for
// one URL only.
func newHTTP(cfg *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:     cfg,
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
			TLSHandshakeTimeout: handshakeTimeout,
			MaxIdleConnsPerHost: idlePerNode,
			IdleConnTimeout:     90 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close gives idle connections back. The session stays for the next process.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Home returns the client's home, nil when it has none.
func (c *Client) Home() *Home { return c.home }

// Key returns the client's own key.
func (c *Client) Key() *keys.Key { return c.key }

// Nodes returns the configured nodes' base URLs.
func (c *Client) Nodes() []string { return slices.Clone(c.nodes.configured) }

// openHome opens the home and its key. Where nothing may be written, a workload
// that brings evidence of its own still works: key and session live in memory.
func (c *Client) openHome() error {
	var err error
	if c.cfg.Home != "" {
		c.home, err = OpenHome(c.cfg.Home)
		if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
			c.home, err = nil, nil
		}
		if err != nil {
			return err
		}
	}
	if c.home != nil {
		c.key, err = c.home.Key()
	} else {
		c.key, err = keys.Generate(keys.P256)
	}
	return err
}

func (c *Client) findNodes() error {
	addresses := c.cfg.Addresses
	if len(addresses) == 0 && c.home != nil {
		id, err := c.home.Identity()
		if err != nil {
			return err
		}
		addresses = id.Addresses
	}
	if len(addresses) == 0 {
		return newError(KindInvalid, CodeConfiguration, "No node is known: set MAYFLY_ADDR to host:port of one or several nodes, separated by commas, or log in with an enrolment token.")
	}
	urls, err := baseURLs(addresses)
	c.nodes.configured = urls
	return err
}

func (c *Client) trust() (*x509.CertPool, error) {
	if c.cfg.caPEM != nil {
		c.privateCA = true
		return poolOf(c.cfg.caPEM, "The node's CA")
	}
	file := c.cfg.CAFile
	if file == "" && c.home != nil {
		file = c.home.caFile()
	}
	if file == "" {
		return nil, nil
	}
	c.privateCA = true
	return loadPool(file)
}

// certificate returns the TLS client certificate, nil when sessions are bound
// by DPoP.
func (c *Client) certificate() (*tls.Certificate, error) {
	if (c.cfg.CertFile == "") != (c.cfg.KeyFile == "") {
		return nil, newError(KindInvalid, CodeConfiguration, "MAYFLY_CERT_FILE and MAYFLY_KEY_FILE go together.")
	}
	var cert tls.Certificate
	var err error
	switch {
	case c.cfg.CertFile != "":
		cert, err = tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
		if err == nil && cert.Leaf == nil {
			cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0])
		}
	case c.cfg.Binding == BindMTLS:
		cert, err = c.ownCertificate(time.Now())
	default:
		return nil, nil
	}
	if err != nil {
		e := newError(KindInvalid, CodeConfiguration, "The TLS client certificate cannot be used.")
		e.Err = err
		return nil, e
	}
	c.cfg.Binding = BindMTLS
	c.x5t = keys.CertificateThumbprint(cert.Leaf)
	return &cert, nil
}

// nodeList is the nodes in the order in which to try them: the one that
// answered last comes first.
type nodeList struct {
	configured []string
	mu         sync.Mutex
	preferred  string
}

func (n *nodeList) order() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.preferred == "" {
		return slices.Clone(n.configured)
	}
	out := []string{n.preferred}
	// Those after the preferred one come next, so that a failing node is not
	// everybody's second choice.
	at := slices.Index(n.configured, n.preferred)
	for i := range n.configured {
		if u := n.configured[(at+1+i)%len(n.configured)]; u != n.preferred {
			out = append(out, u)
		}
	}
	return out
}

func (n *nodeList) prefer(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.preferred = node
}
