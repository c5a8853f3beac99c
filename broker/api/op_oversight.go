package api

import (
	"context"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/mayfly-broker/mayfly/client/wire"
)

type whohasInput struct {
	Name string `query:"name" required:"true" minLength:"1" maxLength:"512" doc:"Username, serial or jti of a credential"`
}

type entriesInput struct {
	From  uint64 `query:"from" doc:"Sequence number of the first entry"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

type verifyInput struct {
	From uint64 `query:"from" doc:"Where to go on: the next of the answer before; 0: at the beginning"`
}

type exportInput struct {
	From uint64 `query:"from" doc:"Sequence number of the first entry"`
	To   uint64 `query:"to" doc:"Sequence number after the last entry; 0: the end"`
}

type reconcileInput struct {
	Target string `query:"target" maxLength:"128" doc:"All targets where left out"`
	Heal   bool   `query:"heal" doc:"Remove what no lease names, and end leases whose credential is missing; needs target and reason"`
	Reason string `query:"reason" maxLength:"1024" doc:"Why, for the record"`
}

func (f *surface) addOversight() {
	add(f, route{method: http.MethodGet, path: "/whohas", id: "whohas", tag: "oversight", place: anywhere, summary: "Name who got a credential"},
		func(ctx context.Context, c *call, in *whohasInput) (wire.Whohas, error) {
			return c.broker.Whohas(ctx, c.caller, in.Name)
		})
	add(f, route{method: http.MethodPost, path: "/contain", id: "contain", tag: "oversight", summary: "Freeze a principal, target or zone"},
		func(ctx context.Context, c *call, in *body[wire.ContainRequest]) (wire.ContainAnswer, error) {
			return c.broker.Contain(ctx, c.caller, in.Body)
		})
	add(f, route{method: http.MethodPost, path: "/release", id: "release", tag: "oversight", summary: "End a containment"},
		func(ctx context.Context, c *call, in *body[wire.ContainRequest]) (wire.ContainAnswer, error) {
			return c.broker.Release(ctx, c.caller, in.Body)
		})
	add(f, route{method: http.MethodGet, path: "/decisions/{id}", id: "get-decision", tag: "oversight", place: anywhere, summary: "Explain a decision"},
		func(ctx context.Context, c *call, in *idInput) (wire.Decision, error) {
			return c.broker.Decision(ctx, c.caller, in.ID)
		})
	add(f, route{method: http.MethodPost, path: "/policy/test", id: "test-policies", tag: "oversight", place: anywhere, maxBody: largeBody, summary: "Run cases against policies"},
		func(ctx context.Context, c *call, in *body[wire.PolicyTestRequest]) (wire.PolicyTestAnswer, error) {
			return c.broker.TestPolicies(ctx, c.caller, in.Body)
		})
	add(f, route{method: http.MethodPost, path: "/policy/replay", id: "replay-policies", tag: "oversight", place: anywhere, maxBody: largeBody, summary: "Decide recorded history again by drafts"},
		func(ctx context.Context, c *call, in *body[wire.PolicyReplayRequest]) (wire.PolicyReplayAnswer, error) {
			return c.broker.ReplayPolicies(ctx, c.caller, in.Body)
		})
	add(f, route{method: http.MethodPost, path: "/rotate", id: "rotate", tag: "oversight", summary: "Replace a secret that lives on"},
		func(ctx context.Context, c *call, in *body[wire.RotateRequest]) (wire.Rotation, error) {
			return c.broker.Rotate(ctx, c.caller, in.Body)
		})
	add(f, route{method: http.MethodGet, path: "/rotations", id: "list-rotations", tag: "oversight", place: anywhere, summary: "List what rotates, by what is due next"},
		func(ctx context.Context, c *call, _ *struct{}) ([]wire.Rotation, error) {
			return list(c.broker.Rotations(ctx, c.caller))
		})
	add(f, route{method: http.MethodPost, path: "/reconcile", id: "reconcile", tag: "oversight", timeout: longCall, summary: "Compare targets with the ledger"},
		func(ctx context.Context, c *call, in *reconcileInput) ([]wire.Drift, error) {
			return list(c.broker.Reconcile(ctx, c.caller, wire.ReconcileRequest{Target: in.Target, Heal: in.Heal, Reason: in.Reason}))
		})
	f.addAudit()
}

func (f *surface) addAudit() {
	add(f, route{method: http.MethodGet, path: "/audit/entries", id: "audit-entries", tag: "oversight", place: anywhere, summary: "Read the ledger's commands"},
		func(ctx context.Context, c *call, in *entriesInput) (wire.AuditPage, error) {
			out, err := c.broker.AuditEntries(ctx, c.caller, in.From, in.Limit)
			out.Entries, err = list(out.Entries, err)
			return out, err
		})
	add(f, route{method: http.MethodGet, path: "/audit/verify", id: "audit-verify", tag: "oversight", place: anywhere, timeout: longCall, summary: "Check the live ledger"},
		func(ctx context.Context, c *call, in *verifyInput) (wire.VerifyAnswer, error) {
			return c.broker.AuditVerify(ctx, c.caller, in.From)
		})
	f.addExport()
}

// exportAnswer streams: huma calls Body when nothing has been written yet.
type exportAnswer struct{ Body func(huma.Context) }

// addExport registers the one operation whose answer may be larger than memory.
func (f *surface) addExport() {
	rt := route{method: http.MethodGet, path: "/audit/export", id: "audit-export", tag: "oversight", place: anywhere, stream: true, summary: "Export the ledger as JSON lines"}
	op := f.operation(&rt, reflect.TypeFor[exportInput]())
	op.Responses["200"] = &huma.Response{Description: "JSON lines", Content: map[string]*huma.MediaType{mediaLines: {Schema: &huma.Schema{Type: huma.TypeString}}}}
	huma.Register(f.api, op, func(ctx context.Context, in *exportInput) (*exportAnswer, error) {
		c := callOf(ctx)
		return &exportAnswer{Body: func(hctx huma.Context) {
			_, w := humago.Unwrap(hctx)
			out := &lines{w: w, ctl: http.NewResponseController(w)}
			err := c.broker.AuditExport(ctx, c.caller, in.From, in.To, out)
			switch {
			case err == nil:
				out.begin()
			case out.begun:
				// The status has gone out. A cut connection is how the client
				// learns that this is not the whole.
				f.server.report(ctx, err)
				panic(http.ErrAbortHandler)
			default:
				if p := f.server.outcome(ctx, err); !c.elsewhere {
					write(w, p)
				}
			}
		}}, nil
	})
}

const mediaLines = "application/x-ndjson"

// lines is the stream of an export. Each write has its own deadline, so that a
// client that stopped reading holds nothing for long, and a slow one is served.
type lines struct {
	w     http.ResponseWriter
	ctl   *http.ResponseController
	begun bool
}

func (l *lines) begin() {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", mediaLines)
	}
}

// Write implements io.Writer.
func (l *lines) Write(b []byte) (int, error) {
	l.begin()
	// A writer without deadlines (a test's) is no reason to refuse.
	_ = l.ctl.SetWriteDeadline(time.Now().Add(exportStall))
	return l.w.Write(b)
}
