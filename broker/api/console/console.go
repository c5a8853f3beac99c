package console

import (
	"bytes"
	"embed"
	"html/template"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
)

//go:embed static
var static embed.FS

//go:embed all:templates
var templateFiles embed.FS

// Bounds on what comes from a browser.
const (
	// maxForm fits a draft of a policy with its cases.
	maxForm = 512 << 10
	// maxReason is more than anybody reads in an inbox.
	maxReason = 2 << 10
	// maxStreams is how many live pages one node serves at once; the others
	// load anew by hand.
	maxStreams = 512
	// streamFor ends a stream before the server's write timeout does; the
	// browser opens the next.
	streamFor = 90 * time.Second
)

// Config is what a Console is made of. Engine, Node and ExternalURLs are required.
type Config struct {
	// Engine returns the engine, or unavailable "sealed" or "uninitialised".
	Engine func() (Engine, error)
	Node   Node
	// ExternalURLs are the https URLs under which people reach any node.
	ExternalURLs []string
	// Leader passes a request on to the leader and answers with what comes
	// back; false means that this node is to answer itself. nil: it always is.
	Leader func(w http.ResponseWriter, r *http.Request) bool
	Clock  func() time.Time // default: time.Now
	Logger *slog.Logger     // default: discard
}

// Console serves the pages. Make it with [New]; it is safe for concurrent use.
type Console struct {
	cfg     Config
	log     *slog.Logger
	clock   func() time.Time
	origins map[string]string // host → origin
	home    string
	pages   map[string]*template.Template
	mux     *http.ServeMux
	streams atomic.Int64
}

// New returns a Console, or an error of kind invalid.
func New(cfg Config) (*Console, error) {
	if cfg.Engine == nil || cfg.Node == nil || len(cfg.ExternalURLs) == 0 {
		return nil, fault.New(fault.Invalid, "", "The console needs an engine, a node and an external URL.")
	}
	s := &Console{cfg: cfg, log: cfg.Logger, clock: cfg.Clock, home: cfg.ExternalURLs[0], mux: http.NewServeMux()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.clock == nil {
		s.clock = time.Now
	}
	var err error
	if s.origins, err = origins(cfg.ExternalURLs); err != nil {
		return nil, err
	}
	if s.pages, err = parsePages(s.clock); err != nil {
		return nil, err
	}
	s.routes()
	return s, nil
}

// Patterns are the [http.ServeMux] patterns of the console's pages, for whoever
// mounts it.
func (s *Console) Patterns() []string {
	return []string{"GET /{$}", "/signin", "/signin/", "/signout", "/theme", "/grants", "/grants/", "/tasks", "/tasks/", "/leases", "/leases/",
		"/principals", "/principals/", "/targets", "/targets/", "/audit", "/policies", "/policies/", "/decisions/", "/cluster", "/keys", "/keys/",
		"/live", "/assets/"}
}

// ServeHTTP implements [http.Handler].
func (s *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	harden(w.Header())
	if err := s.admit(r); err != nil {
		s.fail(w, r, nil, err)
		return
	}
	if Arrived(r) && !cameBack(r) {
		s.render(w, r, nil, http.StatusOK, "bounce", page{Title: "Mayfly", Body: r.URL.RequestURI()})
		return
	}
	if s.mustGoOn(r) && s.cfg.Leader(w, r) {
		return
	}
	s.mux.ServeHTTP(w, r)
}

// admit refuses what no page should see.
func (s *Console) admit(r *http.Request) error {
	if err := s.checkHost(r); err != nil {
		return err
	}
	switch r.Method {
	case http.MethodPost:
		return s.checkOrigin(r)
	case http.MethodGet, http.MethodHead:
		if r.Header.Get("Sec-Fetch-Site") == "cross-site" && !Arrived(r) && !strings.HasPrefix(r.URL.Path, "/assets/") {
			return fault.New(fault.Denied, "foreign_origin", "Requests from other sites are refused.")
		}
		return nil
	}
	return &fault.Error{Kind: fault.Invalid, Code: "method_not_allowed", Detail: "A page is read with GET and changed with POST."}
}

// Arrived says whether somebody followed a link from another site. The browser
// then keeps the session's cookie back; the page that answers loads itself once
// more, and by then it is this site that asks.
func Arrived(r *http.Request) bool {
	h := r.Header
	return r.Method == http.MethodGet && h.Get("Sec-Fetch-Site") == "cross-site" && h.Get("Sec-Fetch-Mode") == "navigate" && h.Get("Sec-Fetch-Dest") == "document"
}

// mustGoOn says whether the leader has to answer: it alone can change something,
// and its process alone knows the challenges that it gave.
func (s *Console) mustGoOn(r *http.Request) bool {
	return s.cfg.Leader != nil && (r.Method == http.MethodPost && r.URL.Path != "/theme" || cameBack(r)) && s.cfg.Node.Status().Role != "leader"
}

// routes registers the pages.
func (s *Console) routes() {
	open := func(pattern string, do func(*exchange) error) { s.mux.Handle(pattern, s.handler(do, false)) }
	page := func(pattern string, do func(*exchange) error) { s.mux.Handle(pattern, s.handler(do, true)) }
	s.mux.HandleFunc("GET /assets/{file}", s.asset)
	s.mux.HandleFunc("POST /theme", s.pickTheme)

	open("GET /signin", s.signIn)
	open("POST /signin/begin", s.beginSignIn)
	open("POST /signin/finish", s.finishSignIn)
	open("POST /signin/enrol", s.enrol)
	open("POST /signin/oidc", s.leaveForProvider)
	open("GET "+broker.SignInPath, s.comeBack)
	page("POST /signout", s.signOut)

	page("GET /{$}", s.inbox)
	page("GET /grants", s.listGrants)
	page("GET /grants/{id}", s.showGrant)
	page("POST /grants/{id}/{act}", s.actOnGrant)
	page("GET /tasks", s.listTasks)
	page("GET /tasks/{id}", s.showTask)
	page("GET /leases", s.listLeases)
	page("GET /leases/{id}", s.showLease)
	page("GET /principals", s.listPrincipals)
	page("GET /principals/{name}", s.showPrincipal)
	page("GET /targets", s.listTargets)
	page("GET /targets/{name}", s.showTarget)
	page("POST /targets/{name}/check", s.checkTarget)
	page("GET /rotations", s.listRotations)
	page("GET /audit", s.auditExplorer)
	page("GET /policies", s.listPolicies)
	page("POST /policies/test", s.testPolicies)
	page("GET /policies/explain", s.explain)
	page("GET /decisions/{id}", s.showDecision)
	open("GET /cluster", s.showCluster)
	page("GET /keys", s.listKeys)
	page("POST /keys/begin", s.beginKey)
	page("POST /keys/offer", s.offerKey)
	page("POST /keys/add", s.addKey)
	page("POST /keys/remove", s.removeKey)
	page("GET /live", s.live)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, nil, fault.New(fault.NotFound, "page_not_found", "There is no such page."))
	})
}

