package cosign_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
)

// Whoever signs with honest tools is believed.
func TestEveryKindOfKeySigns(t *testing.T) {
	hash := cosign.Sum(cosign.DomainGrant, []byte(`{}`))
	for _, v := range cosigntest.Variants() {
		t.Run(v, func(t *testing.T) {
			p := cosigntest.New(v)
			if err := p.Key().Check(); err != nil {
				t.Fatal(err)
			}
			if err := cosign.Verify(p.Key(), cosign.DomainGrant, hash, p.Sign(cosign.DomainGrant, hash)); err != nil {
				t.Error(err)
			}
		})
	}
}
