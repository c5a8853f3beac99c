package console

import (
	"bytes"
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// page is what every template gets.
type page struct {
	Title string
	Nav   string // the section that the page belongs to
	Me    *wire.Whoami
	CSRF  string
	Theme string
	Path  string // of this page, to come back to
	Node  wire.Status
	// Waiting is how many grants wait for the caller.
	Waiting int
	Ends    time.Time // of the session
	Now     time.Time
	Size    uint64 // of the ledger that the page shows, at least
	// Notice is what was just done, Problem what went wrong.
	Notice  string
	Problem *fault.Error
	Body    any
}

// parsePages parses each page's template together with the frame and the parts.
func parsePages(clock func() time.Time) (map[string]*template.Template, error) {
	files, err := templateFiles.ReadDir("templates")
	if err != nil {
		return nil, err
	}
	out := map[string]*template.Template{}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".html")
		if !ok || strings.HasPrefix(name, "_") {
			continue
		}
		t, err := template.New("frame").Funcs(functions(clock)).ParseFS(templateFiles, "templates/_*.html", "templates/"+f.Name())
		if err != nil {
			return nil, err
		}
		out[name] = t
	}
	return out, nil
}

// functions are what templates may call.
func functions(clock func() time.Time) template.FuncMap {
	return template.FuncMap{
		"pieces":   Pieces,
		"v":        Visible,
		"until":    func(t time.Time) string { return until(t, clock()) },
		"stamp":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"clock":    func(t time.Time) string { return t.UTC().Format("15:04") },
		"iso":      func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"span":     span,
		"kind":     func(principal string) string { k, _, _ := strings.Cut(principal, ":"); return k },
		"name":     func(principal string) string { return principal[strings.IndexByte(principal, ':')+1:] },
		"seg":      url.PathEscape,
		"query":    url.QueryEscape,
		"plural":   plural,
		"plural64": func(n uint64, what string) string { return plural(int(min(n, 1<<30)), what) },
		"clip":     clip,
		"short":    short,
		"dict":     dict,
		"join":     func(s []string) string { return strings.Join(s, ", ") },
		"deref":    func(t *time.Time) time.Time { return *t },
		"left":     func(from, to time.Time) int { return share(from, to, clock()) },
		"late":     func(t time.Time) bool { return t.Before(clock()) },
		"dots":     dots,
		"words":    func(s string) string { return strings.ReplaceAll(s, "_", " ") },
		"target":   func(role string) string { t, _, _ := strings.Cut(role, "/"); return t },
		"num":      thousands,
		"alarms":   alarms,
		"soon":     func(t *time.Time) bool { return t.Sub(clock()) < 15*time.Minute },
		"dur":      func(d ledger.Duration) string { return span(time.Duration(d)) },
		"b64":      base64.RawURLEncoding.EncodeToString,
		"lines":    splitLines,
		// Each place has its circle and its gap.
		"dotsWidth": func(n wire.Need) int { return max(16, len(dots(n))*20-4) },
	}
}

// short is the part of an id that people tell apart.
func short(id string) string {
	if len(id) > 14 && utf8.RuneCountInString(id) == len(id) { // ids are ASCII
		return id[:6] + "…" + id[len(id)-6:]
	}
	return id
}

// thousands writes a number so that its size is seen.
func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// dict makes a template's arguments: name, value, name, value …
func dict(pairs ...any) map[string]any {
	out := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if name, ok := pairs[i].(string); ok {
			out[name] = pairs[i+1]
		}
	}
	return out
}

// share is what is left of a span of time, in percent.
func share(from, to, now time.Time) int {
	whole, left := to.Sub(from), to.Sub(now)
	if whole <= 0 || left <= 0 {
		return 0
	}
	return int(min(100, left*100/whole))
}

// dot is one place of a quorum.
type dot struct {
	X      int
	Filled bool
}

// maxDots is how many places are drawn; more are told as a number.
const maxDots = 12

// dots draws a need's places.
func dots(n wire.Need) []dot {
	var out []dot
	for i := range min(max(n.Required, n.Have, 0), maxDots) {
		out = append(out, dot{X: 8 + i*20, Filled: i < n.Have})
	}
	return out
}

// show answers with a page.
func (x *exchange) show(name string, p page) error {
	x.console.render(x.w, x.r, x.visitor, http.StatusOK, name, p)
	return nil
}

// render writes one page. What fails in a template is our own fault, and the
// visitor is told no more than that.
func (s *Console) render(w http.ResponseWriter, r *http.Request, v *visitor, status int, name string, p page) {
	p.Now, p.Theme, p.Path, p.Node = s.clock(), theme(r), r.URL.RequestURI(), s.cfg.Node.Status()
	if r.Method == http.MethodPost {
		p.Path = path.Dir(r.URL.Path)
	}
	if r.URL.Path == broker.SignInPath {
		p.Path = "/signin" // a code serves once
	}
	if v != nil && v.me != nil {
		p.Size = v.size
		p.Me, p.CSRF, p.Ends = v.me, v.csrf(), v.me.ExpiresAt
		if waiting, err := v.engine.Grants(r.Context(), v.caller, GrantFilter{Pending: true, Limit: maxBadge}); err == nil {
			for _, g := range waiting {
				if g.MayApprove {
					p.Waiting++
				}
			}
		}
	}
	var out bytes.Buffer
	if err := s.pages[name].ExecuteTemplate(&out, "frame", p); err != nil {
		s.log.Error("a page cannot be rendered", "page", name, "error", err)
		http.Error(w, "Mayfly cannot show this page; its log says why.", http.StatusInternalServerError)
		return
	}
	body := scrub(out.String())
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

// maxBadge is how far the inbox is counted.
const maxBadge = 100

// fail answers with what went wrong: a page, or JSON for the page's script.
func (s *Console) fail(w http.ResponseWriter, r *http.Request, v *visitor, err error) {
	e := fault.As(err)
	if e.Kind == fault.Internal {
		s.log.Error("console request failed inside", "path", r.URL.Path, "error", err)
	}
	status := e.Kind.Status()
	if e.Code == "method_not_allowed" {
		status = http.StatusMethodNotAllowed
	}
	if strings.HasPrefix(r.Header.Get("Accept"), "application/json") {
		writeJSON(w, status, wire.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: e.Detail, Code: e.StableCode(), Kind: string(e.Kind)})
		return
	}
	s.render(w, r, v, status, "problem", page{Title: "That did not work", Problem: e})
}

func escapeQuery(s string) string { return url.QueryEscape(s) }

func escapePath(s string) string { return url.PathEscape(s) }
