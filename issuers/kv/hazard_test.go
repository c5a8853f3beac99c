package kv_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/kv"
	"github.com/mayfly-broker/mayfly/scope"
)

// Answer and receipt say that nothing can be taken back, and which secret it was.
func TestHazard18KVReceiptsClaimNothing(t *testing.T) {
	i := open(t, target(plainSpec, values))
	l := issuertest.NewLease(kv.Kind{}, read("billing/*"))
	c, err := i.Mint(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if c.Public["version"] != "7" || !strings.Contains(c.Public["notice"], "until it is changed at its source") || c.Public["billing.stripe_owner"] != "human:ann" {
		t.Errorf("the answer says %v", c.Public)
	}
	for _, l := range []issuers.Lease{l, issuertest.NewLease(kv.Kind{}, read("keystore")), {}} {
		r := i.Withdraw(t.Context(), []issuers.Lease{l})[0].Receipt
		if r.Proof != issuers.ProofExpiresOnly || !strings.Contains(r.Detail, "nothing was withdrawn") || !strings.Contains(r.Detail, "until it is changed at its source") {
			t.Errorf("the receipt says %+v", r)
		}
	}
	if r := i.Withdraw(t.Context(), []issuers.Lease{l})[0].Receipt; !strings.Contains(r.Detail, "billing/stripe, billing/tax-office") {
		t.Errorf("the receipt does not name what was read: %s", r.Detail)
	}
	if (kv.Kind{}).Revocable() || (kv.Kind{}).MaxTTL(json.RawMessage(plainSpec)) != time.Hour || (kv.Kind{}).MaxTTL(json.RawMessage(`{}`)) > time.Second {
		t.Error("a static secret is revocable, or its leases are not bounded")
	}
}

// An entry is reminded of, then expires: nothing is delivered from that instant on.
func TestHazard18KVExpiredEntryIsNotDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
		spec := `{"entries":{"stripe":{"owner":"human:ann","expires":"` + at(48*time.Hour) + `","remind":"` + at(24*time.Hour) + `"},
			"soon":{"owner":"human:ann","expires":"` + at(15*24*time.Hour) + `"},"never":{"owner":"human:bob","remind":"` + at(36*time.Hour) + `"}}}`
		i := open(t, target(spec, map[string]string{"entries_stripe_value": "0123456789abcdef", "entries_soon_value": "0123456789abcdef", "entries_never_value": "0123456789abcdef"}))
		check := func(want ...string) {
			t.Helper()
			found, err := i.(issuers.Checker).Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for n, f := range found {
				state := "ok"
				if f.Warning {
					state = "warn"
				} else if !f.OK {
					state = "fail"
				}
				if state != want[n] {
					t.Errorf("%s: %s, want %s: %s", f.Name, state, want[n], f.Detail)
				}
			}
		}
		mint := func(name string) (issuers.Credential, error) {
			return i.Mint(t.Context(), issuertest.NewLease(kv.Kind{}, read(name)))
		}
		check("ok", "ok", "ok") // never, soon, stripe
		if c, err := mint("stripe"); err != nil || c.Public["stripe_expires"] == "" {
			t.Fatalf("%v, %v", c.Public, err)
		}
		time.Sleep(24 * time.Hour)
		check("ok", "warn", "warn")
		time.Sleep(24 * time.Hour)
		check("warn", "warn", "fail")
		_, err := mint("stripe")
		if issuers.KindOf(err) != issuers.BadScope || !strings.Contains(err.Error(), "expired") || !strings.Contains(err.Error(), "human:ann") {
			t.Errorf("an expired entry: %v", err)
		}
		if _, err := mint("never"); err != nil {
			t.Errorf("a reminder stops mints: %v", err)
		}
	})
}

