package mysql_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/mysql"
	"github.com/mayfly-broker/mayfly/issuers/mysql/mysqltest"
)

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

// BenchmarkMint compares with a bare client that makes and grants accounts on
// connections of its own: what no broker can beat.
func BenchmarkMint(b *testing.B) {
	for _, clients := range []int{1, 16} {
		f := newFixture(b, mysqltest.Start(b, mysqltest.Durable()))
		b.Run(fmt.Sprintf("raw CREATE USER and GRANT/%d", clients), func(b *testing.B) {
			db, err := f.server.Open(mysqltest.AdminUser, f.server.Password, "")
			if err != nil {
				b.Fatal(err)
			}
			db.SetMaxOpenConns(clients)
			db.SetMaxIdleConns(clients)
			inParallel(b, clients, func(int) error {
				name := "raw" + issuertest.NewLeaseID()
				_, err := db.ExecContext(context.Background(), "CREATE USER "+name+" IDENTIFIED BY 'a-password'; GRANT SELECT ON "+f.database+".* TO "+name)
				return err
			})
			_ = db.Close()
		})
		for _, grants := range []string{"pooled", "direct"} {
			b.Run(fmt.Sprintf("mayfly %s/%d", grants, clients), func(b *testing.B) {
				g := f.with("grants", grants)
				g.t = b
				is := g.open(1)
				s := g.readonly()
				g.mint(is, g.lease(s)) // the pooled role stands, as it does after a target's first minute
				inParallel(b, clients, func(int) error {
					_, err := is.Mint(context.Background(), issuertest.NewLease(mysql.Kind{}, s))
					return err
				})
			})
		}
	}
}

// BenchmarkWithdraw1000 ends leases in one call.
func BenchmarkWithdraw1000(b *testing.B) {
	const n = 1000
	f := newFixture(b, mysqltest.Start(b, mysqltest.Durable()))
	is := f.open(1)
	for b.Loop() {
		b.StopTimer()
		leases := make([]issuers.Lease, n)
		for i := range leases {
			leases[i] = f.lease(f.readonly())
			f.mint(is, leases[i])
		}
		b.StartTimer()
		start := time.Now()
		f.withdraw(is, leases...)
		b.ReportMetric(n/time.Since(start).Seconds(), "leases/s")
	}
	b.ReportMetric(0, "ns/op")
}
