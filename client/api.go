package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// reasonKey carries the reason of [WithReason] in a context.
type reasonKey struct{}

// WithReason has the calls made with the context say why, in the Mayfly-Reason
// header (percent-encoded): for those whose document has no place for it.
func WithReason(ctx context.Context, reason string) context.Context {
	return context.WithValue(ctx, reasonKey{}, reason)
}

// idempotencyKey carries the key of [WithIdempotencyKey] in a context.
type idempotencyKey struct{}

// WithIdempotencyKey has the one call made with the context use this
// Idempotency-Key instead of a random one: repeated by another process, it
// gets the same outcome again.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, idempotencyKey{}, key)
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var out T
	err := c.do(ctx, call{method: http.MethodGet, path: apiBase + path, out: &out})
	return out, err
}

func send[T any](ctx context.Context, c *Client, k call, in any) (T, error) {
	var out T
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return out, err
		}
		k.body = body
	}
	if k.method == "" {
		k.method = http.MethodPost
	}
	k.path = apiBase + k.path
	k.out = &out
	k.reason, _ = ctx.Value(reasonKey{}).(string)
	k.idem, _ = ctx.Value(idempotencyKey{}).(string)
	err := c.do(ctx, k)
	return out, err
}

func post[T any](ctx context.Context, c *Client, path string, in any) (T, error) {
	return send[T](ctx, c, call{path: path}, in)
}

// nothing is the answer of calls that have none.
type nothing = json.RawMessage

