package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/node"
)

// drainFor is how long a stopping node waits for requests in flight.
const drainFor = 10 * time.Second

// service is what `dev` and `server` both run: a node and its HTTP surface.
type service struct {
	node     *node.Node
	server   *api.Server
	certs    *api.Certificates
	listener net.Listener
	log      *slog.Logger
	tracing  *sdktrace.TracerProvider
	plugins  *plugins
}

// serviceConfig says what to run.
type serviceConfig struct {
	node     node.Config
	listener net.Listener
	certs    *api.Certificates
	hosts    []string
	log      *slog.Logger
	// otlp is where traces go (an OTLP/HTTP URL); empty: nowhere.
	otlp    string
	plugins pluginConfig
}

// newService wires node and server together. Nothing runs yet.
func newService(ctx context.Context, cfg serviceConfig) (*service, error) {
	s := &service{certs: cfg.certs, listener: cfg.listener, log: cfg.log}
	tracer, err := s.tracer(ctx, cfg.otlp)
	if err != nil {
		return nil, err
	}
	cfg.node.Kinds, cfg.node.Version, cfg.node.Logger = targetKinds(), version(), cfg.log
	s.plugins = newPlugins(cfg.plugins, cfg.log)
	cfg.node.Plugins = s.plugins
	if s.node, err = node.New(cfg.node); err != nil {
		return nil, err
	}
	s.server, err = api.New(api.Config{
		Node: s.node,
		Engine: func() (api.Broker, error) {
			e, err := s.node.Engine()
			if err != nil {
				return nil, err
			}
			return e, nil
		},
		ExternalURLs: append([]string{cfg.node.Issuer}, cfg.node.URLs...),
		Hosts:        cfg.hosts,
		Certificates: cfg.certs,
		Logger:       cfg.log,
		Tracer:       tracer,
		Version:      version(),
		Collectors:   []prometheus.Collector{s.node},
	})
	if err != nil {
		return nil, err
	}
	s.node.Forwarded(s.server.Forwarded())
	return s, nil
}

// tracer exports spans by OTLP/HTTP when an address is configured.
func (s *service) tracer(ctx context.Context, address string) (trace.TracerProvider, error) {
	if address == "" {
		return nil, nil
	}
	exp, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(address))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	s.tracing = sdktrace.NewTracerProvider(sdktrace.WithBatcher(exp))
	return s.tracing, nil
}

// run serves until ctx ends. ready is called once the node has started; it may
// still be sealed. The HTTP surface comes first, so that a sealed or joining
// node answers clearly.
func (s *service) run(ctx context.Context, ready func() error) error {
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(s.listener) }()
	err := s.node.Start(ctx)
	if err == nil {
		err = ready()
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-served:
			served <- nil
		case err = <-s.node.Failed():
		}
	}
	return errors.Join(err, s.stop(ctx, served))
}

func (s *service) stop(ctx context.Context, served <-chan error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainFor)
	defer cancel()
	err := errors.Join(s.server.Shutdown(ctx), <-served, s.node.Close())
	s.plugins.host.Close()
	if s.tracing != nil {
		err = errors.Join(err, s.tracing.Shutdown(ctx))
	}
	return err
}

// hint is what enrolment tokens carry: the addresses of the URLs and the hash
// of the CA that their certificates come from.
func hint(caPEM []byte, urls ...string) (broker.Hint, error) {
	var h broker.Hint
	block, _ := pem.Decode(caPEM)
	if block == nil {
		return h, errors.New("the CA file holds no PEM certificate")
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return h, fmt.Errorf("the CA file: %w", err)
	}
	h.CAHash = sha256.Sum256(block.Bytes)
	for _, u := range urls {
		parsed, err := url.Parse(u)
		if err != nil {
			return h, err
		}
		host := parsed.Host
		if parsed.Port() == "" {
			host = net.JoinHostPort(parsed.Hostname(), "443")
		}
		h.Addresses = append(h.Addresses, host)
	}
	return h, nil
}

// newLogger writes structured logs to stderr.
func newLogger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if level == "" {
		level = "info"
	}
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "", "text":
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	default:
		return nil, fmt.Errorf("log format %q: text or json", format)
	}
}

// outbound is the client for discovery documents and keys of issuers.
func outbound() *http.Client { return &http.Client{Timeout: 10 * time.Second} }
