package harness

import (
	"context"
	"errors"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
)

// redis is a Redis as a [Server].
type redis struct{ *redistest.Server }

func startRedis(ctx context.Context) (Server, error) {
	// users in a file survive a crash: those that were withdrawn must not
	s, err := redistest.Run(ctx, redistest.ACLFile())
	if err != nil {
		return nil, err
	}
	return redis{s}, nil
}

// Add writes a key.
func (r redis) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	c := r.Client()
	defer func() { _ = c.Close() }()
	if err := c.Set(t.Context(), "greeting", "hello", 0).Err(); err != nil {
		t.Fatal(err)
	}
	addTarget(t, admin, dir, r.Password, "redis", r.Address(), "--name", target, "--username", redistest.AdminUser, "--set", "persist=aclfile")
	return target + "/readonly"
}

// Name is the user's.
func (r redis) Name(credential map[string]string) string { return credential["username"] }

// Login looks a key up, which a restart may have taken.
func (r redis) Login(ctx context.Context, credential map[string]string) error {
	c := goredis.NewClient(r.Options(credential["username"], credential["password"]))
	err := c.Get(ctx, "greeting").Err()
	if errors.Is(err, goredis.Nil) {
		err = nil
	}
	return errors.Join(err, c.Close())
}

// Ours lists users, connections that are theirs, and gates of mints.
func (r redis) Ours(ctx context.Context) ([]string, error) {
	c := r.Client()
	defer func() { _ = c.Close() }()
	users, err := c.Do(ctx, "ACL", "USERS").StringSlice()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, u := range users {
		if strings.HasPrefix(u, "mayfly_") {
			out = append(out, "user "+u)
		}
	}
	clients, err := c.ClientList(ctx).Result()
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(clients) {
		if strings.Contains(line, " user=mayfly_") {
			out = append(out, "connection "+strings.TrimSpace(line))
		}
	}
	gates, err := c.Keys(ctx, "mayfly:gate:*").Result()
	for _, g := range gates {
		out = append(out, "gate "+g)
	}
	return out, err
}

// Account makes a user.
func (r redis) Account(t testing.TB, _, username, password string) {
	t.Helper()
	c := r.Client()
	defer func() { _ = c.Close() }()
	if err := c.Do(t.Context(), "ACL", "SETUSER", username, "on", ">"+password, "~*", "+get", "+ping").Err(); err != nil {
		t.Fatal(err)
	}
}

// Enters logs in.
func (r redis) Enters(ctx context.Context, credential map[string]string) (bool, error) {
	c := goredis.NewClient(r.Options(credential["username"], credential["password"]))
	err := c.Ping(ctx).Err()
	if err != nil && strings.HasPrefix(err.Error(), "WRONGPASS") {
		return false, c.Close()
	}
	return err == nil, errors.Join(err, c.Close())
}

// Admin is the user with every right.
func (r redis) Admin() (username, password string) { return redistest.AdminUser, r.Password }