// segments escapes a name for a wildcard at the path's end; its slashes stay.
func segments(name string) string {
	parts := strings.Split(name, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

// query builds ?a=b of the pairs whose value is not empty.
func query(pairs ...string) string {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// Whoami describes the session.
func (c *Client) Whoami(ctx context.Context) (wire.Whoami, error) {
	return get[wire.Whoami](ctx, c, "/whoami")
}

// Keys lists a principal's keys; "" means the caller's.
func (c *Client) Keys(ctx context.Context, principal string) ([]wire.Key, error) {
	return get[[]wire.Key](ctx, c, "/keys"+query("principal", principal))
}

// AddKey registers a public key.
func (c *Client) AddKey(ctx context.Context, in wire.AddKeyRequest) (wire.Key, error) {
	return post[wire.Key](ctx, c, "/keys", in)
}

// RemoveKey withdraws a key; "" as principal means the caller.
func (c *Client) RemoveKey(ctx context.Context, principal, thumbprint string) error {
	_, err := send[nothing](ctx, c, call{method: http.MethodDelete, path: "/keys/" + url.PathEscape(thumbprint) + query("principal", principal)}, nil)
	return err
}

// EnrolPrincipal makes a one-time enrolment token.
func (c *Client) EnrolPrincipal(ctx context.Context, principal string, in wire.EnrolRequest) (wire.EnrolAnswer, error) {
	return post[wire.EnrolAnswer](ctx, c, "/principals/"+url.PathEscape(principal)+"/enrolment", in)
}

// Objects lists every object of a kind.
func (c *Client) Objects(ctx context.Context, kind string) ([]wire.Object, error) {
	return get[[]wire.Object](ctx, c, "/objects/"+url.PathEscape(kind))
}

// Object reads one object.
func (c *Client) Object(ctx context.Context, kind, name string) (wire.Object, error) {
	return get[wire.Object](ctx, c, "/objects/"+url.PathEscape(kind)+"/"+segments(name))
}

// Apply writes and deletes objects, all or none.
func (c *Client) Apply(ctx context.Context, in wire.ApplyRequest) (wire.ApplyAnswer, error) {
	return post[wire.ApplyAnswer](ctx, c, "/objects", in)
}

// CheckTarget checks the connection and the rights on a target.
func (c *Client) CheckTarget(ctx context.Context, name string) (wire.TargetReport, error) {
	return post[wire.TargetReport](ctx, c, "/targets/"+url.PathEscape(name)+"/check", nil)
}

// PreviewTarget checks a target that is not written yet.
func (c *Client) PreviewTarget(ctx context.Context, in wire.TargetPreview) (wire.TargetReport, error) {
	return post[wire.TargetReport](ctx, c, "/target-preview", in)
}

// StartTask opens a task.
func (c *Client) StartTask(ctx context.Context, in wire.StartTaskRequest) (wire.Task, error) {
	return post[wire.Task](ctx, c, "/tasks", in)
}

// HeartbeatTask puts a task's lapse off.
func (c *Client) HeartbeatTask(ctx context.Context, id string) (wire.Task, error) {
	return post[wire.Task](ctx, c, "/tasks/"+url.PathEscape(id)+"/heartbeat", nil)
}

// EndTask ends a task; it waits up to wait for the targets to confirm.
func (c *Client) EndTask(ctx context.Context, id string, wait time.Duration) (wire.EndTaskAnswer, error) {
	path := "/tasks/" + url.PathEscape(id) + "/end"
	if wait > 0 {
		path += query("wait", wait.String())
	}
	return send[wire.EndTaskAnswer](ctx, c, call{path: path, extra: wait}, nil)
}

// Task reads one task, with its open leases and its children.
func (c *Client) Task(ctx context.Context, id string) (wire.Task, error) {
	return get[wire.Task](ctx, c, "/tasks/"+url.PathEscape(id))
}

// Filter narrows a list. The zero value is everything the caller may see.
type Filter struct {
	State, Target, Principal, Task string
	Limit                          int    // of one page; 0 leaves it to the broker
	After                          string // the last id of the page before
}

func (f Filter) query() string {
	limit := ""
	if f.Limit > 0 {
		limit = strconv.Itoa(f.Limit)
	}
	return query("state", f.State, "target", f.Target, "principal", f.Principal, "task", f.Task, "limit", limit, "after", f.After)
}

// Tasks lists tasks.
func (c *Client) Tasks(ctx context.Context, f Filter) ([]wire.Task, error) {
	return get[[]wire.Task](ctx, c, "/tasks"+f.query())
}

// Access is the answer to a request, with what this client does not know of it.
type Access struct {
	wire.AccessAnswer
	// Raw is the whole document as it came. It holds the credential.
	Raw json.RawMessage `json:"-"`
}

// Request asks for a credential.
func (c *Client) Request(ctx context.Context, in wire.AccessRequest) (Access, error) {
	raw, err := post[json.RawMessage](ctx, c, "/requests", in)
	if err != nil {
		return Access{}, err
	}
	a := Access{Raw: raw}
	return a, decode("", raw, &a.AccessAnswer)
}

// Lease reads one lease.
func (c *Client) Lease(ctx context.Context, id string) (wire.Lease, error) {
	return get[wire.Lease](ctx, c, "/leases/"+url.PathEscape(id))
}

// Leases lists leases.
func (c *Client) Leases(ctx context.Context, f Filter) ([]wire.Lease, error) {
	return get[[]wire.Lease](ctx, c, "/leases"+f.query())
}

// Renew extends a lease.
func (c *Client) Renew(ctx context.Context, id string, in wire.RenewRequest) (wire.Lease, error) {
	return post[wire.Lease](ctx, c, "/leases/"+url.PathEscape(id)+"/renew", in)
}

// Revoke ends a lease.
func (c *Client) Revoke(ctx context.Context, id string, in wire.RevokeRequest) (wire.Lease, error) {
	return post[wire.Lease](ctx, c, "/leases/"+url.PathEscape(id)+"/revoke", in)
}

// Whohas names who got the credential with that user name, serial or jti.
func (c *Client) Whohas(ctx context.Context, name string) (wire.Whohas, error) {
	return get[wire.Whohas](ctx, c, "/whohas"+query("name", name))
}

// Contain freezes a principal, target or zone.
func (c *Client) Contain(ctx context.Context, in wire.ContainRequest) (wire.ContainAnswer, error) {
	return post[wire.ContainAnswer](ctx, c, "/contain", in)
}

// Release ends a containment.
func (c *Client) Release(ctx context.Context, in wire.ContainRequest) (wire.ContainAnswer, error) {
	return post[wire.ContainAnswer](ctx, c, "/release", in)
}

// Decision reads a recorded decision.
func (c *Client) Decision(ctx context.Context, id string) (wire.Decision, error) {
	return get[wire.Decision](ctx, c, "/decisions/"+url.PathEscape(id))
}

// TestPolicies runs cases.
func (c *Client) TestPolicies(ctx context.Context, in wire.PolicyTestRequest) (wire.PolicyTestAnswer, error) {
	return post[wire.PolicyTestAnswer](ctx, c, "/policy/test", in)
}

// ReplayPolicies decides recorded history again, by drafts. An answer whose Next
// is not 0 goes on with the same request, From its Next and To its To.
func (c *Client) ReplayPolicies(ctx context.Context, in wire.PolicyReplayRequest) (wire.PolicyReplayAnswer, error) {
	return post[wire.PolicyReplayAnswer](ctx, c, "/policy/replay", in)
}

// AuditEntries reads up to limit entries of the ledger from sequence from on.
func (c *Client) AuditEntries(ctx context.Context, from uint64, limit int) (wire.AuditPage, error) {
	return get[wire.AuditPage](ctx, c, "/audit/entries?from="+strconv.FormatUint(from, 10)+"&limit="+strconv.Itoa(limit))
}

// AuditExport streams the entries [from, to) as JSON lines; to 0 means the end.
func (c *Client) AuditExport(ctx context.Context, from, to uint64, w io.Writer) error {
	path := apiBase + "/audit/export?from=" + strconv.FormatUint(from, 10)
	if to > 0 {
		path += "&to=" + strconv.FormatUint(to, 10)
	}
	return c.do(ctx, call{method: http.MethodGet, path: path, stream: w})
}

// AuditVerify has the cluster check its own ledger, in as many calls as it takes.
// progress hears after each how many entries of how many hold; it may be nil.
func (c *Client) AuditVerify(ctx context.Context, progress func(done, total int64)) (wire.VerifyAnswer, error) {
	for from := uint64(0); ; {
		a, err := get[wire.VerifyAnswer](ctx, c, "/audit/verify?from="+strconv.FormatUint(from, 10))
		if err != nil || a.Next == 0 {
			return a, err
		}
		if a.Next <= from {
			return a, fmt.Errorf("the node was asked to verify from entry %d and says to go on from %d", from, a.Next)
		}
		if from = a.Next; progress != nil {
			progress(int64(from), int64(a.Size))
		}
	}
}

// Rotate has a secret replaced now. The answer says where that stands: it may have
// failed, and is then tried again.
func (c *Client) Rotate(ctx context.Context, in wire.RotateRequest) (wire.Rotation, error) {
	return post[wire.Rotation](ctx, c, "/rotate", in)
}

// Rotations lists what rotates, by what is due next.
func (c *Client) Rotations(ctx context.Context) ([]wire.Rotation, error) {
	return get[[]wire.Rotation](ctx, c, "/rotations")
}

// Reconcile compares a target, or with "" all of them, with the ledger.
func (c *Client) Reconcile(ctx context.Context, in wire.ReconcileRequest) ([]wire.Drift, error) {
	heal := ""
	if in.Heal {
		heal = "true"
	}
	return send[[]wire.Drift](ctx, c, call{path: "/reconcile" + query("target", in.Target, "heal", heal, "reason", in.Reason), extra: 2 * time.Minute}, nil)
}

// Raw makes a signed call of any method and path, for what has no method here.
// A path that does not start with a slash is taken under /api/v1/.
func (c *Client) Raw(ctx context.Context, method, path string, body []byte) (json.RawMessage, error) {
	if !strings.HasPrefix(path, "/") {
		path = apiBase + "/" + path
	}
	var out json.RawMessage
	k := call{method: strings.ToUpper(method), path: path, body: body, out: &out}
	k.idem, _ = ctx.Value(idempotencyKey{}).(string)
	err := c.do(ctx, k)
	return out, err
}
