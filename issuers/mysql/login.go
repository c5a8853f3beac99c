package mysql

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"time"

	driverpkg "github.com/go-sql-driver/mysql"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Errors of a login that follow on the secret's being right: the server checks
// them after it.
const (
	codePasswordExpired = 1862 // must change: the login ends here
	codeMustChange      = 1820 // must change: the session may do nothing else
	codeUserLimit       = 1203 // too many connections of this account
	codeResourceLimit   = 1226 // too many logins of it per hour
)

// excuseTimeout bounds the look for another reason of a refusal.
const excuseTimeout = 2 * time.Second

// TryLogin implements [issuers.Rotator]. The server says 1045 of a wrong secret,
// and also of an account that does not exist or whose REQUIRE is not met; where an
// admin connection can be had, it is asked for that.
func (is *Issuer) TryLogin(ctx context.Context, username string, candidate secret.Text) error {
	if err := checkUser(username); err != nil {
		return &issuers.Error{Kind: issuers.Unknown, Detail: err.Error()}
	}
	if candidate.IsZero() {
		return &issuers.Error{Kind: issuers.Unknown, Detail: "the server was not asked: an empty secret proves nothing"}
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c := is.server.base.Clone()
	c.User, c.Passwd, c.MultiStatements, c.ConnectionAttributes = username, candidate.Reveal(), false, "program_name:mayfly"
	var reached bool
	c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		reached = reached || err == nil
		return conn, err
	}
	connector, err := driverpkg.NewConnector(c)
	if err != nil {
		return &issuers.Error{Kind: issuers.Unknown, Detail: "prepare a login", Err: err}
	}
	var conn driver.Conn
	conn, err = connector.Connect(ctx)
	for n := 0; n < 3 && errors.Is(err, driverpkg.ErrMalformPkt); n++ { // see connector.Connect
		conn, err = connector.Connect(ctx)
	}
	if err == nil {
		_ = conn.Close() // the server's answer stands
		return nil
	}
	e := &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("log in as %q", username), Err: err}
	switch code := codeOf(err); {
	case code == codePasswordExpired || code == codeMustChange || code == codeUserLimit || code == codeResourceLimit:
		return nil
	case !reached:
		e.Kind, e.Detail = issuers.Unreachable, "cannot connect"
	case code == codeHandshakeDenied:
		e.Kind = issuers.Refused
		if why := is.excuse(ctx, username); why != "" {
			e.Kind, e.Detail = issuers.Unknown, fmt.Sprintf("log in as %q: %s", username, why)
		}
	}
	return e
}

// excuse looks, where an admin connection can be had, for a reason why the server
// turns every secret of an account down.
func (is *Issuer) excuse(ctx context.Context, username string) string {
	ctx, cancel := context.WithTimeout(ctx, excuseTimeout)
	defer cancel()
	c, err := is.server.acquire(ctx, is.server.end)
	if err != nil {
		return ""
	}
	defer c.release()
	// what an entry requires of a connection: 0 and 1 are nothing and TLS
	query := "SELECT COUNT(*), COALESCE(MIN(COALESCE(JSON_VALUE(Priv, '$.ssl_type'), 0) + 0), 0) FROM mysql.global_priv WHERE User = " + quote(username)
	if c.mysql {
		query = "SELECT COUNT(*), COALESCE(MIN(CASE ssl_type WHEN '' THEN 0 WHEN 'ANY' THEN 1 ELSE 2 END), 0) FROM mysql.user WHERE User = " + quote(username)
	}
	var entries, required int
	switch err := c.QueryRowContext(ctx, query).Scan(&entries, &required); {
	case err != nil:
	case entries == 0:
		return "there is no such account"
	case required > 1, required == 1 && is.server.base.TLS == nil:
		return "the account requires TLS or a client certificate, which this target's connections do not have"
	}
	return ""
}
