// Package protocol is what a node and a plugin say to each other: which methods
// there are, what they carry, and how large it may be.
//
// The messages are Go structs written as JSON; gRPC carries them as the bytes of
// a google.protobuf.BytesValue, so that any language's stock gRPC serves them
// and nothing is generated here. Both sides decode strictly: a field that one of
// them does not know is an error, because it would be a promise that nobody
// keeps; so a new field takes a new [Version] (docs/adr/0013-plugins.md).
//
// The package must know nothing of processes, nor of what either side does with
// what it decodes. What a plugin answers is checked by package host.
package protocol

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Version is the protocol's. A node offers every version that it speaks, the
// plugin takes the newest that it knows, and without one in common it is not used.
const Version = 1

// Part is the name under which go-plugin knows the one thing that a plugin serves.
const Part = "kind"

// service is the gRPC service that a plugin serves.
const service = "mayfly.plugin.v1.Kind"

// Handshake is what go-plugin compares before anything else. The cookie is no
// secret: it keeps people from starting a plugin by hand and wondering.
func Handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{ProtocolVersion: Version, MagicCookieKey: "MAYFLY_PLUGIN", MagicCookieValue: "serves-one-kind-of-target"}
}

// Method is one method: Q is what is asked, A what is answered, Answer the most
// bytes that an answer may have, and Values about the most values in it.
type Method[Q, A any] struct {
	Name   string
	Answer int
	Values int
}

// Call asks the plugin at conn. The context's deadline and cancellation travel
// with the call. The error is one of transport or of form: what a target says is
// part of the answer.
func (m Method[Q, A]) Call(ctx context.Context, conn grpc.ClientConnInterface, q Q) (A, error) {
	var a A
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	if len(body) > MaxMessage {
		return a, fmt.Errorf("%s: %d bytes to send; at most %d are allowed", m.Name, len(body), MaxMessage)
	}
	out := new(wrapperspb.BytesValue)
	err = conn.Invoke(ctx, "/"+service+"/"+m.Name, wrapperspb.Bytes(body), out,
		grpc.MaxCallRecvMsgSize(m.Answer+frame), grpc.MaxCallSendMsgSize(MaxMessage+frame))
	if err != nil {
		return a, err
	}
	if n := values(out.GetValue()); n > m.Values {
		return a, status.Errorf(codes.DataLoss, "the answer to %s has %d values; at most %d are allowed", m.Name, n, m.Values)
	}
	if err := decode(out.GetValue(), &a); err != nil {
		return a, status.Errorf(codes.DataLoss, "the answer to %s does not read: %v", m.Name, err)
	}
	return a, nil
}

// frame is what the encoding adds to a message's bytes.
const frame = 16

// desc makes a method servable.
func (m Method[Q, A]) desc(serve func(s Server, ctx context.Context, q Q) (A, error)) grpc.MethodDesc {
	handle := func(srv any, ctx context.Context, dec func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.BytesValue)
		if err := dec(in); err != nil {
			return nil, err
		}
		work := func(ctx context.Context, _ any) (any, error) {
			var q Q
			if err := decode(in.GetValue(), &q); err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "%s does not read: %v", m.Name, err)
			}
			a, err := serve(srv.(Server), ctx, q)
			if err != nil {
				return nil, err
			}
			body, err := json.Marshal(a)
			if err != nil {
				return nil, status.Errorf(codes.Internal, "the answer to %s cannot be written: %v", m.Name, err)
			}
			if len(body) > m.Answer {
				return nil, status.Errorf(codes.ResourceExhausted, "the answer to %s has %d bytes; at most %d are allowed", m.Name, len(body), m.Answer)
			}
			return wrapperspb.Bytes(body), nil
		}
		if intercept == nil {
			return work(ctx, in)
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + service + "/" + m.Name}, work)
	}
	return grpc.MethodDesc{MethodName: m.Name, Handler: handle}
}

// values counts what separates values in JSON. Three bytes make an empty object,
// which is twenty times as large once it is decoded: so an answer's bytes alone
// bound no memory.
func values(b []byte) (n int) {
	inString, escaped := false, false
	for _, c := range b {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped, inString = c == '\\', c != '"'
		case c == '"':
			inString = true
		case c == ',' || c == ':' || c == '{' || c == '[':
			n++
		}
	}
	return n
}

// decode reads one JSON value strictly.
func decode(b []byte, out any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(out); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("more follows after the message")
	}
	return nil
}

