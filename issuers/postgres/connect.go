package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Sizes and times of the connections of one target.
const (
	endLanes       = 3 // connections kept for withdrawal and upkeep, so that slow mints never starve them (HAZARDS 17)
	sideConns      = 2 // per further database
	connectTimeout = 5 * time.Second
	clockAge       = time.Minute // how long a measured clock offset is believed
	// pingAfter is how long a connection may lie idle before it is tried: one that
	// died meanwhile would make an Unknown of a mint that was never sent.
	pingAfter       = 100 * time.Millisecond
	statementLimit  = "30000" // ms; a mint sets its own, shorter one
	lockLimit       = "10000" // ms
	clientCheckMS   = "1000"  // ms; a backend whose client died ends while it still waits for a lock (version 14 on)
	versionSetFalse = 160000  // GRANT … WITH INHERIT TRUE, SET FALSE
)

// server holds the connections to one PostgreSQL server.
type server struct {
	base *pgxpool.Config
	main string // the database where accounts are made and locks are taken
	mint *pgxpool.Pool
	end  *pgxpool.Pool

	mu     sync.Mutex
	side   map[string]*pgxpool.Pool // other databases, opened when first needed
	closed bool
}

// facts is what is known of one connection's server.
type facts struct {
	version   int  // server_version_num
	superuser bool // of the admin account
	// offset is the target's clock minus ours, at least: the round trip's
	// uncertainty is taken off, so that a deadline is early, never late.
	offset   time.Duration
	measured time.Time
	// ungranted is the last "privilege not granted" warning.
	ungranted string
}

const factsKey = "mayfly"

func factsOf(c *pgx.Conn) *facts {
	f, _ := c.PgConn().CustomData()[factsKey].(*facts)
	return f
}

func newServer(s spec, t issuers.Target) (*server, error) {
	base, err := baseConfig(s, t)
	if err != nil {
		return nil, err
	}
	srv := &server{base: base, main: s.Database, side: map[string]*pgxpool.Pool{}}
	if srv.mint, err = srv.newPool(s.Database, s.MaxConnections); err != nil {
		return nil, err
	}
	if srv.end, err = srv.newPool(s.Database, endLanes); err != nil {
		srv.mint.Close()
		return nil, err
	}
	return srv, nil
}

// baseConfig builds the configuration from the spec alone. pgx insists on its
// parser, which also reads PG* variables and files: whatever those could have
// set is set here.
func baseConfig(s spec, t issuers.Target) (*pgxpool.Config, error) {
	mode := s.TLS.Mode
	if mode == tlsVerifyFull {
		mode = tlsVerifyCA // parsed without files; replaced below
	}
	c, err := pgxpool.ParseConfig("host=127.0.0.1 port=1 user=x dbname=x passfile='' sslcert='' sslkey='' sslrootcert='' target_session_attrs=any sslmode=" + mode)
	if err != nil {
		return nil, errors.New("postgres: the broker's own PG* environment variables cannot be parsed; unset them")
	}
	cc := c.ConnConfig
	cc.Host, cc.Port, cc.Database, cc.User = s.host, s.port, s.Database, s.Admin.Username
	cc.Password = t.Secrets[SecretPassword].Reveal()
	cc.Fallbacks, cc.ConnectTimeout, cc.ValidateConnect = nil, connectTimeout, nil
	cc.RuntimeParams = map[string]string{
		"application_name":                    appName(t.Term),
		"client_encoding":                     "UTF8",
		"standard_conforming_strings":         "on",
		"search_path":                         "pg_catalog", // a hostile schema must not shadow what the admin calls
		"statement_timeout":                   statementLimit,
		"lock_timeout":                        lockLimit,
		"idle_in_transaction_session_timeout": statementLimit,
		"default_transaction_isolation":       "read committed",
		"default_transaction_read_only":       "off",
		"client_min_messages":                 "warning",
		"timezone":                            "UTC",
		"datestyle":                           "ISO",
	}
	cc.OnNotice = func(c *pgconn.PgConn, n *pgconn.Notice) {
		if f, ok := c.CustomData()[factsKey].(*facts); ok && n.Code == codeGrantedNothing {
			f.ungranted = n.Message
		}
	}
	if cc.TLSConfig, err = tlsConfig(s, cc.TLSConfig, t); err != nil {
		return nil, err
	}
	c.MaxConnIdleTime, c.MaxConnLifetime, c.MinConns = 5*time.Minute, 30*time.Minute, 0
	c.AfterConnect = learn
	c.ShouldPing = func(_ context.Context, p pgxpool.ShouldPingParams) bool { return p.IdleDuration > pingAfter }
	return c, nil
}