// exchange is one request and its answer.
type exchange struct {
	w http.ResponseWriter
	r *http.Request
	*visitor
	console *Console
	now     time.Time
}

// form returns a field of a POST's form.
func (x *exchange) form(name string) string { return x.r.PostFormValue(name) }

// query returns a parameter of the URL.
func (x *exchange) query(name string) string { return x.r.URL.Query().Get(name) }

// see redirects to another page after a change (RFC 9110 §15.4.4).
func (x *exchange) see(path string) error {
	x.w.Header().Set("Location", path)
	x.w.WriteHeader(http.StatusSeeOther)
	return nil
}

// handler reads session and form, and answers with do's page or error.
func (s *Console) handler(do func(*exchange) error, needSession bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		v, err := s.visitor(r)
		if err != nil && fault.KindOf(err) == fault.Unauthenticated && s.cfg.Leader != nil && s.cfg.Leader(w, r) {
			return // a session that the leader has just opened may not be known here yet
		}
		x := &exchange{w: w, r: r, visitor: v, console: s, now: s.clock()}
		switch {
		case v == nil: // the engine is away
			x.visitor = &visitor{}
			if r.URL.Path != "/cluster" {
				s.fail(w, r, nil, err)
				return
			}
		case needSession && !v.signedIn():
			s.askToSignIn(x, err)
			return
		}
		if err := x.readForm(needSession); err != nil {
			s.fail(w, r, x.visitor, err)
			return
		}
		if err := do(x); err != nil {
			s.fail(w, r, x.visitor, err)
		}
	})
}

// readForm parses a POST's form and checks the token in it.
func (x *exchange) readForm(needSession bool) error {
	if x.r.Method != http.MethodPost {
		return nil
	}
	if err := x.r.ParseForm(); err != nil {
		return fault.New(fault.Invalid, "form", "The form cannot be read, or is larger than %d KiB.", maxForm>>10)
	}
	if needSession {
		return x.checkCSRF(x.form("csrf"))
	}
	return nil
}

// askToSignIn sends whoever has no session to the sign-in page, and afterwards
// back.
func (s *Console) askToSignIn(x *exchange, why error) {
	if x.r.Method == http.MethodPost || x.r.URL.Path == "/live" {
		s.fail(x.w, x.r, x.visitor, fault.New(fault.Unauthenticated, "session_ended", "Your session has ended. Sign in, and do it again."))
		return
	}
	if why != nil {
		dropSession(x.w)
	}
	to := "/signin"
	if at := x.r.URL.RequestURI(); at != "/" {
		to += "?to=" + escapeQuery(at)
	}
	_ = x.see(to)
}

// asset serves what pages are dressed with.
func (s *Console) asset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	body, err := static.ReadFile("static/" + name)
	media := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}[suffix(name)]
	if err != nil || media == "" {
		s.fail(w, r, nil, fault.New(fault.NotFound, "page_not_found", "There is no such file."))
		return
	}
	w.Header().Set("Content-Type", media)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

func suffix(name string) string {
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[i:]
	}
	return ""
}

// pickTheme keeps the look that somebody chose.
func (s *Console) pickTheme(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	name := r.PostFormValue("theme")
	for _, t := range themes {
		if t == name {
			setTheme(w, t)
		}
	}
	w.Header().Set("Location", localPath(r.PostFormValue("to")))
	w.WriteHeader(http.StatusSeeOther)
}

// localPath is a path on this site, or "/": nobody is sent elsewhere.
func localPath(to string) string {
	if !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.HasPrefix(to, `/\`) || Visible(to) != to {
		return "/"
	}
	return to
}
