// Package sdk is what the author of a plugin imports: a kind of target, written
// against package issuers as the built-in ones are, becomes a plugin by one call
// in its main:
//
//	func main() { sdk.Serve(htpasswd.Kind{}, &htpasswd.Issuer{}) }
//
// The node starts the plugin, and it is of no use by hand. Package plugintest
// runs the conformance suite against the built binary. The package must know
// nothing of the node, nor of any particular kind.
package sdk

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
)

// maxStreams is how many calls one node may have open at once: 64 mints and a
// batch of withdrawals on each of some targets, and the node's own few.
const maxStreams = 1024

// Serve serves kind until the node ends the plugin. issuer is any value of the
// type that kind.Open returns, such as &Issuer{}: only its type is looked at, for
// the optional interfaces of package issuers that it implements.
//
// It ends the process with exit code 1 where it was not started by a node, or
// where the kind cannot be served: CredentialName must be a text in which the
// lease's whole id stands.
func Serve(kind issuers.Kind, issuer issuers.Issuer) {
	// go-plugin takes os.Stderr over; what is logged goes the direct way.
	log := newLogger(os.Stderr)
	hideMemory()
	for _, what := range unserved(kind, issuer) {
		log.Warn("nodes do not ask plugins for this interface of package issuers; it is never used", "interface", what)
	}
	s, err := newServer(kind, issuer, log)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  protocol.Handshake(),
		VersionedPlugins: map[int]plugin.PluginSet{protocol.Version: {protocol.Part: &part{server: s}}},
		Logger:           hclog.NewNullLogger(),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts,
				grpc.MaxRecvMsgSize(protocol.MaxMessage+1024), grpc.MaxSendMsgSize(protocol.MaxMessage+1024),
				grpc.MaxConcurrentStreams(maxStreams), grpc.ChainUnaryInterceptor(s.survive))...)
		},
	})
	s.closeAll()
}

// unserved are the optional interfaces that exist in the broker's own process alone.
func unserved(kind issuers.Kind, issuer issuers.Issuer) (out []string) {
	add := func(what string, has bool) {
		if has {
			out = append(out, what)
		}
	}
	_, sometimes := kind.(issuers.SometimesRevocable)
	add("SometimesRevocable", sometimes)
	_, turner := kind.(issuers.KeyTurner)
	add("KeyTurner", turner)
	_, keys := kind.(issuers.KeyHolder)
	add("KeyHolder", keys)
	_, rotator := issuer.(issuers.Rotator)
	add("Rotator", rotator)
	_, holder := kind.(issuers.AdminHolder)
	add("AdminHolder", holder)
	_, presenter := issuer.(issuers.Presenter)
	add("Presenter", presenter)
	return out
}

// newLogger writes what the node makes log lines of: a level, which it reads, and text.
func newLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{} // the node's log has its own
		}
		return a
	}}))
}

// part is the plugin as go-plugin sees it.
type part struct {
	plugin.NetRPCUnsupportedPlugin
	server *server
}

// GRPCServer implements [plugin.GRPCPlugin].
func (p *part) GRPCServer(_ *plugin.GRPCBroker, g *grpc.Server) error {
	protocol.Register(g, p.server)
	return nil
}

// GRPCClient implements [plugin.GRPCPlugin]; only nodes are clients.
func (p *part) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, fmt.Errorf("sdk: a plugin is no client")
}

// manifest is what the plugin says of itself.
func manifest(kind issuers.Kind, issuer issuers.Issuer) (protocol.Manifest, error) {
	m := protocol.Manifest{Name: kind.Name(), Revocable: kind.Revocable()}
	form, err := protocol.FindForm(kind.CredentialName)
	if err != nil {
		return m, fmt.Errorf("sdk: kind %s: %w", m.Name, err)
	}
	if issuer == nil {
		return m, fmt.Errorf("sdk: kind %s: Serve needs a value of the type that Open returns", m.Name)
	}
	m.CredentialName = string(form)
	m.Abilities = slices.Concat(protocol.KindAbilities(kind), protocol.IssuerAbilities(issuer))
	if b, ok := debug.ReadBuildInfo(); ok {
		m.Build = b.Main.Version
	}
	return m, nil
}
