package mysql

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	driverpkg "github.com/go-sql-driver/mysql"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Sizes and times of the connections of one target.
const (
	endLanes       = 3 // connections kept for withdrawal and upkeep, so that slow mints never starve them (HAZARDS 17)
	connectTimeout = 5 * time.Second
	clockAge       = time.Minute // how long a measured clock offset is believed
	ourIdle        = time.Minute
	serverIdle     = 2 * time.Minute
)

// server holds the connections to one server.
type server struct {
	base  *driverpkg.Config
	term  uint64
	admin string
	mint  *sql.DB
	end   *sql.DB

	mu    sync.Mutex
	known *dialect
}

func newServer(s spec, t issuers.Target) (*server, error) {
	c := driverpkg.NewConfig()
	c.User, c.Passwd = s.Admin.Username, t.Secrets[SecretPassword].Reveal()
	c.Net, c.Addr, c.Timeout = "tcp", s.Address, connectTimeout
	c.Collation, c.InterpolateParams, c.MultiStatements = "utf8mb4_general_ci", true, true
	c.Logger = silent{} // it would write to stderr
	// for people who look at the server's connections, where it shows them
	c.ConnectionAttributes = "program_name:mayfly,mayfly_term:" + strconv.FormatUint(t.Term, 10)
	var err error
	if c.TLS, err = tlsConfig(s); err != nil {
		return nil, err
	}
	srv := &server{base: c, term: t.Term, admin: s.Admin.Username}
	if srv.mint, err = srv.pool(s.MaxConnections, true); err != nil {
		return nil, err
	}
	srv.end, err = srv.pool(endLanes, true)
	return srv, err
}

type silent struct{}

// Print implements the driver's Logger. What the driver has to say comes back as
// an error too.
func (silent) Print(...any) {}

func tlsConfig(s spec) (*tls.Config, error) {
	if s.TLS.Mode == tlsDisable {
		return nil, nil
	}
	c := &tls.Config{ServerName: s.TLS.ServerName, MinVersion: tls.VersionTLS12}
	if c.ServerName == "" {
		c.ServerName = s.host
	}
	ca := []byte(s.TLS.CA)
	if s.TLS.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(s.TLS.CAFile); err != nil {
			return nil, fmt.Errorf("mysql: tls.ca_file: %w", err)
		}
	}
	if len(ca) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("mysql: tls: the CA holds no PEM certificate")
		}
	}
	return c, nil
}

// pool opens a pool of connections. Those of registered pools stand in the
// broker's table with their term, for Fence.
func (s *server) pool(size int, registered bool) (*sql.DB, error) {
	base, err := driverpkg.NewConnector(s.base)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(&connector{server: s, base: base, registered: registered})
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	db.SetConnMaxIdleTime(ourIdle)
	db.SetConnMaxLifetime(30 * time.Minute)
	return db, nil
}

// close ends all connections, those in use when their call is done.
func (s *server) close() error {
	return errors.Join(s.mint.Close(), s.end.Close())
}

// connector prepares each new connection before anybody uses it.
type connector struct {
	server     *server
	base       driver.Connector
	registered bool
}

// Driver implements [driver.Connector].
func (c *connector) Driver() driver.Driver { return c.base.Driver() }

