package postgres_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/postgres"
	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/scope"
)

// benchFixture has a server of its own that waits for the disk, as a real one
// does.
func benchFixture(b *testing.B) *fixture {
	b.Helper()
	f := newFixture(b, pgtest.Start(b, pgtest.Durable(), pgtest.Setting("log_checkpoints", "off")))
	f.server.Exec(b, "postgres", "CREATE ROLE pooled NOLOGIN")
	delete(f.spec, "scram_iterations")
	return f
}

// inParallel runs do b.N times, spread over clients, and reports per second.
func inParallel(b *testing.B, clients int, do func(client int) error) {
	b.Helper()
	next := make(chan struct{})
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	for c := range clients {
		wg.Go(func() {
			for range next {
				if err := do(c); err != nil {
					once.Do(func() { failed = err })
				}
			}
		})
	}
	b.ResetTimer()
	for range b.N {
		next <- struct{}{}
	}
	close(next)
	wg.Wait()
	b.StopTimer()
	if failed != nil {
		b.Fatal(failed)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "/s")
	b.ReportMetric(0, "ns/op")
}

// raw is the limit in the same place: a bare client that sends CREATE ROLE … IN
// ROLE on connections of its own.
func raw(b *testing.B, f *fixture, clients int, password string) {
	b.Helper()
	conns := make([]*pgx.Conn, clients)
	for i := range conns {
		conns[i] = f.server.Admin(b, f.database)
	}
	until := time.Now().Add(time.Hour).Format(time.RFC3339)
	inParallel(b, clients, func(client int) error {
		p := password
		if p == "clear" {
			p = "PASSWORD '" + rand.Text() + "'"
		}
		_, err := conns[client].PgConn().Exec(context.Background(),
			fmt.Sprintf("CREATE ROLE raw_%s LOGIN %s VALID UNTIL '%s' IN ROLE pooled", issuertest.NewLeaseID(), p, until)).ReadAll()
		return err
	})
}

func mints(b *testing.B, f *fixture, clients int) {
	b.Helper()
	is := f.open(1)
	s := f.readonly()
	f.mint(is, f.lease(s)) // the pooled role stands, as it does after a target's first minute
	inParallel(b, clients, func(int) error {
		_, err := is.Mint(context.Background(), issuertest.NewLease(postgres.Kind{}, s))
		return err
	})
}

func benchmarkMint(b *testing.B, clients int) {
	f := benchFixture(b)
	b.Run("raw", func(b *testing.B) { raw(b, f, clients, "clear") })
	b.Run("mayfly sustained", func(b *testing.B) {
		f.spec["verifier_stock"] = 1
		f.with(b).run(mints, clients)
	})
	// a burst after idle time: every verifier lies ready
	b.Run("mayfly burst", func(b *testing.B) {
		f.spec["verifier_stock"] = 10_000
		f.with(b).run(burst, clients)
	})
}

func burst(b *testing.B, f *fixture, clients int) {
	b.Helper()
	is := f.open(1)
	s := f.readonly()
	f.mint(is, f.lease(s))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for is.StockReady() < b.N {
		<-tick.C
	}
	inParallel(b, clients, func(int) error {
		_, err := is.Mint(context.Background(), issuertest.NewLease(postgres.Kind{}, s))
		return err
	})
}

// with returns the fixture for a sub-benchmark.
func (f *fixture) with(b *testing.B) boundFixture {
	g := *f
	g.t = b
	return boundFixture{b, &g}
}

type boundFixture struct {
	b *testing.B
	f *fixture
}

func (x boundFixture) run(do func(*testing.B, *fixture, int), clients int) { do(x.b, x.f, clients) }

func BenchmarkMint1(b *testing.B)  { benchmarkMint(b, 1) }
func BenchmarkMint16(b *testing.B) { benchmarkMint(b, 16) }
func BenchmarkMint64(b *testing.B) { benchmarkMint(b, 64) }

