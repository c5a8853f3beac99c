package console

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// The cookies. The prefix makes browsers refuse them from another host, another
// path or an open connection (RFC 6265bis §4.1.3.2).
const (
	cookieSession = "__Host-mayfly"
	cookieTheme   = "__Host-mayfly-theme"
	cookieSignIn  = "__Host-mayfly-signin"
)

// binding marks sessions that a cookie carries: the console takes no others, and
// the API takes none of these.
const binding = "cookie"

// maxToken bounds what is looked up.
const maxToken = 256

// visitor is who asks for a page.
type visitor struct {
	engine Engine
	caller broker.Caller
	token  secret.Text
	// me is nil for whoever has not signed in.
	me *wire.Whoami
	// size is the ledger's before anything was read for the page: what comes
	// later may be missing there, and the page's stream tells of it.
	size uint64
}

// signedIn reports whether there is a session.
func (v *visitor) signedIn() bool { return v.me != nil }

// csrf is the token that forms of this session carry. It comes from the session's
// token alone, so that any node can check it.
func (v *visitor) csrf() string {
	if v.token.IsZero() {
		return ""
	}
	m := hmac.New(sha256.New, []byte(v.token.Reveal()))
	m.Write([]byte("csrf"))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// checkCSRF compares a form's token with the session's.
func (v *visitor) checkCSRF(given string) error {
	if !v.signedIn() || given == "" || subtle.ConstantTimeCompare([]byte(given), []byte(v.csrf())) != 1 {
		return fault.New(fault.Denied, "csrf", "This form is not of your present session. Load the page again and repeat what you did.")
	}
	return nil
}

// visitor reads the cookie. Whoever has none, or one that has ended, is a
// visitor without a session; other errors are the engine's.
func (s *Console) visitor(r *http.Request) (*visitor, error) {
	engine, err := s.cfg.Engine()
	if err != nil {
		return nil, err
	}
	v := &visitor{engine: engine, size: s.cfg.Node.Status().Size}
	v.caller.Address = clientIP(r)
	cookies := r.CookiesNamed(cookieSession)
	if len(cookies) != 1 || cookies[0].Value == "" || len(cookies[0].Value) > maxToken {
		return v, nil
	}
	token := secret.New(cookies[0].Value)
	ses, err := engine.Session(r.Context(), token.Reveal())
	if fault.KindOf(err) == fault.Unauthenticated {
		return v, err
	}
	if err != nil {
		return nil, err
	}
	if ses.Binding != binding {
		return v, fault.New(fault.Unauthenticated, "session_binding", "This session is bound to a key, not to a browser. Sign in here.")
	}
	return v, s.enter(r, v, ses, token)
}

func (s *Console) enter(r *http.Request, v *visitor, ses ledger.Session, token secret.Text) error {
	v.caller.Session, v.token = ses, token
	me, err := v.engine.Whoami(r.Context(), v.caller)
	if err != nil {
		return err
	}
	v.me = &me
	return nil
}

// setSession hands the session to the browser.
func setSession(w http.ResponseWriter, in wire.LoginAnswer) {
	http.SetCookie(w, &http.Cookie{Name: cookieSession, Value: in.SessionToken, Path: "/", Expires: in.ExpiresAt,
		Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
}

func dropSession(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: cookieSession, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
}

// themes are the looks that a person may choose; the first is the system's.
var themes = []string{"auto", "light", "dark"}

// theme returns the look that the cookie asks for.
func theme(r *http.Request) string {
	c, err := r.Cookie(cookieTheme)
	if errors.Is(err, http.ErrNoCookie) || c.Value != themes[1] && c.Value != themes[2] {
		return themes[0]
	}
	return c.Value
}

func setTheme(w http.ResponseWriter, name string) {
	http.SetCookie(w, &http.Cookie{Name: cookieTheme, Value: name, Path: "/", MaxAge: int((365 * 24 * time.Hour).Seconds()),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func clientIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
