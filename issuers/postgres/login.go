package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// codeWrongPassword is what the server says of a wrong secret. It says the same of
// an account that does not exist, or whose VALID UNTIL has passed.
const codeWrongPassword = "28P01"

// excuseTimeout bounds the look for another reason of a refusal.
const excuseTimeout = 2 * time.Second

// TryLogin implements [issuers.Rotator], in the target's main database. What
// counts is the server's word on the secret, AuthenticationOk: an error after it (no
// CONNECT, NOLOGIN, the account's connection limit) does not take it back. A login
// for which the server asks no secret (trust, cert, peer) proves nothing.
func (is *Issuer) TryLogin(ctx context.Context, username string, candidate secret.Text) error {
	if err := checkIdentifier("account", username); err != nil {
		return &issuers.Error{Kind: issuers.Unknown, Detail: err.Error()}
	}
	if plain := candidate.Reveal(); plain == "" || strings.ContainsRune(plain, 0) {
		return &issuers.Error{Kind: issuers.Unknown, Detail: "the server was not asked: it takes no empty secret and none with NUL"}
	}
	c := is.server.base.ConnConfig.Copy()
	c.User, c.Password = username, candidate.Reveal()
	c.RuntimeParams = map[string]string{"application_name": appName(is.term)}
	c.RequireAuth = "password,md5,scram-sha-256"
	heard := &listener{}
	c.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		heard.Reader, heard.reached = r, true
		f := pgproto3.NewFrontend(heard, w)
		f.SetMaxBodyLen(maxLoginMessage)
		return f
	}
	conn, err := pgconn.ConnectConfig(ctx, &c.Config)
	if err == nil {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), excuseTimeout)
		defer cancel()
		_ = conn.Close(end) // the server's answer stands
		return nil
	}
	e := &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("log in as %q", username), Err: err}
	switch {
	case heard.accepted && codeOf(err) != "":
		return nil
	case !heard.reached:
		e.Kind, e.Detail = issuers.Unreachable, "cannot connect"
	case codeOf(err) == codeWrongPassword:
		e.Kind = issuers.Refused
		if why := is.excuse(ctx, username); why != "" {
			e.Kind, e.Detail = issuers.Unknown, fmt.Sprintf("log in as %q: %s", username, why)
		}
	case heard.accepted:
		e.Detail += ": the server asks for no secret, or ended the connection"
	}
	return e
}

// excuse looks, where an admin connection can be had, for a reason why the server
// turns every secret of an account down.
func (is *Issuer) excuse(ctx context.Context, username string) string {
	ctx, cancel := context.WithTimeout(ctx, excuseTimeout)
	defer cancel()
	conn, _, err := acquire(ctx, is.server.end)
	if err != nil {
		return ""
	}
	defer conn.Release()
	var expired bool
	err = conn.QueryRow(ctx, "SELECT coalesce(rolvaliduntil <= clock_timestamp(), false) FROM pg_roles WHERE rolname = $1", username).Scan(&expired)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "there is no such account"
	case err == nil && expired:
		return "the account's VALID UNTIL has passed, so that no secret is taken; ALTER ROLE " + ident(username) + " VALID UNTIL 'infinity'"
	}
	return ""
}

// maxLoginMessage bounds one message of a server during the login.
const maxLoginMessage = 64 << 10

// listener reads a server's messages along, up to AuthenticationOk (PostgreSQL
// documentation, "Message Formats": a type, the length, and for 'R' a code).
type listener struct {
	io.Reader
	reached  bool // the server answers: its messages are being read
	accepted bool // it has said AuthenticationOk
	head     []byte
	skip     uint32
}

// Read implements [io.Reader].
func (l *listener) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	l.hear(p[:n])
	return n, err
}

func (l *listener) hear(b []byte) {
	for len(b) > 0 && !l.accepted {
		if l.skip > 0 {
			n := min(int(l.skip), len(b))
			l.skip, b = l.skip-uint32(n), b[n:]
			continue
		}
		l.head, b = append(l.head, b[0]), b[1:]
		switch {
		case len(l.head) == 5 && l.head[0] != 'R':
			l.skip, l.head = max(binary.BigEndian.Uint32(l.head[1:]), 4)-4, l.head[:0]
		case len(l.head) == 9:
			l.accepted = binary.BigEndian.Uint32(l.head[5:]) == 0
			l.skip, l.head = max(binary.BigEndian.Uint32(l.head[1:]), 8)-8, l.head[:0]
		}
	}
}
