package approve

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/client/escape"
	"github.com/mayfly-broker/mayfly/scope"
)

// claimWidth is where claimed text is broken, in columns: a text that breaks
// itself at the terminal's edge could begin a line that looks like one of ours.
const claimWidth = 64

// Titles of the sections of a document.
const (
	TitleAsked   = "Asked for"
	TitleProven  = "Proven by the cluster"
	TitleClaimed = "Claimed by the requester, and checked by nobody"
	TitleDecided = "Decided"
	TitleSigned  = "What is signed"
)

// Section is a part of a document as people read it.
type Section struct {
	Title string
	Lines []Line
}

// Line is a named value; one without a name belongs to the line above. Both are
// escaped already. Loud ones deserve colour.
type Line struct {
	Name, Value string
	Loud        bool
}

func (s *Section) add(name, value string) {
	if value != "" {
		s.Lines = append(s.Lines, Line{Name: name, Value: value})
	}
}

func (s *Section) loud(name, value string) {
	s.Lines = append(s.Lines, Line{Name: name, Value: value, Loud: true})
}

// text adds a value that came from outside.
func (s *Section) text(name, value string) { s.add(name, escape.Line(value)) }

// list adds a line for each value.
func (s *Section) list(name string, values []string) {
	for _, v := range values {
		s.add(name, v)
		name = ""
	}
}

// claim adds text that somebody chose freely: quoted, and broken by us.
func (s *Section) claim(name, value string) {
	if value == "" {
		return
	}
	var line strings.Builder
	width := 0
	for _, r := range escape.Quoted(value) {
		if width >= claimWidth {
			s.Lines = append(s.Lines, Line{Name: name, Value: line.String()})
			name, width = "", 0
			line.Reset()
		}
		line.WriteRune(r)
		width++
		if r >= 0x1100 { // from Hangul on, most take two columns
			width++
		}
	}
	s.Lines = append(s.Lines, Line{Name: name, Value: line.String()})
}

// Sections is the whole document for a person: what is asked for, what is
// proven, what is merely claimed, what was decided, and what is signed. Times
// are given in the zone.
func (d *Document) Sections(zone *time.Location) []Section {
	asked := Section{Title: TitleAsked}
	claimed := Section{Title: TitleClaimed}
	h := d.head()
	if d.change != nil {
		d.change.asked(&asked)
		claimed.claim("reason", d.change.Reason)
	} else {
		d.access.asked(&asked, d.scope, zone)
		claimed.claim("purpose", d.access.Purpose)
		claimed.claim("reason", d.access.Reason)
	}
	claimed.claim("model", h.Requester.Model)
	claimed.claim("version", h.Requester.Version)
	if len(claimed.Lines) == 0 {
		claimed.add("nothing", "no purpose and no reason were given")
	}
	asked.add("asked at", instant(h.RequestedMS, zone))
	asked.add("collect before", instant(h.CollectBeforeMS, zone))
	return []Section{asked, h.Requester.proven(h), claimed, h.decided(), d.signed()}
}

func (a *access) asked(s *Section, sc scope.Scope, zone *time.Location) {
	if a.Emergency {
		s.loud("EMERGENCY", "access without its approvals, to be reviewed afterwards")
	}
	s.text("role", fmt.Sprintf("%s (version %d)", a.Role, a.RoleVersion))
	s.text("target", fmt.Sprintf("%s (version %d)", a.Target, a.TargetVersion))
	if a.WholeRole {
		s.loud("scope", "EVERYTHING that role and task allow; nothing narrower was asked for:")
	} else {
		s.add("scope", "as asked for:")
	}
	for _, detail := range sc {
		s.add("", detailText(detail))
		if detail.Type == "account" && slices.Equal(detail.Actions, []string{"use"}) {
			s.text("", "an account that lives on: its secret is not made for this grant, and does not end with it by itself")
		}
	}
	if len(sc) == 0 {
		s.loud("", "no limit at all")
	}
	s.add("one lease lives", seconds(a.TTLS)+", with renewals "+seconds(a.TotalS))
	s.add("leases", "at most "+strconv.Itoa(a.MaxLeases))
	s.add("all over by", instant(a.EndsByMS, zone))
	name := a.Task.ID
	if a.Task.Name != "" {
		name += ", named " + strconv.Quote(a.Task.Name)
	}
	if a.Task.Parent != "" {
		name += ", within " + a.Task.Parent
	}
	s.text("task", name)
	s.add("task ends", instant(a.Task.DeadlineMS, zone))
	if a.StepUp != "" {
		s.text("step-up", "the requester's own person must sign too, with a key of kind "+a.StepUp)
	}
}

