package client

import (
	"testing"

	"github.com/mayfly-broker/mayfly/secret"
)

func FuzzParseEnrolment(f *testing.F) {
	f.Add("mfe_")
	f.Add("mfe_AQBrAAAA")
	f.Add("mfs_AQBrAAAA")
	f.Fuzz(func(t *testing.T, text string) {
		e, err := parseEnrolment(secret.New(text))
		if err != nil {
			return
		}
		again, err := parseEnrolment(e.text)
		if err != nil || len(again.addresses) != len(e.addresses) || again.caHash != e.caHash {
			t.Fatalf("read differently the second time: %v", err)
		}
	})
}

func FuzzBaseURL(f *testing.F) {
	f.Add("ps:")
	for _, s := range []string{"a:1", "https://a", "http://a", "https://u:p@a", "[::1]:8700", "a/b", "://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := baseURL(text)
		if err != nil {
			return
		}
		if again, err := baseURL(u); err != nil || again != u {
			t.Fatalf("%q became %q, then %q (%v)", text, u, again, err)
		}
	})
}
