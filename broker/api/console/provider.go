package console

import (
	"net/http"
	"net/url"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

// leaveBody is the page that leads to a provider.
type leaveBody struct{ Method, URL string }

// leaveForProvider sends the browser to the provider's page. It does so by a page
// of its own, for browsers hold a redirect after a form to the policy's
// form-action too, and that stays 'self'.
func (s *Console) leaveForProvider(x *exchange) error {
	method := x.form("method")
	start, err := x.engine.BeginSignIn(x.r.Context(), broker.SignInRequest{Method: method, Origin: s.origins[normalHost(x.r.Host)], To: localPath(x.form("to"))})
	if err != nil {
		return s.signInAgain(x, err)
	}
	setSignIn(x.w, start.Ticket, start.Until)
	return x.show("leave", page{Title: "Sign in", Nav: "signin", Body: leaveBody{Method: method, URL: start.URL}})
}

// cameBack says whether a provider has sent back somebody who left from here.
func cameBack(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Path == broker.SignInPath && len(r.CookiesNamed(cookieSignIn)) == 1
}

// comeBack takes what the provider answered. Only the browser that left has the
// cookie with the ticket of this answer's state: whoever is led here with another
// person's code is signed in as nobody.
func (s *Console) comeBack(x *exchange) error {
	q, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil {
		return s.signInAgain(x, fault.New(fault.Invalid, "signin_answer", "The provider's answer cannot be read. Start again."))
	}
	in := broker.SignInAnswer{Address: x.caller.Address}
	for name, field := range map[string]*string{"state": &in.State, "code": &in.Code, "iss": &in.Issuer, "error": &in.Error} {
		if len(q[name]) > 1 { // RFC 6749 §3.1
			return s.signInAgain(x, fault.New(fault.Invalid, "signin_answer", "The provider's answer has %s twice. Start again.", name))
		}
		*field = q.Get(name)
	}
	if cookies := x.r.CookiesNamed(cookieSignIn); len(cookies) == 1 {
		in.Ticket = cookies[0].Value
	}
	dropSignIn(x.w)
	out, to, err := x.engine.FinishSignIn(x.r.Context(), in)
	if err != nil {
		return s.signInAgain(x, err)
	}
	return s.welcome(x, out, localPath(to))
}

// setSignIn hands the ticket to the browser. SameSite is Lax here: the
// provider's page leads back, and a Strict cookie would stay behind on that way.
// It opens nothing without the code that comes with it.
func setSignIn(w http.ResponseWriter, ticket string, until time.Time) {
	http.SetCookie(w, &http.Cookie{Name: cookieSignIn, Value: ticket, Path: "/", Expires: until, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func dropSignIn(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: cookieSignIn, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}
