package redis

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

// scopeType is the type of every detail of a scope for this kind.
const scopeType = "redis"

// Prefixes of locations and of actions that name one command.
const (
	keyPrefix     = "key:"
	channelPrefix = "channel:"
	commandPrefix = "cmd:"
)

// actions are the words of a scope and the rules they become. Categories are
// those that say what kind of data is touched. @admin, @dangerous, @fast, @slow
// and @all are none of them.
var actions = map[string][]string{
	"read":        {"+@read"},
	"write":       {"+@write"},
	"keyspace":    {"+@keyspace"},
	"string":      {"+@string"},
	"hash":        {"+@hash"},
	"list":        {"+@list"},
	"set":         {"+@set"},
	"sortedset":   {"+@sortedset"},
	"stream":      {"+@stream"},
	"bitmap":      {"+@bitmap"},
	"hyperloglog": {"+@hyperloglog"},
	"geo":         {"+@geo"},
	"subscribe":   {"+subscribe", "+unsubscribe", "+psubscribe", "+punsubscribe", "+ssubscribe", "+sunsubscribe"},
	"publish":     {"+publish", "+spublish"},
	// scripts run with their caller's rights; what changes functions or the
	// script cache of others is left out
	"scripting": {"+eval", "+eval_ro", "+evalsha", "+evalsha_ro", "+script|load", "+script|exists", "+fcall", "+fcall_ro"},
}

// readers are the actions for which keys are given as %R~: nothing can be
// written through them even if a command is in a category by mistake.
var readers = []string{"read", "subscribe", "publish"}

// keyless commands show names of keys outside every pattern. They come with a
// category only where the detail is not restricted to keys.
var keyless = []string{"-scan", "-randomkey", "-dbsize"}

// commandWord is one command: cmd:get, cmd:xinfo/stream, cmd:json.get.
var commandWord = regexp.MustCompile(`^cmd:([a-z0-9._-]{1,64})(?:/([a-z0-9._-]{1,64}))?$`)

// escapes are commands that reach beyond the keys and channels of a detail, or
// beyond its lease. Most are @admin or @dangerous too, which every selector takes
// back at its end: this list is there so that the refusal comes early and says why.
var escapes = []string{
	"acl", "bgrewriteaof", "bgsave", "client", "cluster", "config", "debug", "failover", "flushall", "flushdb", "function", "info", "keys", "latency",
	"migrate", "module", "monitor", "move", "pfdebug", "pfselftest", "psync", "replconf", "replicaof", "reset", "restore", "restore-asking", "role",
	"save", "script", "select", "shutdown", "slaveof", "slowlog", "sort", "sort_ro", "swapdb", "sync", "auth", "hello",
}

// base is what every user may do besides its scope: talk to the server, and
// group commands. None of it touches a key or a channel.
var base = []string{
	"+ping", "+echo", "+hello", "+auth", "+quit", "+reset", "+multi", "+exec", "+discard", "+unwatch", "+readonly", "+readwrite", "+command",
	"+client", "-client|tracking", "-client|caching", // tracking in broadcast mode tells of every key
}

// clusterBase is what a client needs to find its way in a cluster.
var clusterBase = []string{"+asking", "+cluster|slots", "+cluster|shards", "+cluster|nodes", "+cluster|info", "+cluster|keyslot", "+cluster|myid"}

// harmful ends every list of rules: whatever stands before it, nothing of these
// categories is left, on any version and with any module.
var harmful = []string{"-@admin", "-@dangerous"}

// compiled is a scope as ACL rules: one selector per detail. Redis allows a
// command if one selector alone allows all of it, as scope.Covers does.
type compiled struct{ selectors []string }

func compile(sp spec, s scope.Scope) (compiled, error) {
	s, err := s.Normalise()
	if err != nil {
		return compiled{}, fmt.Errorf("redis: %w", err)
	}
	var out compiled
	for _, d := range s {
		selector, err := compileDetail(sp, d)
		if err != nil {
			return compiled{}, fmt.Errorf("redis: scope: %w", err)
		}
		if !slices.Contains(out.selectors, selector) {
			out.selectors = append(out.selectors, selector)
		}
	}
	return out, nil
}

