package nats

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/jwt/v2"

	"github.com/mayfly-broker/mayfly/scope"
)

// scopeType is the type of every detail of a scope for this kind.
const scopeType = "nats"

// The actions of a scope.
const (
	actionPublish   = "publish"
	actionSubscribe = "subscribe"
	actionRequest   = "request"   // publish, and hear the answers in the lease's own inbox
	actionReply     = "reply"     // subscribe, and answer what was asked
	actionJetStream = "jetstream" // request on the subjects of JetStream's own API
)

const allowedActions = "allowed are publish, subscribe, request, reply, and jetstream in a detail of its own"

// maxClaims bounds a user's claims, in bytes of JSON. The JWT, a third longer,
// must fit into the line by which a client logs in, where servers allow 4096
// bytes by default and clients add up to 700 of their own.
const maxClaims = 2400

// systemRoots are first words of subjects that the server, its clients' replies
// and JetStream use. A pattern that means every subject means none of these, and
// they are taken out of it by name: NATS has no pattern for "begins with $".
var systemRoots = []string{"$SYS", "$JS", "$JSC", "$KV", "$O", "$SRV", "$MQTT", "$G", "$GNR", "$NRG", "$LDS", "_GR_", "_R_"}

// jetStreamRoots are those that the action jetstream may name.
var jetStreamRoots = []string{"$JS", "$KV", "$O"}

// permissions are a scope as NATS has it: what may be published and heard. The
// details of a scope simply add up, since each names its subjects for its own
// direction.
type permissions struct {
	pub, sub []string
	inbox    bool // the lease's own
	respond  bool
}

func compile(sp spec, s scope.Scope) (permissions, error) {
	var p permissions
	s, err := s.Normalise()
	if err != nil {
		return p, fmt.Errorf("nats: %w", err)
	}
	if len(s) == 0 {
		return p, errors.New("nats: scope: it allows nothing")
	}
	for _, d := range s {
		if err := p.add(sp, d); err != nil {
			return p, fmt.Errorf("nats: scope: %w", err)
		}
	}
	p.pub, p.sub = tidy(p.pub), tidy(p.sub)
	switch {
	case everything(p.sub) && p.inbox:
		return p, errors.New("nats: scope: to hear every subject and to make requests do not go together: the inboxes of all are taken out of the former; name the subjects to subscribe to")
	case everything(p.pub) && slices.ContainsFunc(p.pub, isJetStream):
		return p, errors.New("nats: scope: to publish on every subject and jetstream do not go together: JetStream is taken out of the former; name the subjects to publish on")
	}
	// the longest names and keys, so that every lease's claims are shorter
	longest := p.claims(sp, user{name: userName(strings.Repeat("z", 26), 1<<63), key: strings.Repeat("U", 56), account: strings.Repeat("A", 56),
		start: time.Unix(1<<36, 0), end: time.Unix(1<<36, 0)})
	text, err := json.Marshal(longest)
	if err != nil {
		return p, fmt.Errorf("nats: scope: %w", err)
	}
	if n := len(text) + 300; n > maxClaims { // issuer, jti and iat come with the signature
		return p, fmt.Errorf("nats: scope: its subjects make the user's claims %d bytes long; a login's line holds %d: name fewer subjects, or shorter ones", n, maxClaims)
	}
	return p, nil
}

func (p *permissions) add(sp spec, d scope.Detail) error {
	switch {
	case d.Type != scopeType:
		return fmt.Errorf("type %q; this target knows %s", d.Type, scopeType)
	case len(d.Tables) > 0 || len(d.Datatypes) > 0 || len(d.Privileges) > 0:
		return errors.New("tables, datatypes and privileges mean nothing to NATS; subjects stand in locations")
	case d.Identifier != "" && d.Identifier != sp.Account:
		return fmt.Errorf("identifier: %q is not this target's account; leave it out", d.Identifier)
	case len(d.Actions) == 0:
		return errors.New("actions: none; " + allowedActions)
	}
	stream := slices.Contains(d.Actions, actionJetStream)
	if stream && len(d.Actions) > 1 {
		return errors.New("actions: jetstream stands in a detail of its own: its subjects are JetStream's, and the other actions' are not")
	}
	subjects, err := places(sp, d.Locations, stream)
	if err != nil {
		return err
	}
	for _, a := range d.Actions {
		switch a {
		case actionPublish:
			p.pub = append(p.pub, subjects...)
		case actionRequest, actionJetStream:
			p.pub, p.inbox = append(p.pub, subjects...), true
		case actionSubscribe:
			p.sub = append(p.sub, subjects...)
		case actionReply:
			p.sub, p.respond = append(p.sub, subjects...), true
		default:
			return fmt.Errorf("actions: %q; %s", a, allowedActions)
		}
	}
	return nil
}