func (c *change) asked(s *Section) {
	for _, o := range c.Objects {
		what := o.Kind + " " + o.Name
		switch {
		case o.Delete:
			s.loud("delete", escape.Line(fmt.Sprintf("%s (version %d)", what, o.Version)))
		case o.Version == 0:
			s.text("create", what)
		default:
			s.text("update", fmt.Sprintf("%s (replaces version %d)", what, o.Version))
		}
		for _, x := range o.Secrets {
			s.text("", "sets the sealed field "+x.Name+" (SHA-256 of salt and value "+x.SHA256+")")
		}
		if o.Override {
			s.loud("override", "in place of a secret that was rotated: the broker enters the target by what the requester hands in")
		}
	}
	for _, k := range c.Keys {
		kind := k.Key.Kind
		if k.Key.SSHType != "" {
			kind += ", " + k.Key.SSHType
		}
		s.loud("new approver key", escape.Line(fmt.Sprintf("%s gets the %s key %s", k.Principal, kind, keyName(k.Key.JWK))))
		s.text("", strings.Join(k.Key.Origins, ", "))
	}
	if len(c.Objects)+len(c.Keys) == 0 {
		s.add("change", "nothing")
	}
}

// keyName is a key's thumbprint, or the key itself where it has none.
func keyName(jwk json.RawMessage) string {
	if parsed, err := parseJWK(jwk, "the document"); err == nil {
		if name, err := thumbprint(parsed.Key); err == nil {
			return name
		}
	}
	return string(jwk)
}

func (r *requester) proven(h *head) Section {
	s := Section{Title: TitleProven}
	s.text("principal", r.Principal)
	s.text("instance", r.Instance)
	s.text("owner", r.Owner)
	s.text("on behalf of", strings.Join(r.Chain, ", for "))
	s.text("logged in by", r.Method)
	s.text("session bound by", r.Binding)
	attested := "not attested"
	if r.AttestedKey {
		attested = "attested by the login"
	}
	if r.Key == "" {
		s.loud("key", "none: whoever has the session can use it")
	} else {
		s.text("key", r.Key+" ("+attested+")")
	}
	var facts []string
	for _, name := range slices.Sorted(maps.Keys(r.Facts)) {
		facts = append(facts, escape.Line(name)+" = "+escape.Quoted(r.Facts[name]))
	}
	s.list("facts", facts)
	s.text("cluster", fmt.Sprintf("%s, incarnation %d", h.Cluster, h.Incarnation))
	return s
}

func (h *head) decided() Section {
	s := Section{Title: TitleDecided}
	var needs, policies []string
	for _, n := range h.Needs {
		needs = append(needs, escape.Line(fmt.Sprintf("%d of %s, by %s", n.Count, n.Group, n.By)))
	}
	for _, p := range h.Policies {
		policies = append(policies, escape.Line(fmt.Sprintf("%s in %s (version %d, %s)", p.ID, p.Object, p.Version, p.Hash)))
	}
	s.list("needs", needs)
	s.list("policies", policies)
	s.text("decision", h.Decision)
	return s
}

func (d *Document) signed() Section {
	s := Section{Title: TitleSigned}
	s.text("grant", d.head().GrantID)
	s.add("domain", d.Domain)
	s.add("hash", d.HashText())
	return s
}

// grave are actions that a reader must not miss in a list.
var grave = []string{"delete", "truncate", "drop", "alter", "create", "all", "admin", "grant"}

// detailText is one detail in words, as in "database orders: ALL tables in
// public.*: select, incl. DELETE".
func detailText(d scope.Detail) string {
	var plain, loud []string
	for _, a := range d.Actions {
		if slices.Contains(grave, strings.ToLower(a)) {
			loud = append(loud, strings.ToUpper(a))
		} else {
			plain = append(plain, a)
		}
	}
	text := d.Type + " " + d.Identifier
	if d.Identifier == "" {
		text = "ANY " + d.Type
	}
	if what := tablesText(d); what != "" {
		text += ": " + what
	}
	for _, list := range []struct {
		name   string
		values []string
	}{{"at", d.Locations}, {"data", d.Datatypes}, {"privileges", d.Privileges}} {
		if len(list.values) > 0 {
			text += ": " + list.name + " " + strings.Join(list.values, ", ")
		}
	}
	text += ": " + strings.Join(plain, ", ")
	switch {
	case len(loud) > 0 && len(plain) > 0:
		text += ", incl. " + strings.Join(loud, ", ")
	case len(loud) > 0:
		text += strings.Join(loud, ", ")
	}
	return escape.Line(text)
}

func tablesText(d scope.Detail) string {
	if len(d.Tables) == 0 {
		if d.Type == "database" {
			return "ALL tables"
		}
		return ""
	}
	var names []string
	wide := false
	for _, t := range d.Tables {
		name := t.Name
		wide = wide || strings.Contains(name, "*")
		if len(t.Columns) > 0 {
			name += " (only " + strings.Join(t.Columns, ", ") + ")"
		}
		if len(t.Rows) > 0 {
			name += " [only rows where " + t.Filter() + "]"
		}
		names = append(names, name)
	}
	list := strings.Join(names, ", ")
	if wide {
		return "ALL tables in " + list
	}
	return "tables " + list
}

func seconds(n int64) string {
	if n <= 0 || n > int64(time.Duration(1<<62)/time.Second) {
		return strconv.FormatInt(n, 10) + " s"
	}
	text := (time.Duration(n) * time.Second).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func instant(ms int64, zone *time.Location) string {
	return time.UnixMilli(ms).In(zone).Format("2006-01-02 15:04:05 MST")
}
