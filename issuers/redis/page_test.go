package redis_test

import (
	"os"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/redis"
	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
	"github.com/mayfly-broker/mayfly/secret"
)

// leastPrivilege reads the rules for the admin user from the page that operators
// read: what follows ACL SETUSER in the block called least-privilege.
func leastPrivilege(t testing.TB) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/issuers/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```text least-privilege\nACL SETUSER ")
	block, _, ok2 := strings.Cut(rest, "\n```")
	if !ok || !ok2 {
		t.Fatal("the page has no block least-privilege that begins with ACL SETUSER")
	}
	return block
}

// Whoever adds a target with a user that may do nothing is told all that is
// missing at once, in words that redis-cli takes.
func TestCheckOfAUserWithoutRights(t *testing.T) {
	f := newFixture(t, redistest.Start(t))
	ctx, password := t.Context(), issuertest.NewLeaseID()
	if err := f.admin.ACLSetUser(ctx, "bare", "on", ">"+password, "resetchannels").Err(); err != nil {
		t.Fatal(err)
	}
	f.spec["admin"] = map[string]any{"username": "bare"}
	f.secrets[redis.SecretPassword] = secret.New(password)
	findings, err := f.open(1).Check(ctx)
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, found := range findings {
		words := strings.Fields(found.Fix)
		if found.OK || found.Warning {
			continue
		}
		failed++
		args := make([]any, len(words))
		for i, w := range words {
			args[i] = w
		}
		if err := f.admin.Do(ctx, args...).Err(); err != nil {
			t.Fatalf("%s: %v", found.Fix, err)
		}
	}
	if failed != 1 {
		t.Errorf("%d findings to mend: %+v", failed, findings)
	}
	if findings, err = f.open(1).Check(ctx); err != nil {
		t.Fatal(err)
	}
	for _, found := range findings {
		if !found.OK && (found.Fix != "" || !found.Warning) {
			t.Errorf("after that, %s: %s", found.Name, found.Detail)
		}
	}
}
