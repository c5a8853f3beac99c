package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers/aws/awstest"
)

// minio is a MinIO as a [Server]. Its sessions end by themselves and nowhere
// stand in a list.
type minio struct{ *awstest.Server }

func startMinIO(ctx context.Context) (Server, error) {
	ca, err := awstest.NewCA()
	if err != nil {
		return nil, err
	}
	s, err := awstest.Run(ctx, ca, nil)
	if err != nil {
		return nil, err
	}
	return minio{s}, nil
}

// Add puts an object into a bucket.
func (m minio) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	ca := filepath.Join(dir, target+"-ca.pem")
	if err := errors.Join(m.Put(t.Context(), "orders/greeting.txt"), os.WriteFile(ca, []byte(m.CAPEM), 0o600)); err != nil {
		t.Fatal(err)
	}
	addTarget(t, admin, dir, m.Root.Secret, "aws", m.URL, "--name", target, "--username", m.Root.ID, "--tls-ca-file", ca, "--set", "region="+awstest.Region,
		"--set", "role_arn="+awstest.RoleARN, "--set", "service_endpoint="+m.URL, "--set", `resources=["arn:aws:s3:::orders/*"]`)
	return target + "/readonly"
}

// Name is empty: MinIO does not say what a session is called, as AWS does.
func (m minio) Name(map[string]string) string { return "" }

// Login reads an object.
func (m minio) Login(ctx context.Context, credential map[string]string) error {
	k := awstest.Keys{ID: credential["access_key_id"], Secret: credential["secret_access_key"], Token: credential["session_token"]}
	status, text, err := m.Do(ctx, k, http.MethodGet, "orders/greeting.txt", "", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, text)
	}
	return err
}

// Ours is nothing: STS has no list of sessions.
func (m minio) Ours(context.Context) ([]string, error) { return nil, nil }
