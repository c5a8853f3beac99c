package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers/redis/redistest"
)

// redis is a private Redis whose users live in memory alone, as is usual.
type redis struct {
	*redistest.Server
	client *goredis.Client
}

// startRedis runs one, and writes it as a target.
func startRedis(ctx context.Context, b *bench, c *cluster) (_ *system, stop func() error, err error) {
	s, err := redistest.Run(ctx)
	if err != nil {
		return nil, nil, err
	}
	o := s.Options(redistest.AdminUser, s.Password)
	o.PoolSize = most
	r := &redis{Server: s, client: goredis.NewClient(o)}
	stop = func() error { return errors.Join(r.client.Close(), r.Close()) }
	b.progress("   Redis at %s, users in memory", s.Address())
	err = c.addSystem(ctx, "cache", map[string]any{"type": "redis", "address": s.Address(),
		"tls": map[string]string{"mode": "disable"}, "admin": map[string]string{"username": redistest.AdminUser},
	}, s.Password, map[string]any{"type": "redis", "actions": []string{"read"}})
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return &system{
		title: "Redis", role: "cache/read", quick: "cache/read", many: 2000, look: 20 * time.Millisecond,
		bare: r.bare, made: "ACL SETUSER", drops: r.drops, dropped: "bare ACL DELUSER, 50 a command",
		count: r.count, login: r.login,
	}, stop, nil
}

// set makes one user with a read-only selector, as the broker's are.
func (r *redis) set(ctx context.Context, c goredis.Cmdable, name string) error {
	hash := fmt.Sprintf("#%x", sha256.Sum256([]byte(rand.Text())))
	return c.ACLSetUser(ctx, name, "reset", "on", hash, "resetchannels", "(resetchannels +@read -@admin -@dangerous %R~*)").Err()
}

func (r *redis) bare(ctx context.Context, clients int, d time.Duration) (outcome, error) {
	conns := make([]*goredis.Conn, clients)
	for i := range conns {
		conns[i] = r.client.Conn()
		defer func() { _ = conns[i].Close() }()
	}
	return drive(ctx, clients, d, func(ctx context.Context, i int) error { return r.set(ctx, conns[i], "raw_"+rand.Text()) })
}

func (r *redis) drops(ctx context.Context, n int) (float64, error) {
	const batch = 50
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("drop_%d", i)
		if err := r.set(ctx, r.client, names[i]); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	for len(names) > 0 {
		some := names[:min(batch, len(names))]
		names = names[len(some):]
		args := []any{"ACL", "DELUSER"}
		for _, name := range some {
			args = append(args, name)
		}
		if err := r.client.Do(ctx, args...).Err(); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

func (r *redis) count(ctx context.Context) (n int, err error) {
	users, err := r.client.Do(ctx, "ACL", "USERS").StringSlice()
	for _, u := range users {
		if strings.HasPrefix(u, "mayfly_") {
			n++
		}
	}
	return n, err
}

func (r *redis) login(ctx context.Context, credential map[string]string) (session, error) {
	c := goredis.NewClient(r.Options(credential["username"], credential["password"]))
	conn := c.Conn()
	if err := conn.Ping(ctx).Err(); err != nil {
		return session{}, errors.Join(err, conn.Close(), c.Close())
	}
	return session{
		use:   func(ctx context.Context) error { return conn.Ping(ctx).Err() },
		close: func(context.Context) { _, _ = conn.Close(), c.Close() },
	}, nil
}
