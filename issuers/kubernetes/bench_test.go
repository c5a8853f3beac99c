package kubernetes_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
)

// BenchmarkMint is one mint after the other, of each form.
func BenchmarkMint(b *testing.B) {
	for name, form := range forms {
		b.Run(name, func(b *testing.B) {
			f := newFixture(b, shared)
			is := f.open(1)
			var leases []issuers.Lease
			for b.Loop() {
				l := form()
				leases = append(leases, l)
				f.mint(is, l)
			}
			b.StopTimer()
			f.withdraw(is, leases...)
		})
	}
}

// BenchmarkWithdraw is the withdrawal of 100 accounts in one call, without the
// wait for settle.
func BenchmarkWithdraw(b *testing.B) {
	f := newFixture(b, shared)
	is := f.open(1)
	leases := make([]issuers.Lease, 100)
	for b.Loop() {
		b.StopTimer()
		for i := range leases {
			leases[i] = forms["made"]()
			f.mint(is, leases[i])
		}
		b.StartTimer()
		f.withdraw(is, leases...)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(len(leases)), "µs/lease")
}
