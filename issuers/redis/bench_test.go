package redis_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
)

// BenchmarkMint mints on a server that shares the machine, beside what piles up.
func BenchmarkMint(b *testing.B) {
	f := newFixture(b, redistest.Start(b))
	is := f.open(1)
	s := allow([]string{"read", "write"}, "key:orders:*")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := is.Mint(b.Context(), lease(s)); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkWithdraw ends batches of 100; an operation is one lease.
func BenchmarkWithdraw(b *testing.B) {
	f := newFixture(b, redistest.Start(b))
	is := f.open(1)
	leases := make([]issuers.Lease, b.N)
	for i := range leases {
		leases[i] = lease(allow([]string{"read", "write"}, "key:orders:*"))
		f.mint(is, leases[i])
	}
	b.ResetTimer()
	for len(leases) > 0 {
		n := min(100, len(leases))
		f.withdraw(is, leases[:n]...)
		leases = leases[n:]
	}
}

// BenchmarkList lists a hundred live users; an operation is the whole list.
func BenchmarkList(b *testing.B) {
	f := newFixture(b, redistest.Start(b))
	is := f.open(1)
	for range 100 {
		f.mint(is, lease(allow([]string{"read"})))
	}
	for b.Loop() {
		if _, err := is.List(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