// What has no value, or one that its encoding does not fit, is not delivered; the
// other entries are.
func TestValuesThatCannotBeDelivered(t *testing.T) {
	for name, value := range map[string]string{
		"none": "", "NUL": "a\x00bcdefghijklmnop", "not UTF-8": "\xff\xfe0123456789", "cut by JSON": "\ufffd0123456789", "too long": strings.Repeat("x", 32<<10+1),
	} {
		i := open(t, target(plainSpec, map[string]string{"entries_billing/stripe_value": value, "entries_keystore_value": values["entries_keystore_value"]}))
		mustRefuse(t, i, "billing/stripe", name, value)
	}
	for name, value := range map[string]string{"words": "not base64 at all", "broken lines": "AAEC\nAwQF", "no padding": "AAE", "URL alphabet": "_-__", "loose bits": "AAF="} {
		i := open(t, target(plainSpec, map[string]string{"entries_keystore_value": value}))
		mustRefuse(t, i, "keystore", name, value)
	}
}

func mustRefuse(t *testing.T, i issuers.Issuer, entry, name, value string) {
	t.Helper()
	_, err := i.Mint(t.Context(), issuertest.NewLease(kv.Kind{}, read(entry)))
	if issuers.KindOf(err) != issuers.BadScope || value != "" && strings.Contains(err.Error(), value) {
		t.Errorf("%s: %.200v", name, err)
	}
	found, err := i.(issuers.Checker).Check(t.Context())
	n := slices.IndexFunc(found, func(f issuers.Finding) bool { return f.Name == "entry "+entry })
	if err != nil || found[n].OK || found[n].Warning || found[n].Fix == "" {
		t.Errorf("%s: Check says %+v, %v", name, found, err)
	}
}

// What a wildcard covers in the algebra, and what is delivered, are the same.
func TestLaw3KVWildcardIsWholeWords(t *testing.T) {
	spec := `{"entries":{"a/x":{"owner":"o"},"a/y/z":{"owner":"o"},"ab/x":{"owner":"o"},"a":{"owner":"o"}}}`
	all := map[string]string{"entries_a/x_value": "1", "entries_a/y/z_value": "2", "entries_ab/x_value": "3", "entries_a_value": "4"}
	c, err := open(t, target(spec, all)).Mint(t.Context(), issuertest.NewLease(kv.Kind{}, read("a/*")))
	if err != nil || len(c.Secret) != 2 || c.Secret["a.x"].Reveal() != "1" || c.Secret["a.y.z"].Reveal() != "2" {
		t.Fatalf("a/* gave %d entries, %v", len(c.Secret), err)
	}
	if c.Env["A_X"] != "a.x" || c.Env["A_Y_Z"] != "a.y.z" || len(c.Env) != 2 {
		t.Errorf("variables %v", c.Env)
	}
}

// FuzzCompile: whatever a spec and a scope say, each entry that is delivered is in
// the scope by the algebra's own rule, under names that no other entry has.
func FuzzCompile(f *testing.F) {
	for _, s := range slices.Concat(accepted(), hostile(), invalid()) {
		raw, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(plainSpec), raw)
	}
	f.Fuzz(func(t *testing.T, spec, raw []byte) {
		s, err := scope.Parse(raw)
		if err != nil || (kv.Kind{}).CheckScope(spec, s) != nil {
			return
		}
		var doc struct {
			Entries map[string]struct{ Encoding string }
		}
		if err := json.Unmarshal(spec, &doc); err != nil {
			t.Fatal(err)
		}
		all, now := map[string]string{}, time.Now()
		for name := range doc.Entries {
			all["entries_"+name+"_value"] = "AAEC"
		}
		l := issuertest.NewLease(kv.Kind{}, s)
		l.NotBefore, l.NotAfter = now, now.Add(time.Hour)
		c, err := open(t, target(string(spec), all)).Mint(t.Context(), l)
		if err != nil {
			if strings.Contains(err.Error(), "expired") {
				return
			}
			t.Fatalf("CheckScope accepts %s, Mint does not: %v", s, err)
		}
		if len(c.Secret) != len(c.Env) || len(c.Secret) == 0 {
			t.Fatalf("%d secrets, %d variables", len(c.Secret), len(c.Env))
		}
		for name := range c.Secret {
			if scope.Covers(s, read(strings.ReplaceAll(name, ".", "/"))) != nil {
				t.Fatalf("%s was delivered beyond %s", name, s)
			}
		}
	})
}
