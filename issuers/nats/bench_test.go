package nats_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/nats/natstest"
)

// BenchmarkMint signs, and with revocation asks the server for the account first.
func BenchmarkMint(b *testing.B) {
	for _, revoking := range []bool{false, true} {
		name := "ExpiresOnly"
		f := newFixture(b, shared)
		if revoking {
			name = "Revocable"
		} else {
			f.offline()
		}
		is := f.open(1)
		s := allow([]string{"publish", "request"}, "orders.*")
		b.Run(name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := is.Mint(b.Context(), lease(s)); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkWithdraw ends batches of 100; an operation is one lease.
func BenchmarkWithdraw(b *testing.B) {
	f := newFixture(b, natstest.Start(b, natstest.Config("max_payload: 32M")))
	is := f.open(1)
	leases := make([]issuers.Lease, b.N)
	for i := range leases {
		leases[i] = lease(allow([]string{"publish"}, "orders.*"))
	}
	b.ResetTimer()
	for i := 0; i < len(leases); i += 100 {
		for _, o := range is.Withdraw(b.Context(), leases[i:min(i+100, len(leases))]) {
			if o.Err != nil {
				b.Fatal(o.Err)
			}
		}
	}
}
