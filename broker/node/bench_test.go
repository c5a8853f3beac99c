package node_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/node"
	"github.com/mayfly-broker/mayfly/broker/policy"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/jwt"
)

// startDev returns the engine of a fresh single node with a jwt target, and
// its operator as a caller.
func startDev(tb testing.TB) (*broker.Engine, broker.Caller) {
	tb.Helper()
	dir := tb.TempDir()
	n, err := node.New(node.Config{
		ID: "bench", Dir: dir + "/node", ClusterListen: "127.0.0.1:0", Issuer: "https://127.0.0.1:1", URL: "https://127.0.0.1:1",
		Hint: broker.Hint{Addresses: []string{"127.0.0.1:1"}}, LocalKey: dir + "/seal.key", FirstPolicy: policy.DevPolicy().Text,
		Kinds: []issuers.Kind{jwt.Kind{}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := n.Close(); err != nil {
			tb.Error(err)
		}
	})
	ctx := context.Background()
	if _, err := n.Init(ctx, wire.InitRequest{Admins: []string{"human:operator"}}); err != nil {
		tb.Fatal(err)
	}
	e, err := n.Engine()
	if err != nil {
		tb.Fatal(err)
	}
	c := broker.Caller{Address: "127.0.0.1", Session: ledger.Session{
		ID: "ses_bench", Principal: "human:operator", Binding: "mtls", Method: "key", CreatedMS: time.Now().UnixMilli(),
	}}
	_, err = e.Apply(ctx, c, wire.ApplyRequest{Objects: []wire.Object{
		{Kind: "Target", Name: "tokens", Spec: json.RawMessage(`{"type":"jwt"}`)},
		{Kind: "Role", Name: "tokens/use", Spec: json.RawMessage(`{"scope":[{"type":"jwt","actions":["use"],"locations":["https://api.example"],"privileges":["read"]}],
			"ttl":{"default":"10m","max":"1h"},"caps":{"per_principal":10000000,"mints_per_minute":10000000}}`)},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	return e, c
}

// BenchmarkLease is the whole of a ledger-only lease but HTTP: decide, commit,
// sign.
func BenchmarkLease(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			e, c := startDev(b)
			var n atomic.Int64
			done := make(chan error, clients)
			b.ResetTimer()
			for range clients {
				go func() {
					var err error
					for err == nil && n.Add(1) <= int64(b.N) {
						_, err = e.Request(context.Background(), c, wire.AccessRequest{Role: "tokens/use", Purpose: "bench"})
					}
					done <- err
				}()
			}
			for range clients {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "leases/s")
		})
	}
}
