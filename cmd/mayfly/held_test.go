package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// TestWaitingForAnAccount that somebody else holds: as long as --wait says.
func TestWaitingForAnAccount(t *testing.T) {
	held := &client.Error{Problem: wire.Problem{Code: ledger.CodeAccountHeld, Detail: "workload:a holds it", RetryAfter: 5}}
	for wait, free := range map[time.Duration]bool{0: false, 4 * time.Second: false, 21 * time.Second: true} {
		synctest.Test(t, func(t *testing.T) {
			s := testShell(nil)
			asked, began := 0, time.Now()
			_, err := s.whileHeld(t.Context(), began.Add(wait), func() (client.Access, error) {
				if asked++; time.Since(began) >= 20*time.Second {
					return client.Access{}, nil
				}
				return client.Access{}, held
			})
			if (err == nil) != free || time.Since(began) > wait || asked != 1 && !free || asked != 5 && free {
				t.Errorf("with %s: %v after %s, asked %d times", wait, err, time.Since(began), asked)
			}
			if said := s.err.(*strings.Builder).String(); strings.Count(said, "workload:a holds it") != 1 && free {
				t.Errorf("said %q", said)
			}
		})
	}
}
