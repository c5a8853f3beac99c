package node_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-broker/mayfly/broker/node"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const hookSecret = "0123456789abcdef0123456789abcdef"

// receiver takes messages on this host.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex
	told  []string          // what was contained, in order, without what came twice
	ids   map[string]string // by id
	wrong string
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{ids: map[string]string{}}
	r.Server = httptest.NewServer(http.HandlerFunc(r.take))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) take(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var m struct {
		ID, Event, Cluster string
		Contained          struct{ Name, By, Reason string }
	}
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	at, signature, _ := strings.Cut(strings.TrimPrefix(req.Header.Get("Mayfly-Signature"), "t="), ",v1=")
	mac := hmac.New(sha256.New, []byte(hookSecret))
	mac.Write([]byte(at + "." + string(body)))
	r.mu.Lock()
	defer r.mu.Unlock()
	name := m.Contained.Name
	if err != nil || signature != hex.EncodeToString(mac.Sum(nil)) || m.Event != "contained" || m.Cluster == "" || m.Contained.By != ann || m.Contained.Reason != "a test" {
		r.wrong = string(body)
	}
	if before, twice := r.ids[m.ID]; !twice {
		r.ids[m.ID] = name
		r.told = append(r.told, name)
	} else if before != name {
		r.wrong = "one id for " + before + " and " + name
	}
}

// wants waits until the receiver was told of exactly these, in this order.
func (r *receiver) wants(t *testing.T, names ...string) {
	t.Helper()
	eventually(t, "the webhook is told of "+strings.Join(names, ", "), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.told) >= len(names)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.told, names) || r.wrong != "" {
		t.Fatalf("told of %q, wanted %q; wrong: %s", r.told, names, r.wrong)
	}
}

// hook writes a webhook.
func hook(t *testing.T, n *node.Node, name, url string) {
	t.Helper()
	spec, err := json.Marshal(map[string]string{"type": "webhook", "url": url})
	must(t, err)
	must(t, tryWrite(t.Context(), n, wire.Object{Kind: "Sink", Name: name, Spec: spec, Secrets: map[string]string{"secret": hookSecret}}))
}

func contain(t *testing.T, n *node.Node, name string) {
	t.Helper()
	write(t, n, name)
	e, err := n.Engine()
	must(t, err)
	_, err = e.Contain(t.Context(), as(ann), wire.ContainRequest{What: name, Reason: "a test"})
	must(t, err)
}

// metric reads one of a node's metrics by its name and sink.
func metric(t *testing.T, n *node.Node, name, sink string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	must(t, reg.Register(n))
	families, err := reg.Gather()
	must(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == sink {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

func TestWebhookIsToldOverRestarts(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	cfg := config(t, "n1", t.TempDir())
	cfg.LocalKey = filepath.Join(t.TempDir(), "seal.key")
	cfg.Logger = slog.New(slog.NewTextHandler(&locked{w: &logged}, nil))
	n := start(t, cfg)
	_, err := n.Init(t.Context(), wire.InitRequest{Admins: []string{ann}})
	must(t, err)
	contain(t, n, "workload:earlier") // before there is a webhook
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	r := newReceiver(t)
	hook(t, n, "dead", dead.URL+"/hidden")
	hook(t, n, "chat", r.URL)
	contain(t, n, "workload:a")
	r.wants(t, "workload:a")
	eventually(t, "the metrics say so", func() bool {
		return metric(t, n, "mayfly_notifications_delivered_total", "chat") == 1 && metric(t, n, "mayfly_notifications_lag_seconds", "chat") == 0 &&
			metric(t, n, "mayfly_notifications_failed_total", "dead") > 0 && metric(t, n, "mayfly_notifications_lag_seconds", "dead") > 0 &&
			metric(t, n, "mayfly_notifications_given_up_total", "dead") == 0
	})
	n = restart(t, n, cfg)
	ready(t, n)
	contain(t, n, "workload:b")
	r.wants(t, "workload:a", "workload:b")

	// The dead one's place is taken by one that works: it has missed nothing.
	late := newReceiver(t)
	hook(t, n, "dead", late.URL)
	late.wants(t, "workload:a", "workload:b")
	must(t, n.Close())
	if s := logged.String(); strings.Contains(s, "hidden") || strings.Contains(s, hookSecret) {
		t.Error("the log holds a webhook's address or secret")
	}
}

func TestNextLeaderTellsOn(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	r := newReceiver(t)
	hook(t, nodes[0], "chat", r.URL)
	contain(t, nodes[0], "workload:a")
	r.wants(t, "workload:a")
	must(t, nodes[0].Close())
	var next *node.Node
	eventually(t, "another node leads", func() bool {
		for _, n := range nodes[1:] {
			if n.IsLeader() {
				next = n
			}
		}
		return next != nil
	})
	ready(t, next)
	contain(t, next, "workload:b")
	contain(t, next, "workload:c")
	r.wants(t, "workload:a", "workload:b", "workload:c")
	for _, n := range nodes[1:] {
		if n != next && metric(t, n, "mayfly_notifications_delivered_total", "chat") > 0 {
			t.Error("a follower tells")
		}
	}
}

// locked is a log that several goroutines write.
type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
