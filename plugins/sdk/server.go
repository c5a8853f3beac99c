package sdk

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
)

// server answers the node's calls with a kind and the issuers it has opened.
type server struct {
	kind     issuers.Kind
	manifest protocol.Manifest
	log      *slog.Logger

	mu   sync.Mutex
	open map[uint64]issuers.Issuer
}

func newServer(kind issuers.Kind, issuer issuers.Issuer, log *slog.Logger) (*server, error) {
	m, err := manifest(kind, issuer)
	if err != nil {
		return nil, err
	}
	return &server{kind: kind, manifest: m, log: log, open: map[uint64]issuers.Issuer{}}, nil
}

// survive answers a call whose code panicked, so that it takes no other call
// with it.
func (s *server) survive(ctx context.Context, q any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (a any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic", "call", info.FullMethod, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "the plugin's code panicked; its log says where")
		}
	}()
	return next(ctx, q)
}

// issuer returns an opened target, or the error to answer with.
func (s *server) issuer(handle uint64) (issuers.Issuer, *protocol.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.open[handle]; i != nil {
		return i, nil
	}
	return nil, &protocol.Error{Kind: issuers.Unreachable.String(), Detail: "the target is not open in the plugin"}
}

// able returns an opened target's optional interface.
func able[T any](s *server, handle uint64) (T, *protocol.Error) {
	var none T
	i, fail := s.issuer(handle)
	if fail != nil {
		return none, fail
	}
	t, ok := i.(T)
	if !ok {
		return none, &protocol.Error{Kind: issuers.Refused.String(), Detail: "the kind has no such ability"}
	}
	return t, nil
}

// closeAll closes what is open, when the node has ended the plugin.
func (s *server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.open {
		if err := i.Close(); err != nil {
			s.log.Warn("a target did not close cleanly", "error", err)
		}
	}
	s.open = map[uint64]issuers.Issuer{}
}

// Describe implements [protocol.Server].
func (s *server) Describe(context.Context, protocol.Nothing) (protocol.Manifest, error) {
	return s.manifest, nil
}

// Examine implements [protocol.Server].
func (s *server) Examine(_ context.Context, q protocol.SpecRequest) (protocol.Examination, error) {
	var a protocol.Examination
	if err := s.kind.CheckSpec(q.Spec); err != nil {
		a.Problem = said(err)
		return a, nil
	}
	if b, ok := s.kind.(issuers.Bounder); ok {
		a.MaxTTL = b.MaxTTL(q.Spec)
	}
	if w, ok := s.kind.(issuers.RoleWriter); ok {
		roles, err := w.Roles(q.Spec)
		if err != nil {
			a.RolesProblem = said(err)
		}
		for _, r := range roles {
			a.Roles = append(a.Roles, protocol.Role{Suffix: r.Suffix, Scope: r.Scope, DefaultTTL: r.DefaultTTL, MaxTTL: r.MaxTTL})
		}
	}
	return a, nil
}

// said is an error's text, and some text where an error has none: an empty one
// would read as consent.
func said(err error) string {
	if text := err.Error(); text != "" {
		return text
	}
	return "the plugin gives no reason"
}

// CheckScope implements [protocol.Server].
func (s *server) CheckScope(_ context.Context, q protocol.ScopeRequest) (protocol.Verdict, error) {
	return protocol.Verdict{Error: protocol.EncodeError(s.kind.CheckScope(q.Spec, q.Scope))}, nil
}

// MakeSecrets implements [protocol.Server].
func (s *server) MakeSecrets(_ context.Context, q protocol.SpecRequest) (protocol.Secrets, error) {
	m, ok := s.kind.(issuers.SecretMaker)
	if !ok {
		return protocol.Secrets{}, nil
	}
	made, err := m.MakeSecrets(q.Spec)
	if err != nil {
		return protocol.Secrets{Error: protocol.EncodeError(err)}, nil
	}
	return protocol.Secrets{Values: protocol.EncodeSecrets(made)}, nil
}