// places are a detail's subjects. Locations left out mean every one but the
// server's own.
func places(sp spec, locations []string, stream bool) ([]string, error) {
	if len(locations) == 0 {
		if stream {
			return nil, errors.New("locations: jetstream needs its subjects named, as in $JS.API.STREAM.INFO.ORDERS")
		}
		locations = []string{"*"}
	}
	var out []string
	for _, l := range locations {
		s, err := subject(l)
		switch {
		case err != nil:
			return nil, fmt.Errorf("locations: %w", err)
		case stream != isJetStream(l):
			return nil, fmt.Errorf("locations: %q: the action jetstream names subjects that begin with %s, and no other action does", l, strings.Join(jetStreamRoots, ", "))
		case strings.HasPrefix(l, sp.InboxPrefix):
			return nil, fmt.Errorf("locations: %q: inboxes are never in a scope; a lease that makes requests has one of its own", l)
		case len(sp.Subjects) > 0 && !slices.ContainsFunc(sp.Subjects, func(outer string) bool { return within(outer, l) }):
			return nil, fmt.Errorf("locations: %q is not within the target's subjects: %s", l, strings.Join(sp.Subjects, ", "))
		}
		out = append(out, s)
	}
	return out, nil
}

// subject makes NATS's own pattern of a location: orders.* means all below
// orders, which is orders.> there, since scopes compare by the beginning of
// names; a word + means any one word, which is * there; and * alone means every
// subject. What NATS would take for a wildcard of its own is refused.
func subject(location string) (string, error) {
	if location == "*" {
		return ">", nil
	}
	words := strings.Split(location, ".")
	for i, w := range words {
		last := i == len(words)-1
		switch {
		case w == "*" && last && i > 0:
			words[i] = ">"
		case w == "+" && i > 0:
			words[i] = "*"
		default:
			if err := checkWord(location, w); err != nil {
				return "", err
			}
		}
	}
	if err := checkRoot(location, words[0]); err != nil {
		return "", err
	}
	return strings.Join(words, "."), nil
}

func checkWord(location, w string) error {
	switch {
	case w == "":
		return fmt.Errorf("%q: between its dots a subject has words", location)
	case w == ">":
		return fmt.Errorf("%q: write .* for all below, as in orders.*", location)
	case w == "+":
		return fmt.Errorf("%q: the first word must be named: any word there would also be the server's own", location)
	case strings.Contains(w, "*"):
		return fmt.Errorf("%q: NATS knows whole words alone; orders.* is all below orders, and a word + any one word", location)
	case strings.Contains(w, ">") || !utf8.ValidString(w):
		return fmt.Errorf("%q: a word may not hold > or bytes that are no UTF-8", location)
	}
	for _, r := range w {
		if unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Z, r) {
			return fmt.Errorf("%q: a subject holds no spaces, control or formatting characters", location)
		}
	}
	return nil
}

// checkRoot keeps the server's own subjects, and everybody's inboxes, out.
func checkRoot(location, root string) error {
	switch {
	case strings.HasPrefix(root, "_"):
		return fmt.Errorf("%q: subjects that begin with _ are inboxes and the server's own", location)
	case strings.HasPrefix(root, "$") && !slices.Contains(jetStreamRoots, root):
		return fmt.Errorf("%q: of the subjects that begin with $, a scope may name those of %s", location, strings.Join(jetStreamRoots, ", "))
	}
	return nil
}

func isJetStream(location string) bool {
	root, _, _ := strings.Cut(location, ".")
	return slices.Contains(jetStreamRoots, root)
}

// within compares locations as scopes do.
func within(outer, inner string) bool {
	if prefix, ok := strings.CutSuffix(outer, "*"); ok {
		return strings.HasPrefix(inner, prefix)
	}
	return outer == inner
}

func everything(subjects []string) bool { return slices.Contains(subjects, ">") }

// tidy sorts subjects and leaves out what "every subject" says already. JetStream's
// it does not say.
func tidy(subjects []string) []string {
	if everything(subjects) {
		subjects = slices.DeleteFunc(subjects, func(s string) bool { return s != ">" && !isJetStream(s) })
	}
	slices.Sort(subjects)
	return slices.Compact(subjects)
}

// user is what of a lease goes into its JWT.
type user struct {
	name, key, account string
	inbox              string // without its last dot
	start, end         time.Time
}

// claims are a user's. A list that is empty would mean everything to NATS, so
// that what is not allowed is denied by name.
func (p permissions) claims(sp spec, u user) *jwt.UserClaims {
	c := jwt.NewUserClaims(u.key)
	c.Name, c.IssuerAccount = u.name, u.account
	c.NotBefore, c.Expires = u.start.Unix(), u.end.Unix()
	c.Tags = jwt.TagList{"mayfly"}
	roots := []string{defaultInbox + ".>"}
	if sp.InboxPrefix != defaultInbox {
		roots = append(roots, sp.InboxPrefix+".>")
	}
	for _, r := range systemRoots {
		roots = append(roots, r+".>")
	}
	list := func(to *jwt.Permission, subjects []string) {
		to.Allow = subjects
		switch {
		case len(subjects) == 0:
			to.Deny = jwt.StringList{">"}
		case everything(subjects):
			to.Deny = roots
		}
	}
	sub := p.sub
	if p.inbox {
		sub = append(slices.Clone(sub), u.inbox+".>")
	}
	list(&c.Pub, p.pub)
	list(&c.Sub, sub)
	if p.respond {
		c.Resp = &jwt.ResponsePermission{MaxMsgs: sp.Users.Responses.Max, Expires: sp.Users.responseTTL}
	}
	c.Src = sp.Users.SourceNetworks
	c.AllowedConnectionTypes = sp.Users.ConnectionTypes
	if n := sp.Users.MaxSubscriptions; n > 0 {
		c.Subs = n
	}
	if n := sp.Users.MaxPayload; n > 0 {
		c.NatsLimits.Payload = n
	}
	return c
}
