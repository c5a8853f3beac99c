package awstest

import (
	"bytes"
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// What the stand-in's account holds from the start.
const (
	Account      = "123456789012"
	UsersRoleARN = "arn:aws:iam::" + Account + ":role/mayfly-users"
	BoundaryARN  = "arn:aws:iam::" + Account + ":policy/mayfly-boundary"
)

// IAM plays IAM, the part of STS that belongs to it, and a bucket, where there is
// no server that could: strictly, by the forms and codes of their API references.
// It is not AWS. Keys are known late, calls are throttled and answers lost as told.
type IAM struct {
	URL string
	// Broker is the key of the user that may assume UsersRoleARN and nothing else.
	Broker Keys

	mu       sync.Mutex
	users    map[string]*iamUser
	keys     map[string]*iamKey
	sessions map[string]*iamSession
	role     []string // the policies of UsersRoleARN
	quota    int
	delay    time.Duration
	forget   time.Duration
	looks    int
	calls    map[string]int
	throttle map[string]int
	lose     map[string]int
	hold     map[string]*Held
	stale    map[string]int
}

type iamUser struct {
	name, path, id, boundary string
	created                  time.Time
	tags                     map[string]string
	policies                 map[string]string
	attached                 int // managed policies, groups: what only a person attaches
}

func (u *iamUser) arn() string { return "arn:aws:iam::" + Account + ":user" + u.path + u.name }

type iamKey struct {
	id, secret, status, user string
	created, gone            time.Time // gone: since it is inactive, or deleted
}

// iamSession is a session of the role, or of a user by GetSessionToken.
type iamSession struct {
	id, secret, token, user, policy, name string
	issued, ends                          time.Time
}

// Held is a request that waits in front of the stand-in.
type Held struct {
	Arrived chan struct{}
	release chan struct{}
	Done    chan struct{} // closed when it has been answered, whether or not anybody listens
}

// Release lets it in.
func (h *Held) Release() { close(h.release) }

// NewIAM makes one whose role may do all that policy says.
func NewIAM(policies ...string) *IAM {
	s := &IAM{
		Broker: Keys{ID: "AKIA" + rand.Text()[:16], Secret: rand.Text()}, role: policies, quota: 5000,
		users: map[string]*iamUser{}, keys: map[string]*iamKey{}, sessions: map[string]*iamSession{},
		calls: map[string]int{}, throttle: map[string]int{}, lose: map[string]int{}, hold: map[string]*Held{}, stale: map[string]int{},
	}
	s.users["mayfly"] = &iamUser{name: "mayfly", path: "/", id: "AIDA" + rand.Text()[:17], created: time.Now(), tags: map[string]string{},
		policies: map[string]string{"own": `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"` + UsersRoleARN + `"}]}`}}
	s.keys[s.Broker.ID] = &iamKey{id: s.Broker.ID, secret: s.Broker.Secret, status: "Active", user: "mayfly", created: time.Now().Add(-time.Hour)}
	return s
}

// Serve answers under a certificate of ca's until closed.
func (s *IAM) Serve(ca *CA) (closer func(), err error) {
	s.URL, closer, err = ca.Serve(s)
	return closer, err
}

// Grant replaces the role's policies.
func (s *IAM) Grant(policies ...string) { s.set(func() { s.role = policies }) }

// Quota sets how many users there may be.
func (s *IAM) Quota(n int) { s.set(func() { s.quota = n }) }

// Propagate has new keys known only after delay, and only to some of the servers
// for as long again; and deleted ones for as long as forget.
func (s *IAM) Propagate(delay, forget time.Duration) {
	s.set(func() { s.delay, s.forget = delay, forget })
}

// Throttle turns the next n calls of an action away.
func (s *IAM) Throttle(action string, n int) { s.set(func() { s.throttle[action] = n }) }

// Lose has the next n calls of an action take effect and never answer.
func (s *IAM) Lose(action string, n int) { s.set(func() { s.lose[action] = n }) }

// Stale has the next n calls of GetUser or ListAccessKeys know nothing of it.
func (s *IAM) Stale(action string, n int) { s.set(func() { s.stale[action] = n }) }

func (s *IAM) isStale(action string) bool {
	if s.stale[action] == 0 {
		return false
	}
	s.stale[action]--
	return true
}

// Hold keeps the next call of an action in front of the door until released.
func (s *IAM) Hold(action string) *Held {
	h := &Held{Arrived: make(chan struct{}), release: make(chan struct{}), Done: make(chan struct{})}
	s.set(func() { s.hold[action] = h })
	return h
}

// Calls says how often an action came.
func (s *IAM) Calls(action string) (n int) { s.set(func() { n = s.calls[action] }); return n }

// Attach makes something that somebody else gave a user, and n -1 takes it away.
func (s *IAM) Attach(user string, n int) {
	s.set(func() {
		if u := s.users[user]; u != nil {
			u.attached += n
		}
	})
}

// Put makes a user that nobody here knows.
func (s *IAM) Put(name, path string, tags map[string]string) {
	s.set(func() {
		s.users[name] = &iamUser{name: name, path: path, id: "AIDA" + rand.Text()[:17], created: time.Now(), tags: tags, policies: map[string]string{}}
	})
}

// User is what the stand-in holds of one.
type User struct {
	Path, Boundary string
	Tags           map[string]string
	Policies       map[string]string
	Keys           []string
}

// Look returns a user; false where there is none.
func (s *IAM) Look(name string) (out User, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[name]
	if u == nil {
		return out, false
	}
	out = User{Path: u.path, Boundary: u.boundary, Tags: u.tags, Policies: u.policies}
	for _, k := range s.keysOf(name) {
		out.Keys = append(out.Keys, k.id)
	}
	return out, true
}

func (s *IAM) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// fault is an error as IAM and STS write it.
type fault struct {
	status        int
	code, message string
}

func no(status int, code, format string, args ...any) *fault {
	return &fault{status, code, fmt.Sprintf(format, args...)}
}

// caller is whose a request is.
type caller struct {
	arn       string
	documents [][]string // each of them must allow it
	user      string
	issued    time.Time // of a session
	token     bool
}

// ServeHTTP implements [http.Handler].
func (s *IAM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, err := url.ParseQuery(string(body))
	if err != nil {
		form = url.Values{}
	}
	action := form.Get("Action")
	s.mu.Lock()
	h := s.hold[action]
	delete(s.hold, action)
	s.mu.Unlock()
	if h != nil {
		defer close(h.Done)
		close(h.Arrived)
		<-h.release
	}
	s.mu.Lock()
	text, f, lost := s.answer(r, body, form)
	s.mu.Unlock()
	if lost {
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = c.Close()
			return
		}
		panic(http.ErrAbortHandler) // HTTP/2: the stream is reset
	}
	if f != nil {
		text = errorText(f)
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(f.status)
	}
	_, _ = io.WriteString(w, text)
}

