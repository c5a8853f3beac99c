package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Sizes and times of the connections to one node.
const (
	endLanes    = 3 // kept for withdrawal and upkeep, so that slow mints never starve them (HAZARDS 17)
	dialTimeout = 3 * time.Second
	ioTimeout   = 5 * time.Second // one answer; also how long a write may wait in our own socket buffer
	idleTime    = 5 * time.Minute
	maxNodes    = 256 // that Sentinels or a cluster may name
)

// lanes are the connections to one node.
type lanes struct{ mint, end *goredis.Client }

// fleet holds the connections to every node of a deployment, made when first
// needed.
type fleet struct {
	spec   spec
	node   goredis.Options // for the servers
	watch  goredis.Options // for the Sentinels
	mu     sync.Mutex
	closed bool
	nodes  map[string]lanes
	guards map[string]*goredis.Client // Sentinels, by address
}

func newFleet(sp spec, t issuers.Target) (*fleet, error) {
	tlsConfig, err := tlsConfig(sp)
	if err != nil {
		return nil, err
	}
	quiet()
	base := goredis.Options{
		ClientName: clientName(t.Term),
		// RESP2 and no greetings: what newer clients ask of newer servers is not needed
		Protocol: 2, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		// a command is sent once: only its caller knows whether it may be sent again
		MaxRetries: -1, DialerRetries: 1,
		DialTimeout: dialTimeout, ReadTimeout: ioTimeout, WriteTimeout: ioTimeout, PoolTimeout: ioTimeout,
		ContextTimeoutEnabled: true, ConnMaxIdleTime: idleTime, PipelinePoolSize: -1,
		OnConnect: func(ctx context.Context, _ *goredis.Conn) error {
			if ctx.Value(guarded{}) != nil {
				return errors.New("the connection that watched the gate is gone")
			}
			return nil
		},
	}
	f := &fleet{spec: sp, node: base, watch: base, nodes: map[string]lanes{}, guards: map[string]*goredis.Client{}}
	f.node.Username, f.node.Password = sp.Admin.Username, t.Secrets[SecretPassword].Reveal()
	f.watch.Username, f.watch.Password = sp.SentinelUsername, t.Secrets[SecretSentinelPassword].Reveal()
	f.node.TLSConfig, f.watch.TLSConfig = tlsConfig, tlsConfig
	return f, nil
}

// quiet keeps the driver from writing to stderr on its own: every failure comes
// back as an error. The driver has one logger for the whole process.
var quiet = sync.OnceFunc(func() { goredis.SetLogger(silence{}) })

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// guarded marks the context of a transaction that must run on the connection
// that watches its gate, never on a new one.
type guarded struct{}

func tlsConfig(sp spec) (*tls.Config, error) {
	if sp.TLS.Mode == tlsDisable {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: sp.TLS.ServerName}
	ca := []byte(sp.TLS.CA)
	if sp.TLS.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(sp.TLS.CAFile); err != nil {
			return nil, fmt.Errorf("redis: tls.ca_file: %w", err)
		}
	}
	if len(ca) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("redis: tls: the CA holds no PEM certificate")
		}
	}
	return c, nil
}

// client makes the connections of one address; the options are the fleet's own.
func client(o goredis.Options, addr string, size int) *goredis.Client {
	o.Addr, o.PoolSize, o.MaxActiveConns = addr, size, size
	if o.TLSConfig != nil && o.TLSConfig.ServerName == "" {
		o.TLSConfig = o.TLSConfig.Clone()
		o.TLSConfig.ServerName, _, _ = net.SplitHostPort(addr)
	}
	return goredis.NewClient(&o)
}

// to returns the connections to one node.
func (f *fleet) to(addr string) (lanes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return lanes{}, unreachable("the issuer is closed")
	}
	l, ok := f.nodes[addr]
	if !ok {
		if len(f.nodes) >= 2*maxNodes { // addresses that came and went
			return lanes{}, unreachable("the deployment has named more than %d addresses since the target was opened", 2*maxNodes)
		}
		l = lanes{client(f.node, addr, f.spec.MaxConnections), client(f.node, addr, endLanes)}
		f.nodes[addr] = l
	}
	return l, nil
}

func (f *fleet) sentinel(addr string) (*goredis.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, unreachable("the issuer is closed")
	}
	c, ok := f.guards[addr]
	if !ok {
		c = client(f.watch, addr, 2)
		f.guards[addr] = c
	}
	return c, nil
}

func (f *fleet) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, l := range f.nodes {
		_ = l.mint.Close() // what is left of them ends with their sockets
		_ = l.end.Close()
	}
	for _, c := range f.guards {
		_ = c.Close()
	}
	f.nodes, f.guards = nil, nil
}
