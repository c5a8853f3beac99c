package rabbitmq

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

// scopeType is the type of every detail of a scope for this kind.
const scopeType = "rabbitmq"

// Prefixes of locations.
const (
	namePrefix  = "name:"
	topicPrefix = "topic:"
)

// Actions are RabbitMQ's own three permissions.
const (
	configure = "configure"
	write     = "write"
	read      = "read"
)

var actions = []string{configure, read, write}

// Bounds of what a scope compiles to.
const (
	maxExpression = 24 << 10 // bytes of one regular expression; PCRE's own limit is near 64 KiB
	maxTopics     = 64       // exchanges with topic permissions: each is a request
	maxLimit      = 1_000_000
)

// Expressions for all and for nothing.
const (
	everything = ".*"
	nothing    = "^$" // no queue and no exchange has an empty name where RabbitMQ asks for a right
)

// compiled is a scope as RabbitMQ's permissions and limits.
type compiled struct {
	vhosts []vhostGrant   // sorted by name
	limits map[string]int // of the user, as the API calls them; nil for none
}

// vhostGrant is what a user may do in one virtual host.
type vhostGrant struct {
	name   string
	rights map[string]string // by action: a regular expression
	topics []topicGrant      // sorted by exchange
}

// topicGrant restricts the routing keys by which queues may be bound to one topic
// exchange.
type topicGrant struct{ exchange, read string }

// pattern is a name that stands for itself or for all that begin with it.
type pattern struct {
	text string
	more bool
}

func (p pattern) covers(name string) bool {
	return p.text == name || p.more && strings.HasPrefix(name, p.text)
}

// wanted collects what details ask for in one virtual host.
type wanted struct {
	names  map[string][]pattern // by action
	topics map[string][]pattern // routing keys to read, by exchange
}

// compile turns a scope into permissions. Details of one virtual host add up
// exactly: RabbitMQ asks for one right on one name at a time.
func compile(s scope.Scope) (compiled, error) {
	s, err := s.Normalise()
	if err != nil {
		return compiled{}, fmt.Errorf("rabbitmq: %w", err)
	}
	var out compiled
	in := map[string]*wanted{}
	for _, d := range s {
		limits, err := checkDetail(d)
		if err != nil {
			return compiled{}, fmt.Errorf("rabbitmq: scope: %w", err)
		}
		out.restrict(limits)
		w := in[d.Identifier]
		if w == nil {
			w = &wanted{names: map[string][]pattern{}, topics: map[string][]pattern{}}
			in[d.Identifier] = w
		}
		if err := w.add(d); err != nil {
			return compiled{}, fmt.Errorf("rabbitmq: scope: %w", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(in)) {
		g, err := in[name].compile(name)
		if err != nil {
			return compiled{}, fmt.Errorf("rabbitmq: scope: %w", err)
		}
		out.vhosts = append(out.vhosts, g)
	}
	return out, nil
}

func checkDetail(d scope.Detail) (limits map[string]int, err error) {
	switch {
	case d.Type != scopeType:
		return nil, fmt.Errorf("type %q; this target knows %s", d.Type, scopeType)
	case len(d.Tables) > 0 || len(d.Datatypes) > 0:
		return nil, errors.New("tables and datatypes mean nothing to RabbitMQ; names and topics stand in locations")
	case d.Identifier == "":
		return nil, errors.New(`identifier: the virtual host is needed, as in "/"`)
	}
	if err := checkVHost(d.Identifier); err != nil {
		return nil, fmt.Errorf("identifier: %w", err)
	}
	for _, a := range d.Actions {
		if !slices.Contains(actions, a) {
			return nil, fmt.Errorf("actions: %q; allowed are %s", a, strings.Join(actions, ", "))
		}
	}
	return limitsOf(d.Privileges)
}

// checkVHost refuses names that a path of the management API cannot hold, and
// patterns: a permission is for one virtual host.
func checkVHost(name string) error {
	switch {
	case strings.Contains(name, "*"):
		return fmt.Errorf("%q: a permission is for one virtual host; name each in a detail of its own", name)
	case !addressable(name):
		return fmt.Errorf("%q is no name of a virtual host that the management API can address", name)
	}
	return nil
}

// addressable says whether a name survives as one segment of a path.
func addressable(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f })
}

var limitsPattern = regexp.MustCompile(`^(?:connections:([1-9][0-9]{0,6}))?(/)?(?:channels:([1-9][0-9]{0,6}))?$`)