func errorText(f *fault) string {
	return `<ErrorResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><Error><Type>Sender</Type><Code>` + f.code + `</Code><Message>` + escape(f.message) +
		`</Message></Error><RequestId>7a62c49f-347e-4fc4-9331-6e8eEXAMPLE</RequestId></ErrorResponse>`
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // to memory
	return b.String()
}

// answer authenticates, and hands over to the service that the request is signed for.
func (s *IAM) answer(r *http.Request, body []byte, form url.Values) (text string, f *fault, lost bool) {
	action := form.Get("Action")
	s.calls[action]++
	sig, err := readSignature(r)
	if err != nil {
		return "", no(http.StatusForbidden, "IncompleteSignature", "%v", err), false
	}
	who, f := s.authenticate(r, body, sig)
	if f != nil {
		return "", f, false
	}
	if sig.service == "s3" {
		text, f = s.bucket(r, who)
		return text, f, false
	}
	if s.throttle[action] > 0 {
		s.throttle[action]--
		return "", no(http.StatusBadRequest, "Throttling", "Rate exceeded"), false
	}
	d, known := calls[sig.service+":"+action]
	switch {
	case !known:
		return "", no(http.StatusBadRequest, "InvalidAction", "Could not find operation %s for version %s", action, form.Get("Version")), false
	case r.Method != http.MethodPost || r.URL.Path != "/" || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded"):
		return "", no(http.StatusBadRequest, "MalformedQueryString", "a POST of a form is wanted"), false
	}
	if f := d.check(sig.service, form); f != nil {
		return "", f, false
	}
	if f := s.authorise(who, sig.service, action, form); f != nil {
		return "", f, false
	}
	inner, f := d.do(s, who, form)
	if f != nil {
		return "", f, false
	}
	if s.lose[action] > 0 {
		s.lose[action]--
		return "", nil, true
	}
	space := map[string]string{"iam": "https://iam.amazonaws.com/doc/2010-05-08/", "sts": "https://sts.amazonaws.com/doc/2011-06-15/"}[sig.service]
	if inner != "" || d.result {
		inner = "<" + action + "Result>" + inner + "</" + action + "Result>"
	}
	return "<" + action + `Response xmlns="` + space + `">` + inner + "<ResponseMetadata><RequestId>7a62c49f-347e-4fc4-9331-6e8eEXAMPLE</RequestId></ResponseMetadata></" + action + "Response>", nil, false
}