// Server is what a plugin serves. An error is one of form; what a kind or its
// target says stands in the answer.
type Server interface {
	Describe(context.Context, Nothing) (Manifest, error)
	Examine(context.Context, SpecRequest) (Examination, error)
	CheckScope(context.Context, ScopeRequest) (Verdict, error)
	MakeSecrets(context.Context, SpecRequest) (Secrets, error)
	Open(context.Context, OpenRequest) (Verdict, error)
	Close(context.Context, HandleRequest) (Verdict, error)
	Mint(context.Context, LeaseRequest) (Minted, error)
	Withdraw(context.Context, LeasesRequest) (Withdrawn, error)
	Extend(context.Context, LeaseRequest) (Verdict, error)
	Check(context.Context, HandleRequest) (Findings, error)
	List(context.Context, HandleRequest) (Listed, error)
	Fence(context.Context, HandleRequest) (Verdict, error)
	Sweep(context.Context, HandleRequest) (Verdict, error)
	Publish(context.Context, HandleRequest) (Published, error)
	Revoked(context.Context, RevokedRequest) (Published, error)
}

// Methods are all that there are. It is a value of its own so that a call names
// its method as methods.Mint.
type Methods struct {
	Describe    Method[Nothing, Manifest]
	Examine     Method[SpecRequest, Examination]
	CheckScope  Method[ScopeRequest, Verdict]
	MakeSecrets Method[SpecRequest, Secrets]
	Open        Method[OpenRequest, Verdict]
	Close       Method[HandleRequest, Verdict]
	Mint        Method[LeaseRequest, Minted]
	Withdraw    Method[LeasesRequest, Withdrawn]
	Extend      Method[LeaseRequest, Verdict]
	Check       Method[HandleRequest, Findings]
	List        Method[HandleRequest, Listed]
	Fence       Method[HandleRequest, Verdict]
	Sweep       Method[HandleRequest, Verdict]
	Publish     Method[HandleRequest, Published]
	Revoked     Method[RevokedRequest, Published]
}

// All returns the methods.
func All() Methods {
	return Methods{
		Describe:    Method[Nothing, Manifest]{"Describe", maxVerdict, fewValues},
		Examine:     Method[SpecRequest, Examination]{"Examine", maxExamination, examinationValues},
		CheckScope:  Method[ScopeRequest, Verdict]{"CheckScope", maxVerdict, fewValues},
		MakeSecrets: Method[SpecRequest, Secrets]{"MakeSecrets", maxSecrets, fewValues},
		Open:        Method[OpenRequest, Verdict]{"Open", maxVerdict, fewValues},
		Close:       Method[HandleRequest, Verdict]{"Close", maxVerdict, fewValues},
		Mint:        Method[LeaseRequest, Minted]{"Mint", maxMinted, fewValues},
		Withdraw:    Method[LeasesRequest, Withdrawn]{"Withdraw", maxWithdrawn, withdrawnValues},
		Extend:      Method[LeaseRequest, Verdict]{"Extend", maxVerdict, fewValues},
		Check:       Method[HandleRequest, Findings]{"Check", maxFindings, fewValues},
		List:        Method[HandleRequest, Listed]{"List", MaxMessage, listedValues},
		Fence:       Method[HandleRequest, Verdict]{"Fence", maxVerdict, fewValues},
		Sweep:       Method[HandleRequest, Verdict]{"Sweep", maxVerdict, fewValues},
		Publish:     Method[HandleRequest, Published]{"Publish", maxPublished, fewValues},
		Revoked:     Method[RevokedRequest, Published]{"Revoked", MaxMessage, fewValues},
	}
}

// Register serves s on g.
func Register(g grpc.ServiceRegistrar, s Server) {
	m := All()
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: service, HandlerType: (*Server)(nil), Metadata: "plugins/protocol",
		Methods: []grpc.MethodDesc{
			m.Describe.desc(Server.Describe), m.Examine.desc(Server.Examine), m.CheckScope.desc(Server.CheckScope),
			m.MakeSecrets.desc(Server.MakeSecrets), m.Open.desc(Server.Open), m.Close.desc(Server.Close),
			m.Mint.desc(Server.Mint), m.Withdraw.desc(Server.Withdraw), m.Extend.desc(Server.Extend),
			m.Check.desc(Server.Check), m.List.desc(Server.List), m.Fence.desc(Server.Fence),
			m.Sweep.desc(Server.Sweep), m.Publish.desc(Server.Publish), m.Revoked.desc(Server.Revoked),
		},
	}, s)
}