func compileDetail(sp spec, d scope.Detail) (string, error) {
	switch {
	case d.Type != scopeType:
		return "", fmt.Errorf("type %q; this target knows %s", d.Type, scopeType)
	case len(d.Tables) > 0 || len(d.Datatypes) > 0 || len(d.Privileges) > 0:
		return "", fmt.Errorf("tables, datatypes and privileges mean nothing to Redis; commands stand in actions, keys and channels in locations")
	case d.Identifier != "" && !matches(d.Identifier, sp.Deployment):
		return "", fmt.Errorf("identifier: %q is not this target's deployment, %q; leave it out, or say so in the target", d.Identifier, sp.Deployment)
	}
	keys, channels, err := places(d)
	if err != nil {
		return "", err
	}
	rules, err := commandRules(d.Actions, len(d.Locations) > 0)
	if err != nil {
		return "", err
	}
	return "(" + strings.Join(slices.Concat([]string{"resetchannels"}, rules, keys, channels), " ") + ")", nil
}

// commandRules are a selector's commands. Order matters: ACL rules are read from
// left to right, and what is taken back at the end stays taken back.
func commandRules(words []string, limited bool) ([]string, error) {
	var categories, single []string
	for _, a := range words {
		if strings.HasPrefix(a, commandPrefix) {
			rule, err := singleCommand(a)
			if err != nil {
				return nil, err
			}
			single = append(single, rule)
			continue
		}
		rules, ok := actions[a]
		switch {
		case !ok:
			return nil, fmt.Errorf("actions: %q; allowed are %s, and single commands as cmd:get or cmd:xinfo/stream", a, strings.Join(actionWords(), ", "))
		case strings.HasPrefix(rules[0], "+@"):
			categories = append(categories, rules...)
		default:
			single = append(single, rules...)
		}
	}
	rules := append(categories, "-@scripting")
	if limited {
		rules = append(rules, keyless...)
	}
	return slices.Concat(rules, single, []string{"+watch"}, harmful), nil
}

func actionWords() []string {
	var out []string
	for a := range actions {
		out = append(out, a)
	}
	slices.Sort(out)
	return out
}

func singleCommand(word string) (string, error) {
	f := commandWord.FindStringSubmatch(word)
	if f == nil {
		return "", fmt.Errorf("actions: %q must be cmd:COMMAND or cmd:COMMAND/SUBCOMMAND in lower case, as in cmd:get or cmd:xinfo/stream", word)
	}
	if slices.Contains(escapes, f[1]) {
		return "", fmt.Errorf("actions: %q is never given to a lease: it reaches beyond the lease's own keys and time", word)
	}
	if f[2] != "" {
		return "+" + f[1] + "|" + f[2], nil
	}
	return "+" + f[1], nil
}

// places are a selector's keys and channels. Locations left out mean all of both.
func places(d scope.Detail) (keys, channels []string, err error) {
	mark := "~"
	if !slices.ContainsFunc(d.Actions, func(a string) bool { return !slices.Contains(readers, a) }) {
		mark = "%R~"
	}
	if len(d.Locations) == 0 {
		return []string{mark + "*"}, []string{"&*"}, nil
	}
	for _, l := range d.Locations {
		name, isKey := strings.CutPrefix(l, keyPrefix)
		name2, isChannel := strings.CutPrefix(l, channelPrefix)
		if !isKey && !isChannel {
			return nil, nil, fmt.Errorf("locations: %q must begin with key: or channel:, as in key:orders:* or channel:news", l)
		}
		if isChannel {
			name = name2
		}
		pattern, err := glob(name)
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("locations: %q %w", l, err)
		case isKey:
			keys = append(keys, mark+pattern)
		default:
			channels = append(channels, "&"+pattern)
		}
	}
	return keys, channels, nil
}

// glob makes a Redis pattern of a name that may end in one "*". Characters that
// patterns give a meaning are escaped. Those that the server's own files cannot
// hold are refused: a user written by ACL SAVE or CONFIG REWRITE must be read
// back as it was, and must not keep the server from starting.
func glob(name string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("names nothing after its colon")
	}
	for _, r := range name {
		if r <= ' ' || r == 0x7f || strings.ContainsRune(`"'()`, r) {
			return "", fmt.Errorf("holds a space, a quote or a parenthesis, which Redis cannot keep in a rule; end the name before it with a *")
		}
	}
	literal, wild := strings.CutSuffix(name, "*")
	var b strings.Builder
	for _, r := range literal {
		if strings.ContainsRune(`*?[]\^`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	if wild {
		b.WriteByte('*')
	}
	return b.String(), nil
}

// matches reports whether a pattern that may end in "*" means name.
func matches(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}