// authenticate finds whose key signed.
func (s *IAM) authenticate(r *http.Request, body []byte, sig signature) (caller, *fault) {
	now := time.Now()
	unknown := no(http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid.")
	if d := now.Sub(sig.at); d > maxAge || d < -maxAge {
		return caller{}, no(http.StatusForbidden, "SignatureDoesNotMatch", "Signature expired: %s is now earlier than %s", sig.at, now.Add(-maxAge))
	}
	if session := s.sessions[sig.keyID]; session != nil {
		switch {
		case r.Header.Get("X-Amz-Security-Token") != session.token:
			return caller{}, unknown
		case !sig.valid(r, body, session.secret):
			return caller{}, no(http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")
		case now.After(session.ends):
			return caller{}, no(http.StatusForbidden, "ExpiredToken", "The security token included in the request is expired")
		}
		if session.user != "" {
			return s.asUser(session.user, session.issued), nil
		}
		return caller{arn: "arn:aws:sts::" + Account + ":assumed-role/mayfly-users/" + session.name, documents: [][]string{s.role, {session.policy}}, issued: session.issued, token: true}, nil
	}
	k := s.keys[sig.keyID]
	switch {
	case k == nil || r.Header.Get("X-Amz-Security-Token") != "" || !s.knows(k, now):
		return caller{}, unknown
	case !sig.valid(r, body, k.secret):
		return caller{}, no(http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")
	}
	return s.asUser(k.user, time.Time{}), nil
}

func (s *IAM) asUser(name string, issued time.Time) caller {
	c := caller{user: name, issued: issued, token: !issued.IsZero(), arn: "arn:aws:iam::" + Account + ":user/" + name, documents: [][]string{nil}}
	if u := s.users[name]; u != nil {
		c.arn = u.arn()
		for _, p := range u.policies {
			c.documents[0] = append(c.documents[0], p)
		}
		if u.boundary != "" {
			c.documents = append(c.documents, []string{`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}`})
		}
	}
	return c
}

// knows says whether the server that is asked this time has heard of the key.
func (s *IAM) knows(k *iamKey, now time.Time) bool {
	if !k.gone.IsZero() {
		return now.Before(k.gone.Add(s.forget))
	}
	age := now.Sub(k.created)
	s.looks++
	return age >= 2*s.delay || age >= s.delay && s.looks%2 == 0
}

// may asks the policies of a caller.
func (c caller) may(action, resource string, f facts) bool {
	f["aws:CurrentTime"] = time.Now().UTC().Format(time.RFC3339Nano)
	f["aws:ViaAWSService"] = "false"
	if c.token {
		f["aws:TokenIssueTime"] = c.issued.UTC().Format(time.RFC3339)
	}
	for _, set := range c.documents {
		if allowed, _ := judge(set, action, resource, f); !allowed {
			return false
		}
	}
	return true
}

func (c caller) denied(action, resource string) *fault {
	return no(http.StatusForbidden, "AccessDenied", "User: %s is not authorized to perform: %s on resource: %s because no identity-based policy allows the %s action", c.arn, action, resource, action)
}
