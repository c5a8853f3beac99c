package api

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// Config is what a Server is made of. Node, Engine, ExternalURLs and, to
// [Server.Serve], Certificates are required; the rest has defaults.
type Config struct {
	Node Node
	// Engine returns the engine, or unavailable "sealed" or "uninitialised".
	Engine func() (Broker, error)
	// ExternalURLs are the https URLs under which clients reach any node; the
	// first is the issuer. Their hosts are accepted as Host and Origin.
	ExternalURLs []string
	// Hosts are further names (host or host:port) accepted in the Host header,
	// such as the addresses that health checks use.
	Hosts        []string
	Certificates *Certificates
	Limits       Limits
	Logger       *slog.Logger           // default: discard
	Tracer       trace.TracerProvider   // nil: no spans
	Clock        func() time.Time       // default: time.Now
	Collectors   []prometheus.Collector // further metrics to serve
	Version      string                 // of this build, for the OpenAPI document
}

// Server is the HTTP surface of one node. Make it with [New]; it is safe for
// concurrent use.
type Server struct {
	cfg      Config
	node     Node
	log      *slog.Logger
	quiet    *log.Logger // for what net/http wants to say
	clock    func() time.Time
	hosts    map[string]bool
	metrics  *metrics
	throttle throttle
	inFlight atomic.Int64
	draining atomic.Bool
	polls    polls

	openAPI   []byte
	routes    *http.ServeMux
	handler   http.Handler
	forwarded http.Handler
	http      *http.Server
}

// New returns a Server, or an error of kind invalid that says what in the
// configuration is wrong.
func New(cfg Config) (*Server, error) {
	if cfg.Node == nil || cfg.Engine == nil || len(cfg.ExternalURLs) == 0 {
		return nil, fault.New(fault.Invalid, "", "The API needs a node, an engine and at least one external URL.")
	}
	cfg.Limits = cfg.Limits.withDefaults()
	s := &Server{cfg: cfg, node: cfg.Node, log: cfg.Logger, clock: cfg.Clock, metrics: newMetrics(), hosts: map[string]bool{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.clock == nil {
		s.clock = time.Now
	}
	for _, text := range cfg.ExternalURLs {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
			return nil, fault.New(fault.Invalid, "", "The external URL %q is not https://HOST[:PORT].", text)
		}
		s.hosts[normalHost(u.Host)] = true
	}
	for _, h := range cfg.Hosts {
		s.hosts[normalHost(h)] = true
	}
	s.quiet = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	for _, c := range cfg.Collectors {
		if err := s.metrics.registry.Register(c); err != nil {
			return nil, fmt.Errorf("api: metrics: %w", err)
		}
	}
	s.throttle = newThrottle(cfg.Limits, s.clock)
	if err := s.build(); err != nil {
		return nil, err
	}
	return s, nil
}

// build registers every operation and makes the two handlers of them.
func (s *Server) build() error {
	mux := http.NewServeMux()
	s.routes = mux
	f := newSurface(s, mux, s.cfg.Version)
	f.addSessions()
	f.addConfiguration()
	f.addTasks()
	f.addLeases()
	f.addGrants()
	f.addOversight()
	f.addSystem()
	f.addOpen()
	f.addOAuth()
	if err := f.addConsole(); err != nil {
		return err
	}
	doc, err := f.document()
	if err != nil {
		return err
	}
	s.openAPI = doc
	s.handler, s.forwarded = s.front(mux, false), s.front(mux, true)
	if s.cfg.Tracer != nil {
		s.handler, s.forwarded = s.traced(s.handler), s.traced(s.forwarded)
	}
	s.http = &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: readHeaderTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// OPTIONS * meets the same checks as everything else.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     s.quiet,
	}
	return nil
}

func (s *Server) traced(h http.Handler) http.Handler {
	return otelhttp.NewHandler(h, "http", otelhttp.WithTracerProvider(s.cfg.Tracer), otelhttp.WithPropagators(propagation.TraceContext{}))
}

// Handler serves clients. Its connections must be TLS that asks for client
// certificates ([Certificates.TLS]).
func (s *Server) Handler() http.Handler { return s.handler }

// Forwarded serves what other nodes pass on. It must be reachable over the
// cluster's mutual TLS only: it takes the other node's word for the client's
// address, and for nothing else.
func (s *Server) Forwarded() http.Handler { return s.forwarded }

// OpenAPI returns the OpenAPI 3.1 document, for callers to read only.
func (s *Server) OpenAPI() []byte { return s.openAPI }

// Serve serves clients on l until [Server.Shutdown]; then it returns nil.
func (s *Server) Serve(l net.Listener) error {
	if s.cfg.Certificates == nil {
		return fault.New(fault.Invalid, "", "The API serves TLS only, and has no certificate.")
	}
	s.http.TLSConfig = s.cfg.Certificates.TLS()
	err := s.http.ServeTLS(l, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("api: %w", err)
}

// Shutdown turns readiness off, takes no new connections and waits for the
// requests in flight. When ctx ends first, it cuts them off and returns ctx's
// error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}
