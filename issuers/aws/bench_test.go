package aws_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
)

// One mint is one request to STS; the rest is a compilation and, with
// web_identity, a signature.
func BenchmarkMint(b *testing.B) {
	for way, s := range map[string]spec{"assume_role": byRole(), "web_identity": byIdentity()} {
		b.Run(way, func(b *testing.B) {
			is := open(b, target(b, s))
			b.SetParallelism(8)
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := is.Mint(b.Context(), lease(theScope)); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func BenchmarkWithdraw(b *testing.B) {
	is := open(b, target(b, byRole()))
	batch := []issuers.Lease{lease(theScope)}
	for b.Loop() {
		is.Withdraw(b.Context(), batch)
	}
}
