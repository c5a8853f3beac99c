package redis_test

import (
	"os"
	"strings"
	"testing"
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
