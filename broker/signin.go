package broker

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/identity"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// SignInPath is where providers send browsers back to, under the first external
// URL that has a name.
const SignInPath = "/signin/oidc/callback"

// Bounds on signing in by a provider.
const (
	// signInFor is how long a person may take at the provider.
	signInFor = 5 * time.Minute
	// maxSignIns is how many sign-ins are remembered as used; in five minutes no
	// front lets as many through.
	maxSignIns = 100_000
	// maxSignInTicket keeps the cookie below what every browser keeps (4 KiB).
	maxSignInTicket = 3 << 10
	// maxReturn bounds the page to go to afterwards.
	maxReturn = 1 << 10
	// maxProviderCalls is how many people wait for providers at once, so that a
	// slow one takes neither the broker's memory nor its sockets.
	maxProviderCalls = 32
)

// SignInRequest asks to sign in by a method's provider.
type SignInRequest struct {
	Method string
	Origin string // of the page, such as https://mayfly.example
	To     string // a page of the console to go to afterwards
}

// SignInStart is where to send the browser, and what it must bring back.
type SignInStart struct {
	URL string
	// Ticket goes into a cookie of this very browser: a code without it opens
	// nothing, so that nobody can be signed in as somebody else. It is good
	// until Until, once, in this process.
	Ticket string
	Until  time.Time
}

// SignInAnswer is what the provider sent the browser back with, and the ticket
// that the browser had.
type SignInAnswer struct {
	Ticket, State, Code, Issuer, Error string
	Address                            string
}

// SignIns runs the sign-ins by providers' own pages (OpenID Connect Core §3.1,
// with PKCE). It keeps no state but which were finished. It is safe for
// concurrent use.
type SignIns struct {
	base   string // the console's origin; empty: no external URL has a name
	clock  func() time.Time
	http   *http.Client
	secret [32]byte // of this process
	calls  chan struct{}

	mu      sync.Mutex
	spent   map[string]int64 // states that came back, until when they would live
	parties map[string]party
}

type party struct {
	version uint64
	*identity.RelyingParty
}

// NewSignIns returns the sign-ins of a console under the external URLs.
func NewSignIns(urls []string, clock func() time.Time, client *http.Client) *SignIns {
	s := &SignIns{clock: clock, http: client, calls: make(chan struct{}, maxProviderCalls), spent: map[string]int64{}, parties: map[string]party{}}
	_, _ = rand.Read(s.secret[:]) // never fails (crypto/rand)
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil && s.base == "" && u.Scheme == "https" && u.Hostname() != "" && net.ParseIP(u.Hostname()) == nil {
			s.base = "https://" + strings.TrimSuffix(strings.ToLower(u.Host), ":443")
		}
	}
	return s
}

// signInTicket is what the browser keeps. It holds no secret: nonce and verifier
// come from the state, by this process's key.
type signInTicket struct {
	Method  string `json:"method"`
	Version uint64 `json:"version"` // of the AuthMethod
	State   string `json:"state"`
	To      string `json:"to"`
	Until   int64  `json:"until_ms"`
}

// request is what the provider is told for a ticket's state.
func (s *SignIns) request(state string) identity.AuthRequest {
	return identity.AuthRequest{RedirectURI: s.base + SignInPath, State: state, Nonce: encode64(s.mac("nonce", state)), Verifier: encode64(s.mac("verifier", state))}
}

func (s *SignIns) mac(what, text string) []byte {
	m := hmac.New(sha256.New, s.secret[:])
	m.Write([]byte("signin." + what + "\x00" + text))
	return m.Sum(nil)
}

// Begin starts a sign-in by the AuthMethod o, whose client has clientSecret, or
// none.
func (s *SignIns) Begin(ctx context.Context, o ledger.Object, clientSecret secret.Text, in SignInRequest) (SignInStart, error) {
	switch {
	case s.base == "":
		return SignInStart{}, fault.New(fault.Unavailable, "signin_needs_a_name", "Providers send browsers back to a name, and no external URL has one. Sign in another way.")
	case in.Origin != s.base:
		return SignInStart{}, fault.New(fault.Invalid, "signin_elsewhere", "The provider sends you back to %s. Open the console there, and sign in.", s.base)
	}
	p, err := s.party(o, clientSecret)
	if err != nil {
		return SignInStart{}, err
	}
	leave, err := s.enter()
	if err != nil {
		return SignInStart{}, err
	}
	defer leave()
	now := s.clock()
	until := now.Add(signInFor)
	t := signInTicket{Method: o.Name, Version: o.Version, State: encode64(random32()), To: in.To, Until: until.UnixMilli()}
	if len(t.To) > maxReturn {
		t.To = "/"
	}
	to, err := p.AuthURL(ctx, s.request(t.State), now)
	if err != nil {
		return SignInStart{}, err
	}
	body, err := json.Marshal(t)
	if err != nil {
		return SignInStart{}, err
	}
	return SignInStart{URL: to, Ticket: encode64(body) + "." + encode64(s.mac("ticket", string(body))), Until: until}, nil
}

func random32() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}