// tlsConfig completes what pgx made for verify-ca (a chain without a name, as
// libpq defines it), or makes the ordinary configuration for verify-full.
func tlsConfig(s spec, parsed *tls.Config, t issuers.Target) (*tls.Config, error) {
	if s.TLS.Mode == tlsDisable {
		return nil, nil
	}
	c := parsed
	if s.TLS.Mode == tlsVerifyFull {
		c = &tls.Config{ServerName: s.host}
	}
	c.MinVersion = tls.VersionTLS12
	ca := []byte(s.TLS.CA)
	if s.TLS.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(s.TLS.CAFile); err != nil {
			return nil, fmt.Errorf("postgres: tls.ca_file: %w", err)
		}
	}
	if len(ca) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("postgres: tls: the CA holds no PEM certificate")
		}
	}
	if cert := t.Secrets[SecretCertificate]; !cert.IsZero() {
		pair, err := tls.X509KeyPair([]byte(cert.Reveal()), []byte(t.Secrets[SecretPrivateKey].Reveal()))
		if err != nil {
			return nil, errors.New("postgres: the secrets admin_certificate and admin_private_key are not a PEM pair")
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (s *server) newPool(database string, size int) (*pgxpool.Pool, error) {
	c := s.base.Copy()
	c.ConnConfig.Database = database
	c.MaxConns = int32(size)
	return pgxpool.NewWithConfig(context.Background(), c)
}

// learn asks a new connection's server for its version and clock.
func learn(ctx context.Context, c *pgx.Conn) error {
	f := &facts{}
	c.PgConn().CustomData()[factsKey] = f
	err := c.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, rolsuper,
		CASE WHEN current_setting('server_version_num')::int >= 140000 THEN set_config('client_connection_check_interval', $1, false) ELSE '' END <> '-'
		FROM pg_roles WHERE rolname = current_user`, clientCheckMS).Scan(&f.version, &f.superuser, new(bool))
	if err != nil {
		return err
	}
	return f.measure(ctx, c)
}

func (f *facts) measure(ctx context.Context, c *pgx.Conn) error {
	var theirs time.Time
	if err := c.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&theirs); err != nil {
		return err
	}
	now := time.Now()
	f.offset, f.measured = theirs.Sub(now), now
	return nil
}

// acquire takes a connection from a pool, with a clock offset that is fresh. The
// error is of kind Unreachable or Refused: nothing was sent.
func acquire(ctx context.Context, p *pgxpool.Pool) (*pgxpool.Conn, *facts, error) {
	c, err := p.Acquire(ctx)
	if err != nil {
		return nil, nil, connectError(err)
	}
	f := factsOf(c.Conn())
	if time.Since(f.measured) > clockAge {
		if err := f.measure(ctx, c.Conn()); err != nil {
			c.Release()
			return nil, nil, connectError(err)
		}
	}
	return c, f, nil
}

// database returns the pool for a database, main or other, for work that ends
// leases or keeps house.
func (s *server) database(name string) (*pgxpool.Pool, error) {
	if name == s.main {
		return s.end, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, &issuers.Error{Kind: issuers.Unreachable, Detail: "the issuer is closed"}
	}
	if p, ok := s.side[name]; ok {
		return p, nil
	}
	p, err := s.newPool(name, sideConns)
	if err != nil {
		return nil, connectError(err)
	}
	s.side[name] = p
	return p, nil
}

func (s *server) close() {
	s.mu.Lock()
	s.closed = true
	pools := []*pgxpool.Pool{s.mint, s.end}
	for _, p := range s.side {
		pools = append(pools, p)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range pools { // side by side: on a hanging server each takes the driver 15 s
		wg.Go(p.Close)
	}
	wg.Wait()
}

// run sends SQL text, several statements at once if need be, as one message: one
// transaction, unless the text itself says otherwise.
func run(ctx context.Context, c *pgx.Conn, sql string) ([]*pgconn.Result, error) {
	return c.PgConn().Exec(ctx, sql).ReadAll()
}

// literal quotes a string. It fails where the session's settings would make the
// quoting unsafe.
func literal(c *pgx.Conn, s string) (string, error) {
	escaped, err := c.PgConn().EscapeString(s)
	return "'" + escaped + "'", err
}
