package harness

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	natsgo "github.com/nats-io/nats.go"

	"github.com/mayfly-broker/mayfly/issuers/nats/natstest"
)

// natsServer is a NATS whose users are revoked, as a [Server].
type natsServer struct{ *natstest.Server }

func startNATS(ctx context.Context) (Server, error) {
	s, err := natstest.Run(ctx)
	if err != nil {
		return nil, err
	}
	return natsServer{s}, nil
}

// Add gives the target what it needs to revoke.
func (n natsServer) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	secret := func(name, text string) string {
		file := filepath.Join(dir, target+"-"+name)
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return name + "=" + file
	}
	addTarget(t, admin, dir, n.SigningSeed, "nats", n.Address(), "--name", target, "--set", "account="+n.Account, "--set", `subjects=["orders.*"]`,
		"--set", `revocation={"system_account":"`+n.System+`","operator":"`+n.Operator+`"}`,
		"--secret", secret("operator_key", n.SigningOperatorSeed), "--secret", secret("system_key", n.SystemSeed))
	return target + "/readwrite"
}

// Name is the one in the user's claims.
func (n natsServer) Name(credential map[string]string) string {
	claims, err := jwt.DecodeUserClaims(credential["jwt"])
	if err != nil {
		return err.Error()
	}
	return claims.Name
}

// Login publishes a message that the server confirms to have taken.
func (n natsServer) Login(_ context.Context, credential map[string]string) error {
	nc, err := n.Dial(natsgo.UserCredentialBytes([]byte(credential["creds"])), natsgo.CustomInboxPrefix(credential["inbox_prefix"]))
	if err != nil {
		return err
	}
	defer nc.Close()
	if err := errors.Join(nc.Publish("orders.eu", nil), nc.FlushTimeout(5*time.Second)); err != nil {
		return err
	}
	return nc.LastError()
}

// Ours lists connections of the account. The server has no list of users.
func (n natsServer) Ours(ctx context.Context) ([]string, error) {
	names, _, err := n.Connections(ctx)
	var out []string
	for _, name := range names {
		if strings.HasPrefix(name, "mayfly-") {
			out = append(out, "connection of "+name)
		}
	}
	return out, err
}
