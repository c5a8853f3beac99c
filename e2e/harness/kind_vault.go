package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
	"github.com/mayfly-broker/mayfly/issuers/vault/vaulttest"
)

// vault is a Vault and the database behind it as a [Server]. Only the Vault goes
// away.
type vault struct {
	*vaulttest.Server
	database *pgtest.Server
}

func startVault(ctx context.Context) (Server, error) {
	database, err := pgtest.Run(ctx, "")
	if err != nil {
		return nil, err
	}
	s, err := vaulttest.Run(ctx)
	if err != nil {
		return nil, errors.Join(err, database.Close())
	}
	v := vault{s, database}
	if err := v.furnish(ctx); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// Close ends both servers.
func (v vault) Close() error { return errors.Join(v.Server.Close(), v.database.Close()) }

// furnish gives the Vault its engine, the page's policies and the token role.
func (v vault) furnish(ctx context.Context) error {
	const create = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'`
	broker, err := pageBlock("vault", "hcl", "broker-policy")
	leases, err2 := pageBlock("vault", "hcl", "leases-policy")
	if err := errors.Join(err, err2, v.Policy(ctx, "mayfly-broker", broker), v.Policy(ctx, "mayfly-leases", leases)); err != nil {
		return err
	}
	for _, step := range []struct {
		path string
		body map[string]any
	}{
		{"sys/mounts/database", map[string]any{"type": "database"}},
		{"database/config/pg", map[string]any{
			"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": pgtest.AdminUser, "password": v.database.Password,
			"connection_url":    "postgresql://{{username}}:{{password}}@" + v.database.Address() + "/postgres?sslmode=disable",
			"username_template": "{{.DisplayName}}-{{random 8}}",
		}},
		{"database/roles/app", map[string]any{"db_name": "pg", "creation_statements": []string{create}, "default_ttl": "1h", "max_ttl": "24h"}},
		{"auth/token/roles/mayfly", map[string]any{"allowed_policies": "mayfly-leases,mayfly-ended", "orphan": true, "renewable": true, "token_type": "service"}},
	} {
		if err := v.Call(ctx, http.MethodPut, step.path, v.Root, step.body, nil); err != nil {
			return fmt.Errorf("%s: %w", step.path, err)
		}
	}
	return nil
}

// Add has the broker log in with a token of the page's policy.
func (v vault) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	token, err := v.Token(t.Context(), []string{"mayfly-broker"}, map[string]any{"period": "24h", "no_default_policy": false})
	if err != nil {
		t.Fatal(err)
	}
	addTarget(t, admin, dir, token, "vault", v.Address, "--name", target, "--set", `paths=["database/creds/app"]`)
	return target + "/database-creds-app"
}

var vaultName = regexp.MustCompile(`mayfly-[0-9a-z]{26}`)

// Name stands in the name of the database's account.
func (v vault) Name(credential map[string]string) string {
	return vaultName.FindString(credential["username"])
}

// Login logs in to the database.
func (v vault) Login(ctx context.Context, credential map[string]string) error {
	conn, err := pgx.Connect(ctx, v.database.URL(credential["username"], credential["password"], "postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// Ours lists leases' tokens and leases of Vault's, and their sessions in the
// database. A tombstone, which has no rights, is none; nor is an account that Vault
// itself has lost, as it does now and then when its caller dies amid a read: nobody
// was told its password.
func (v vault) Ours(ctx context.Context) ([]string, error) {
	var out []string
	accessors, err := v.keys(ctx, "auth/token/accessors")
	if err != nil {
		return nil, err
	}
	for _, a := range accessors {
		var answer struct {
			Data struct {
				Name     string `json:"display_name"`
				Policies []string
			}
		}
		err := v.Call(ctx, http.MethodPut, "auth/token/lookup-accessor", v.Root, map[string]any{"accessor": a}, &answer)
		var status *vaulttest.Status
		switch {
		case errors.As(err, &status) && (status.Code == http.StatusForbidden || status.Code == http.StatusNotFound): // it ended meanwhile
		case err != nil:
			return nil, err
		case vaultName.MatchString(answer.Data.Name) && !slices.Equal(answer.Data.Policies, []string{"mayfly-ended"}):
			out = append(out, "token "+answer.Data.Name)
		}
	}
	leases, err := v.keys(ctx, "sys/leases/lookup/database/creds/app")
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		out = append(out, "lease "+l)
	}
	conn, err := pgx.Connect(ctx, v.database.URL(pgtest.AdminUser, v.database.Password, "postgres"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, `SELECT 'session of ' || usename FROM pg_stat_activity WHERE usename LIKE '%mayfly%' ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	sessions, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return append(out, sessions...), err
}

// keys lists what stands at a path.
func (v vault) keys(ctx context.Context, path string) ([]string, error) {
	var answer struct{ Data struct{ Keys []string } }
	err := v.Call(ctx, "LIST", path, v.Root, nil, &answer)
	var status *vaulttest.Status
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return nil, nil
	}
	return answer.Data.Keys, err
}
