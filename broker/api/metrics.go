package api

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxCodes bounds the label of refusals; the codes are ours, but they come from
// many rooms.
const maxCodes = 100

// metrics counts what happens at the door. No label holds anything that a
// client chose.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	refusals *prometheus.CounterVec
	inFlight prometheus.Gauge

	mu    sync.Mutex
	codes map[string]bool
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mayfly_http_requests_total", Help: "Requests answered."}, []string{"route", "method", "status"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "mayfly_http_request_seconds", Help: "Time from a request's headers to its answer's end.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}}, []string{"route", "method"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mayfly_auth_refusals_total", Help: "Credentials and proofs refused before a decision was made."}, []string{"code"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "mayfly_http_in_flight", Help: "Requests being served."}),
		codes:    map[string]bool{},
	}
	m.registry.MustRegister(m.requests, m.latency, m.refusals, m.inFlight, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) observe(route, method string, status int, took time.Duration) {
	method = knownMethod(method)
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	m.latency.WithLabelValues(route, method).Observe(took.Seconds())
}

func (m *metrics) refused(code string) {
	m.mu.Lock()
	if !m.codes[code] && len(m.codes) >= maxCodes {
		code = "other"
	}
	m.codes[code] = true
	m.mu.Unlock()
	m.refusals.WithLabelValues(code).Inc()
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// knownMethod keeps what a client invents out of labels and logs.
func knownMethod(method string) string {
	if slices.Contains([]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}, method) {
		return method
	}
	return "other"
}
