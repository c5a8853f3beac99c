package seal_test

import (
	"encoding/hex"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/secret"
)

// What was written by the first version: every later one must read it, or a node
// does not come up after an upgrade, and shares in safes are worth nothing.
const (
	goldenDocument = `{
  "version": 1,
  "cluster_id": "c-golden",
  "incarnation": 1,
  "seal": {
    "type": "shamir",
    "set_id": "ep6abs9m",
    "shares": 3,
    "threshold": 2
  },
  "check": "vbxKWsTWWcLnQ1Vc/LTYkA==",
  "sealed": "8he+yK+ksTlCpUKzTe6YlQRwypNjcOYOVOugIoIZZ5ECfNHdjW67oo8htyCJcnTKB73UgkXU2wOIeMdld5IIyv16lwiW02i7V2cdl9Iu8YFTbTxS7hw7bYsTT4EIA17F/NPPhb1s5yfjfZVAYJlLZi8buCEz6idHuemXrIxcd2IR3fTOH7pwQkzIq9SHaywdpFEEQxIFQ+/fyyb1Pg=="
}
`
	goldenShare1 = "mfu1-ep6abs9m-001-w2d5417qsf88dkhvvr9r0nc432yatecvd1epx840tz71a7ge4c5g-x87aewg"
	goldenShare3 = "mfu1-ep6abs9m-003-yhkx7ew1sgp8qq7fqkdq1fyw4nmm4njjqb66ekf44r9jfzwph870-88tmxgs"
	goldenValue  = "01000000019f46b92289fd2b18a31c59c0d131eff017233c38a3d2271a5dee25267bb5dfa4828b55d178761f6a306364c827"
	goldenNonce  = "23a33accee03f92db6132a9afd46b219a35c055affd5af4f6595e65c5d5df20d"
)

func TestGoldenFormatsStillOpen(t *testing.T) {
	w, err := seal.Parse([]byte(goldenDocument))
	if err != nil {
		t.Fatal(err)
	}
	shares, err := seal.ParseShares([]secret.Text{secret.New(goldenShare3), secret.New(goldenShare1)})
	if err != nil {
		t.Fatal(err)
	}
	k, err := w.UnsealShares(shares)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := hex.DecodeString(goldenValue)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Open([]byte("place"), sealed); err != nil || string(got) != "plain" {
		t.Fatalf("%q, %v", got, err)
	}
	sub, err := k.Subkey(seal.PurposeNonce)
	if err != nil || hex.EncodeToString(sub.Key[:]) != goldenNonce {
		t.Fatalf("the subkey changed: %v", err)
	}
}
