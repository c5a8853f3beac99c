package harness

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// reader stands for whoever knows a static secret that the broker keeps, as a
// [Server]. There is nothing from which anything could be taken back; so all that
// can go wrong is a secret given out that no lease names, or after its lease.
type reader struct{ apart }

func startReader(context.Context) (Server, error) { return reader{}, nil }

const staticSecret = "sk_live_made_by_hand"

// Add writes one secret.
func (reader) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	file := filepath.Join(dir, target+".key")
	if err := os.WriteFile(file, []byte(staticSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	admin.Must(t, "target", "add", "kv", "--name", target, "--set", `entries={"stripe":{"owner":"human:ann","value":{"from_file":"`+file+`"}}}`)
	return target + "/stripe"
}

// Name is empty: a static secret says nothing of a lease.
func (reader) Name(map[string]string) string { return "" }

// Login knows the right secret.
func (reader) Login(_ context.Context, credential map[string]string) error {
	if credential["stripe"] != staticSecret {
		return errors.New("this is another secret")
	}
	return nil
}

// Ours is nothing.
func (reader) Ours(context.Context) ([]string, error) { return nil, nil }