// Open implements [protocol.Server].
func (s *server) Open(_ context.Context, q protocol.OpenRequest) (protocol.Verdict, error) {
	i, err := s.kind.Open(issuers.Target{
		Name: q.Name, Spec: q.Spec, Secrets: protocol.DecodeSecrets(q.Secrets), Term: q.Term, Issuer: q.Issuer,
		Log: s.log.With("target", q.Name),
	})
	if err != nil {
		return protocol.Verdict{Error: protocol.EncodeError(err)}, nil
	}
	if can := slices.Concat(protocol.KindAbilities(s.kind), protocol.IssuerAbilities(i)); !slices.Equal(can, s.manifest.Abilities) {
		_ = i.Close()
		return protocol.Verdict{}, status.Errorf(codes.FailedPrecondition,
			"Open returned an issuer that can %v, but Serve was given one that can %v: give Serve a value of the type that Open returns", can, s.manifest.Abilities)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[q.Handle] != nil {
		_ = i.Close()
		return protocol.Verdict{}, status.Errorf(codes.AlreadyExists, "handle %d is taken", q.Handle)
	}
	s.open[q.Handle] = i
	return protocol.Verdict{}, nil
}

// Close implements [protocol.Server].
func (s *server) Close(_ context.Context, q protocol.HandleRequest) (protocol.Verdict, error) {
	s.mu.Lock()
	i := s.open[q.Handle]
	delete(s.open, q.Handle)
	s.mu.Unlock()
	if i == nil {
		return protocol.Verdict{}, nil
	}
	return protocol.Verdict{Error: protocol.EncodeError(i.Close())}, nil
}

// Mint implements [protocol.Server].
func (s *server) Mint(ctx context.Context, q protocol.LeaseRequest) (protocol.Minted, error) {
	i, fail := s.issuer(q.Handle)
	if fail != nil {
		return protocol.Minted{Error: fail}, nil
	}
	c, err := i.Mint(ctx, q.Lease.Decode())
	if err != nil {
		return protocol.Minted{Error: protocol.EncodeError(err)}, nil
	}
	return protocol.Minted{Public: c.Public, Secret: protocol.EncodeSecrets(c.Secret), Env: c.Env}, nil
}

// Withdraw implements [protocol.Server].
func (s *server) Withdraw(ctx context.Context, q protocol.LeasesRequest) (protocol.Withdrawn, error) {
	i, fail := s.issuer(q.Handle)
	if fail != nil {
		return protocol.Withdrawn{Error: fail}, nil
	}
	leases := make([]issuers.Lease, len(q.Leases))
	for n, l := range q.Leases {
		leases[n] = l.Decode()
	}
	a := protocol.Withdrawn{Outcomes: []protocol.Outcome{}}
	for _, o := range i.Withdraw(ctx, leases) {
		if o.Err != nil {
			a.Outcomes = append(a.Outcomes, protocol.Outcome{Error: protocol.EncodeError(o.Err)})
			continue
		}
		a.Outcomes = append(a.Outcomes, protocol.Outcome{Receipt: &o.Receipt})
	}
	return a, nil
}

// Extend implements [protocol.Server].
func (s *server) Extend(ctx context.Context, q protocol.LeaseRequest) (protocol.Verdict, error) {
	e, fail := able[issuers.Extender](s, q.Handle)
	if fail != nil {
		return protocol.Verdict{Error: fail}, nil
	}
	return protocol.Verdict{Error: protocol.EncodeError(e.Extend(ctx, q.Lease.Decode()))}, nil
}

// Check implements [protocol.Server].
func (s *server) Check(ctx context.Context, q protocol.HandleRequest) (protocol.Findings, error) {
	c, fail := able[issuers.Checker](s, q.Handle)
	if fail != nil {
		return protocol.Findings{Error: fail}, nil
	}
	found, err := c.Check(ctx)
	return protocol.Findings{Findings: found, Error: protocol.EncodeError(err)}, nil
}

// List implements [protocol.Server].
func (s *server) List(ctx context.Context, q protocol.HandleRequest) (protocol.Listed, error) {
	l, fail := able[issuers.Lister](s, q.Handle)
	if fail != nil {
		return protocol.Listed{Error: fail}, nil
	}
	found, err := l.List(ctx)
	a := protocol.Listed{Error: protocol.EncodeError(err)}
	for _, f := range found {
		a.Found = append(a.Found, protocol.Found(f))
	}
	return a, nil
}

// Fence implements [protocol.Server].
func (s *server) Fence(ctx context.Context, q protocol.HandleRequest) (protocol.Verdict, error) {
	f, fail := able[issuers.Fencer](s, q.Handle)
	if fail != nil {
		return protocol.Verdict{Error: fail}, nil
	}
	return protocol.Verdict{Error: protocol.EncodeError(f.Fence(ctx))}, nil
}

// Sweep implements [protocol.Server].
func (s *server) Sweep(ctx context.Context, q protocol.HandleRequest) (protocol.Verdict, error) {
	w, fail := able[issuers.Sweeper](s, q.Handle)
	if fail != nil {
		return protocol.Verdict{Error: fail}, nil
	}
	return protocol.Verdict{Error: protocol.EncodeError(w.Sweep(ctx))}, nil
}

// Publish implements [protocol.Server].
func (s *server) Publish(ctx context.Context, q protocol.HandleRequest) (protocol.Published, error) {
	p, fail := able[issuers.Publisher](s, q.Handle)
	if fail != nil {
		return protocol.Published{Error: fail}, nil
	}
	docs, err := p.Publish(ctx)
	return protocol.Published{Documents: docs, Error: protocol.EncodeError(err)}, nil
}

// Revoked implements [protocol.Server].
func (s *server) Revoked(ctx context.Context, q protocol.RevokedRequest) (protocol.Published, error) {
	p, fail := able[issuers.RevocationPublisher](s, q.Handle)
	if fail != nil {
		return protocol.Published{Error: fail}, nil
	}
	docs, err := p.PublishRevoked(ctx, func(yield func(issuers.Lease) bool) {
		for _, l := range q.Withdrawn {
			if !yield(issuers.Lease{ID: l.ID, NotAfter: l.NotAfter}) {
				return
			}
		}
	})
	return protocol.Published{Documents: docs, Error: protocol.EncodeError(err)}, nil
}
