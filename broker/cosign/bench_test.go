package cosign_test

import (
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
)

// BenchmarkVerify is what each replica spends on one signature.
func BenchmarkVerify(b *testing.B) {
	for _, v := range cosigntest.Variants() {
		p := seeded(v)
		k, s := p.Key(), p.Sign(domain, hash)
		b.Run(strings.ReplaceAll(v, " ", "-"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := cosign.Verify(k, domain, hash, s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCanonical is the form and hash of a grant of usual size.
func BenchmarkCanonical(b *testing.B) {
	doc := usualGrant()
	b.ReportAllocs()
	for b.Loop() {
		form, err := cosign.Canonical(doc)
		if err != nil {
			b.Fatal(err)
		}
		cosign.Sum(domain, form)
	}
}
