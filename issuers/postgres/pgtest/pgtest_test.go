package pgtest_test

import (
	"context"
	"crypto/tls"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mayfly-broker/mayfly/issuers/postgres/pgtest"
)

func TestServerStopsHangsAndComesBack(t *testing.T) {
	s := pgtest.Start(t)
	s.Exec(t, "postgres", "CREATE TABLE kept (id int); INSERT INTO kept VALUES (7)")

	conn := s.Admin(t, "postgres")
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := conn.Exec(ctx, "SELECT 1"); err == nil {
		t.Error("a stopped server answered")
	}
	if err := s.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}

	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Do(t.Context(), "postgres", "SELECT 1"); err == nil {
		t.Error("an ended server answered")
	}
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	var id int
	if err := s.Admin(t, "postgres").QueryRow(t.Context(), "SELECT id FROM kept").Scan(&id); err != nil || id != 7 {
		t.Errorf("after a restart: id %d, %v", id, err)
	}
}

func TestClientCertificateLogsInAndOnlyUntilItsEnd(t *testing.T) {
	s := pgtest.Start(t, pgtest.TLS(), pgtest.HBA("hostssl all carol 127.0.0.1/32 cert"))
	s.Exec(t, "postgres", "CREATE ROLE carol LOGIN")
	login := func(cn string, notAfter time.Time) error {
		certPEM, keyPEM, err := s.ClientCertificate(cn, notAfter)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := pgx.ParseConfig(s.URL("carol", "", "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		var pair *tls.Config
		if pair, err = s.ClientTLS(certPEM, keyPEM); err != nil {
			t.Fatal(err)
		}
		cfg.TLSConfig = pair
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			return err
		}
		return conn.Close(t.Context())
	}
	if err := login("carol", time.Now().Add(time.Minute)); err != nil {
		t.Errorf("a good certificate is refused: %v", err)
	}
	if login("dave", time.Now().Add(time.Minute)) == nil {
		t.Error("another's certificate is accepted")
	}
	if login("carol", time.Now().Add(-time.Minute)) == nil {
		t.Error("an expired certificate is accepted")
	}
}