// BenchmarkMintFast is 16 clients with what makes the target's share small.
func BenchmarkMintFast(b *testing.B) {
	f := benchFixture(b)
	b.Run("raw without password", func(b *testing.B) { raw(b, f, 16, "") })
	b.Run("scram_iterations 64", func(b *testing.B) {
		f.spec["scram_iterations"] = 64
		f.with(b).run(mints, 16)
	})
	b.Run("login certificate", func(b *testing.B) {
		f.spec["login"] = "certificate"
		f.with(b).run(mints, 16)
	})
}

// BenchmarkMintRows is 16 clients whose leases have a row filter, each with a value
// of its own, and as many without.
func BenchmarkMintRows(b *testing.B) {
	f := benchFixture(b)
	f.spec["scram_iterations"] = 16
	f.server.Exec(b, f.database, "CREATE TABLE customers (c text PRIMARY KEY)")
	b.Run("plain", func(b *testing.B) {
		f.with(b).run(func(b *testing.B, f *fixture, clients int) {
			mintEach(b, f, clients, func(int) scope.Scope { return f.scope([]string{"select"}, scope.Table{Name: "public.customers"}) })
		}, 16)
	})
	b.Run("rows", func(b *testing.B) {
		f.with(b).run(func(b *testing.B, f *fixture, clients int) {
			mintEach(b, f, clients, func(n int) scope.Scope {
				where := []scope.Condition{{Column: "c", Op: "eq", Values: []string{fmt.Sprint("c-", n)}}}
				return f.scope([]string{"select"}, scope.Table{Name: "public.customers", Rows: where})
			})
		}, 16)
	})
}

func mintEach(b *testing.B, f *fixture, clients int, of func(n int) scope.Scope) {
	b.Helper()
	is := f.open(1)
	f.mint(is, f.lease(of(0)))
	var n atomic.Int64
	inParallel(b, clients, func(int) error {
		_, err := is.Mint(context.Background(), issuertest.NewLease(postgres.Kind{}, of(int(n.Add(1)))))
		return err
	})
}

// BenchmarkWithdraw10000 ends leases in one call and one by one from 16 callers.
// One in a hundred has a session open.
func BenchmarkWithdraw10000(b *testing.B) {
	for _, how := range []string{"batch", "one by one"} {
		b.Run(how, func(b *testing.B) {
			f := benchFixture(b).with(b).f
			f.spec["scram_iterations"] = 1
			n := 10_000
			if how != "batch" {
				n = 1000
			}
			is := f.open(1)
			for b.Loop() {
				b.StopTimer()
				leases := f.mintMany(is, n)
				b.StartTimer()
				start := time.Now()
				if how == "batch" {
					f.withdraw(is, leases...)
				} else {
					var wg sync.WaitGroup
					for c := range 16 {
						wg.Go(func() {
							for i := c; i < n; i += 16 {
								if out := is.Withdraw(context.Background(), leases[i:i+1]); out[0].Err != nil {
									b.Error(out[0].Err)
								}
							}
						})
					}
					wg.Wait()
				}
				b.ReportMetric(float64(n)/time.Since(start).Seconds(), "leases/s")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// mintMany mints n leases and opens a session for one in a hundred, up to fifty.
func (f *fixture) mintMany(is issuers.Issuer, n int) []issuers.Lease {
	f.t.Helper()
	leases := make([]issuers.Lease, n)
	creds := make([]issuers.Credential, n)
	s := f.readonly()
	var wg sync.WaitGroup
	for c := range 16 {
		wg.Go(func() {
			for i := c; i < n; i += 16 {
				leases[i] = f.lease(s)
				var err error
				if creds[i], err = is.Mint(context.Background(), leases[i]); err != nil {
					f.t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := 0; i < min(n/100, 50); i++ {
		f.mustLogin(creds[i*100])
	}
	return leases
}
