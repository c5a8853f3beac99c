package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
)

func TestRateLimitsAreByNetworkAndBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := newPerAddress(1, 2, func() time.Time { return now })
	take := func(a string) bool { ok, _ := p.take(a); return ok }
	if !take("2001:db8::1") || !take("2001:db8::2") || take("2001:db8::3") {
		t.Error("addresses of one IPv6 /64 do not share a limit")
	}
	if !take("2001:db8:0:1::1") || !take("192.0.2.1") || !take("::ffff:192.0.2.1") || take("192.0.2.1") {
		t.Error("other networks share it, or one address has two")
	}
	if ok, wait := p.take("192.0.2.1"); ok || wait != time.Second || !p.spent("192.0.2.1") {
		t.Errorf("wait %s", wait)
	}
	now = now.Add(time.Second)
	if !take("192.0.2.1") || take("192.0.2.1") {
		t.Error("it does not refill by the clock")
	}

	for i := range maxAddresses + 100 {
		take(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
	}
	if len(p.buckets) > maxAddresses {
		t.Errorf("%d addresses are remembered", len(p.buckets))
	}
	if take("203.0.113.1") {
		t.Error("a newcomer in a flood has a limit of its own")
	}
	now = now.Add(time.Minute)
	if !take("203.0.113.1") || len(p.buckets) > 10 {
		t.Errorf("quiet addresses are not forgotten: %d", len(p.buckets))
	}
}

func TestRefusalCodesAreBounded(t *testing.T) {
	m := newMetrics()
	for i := range 2 * maxCodes {
		m.refused(fmt.Sprint("code_", i))
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "mayfly_auth_refusals_total" && len(f.GetMetric()) != maxCodes+1 {
			t.Errorf("%d codes", len(f.GetMetric()))
		}
	}
}

// FuzzStrict compares the strict reader with encoding/json: what it lets
// through is one valid object in which encoding/json finds no unknown member.
func FuzzStrict(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"objects":[{"kind":"Role","name":"a","spec":{"x":[1,2,{"y":null}]},"secrets":{"p":"q"}}],"delete":[{"kind":"Role","name":"b"}],"prune":true}`,
		`{"objects":[{"Kind":"Role"}]}`, `{"dry_run":true,"dry_run":false}`, `{"objects":[{"spec":{"a":1,"a":2}}]}`, `{} {}`, `{"a`, "{\"dry_run\":\"\xff\"}",
		`{"objects":` + strings.Repeat("[", 100) + `}`, `{"d\u0072y_run":true}`, `{"objects":null}`, `{"objects":{"kind":1}}`,
	} {
		f.Add([]byte(s))
	}
	s := shapeOf(reflect.TypeFor[wire.ApplyRequest]())
	f.Fuzz(func(t *testing.T, data []byte) {
		if scan(data, s) != nil {
			return
		}
		if !json.Valid(data) || bytes.TrimSpace(data)[0] != '{' {
			t.Fatalf("let through %q", data)
		}
		var in wire.ApplyRequest
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&in); err != nil && strings.Contains(err.Error(), "unknown field") {
			t.Fatalf("let through %q: %v", data, err)
		}
	})
}
