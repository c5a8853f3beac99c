package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

const (
	loginTimeout = 20 * time.Second
	// renewShare of a session's life is left when it is renewed, at most
	// renewMost: early enough that no call meets its end on the way.
	renewShare = 5
	renewMost  = time.Minute
)

// session is an open session. The zero value is none.
type session struct {
	Type      string    `json:"type"` // DPoP or mTLS
	ID        string    `json:"id"`
	Principal string    `json:"principal"`
	Instance  string    `json:"instance,omitempty"`
	Method    string    `json:"method"`
	OpenedAt  time.Time `json:"opened_at"`
	ExpiresAt time.Time `json:"expires_at"`
	// For tells what the session was opened with: with other settings it must
	// not be used.
	For   string `json:"for"`
	token secret.Text
}

// storedSession is a session on disk, the token with it: the file has mode
// 0600, and without the key beside it the token opens nothing (law 7).
type storedSession struct {
	session
	Token string `json:"token"`
}

func (s session) usable(now time.Time) bool {
	return !s.token.IsZero() && now.Before(s.ExpiresAt)
}

// due reports whether the session should be renewed although it still works.
func (s session) due(now time.Time) bool {
	left := min(s.ExpiresAt.Sub(s.OpenedAt)/renewShare, renewMost)
	return now.Add(left).After(s.ExpiresAt)
}

// fingerprint says what a session depends on: cluster, key, and way of login.
// Where nothing is left to log in with, a session that was opened is not used
// either.
func (c *Client) fingerprint() string {
	way := ""
	if ev, err := c.evidence(); err == nil {
		way = ev.where
	}
	h := sha256.New()
	for _, part := range []string{way, strings.Join(c.nodes.configured, ","), c.key.Thumbprint(), c.x5t, c.cfg.Method, c.cfg.JWTFile, c.cfg.Principal, c.cfg.Audience} {
		sum := sha256.Sum256([]byte(part)) // fixed size, so that parts cannot run together
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// session returns a session that works, from memory, from the home, or by
// logging in.
func (c *Client) session(ctx context.Context) (session, error) {
	if s := c.current(); s.usable(time.Now()) && !s.due(time.Now()) {
		return s, nil
	}
	c.logins.Lock()
	defer c.logins.Unlock()
	if s := c.current(); s.usable(time.Now()) && !s.due(time.Now()) {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	if c.home != nil {
		release, err := c.home.Lock(ctx.Done(), "session")
		if err != nil {
			return session{}, err
		}
		defer release()
		if s := c.stored(); s.usable(time.Now()) && !s.due(time.Now()) {
			c.keep(s)
			return s, nil
		}
	}
	old := c.current()
	fresh, err := c.login(ctx)
	if err != nil {
		var e *Error
		if old.usable(time.Now()) && errors.As(err, &e) && e.Retryable() {
			return old, nil // it still works; renewing can wait
		}
		return session{}, err
	}
	return fresh, c.store(fresh)
}

// current returns the session in memory, or else the home's.
func (c *Client) current() session {
	c.mu.Lock()
	s := c.live
	c.mu.Unlock()
	if s.token.IsZero() {
		if s = c.stored(); !s.token.IsZero() {
			c.keep(s)
		}
	}
	return s
}

func (c *Client) keep(s session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live = s
}

// stored reads the home's session. One that is damaged, or was opened with
// other settings, counts as none: logging in replaces it.
func (c *Client) stored() session {
	if c.home == nil {
		return session{}
	}
	var f storedSession
	if err := c.home.ReadJSON(sessionName, &f); err != nil || f.For != c.fingerprint() {
		return session{}
	}
	f.token = secret.New(f.Token)
	return f.session
}

func (c *Client) store(s session) error {
	s.For = c.fingerprint()
	c.keep(s)
	if c.home == nil {
		return nil
	}
	err := c.home.WriteJSON(sessionName, storedSession{s, s.token.Reveal()})
	if errors.Is(err, fs.ErrPermission) {
		return nil // a read-only home: this process keeps its own
	}
	return err
}

// forget drops a session that the broker refused, unless another process has
// replaced it already.
func (c *Client) forget(refused session) {
	c.mu.Lock()
	if c.live.ID == refused.ID {
		c.live = session{}
	}
	c.mu.Unlock()
	if s := c.stored(); !s.token.IsZero() && s.ID == refused.ID {
		_ = c.home.Remove(sessionName) // what remains is refused again, and replaced then
	}
}

func opened(a wire.LoginAnswer, now time.Time) (session, error) {
	s := session{Type: a.TokenType, ID: a.SessionID, Principal: a.Principal, Instance: a.Instance, Method: a.Method, OpenedAt: now, ExpiresAt: a.ExpiresAt, token: secret.New(a.SessionToken)}
	if a.SessionToken == "" || (a.TokenType != "DPoP" && a.TokenType != "mTLS") {
		return session{}, newError(KindInternal, CodeBadAnswer, "The node's answer to the login holds no session.")
	}
	return s, nil
}

// Session describes the session that the next call would use, without logging
// in; ok is false if there is none.
func (c *Client) Session() (answer wire.LoginAnswer, ok bool) {
	s := c.current()
	if !s.usable(time.Now()) {
		return wire.LoginAnswer{}, false
	}
	return wire.LoginAnswer{TokenType: s.Type, SessionID: s.ID, Principal: s.Principal, Instance: s.Instance, Method: s.Method, ExpiresAt: s.ExpiresAt}, true
}
