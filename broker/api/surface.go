package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// surface collects the API's operations: to the mux each behind its route's
// checks, to huma for decoding, and to the OpenAPI document.
type surface struct {
	server *Server
	mux    *http.ServeMux
	api    huma.API
	routes map[string]*route // by operation id
}

func newSurface(s *Server, mux *http.ServeMux, version string) *surface {
	f := &surface{server: s, mux: mux, routes: map[string]*route{}}
	cfg := huma.DefaultConfig("Mayfly", version)
	cfg.Info.Description = "Access for a task: request, renew and end credentials; administer and audit the broker."
	cfg.Servers = nil
	cfg.OpenAPIPath, cfg.DocsPath, cfg.SchemasPath = "", "", "" // served by ourselves, or not at all
	cfg.CreateHooks = nil                                       // the one that adds $schema to every body
	cfg.RejectUnknownQueryParameters = true
	cfg.Transformers = []huma.Transformer{fromHuma}
	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"dpop": {Type: "http", Scheme: "DPoP", Description: "A session token with a proof of its key in the DPoP header (RFC 9449)."},
		"mtls": {Type: "http", Scheme: "mTLS", Description: "A session token on a connection with the client certificate it is bound to (RFC 8705)."},
	}
	f.api = huma.NewAPI(cfg, f)
	f.problemSchema()
	return f
}

// Handle implements huma.Adapter.
func (f *surface) Handle(op *huma.Operation, handler func(huma.Context)) {
	rt := f.routes[op.OperationID]
	f.mux.HandleFunc(rt.pattern(), func(w http.ResponseWriter, r *http.Request) {
		f.server.serve(rt, w, r, func(w http.ResponseWriter, r *http.Request) {
			handler(tableContext{humago.NewContext(op, r, w)})
		})
	})
}

// ServeHTTP implements huma.Adapter.
func (f *surface) ServeHTTP(w http.ResponseWriter, r *http.Request) { f.mux.ServeHTTP(w, r) }

// problemSchema registers our problem document under its own name, so that
// every operation can refer to it.
func (f *surface) problemSchema() {
	f.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[wire.Problem](), true, "Problem")
}

// answer is an operation's output with a body.
type answer[O any] struct{ Body O }

// add registers an operation that answers with O.
func add[I, O any](f *surface, rt route, do func(ctx context.Context, c *call, in *I) (O, error)) {
	huma.Register(f.api, f.operation(&rt, reflect.TypeFor[I]()), func(ctx context.Context, in *I) (*answer[O], error) {
		out, err := do(ctx, callOf(ctx), in)
		if err != nil {
			return nil, f.server.outcome(ctx, err)
		}
		return &answer[O]{out}, nil
	})
}

// addQuiet registers an operation that answers 204.
func addQuiet[I any](f *surface, rt route, do func(ctx context.Context, c *call, in *I) error) {
	huma.Register(f.api, f.operation(&rt, reflect.TypeFor[I]()), func(ctx context.Context, in *I) (*struct{}, error) {
		if err := do(ctx, callOf(ctx), in); err != nil {
			return nil, f.server.outcome(ctx, err)
		}
		return nil, nil
	})
}

// operation completes rt from its input type and describes it for huma.
func (f *surface) operation(rt *route, in reflect.Type) huma.Operation {
	rt.path = prefix + rt.path
	if b, ok := in.FieldByName("Body"); ok {
		rt.body = shapeOf(b.Type)
		rt.optional = b.Type.Kind() == reflect.Pointer
	}
	f.routes[rt.id] = rt
	op := huma.Operation{
		OperationID: rt.id, Method: rt.method, Path: rt.path, Summary: rt.summary, Tags: []string{rt.tag},
		MaxBodyBytes: rt.limit() + 1,
		// The body was read before, by a deadline of our own. huma's default of five
		// seconds would stay with the connection and end every call that takes longer.
		BodyReadTimeout: -1,
		Responses: map[string]*huma.Response{"default": {
			Description: "A problem document (RFC 9457)",
			Content:     map[string]*huma.MediaType{mediaProblem: {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}}},
		}},
	}
	if rt.access == needSession {
		op.Security = []map[string][]string{{"dpop": {}}, {"mtls": {}}}
	}
	if rt.mutates() && rt.access == needSession {
		op.Parameters = append(op.Parameters, &huma.Param{
			Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: huma.TypeString},
			Description: "Makes the call take effect once per principal, key and request",
		})
	}
	return op
}

// document returns the OpenAPI 3.1 document of all that was registered.
func (f *surface) document() ([]byte, error) {
	doc := f.api.OpenAPI()
	for _, theirs := range []string{"ErrorModel", "ErrorDetail"} { // we answer with Problem instead
		delete(doc.Components.Schemas.Map(), theirs)
	}
	out, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("api: OpenAPI document: %w", err)
	}
	return out, nil
}

// outcome is what huma gets for an error. Where the engine says that only the
// leader can answer, huma's answer is muted and the request goes on to there.
func (s *Server) outcome(ctx context.Context, err error) *problem {
	c := callOf(ctx)
	e := fault.As(err)
	if e.Kind == fault.Unavailable && e.Code == CodeNoLeader && c.mayGoOn && !s.node.IsLeader() {
		c.elsewhere, c.mute = true, true
		return &problem{}
	}
	return s.report(ctx, err)
}
