package api_test

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/api"
)

const clients = 64

// BenchmarkWhoamiMTLS is the surface's own cost on real TLS connections of 64
// clients, client side included. The fake engine costs nothing.
func BenchmarkWhoamiMTLS(b *testing.B) {
	tc, n := one(b, func(c *api.Config) { c.Logger = nil })
	callers := make(chan *client, clients)
	for i := range clients {
		callers <- tc.newClient(b, fmt.Sprintf("mfs_%d", i), "mtls")
	}
	run(b, callers, func(c *client) *http.Request {
		r := c.request("GET", n.url+"/api/v1/whoami", "")
		r.Header.Set("Authorization", "mTLS "+c.token)
		return r
	})
}

// BenchmarkWhoamiDPoP also signs and checks a proof for each request.
func BenchmarkWhoamiDPoP(b *testing.B) {
	tc, n := one(b, func(c *api.Config) { c.Logger = nil })
	callers := make(chan *client, clients)
	for i := range clients {
		callers <- tc.newClient(b, fmt.Sprintf("mfs_%d", i), "dpop").fresh(n)
	}
	run(b, callers, func(c *client) *http.Request {
		return c.sign(c.request("GET", n.url+"/api/v1/whoami", ""))
	})
}

func run(b *testing.B, callers chan *client, make func(*client) *http.Request) {
	b.Helper()
	b.ReportAllocs()
	b.SetParallelism(clients / 2)
	var failed atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		c := <-callers
		defer func() { callers <- c }()
		for pb.Next() {
			if r := c.send(make(c)); r.status != http.StatusOK {
				failed.Add(1)
			}
		}
	})
	if n := failed.Load(); n > 0 {
		b.Fatalf("%d calls failed", n)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}