// Connect implements [driver.Connector].
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.login(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := c.prepare(ctx, raw{conn}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// login opens a connection. The driver's own timeout ends with the dialling: whatever
// takes connections and does not greet, as another kind of server does not, would be
// waited for as long as the caller has time.
func (c *connector) login(ctx context.Context) (driver.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := c.base.Connect(ctx)
	// The driver takes a zero at the end of an Ed25519 challenge for a terminator:
	// one login in 256 fails before anything was answered.
	for n := 0; n < 3 && errors.Is(err, driverpkg.ErrMalformPkt); n++ {
		conn, err = c.base.Connect(ctx)
	}
	return conn, err
}

func (c *connector) prepare(ctx context.Context, r raw) error {
	d, err := r.learn(ctx)
	if err != nil {
		return err
	}
	if err := r.exec(ctx, d.sessionSQL()); err != nil {
		return err
	}
	if ok, need := d.supported(); c.registered && !ok {
		return refused("%s; this one is %.40q", need, d.text)
	}
	c.server.mu.Lock()
	c.server.known = &d
	c.server.mu.Unlock()
	if !c.registered {
		return nil
	}
	register := registerSQL(d, c.server.admin, c.server.term)
	err = r.exec(ctx, register)
	switch codeOf(err) {
	case codeNoSuchTable, codeNoSuchDatabase, codeTableDenied, codeDatabaseDenied:
		if e := r.exec(ctx, schemaSQL); e != nil {
			return e
		}
		return r.exec(ctx, register)
	}
	return err
}

// raw is a driver's connection before database/sql has it.
type raw struct{ driver.Conn }

func (r raw) exec(ctx context.Context, text string) error {
	x, ok := r.Conn.(driver.ExecerContext)
	if !ok {
		return errors.New("mysql: the driver cannot execute")
	}
	_, err := x.ExecContext(ctx, text, nil)
	return err
}

// row returns a query's first row as text, nil if there is none.
func (r raw) row(ctx context.Context, text string) ([]string, error) {
	x, ok := r.Conn.(driver.QueryerContext)
	if !ok {
		return nil, errors.New("mysql: the driver cannot query")
	}
	rows, err := x.QueryContext(ctx, text, nil)
	if err != nil {
		return nil, err
	}
	values := make([]driver.Value, len(rows.Columns()))
	err = rows.Next(values)
	if e := rows.Close(); e != nil {
		return nil, e
	}
	if err != nil { // no row
		return nil, nil
	}
	out := make([]string, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case []byte:
			out[i] = string(v)
		case nil:
		default:
			out[i] = fmt.Sprint(v)
		}
	}
	return out, nil
}

// nowSQL is the server's clock in microseconds since 1970. SYSDATE, unlike NOW,
// is the instant at which it is evaluated.
const nowSQL = "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS UNSIGNED)"

// meSQL is the admin account as information_schema writes a grantee.
const meSQL = `CONCAT('\'', SUBSTRING_INDEX(CURRENT_USER(), '@', CHAR_LENGTH(CURRENT_USER()) - CHAR_LENGTH(REPLACE(CURRENT_USER(), '@', ''))), '\'@\'', SUBSTRING_INDEX(CURRENT_USER(), '@', -1), '\'')`

// learn asks a new connection's server for its version, rights and clock.
func (r raw) learn(ctx context.Context) (dialect, error) {
	row, err := r.row(ctx, "SELECT VERSION()")
	if err != nil || len(row) != 1 {
		return dialect{}, errors.Join(err, needRow(row))
	}
	d, err := parseVersion(row[0])
	if err != nil {
		return d, err
	}
	if d.mysql {
		if row, err = r.row(ctx, "SHOW VARIABLES LIKE 'partial_revokes'"); err != nil {
			return d, err
		}
		d.literalDatabases = len(row) == 2 && strings.EqualFold(row[1], "ON")
		d.defaultRoles = true // CREATE USER is enough
	} else {
		row, err = r.row(ctx, "SELECT (SELECT COUNT(*) FROM information_schema.user_privileges WHERE privilege_type = 'UPDATE' AND grantee = "+meSQL+
			") + (SELECT COUNT(*) FROM information_schema.schema_privileges WHERE privilege_type = 'UPDATE' AND 'mysql' LIKE table_schema AND grantee = "+meSQL+")")
		if err != nil || len(row) != 1 {
			return d, errors.Join(err, needRow(row))
		}
		d.defaultRoles = row[0] != "0"
	}
	row, err = r.row(ctx, "SELECT "+nowSQL)
	if err != nil || len(row) != 1 {
		return d, errors.Join(err, needRow(row))
	}
	return d, d.measure(row[0])
}

func needRow(row []string) error {
	if row == nil {
		return errors.New("the server gave no answer")
	}
	return nil
}

func (d *dialect) measure(micros string) error {
	n, err := strconv.ParseInt(micros, 10, 64)
	if err != nil {
		return err
	}
	now := time.Now()
	d.offset, d.measured = time.UnixMicro(n).Sub(now), now
	return nil
}

// acquire takes a connection from a pool, with a clock offset that is fresh. The
// error is of kind Unreachable or Refused: nothing was sent.
func (s *server) acquire(ctx context.Context, db *sql.DB) (*conn, error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return nil, connectError(err)
	}
	s.mu.Lock()
	d := *s.known
	s.mu.Unlock()
	if time.Since(d.measured) > clockAge {
		var micros string
		err := c.QueryRowContext(ctx, "SELECT "+nowSQL).Scan(&micros)
		if err == nil {
			err = d.measure(micros)
		}
		if err != nil {
			return nil, errors.Join(connectError(err), c.Close())
		}
		s.mu.Lock()
		s.known = &d
		s.mu.Unlock()
	}
	return &conn{Conn: c, dialect: d}, nil
}

// conn is a connection in use, and what its server is.
type conn struct {
	*sql.Conn
	dialect
}

// run executes SQL text, several statements at once if need be, as one message.
// The server stops at the first that fails; those before it have taken effect.
func (c *conn) run(ctx context.Context, statements ...string) error {
	_, err := c.ExecContext(ctx, strings.Join(statements, ";\n"))
	return err
}

// release gives the connection back without locks and limits, or ends it.
func (c *conn) release() {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	if err := c.run(ctx, "DO RELEASE_ALL_LOCKS()", c.sessionSQL()); err != nil {
		_ = c.Raw(func(any) error { return driver.ErrBadConn }) // ends it, and its locks with it
	}
	_ = c.Close()
}

// list returns the first column of a query.
func (c *conn) list(ctx context.Context, query string, args ...any) ([]string, error) {
	rows, err := c.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}