// limitsOf reads privileges: one word, so that a narrower scope cannot leave out
// half of it.
func limitsOf(privileges []string) (map[string]int, error) {
	if len(privileges) == 0 {
		return nil, nil
	}
	const want = "privileges: want one word, connections:N, channels:N or connections:N/channels:N"
	f := limitsPattern.FindStringSubmatch(privileges[0])
	if len(privileges) > 1 || f == nil || (f[1] != "" && f[3] != "") != (f[2] != "") || f[1]+f[3] == "" {
		return nil, fmt.Errorf("%s; not %q", want, strings.Join(privileges, " "))
	}
	out := map[string]int{}
	for name, text := range map[string]string{"max-connections": f[1], "max-channels": f[3]} {
		if text == "" {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n > maxLimit {
			return nil, fmt.Errorf("%s, with N up to %d", want, maxLimit)
		}
		out[name] = n
	}
	return out, nil
}

// restrict keeps the strictest limit: RabbitMQ has one for the user, not one for
// each of its rights.
func (c *compiled) restrict(limits map[string]int) {
	for name, n := range limits {
		if c.limits == nil {
			c.limits = map[string]int{}
		}
		if old, ok := c.limits[name]; !ok || n < old {
			c.limits[name] = n
		}
	}
}

// add takes one detail's locations in. Locations left out mean every name.
func (w *wanted) add(d scope.Detail) error {
	locations := d.Locations
	if len(locations) == 0 {
		locations = []string{namePrefix + "*"}
	}
	for _, l := range locations {
		if name, ok := strings.CutPrefix(l, namePrefix); ok && name != "" {
			for _, a := range d.Actions {
				w.names[a] = append(w.names[a], parsePattern(name))
			}
			continue
		}
		topic, ok := strings.CutPrefix(l, topicPrefix)
		exchange, key, ok2 := strings.Cut(topic, "/")
		if !ok || !ok2 || key == "" || strings.Contains(exchange, "*") || !addressable(exchange) {
			return fmt.Errorf("locations: %q must be name:NAME or topic:EXCHANGE/KEY, as in name:orders.* or topic:events/eu.*; a * stands at the end", l)
		}
		if strings.Contains(key, "#") {
			return fmt.Errorf("locations: %q: a # in a routing key means everything to RabbitMQ; end the key before it with a *", l)
		}
		// RabbitMQ compares the routing key of what is published, and then follows the
		// header CC of the same message to any other key.
		if !slices.Equal(d.Actions, []string{read}) {
			return fmt.Errorf("locations: %q goes with the action read alone: RabbitMQ does not hold writers to their topics", l)
		}
		w.topics[exchange] = append(w.topics[exchange], parsePattern(key))
	}
	return nil
}

func parsePattern(text string) pattern {
	prefix, more := strings.CutSuffix(text, "*")
	return pattern{prefix, more}
}

// holds says whether an action is given on the whole of a name.
func (w *wanted) holds(action, name string) bool {
	return slices.ContainsFunc(w.names[action], func(p pattern) bool { return p.covers(name) })
}

func (w *wanted) compile(vhost string) (vhostGrant, error) {
	g := vhostGrant{name: vhost, rights: map[string]string{}}
	names := map[string][]pattern{}
	for _, a := range actions {
		names[a] = slices.Clone(w.names[a])
	}
	for _, exchange := range slices.Sorted(maps.Keys(w.topics)) {
		// Who may delete the exchange could make it anew as one that knows no topics.
		if w.holds(configure, exchange) {
			return g, fmt.Errorf("topic:%s/…: the scope gives configure on %q as well, so that its topics would bind nobody", exchange, exchange)
		}
		keys := w.topics[exchange]
		if w.holds(read, exchange) {
			keys = []pattern{{more: true}}
		}
		expr, err := expression(keys)
		if err != nil {
			return g, err
		}
		names[read] = append(names[read], pattern{text: exchange})
		g.topics = append(g.topics, topicGrant{exchange, expr})
	}
	if len(g.topics) > maxTopics {
		return g, fmt.Errorf("%d exchanges with topics in %q; at most %d are allowed", len(g.topics), vhost, maxTopics)
	}
	for _, a := range actions {
		var err error
		if g.rights[a], err = expression(names[a]); err != nil {
			return g, err
		}
	}
	return g, nil
}

// expression is the regular expression for patterns. RabbitMQ searches with it,
// byte by byte, so it is anchored at both ends: \z and not $, which matches before
// a last line feed, too. Whatever is neither letter nor digit is escaped; for PCRE
// that makes it stand for itself, and RabbitMQ finds no {variable} in it.
func expression(list []pattern) (string, error) {
	var parts []string
	for _, p := range list {
		switch {
		case p.more && p.text == "":
			return everything, nil
		case p.more:
			parts = append(parts, quote(p.text))
		default:
			parts = append(parts, quote(p.text)+`\z`)
		}
	}
	if len(parts) == 0 {
		return nothing, nil
	}
	slices.Sort(parts)
	out := "^(?:" + strings.Join(slices.Compact(parts), "|") + ")"
	if len(out) > maxExpression {
		return "", fmt.Errorf("its names make an expression of %d bytes; at most %d are allowed", len(out), maxExpression)
	}
	return out, nil
}

func quote(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		if c < 0x80 && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}
