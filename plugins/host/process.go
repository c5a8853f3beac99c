package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/mayfly-broker/mayfly/plugins/protocol"
)

// process is one running process of a plugin, after its handshake.
type process struct {
	spec     Spec
	manifest protocol.Manifest
	child    *child
	client   *plugin.Client
	conn     *grpc.ClientConn
	unclaim  func()
	began    time.Time

	mu      sync.Mutex
	handles uint64
	calls   int
	retired bool
	idle    chan struct{} // closed when retired and without calls
}

// launch says what to start.
type launch struct {
	spec    Spec
	binary  *os.File
	account account
	log     *slog.Logger
	redact  func(string) string
	unclaim func() // its user, when the process is gone
}

// start runs a plugin and shakes hands with it. The error says what is wrong with
// the plugin; nothing of it is left then.
func start(ctx context.Context, l launch) (*process, error) {
	c := &child{name: l.spec.Name, binary: l.binary, account: l.account, limits: l.spec.Limits, exited: make(chan struct{})}
	c.journal = newJournal(c.exited, l.log, l.redact)
	p := &process{spec: l.spec, child: c, unclaim: l.unclaim, began: time.Now(), idle: make(chan struct{})}
	var conn *grpc.ClientConn
	p.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  protocol.Handshake(),
		VersionedPlugins: map[int]plugin.PluginSet{protocol.Version: {protocol.Part: &part{conn: &conn}}},
		RunnerFunc:       c.run,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     startTimeout,
		Logger:           hclog.NewNullLogger(),
		SyncStdout:       c.journal.stream(),
		SyncStderr:       c.journal.stream(),
		GRPCDialOptions:  dialOptions(c),
	})
	stop := context.AfterFunc(ctx, func() { _ = c.Kill(ctx) })
	defer stop()
	err := p.greet(ctx, &conn)
	if err == nil {
		p.conn = conn
		return p, nil
	}
	p.end()
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	return nil, errors.New(clean(l.redact(err.Error()), maxReceipt))
}

// run is go-plugin's way to the child: the environment is go-plugin's own and
// nothing else. The directory for the child's socket is not go-plugin's, which
// removes whatever the child has made of it, level by level, with an open file
// for each.
func (c *child) run(_ hclog.Logger, cmd *exec.Cmd, _ string) (runner.Runner, error) {
	dir, err := os.MkdirTemp("", "mayfly-plugin-")
	if err != nil {
		return nil, err
	}
	c.dir, c.env = dir, append(slices.Clone(cmd.Env), plugin.EnvUnixSocketDir+"="+dir)
	if c.account.own {
		err = os.Chown(dir, int(c.account.uid), int(c.account.gid))
	}
	return c, err
}

// dialOptions bound what comes over the connection, whatever method is called.
func dialOptions(c *child) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithContextDialer(c.dial),
		grpc.WithDisableRetry(), // what may have acted is not sent twice
		grpc.WithMaxHeaderListSize(64 << 10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<10), grpc.MaxCallSendMsgSize(64<<10)),
		grpc.WithChainStreamInterceptor(noBroker),
	}
}

// noBroker refuses go-plugin's broker, by which a plugin could have the node make
// a goroutine and an entry in a map for every message that it sends.
func noBroker(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if method == "/plugin.GRPCBroker/StartStream" {
		return nil, status.Error(codes.Unimplemented, "the node has no broker")
	}
	return next(ctx, d, cc, method, opts...)
}

// part is the plugin as go-plugin sees it.
type part struct {
	plugin.NetRPCUnsupportedPlugin
	conn **grpc.ClientConn
}

// GRPCServer implements [plugin.GRPCPlugin]; only plugins serve.
func (*part) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return errors.New("host: a node serves no plugin")
}

// GRPCClient implements [plugin.GRPCPlugin].
func (p *part) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, cc *grpc.ClientConn) (any, error) {
	*p.conn = cc
	return cc, nil
}

// greet starts the child, connects, and has it say what it is.
func (p *process) greet(ctx context.Context, conn **grpc.ClientConn) error {
	if _, err := p.client.Start(); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	c, err := p.client.Client()
	if err != nil {
		return err
	}
	if _, err := c.Dispense(protocol.Part); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	m, err := protocol.All().Describe.Call(ctx, *conn, protocol.Nothing{})
	if err != nil {
		return fmt.Errorf("it does not say what it is: %w", err)
	}
	p.manifest = m
	return checkManifest(m, p.spec.Name)
}

// end ends the process and waits until it is gone: by its consent if that comes
// soon, else by SIGKILL.
func (p *process) end() {
	timer := time.AfterFunc(endGrace, func() { _ = p.child.Kill(context.Background()) })
	p.client.Kill()
	timer.Stop()
	// go-plugin has done nothing where the child did not start.
	_ = p.child.Kill(context.Background())
	if p.child.ID() != "" {
		<-p.child.exited
	}
	p.unclaim()
	if dir := p.child.dir; dir != "" {
		if err := tidy(dir, p.child.account.uid); err != nil && !errors.Is(err, os.ErrNotExist) {
			p.child.journal.log.Warn("what the plugin has left is not removed", "directory", dir, "error", err)
		}
	}
}

// healthy asks whether the process answers at all.
func (p *process) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthWait)
	defer cancel()
	a, err := grpc_health_v1.NewHealthClient(p.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: plugin.GRPCServiceName})
	if err == nil && a.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		err = fmt.Errorf("it says that it is %s", a.GetStatus())
	}
	return err
}

// enter counts a call, one of most; false means that the process takes no more.
func (p *process) enter(most int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired || p.calls >= most {
		return false
	}
	p.calls++
	return true
}

func (p *process) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls--; p.retired && p.calls == 0 {
		close(p.idle)
	}
}

// retire lets the calls in flight finish; what comes later is refused.
func (p *process) retire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired {
		return
	}
	if p.retired = true; p.calls == 0 {
		close(p.idle)
	}
}

// handle returns a number that no other target of this process has.
func (p *process) handle() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handles++
	return p.handles
}