// Finish checks what came back and says whom the provider names, and where the
// person wanted to go. find returns an AuthMethod and its client's secret.
func (s *SignIns) Finish(ctx context.Context, in SignInAnswer, find func(method string) (ledger.Object, secret.Text, error)) (who identity.Attested, to string, err error) {
	t, err := s.open(in)
	if err != nil {
		return who, "", err
	}
	o, clientSecret, err := find(t.Method)
	if err != nil {
		return who, "", err
	}
	if o.Version != t.Version {
		return who, "", fault.New(fault.Unauthenticated, "signin_late", "The way to sign in was changed meanwhile. Start again.")
	}
	p, err := s.party(o, clientSecret)
	if err != nil {
		return who, "", err
	}
	leave, err := s.enter()
	if err != nil {
		return who, "", err
	}
	defer leave()
	who, err = p.Redeem(ctx, s.request(t.State), identity.AuthAnswer{Code: in.Code, Issuer: in.Issuer, Error: in.Error}, s.clock())
	if err != nil {
		return identity.Attested{}, "", err
	}
	if !strings.HasPrefix(who.Principal, "human:") {
		return identity.Attested{}, "", fault.New(fault.Denied, "not_a_person", "The provider names %s, and only people use the console.", who.Principal)
	}
	return who, t.To, nil
}

// open accepts a ticket of this process once, with the state that was sent with it.
func (s *SignIns) open(in SignInAnswer) (t signInTicket, err error) {
	late := fault.New(fault.Unauthenticated, "signin_late", "This sign-in was not begun in this browser, took too long, was done twice, or its node leads no more. Start again.")
	head, tail, _ := strings.Cut(in.Ticket, ".")
	body, err1 := decode64(head)
	sum, err2 := decode64(tail)
	if len(in.Ticket) > maxSignInTicket || err1 != nil || err2 != nil || !hmac.Equal(sum, s.mac("ticket", string(body))) {
		return t, late
	}
	now := s.clock().UnixMilli()
	if json.Unmarshal(body, &t) != nil || t.Until < now || !hmac.Equal([]byte(t.State), []byte(in.State)) {
		return t, late
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spent) >= maxSignIns {
		for k, until := range s.spent {
			if until < now {
				delete(s.spent, k)
			}
		}
	}
	if _, used := s.spent[t.State]; used || len(s.spent) >= maxSignIns {
		return t, late
	}
	s.spent[t.State] = t.Until
	return t, nil
}

// enter takes a turn at asking a provider.
func (s *SignIns) enter() (leave func(), err error) {
	select {
	case s.calls <- struct{}{}:
		return func() { <-s.calls }, nil
	default:
		e := fault.New(fault.RateLimited, "signin_busy", "Too many people are signing in at this moment. Try again.")
		e.RetryAfter = time.Second
		return nil, e
	}
}

// party returns the relying party of an AuthMethod, kept until it changes.
func (s *SignIns) party(o ledger.Object, clientSecret secret.Text) (*identity.RelyingParty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cur, ok := s.parties[o.Name]; ok && cur.version == o.Version {
		return cur.RelyingParty, nil
	}
	method, err := identity.ParseMethod(o.Name, o.Spec)
	if err != nil {
		return nil, err
	}
	p, err := identity.NewRelyingParty(method, clientSecret, identity.Deps{HTTP: s.http, ReadFile: os.ReadFile})
	if err != nil {
		return nil, err
	}
	s.parties[o.Name] = party{o.Version, p}
	return p, nil
}

// clientSecretField is where an AuthMethod's client secret is sealed.
const clientSecretField = "client_secret"

// SignInMethods lists the AuthMethods by which people can sign in to the
// console, in their order of names. Visitors see them.
func (e *Engine) SignInMethods(context.Context) (names []string, err error) {
	err = e.view(func(q ledger.Query) error {
		for _, o := range q.Objects(ledger.KindAuthMethod) {
			var spec struct {
				Console json.RawMessage `json:"console"`
			}
			if json.Unmarshal(o.Spec, &spec) == nil && len(spec.Console) > 0 {
				names = append(names, o.Name)
			}
		}
		return nil
	})
	return names, err
}

// signInMethod finds an AuthMethod with its client's secret.
func (e *Engine) signInMethod(name string) (o ledger.Object, clientSecret secret.Text, err error) {
	err = e.view(func(q ledger.Query) error {
		var ok bool
		if o, ok = q.Object(ledger.KindAuthMethod, name); !ok {
			return fault.New(fault.Unauthenticated, "method_unknown", "There is no such way to sign in.")
		}
		clientSecret = secret.New(string(q.Secret(ledger.KindAuthMethod, name, clientSecretField)))
		return nil
	})
	return o, clientSecret, err
}

// BeginSignIn starts a sign-in by a provider's own page.
func (e *Engine) BeginSignIn(ctx context.Context, in SignInRequest) (SignInStart, error) {
	o, clientSecret, err := e.signInMethod(in.Method)
	if err != nil {
		return SignInStart{}, err
	}
	return e.signIns.Begin(ctx, o, clientSecret, in)
}

// FinishSignIn opens a session, bound to a cookie, for whom the provider names.
// It returns where the person wanted to go.
func (e *Engine) FinishSignIn(ctx context.Context, in SignInAnswer) (wire.LoginAnswer, string, error) {
	who, to, err := e.signIns.Finish(ctx, in, e.signInMethod)
	if err != nil {
		return wire.LoginAnswer{}, "", err
	}
	out, err := e.openCookie(ctx, ledger.OpenSession{Session: ledger.Session{Principal: who.Principal, Instance: who.Instance, Method: who.Method,
		Facts: who.Facts, ExpiresMS: who.ExpiresAt.UnixMilli()}}, in.Address)
	if fault.KindOf(err) == fault.NotFound {
		err = fault.New(fault.Unauthenticated, "principal_unknown", "The provider names %s, who is no principal here. An operator can add it.", who.Principal)
	}
	return out, to, err
}
