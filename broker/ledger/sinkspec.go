package ledger

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Types of sinks, and formats of a webhook's messages.
const (
	SinkFile    = "file"
	SinkWebhook = "webhook"

	FormatPlain = "plain" // JSON of our own; the default
	FormatSlack = "slack" // for a Slack incoming webhook
)

// SinkEvents are what a webhook may be told of.
var SinkEvents = []string{
	"grant.waiting", "grant.reminder", "grant.approved", "grant.denied", "grant.revoked",
	"grant.emergency", "review.overdue", "contained",
}

// Sealed fields of a webhook.
const (
	SinkSecret = "secret" // signs its messages
	SinkURL    = "url"    // where the address is itself a secret
)

// SinkSpec is a Sink's spec: a file that holds every entry, or a webhook that
// tells people of some.
type SinkSpec struct {
	Type string `json:"type"`
	Path string `json:"path,omitempty"` // of a file

	// URL is a webhook's address; empty where it is sealed as the secret "url".
	URL    string   `json:"url,omitempty"`
	Format string   `json:"format,omitempty"`
	Events []string `json:"events,omitempty"` // empty: all of SinkEvents
	// Groups keeps tellings about grants to those that need one of these groups; empty: all.
	Groups []string `json:"groups,omitempty"`
}

func (k SinkSpec) check() error {
	switch k.Type {
	case SinkFile:
		if k.Path == "" {
			return fmt.Errorf("a sink of type file has a path")
		}
		if k.URL != "" || k.Format != "" || len(k.Events) > 0 || len(k.Groups) > 0 {
			return fmt.Errorf("a sink of type file has a path and nothing else; url, format, events and groups are a webhook's")
		}
		return nil
	case SinkWebhook:
		return k.checkWebhook()
	default:
		return fmt.Errorf("a sink has type file, with a path, or type webhook, with a url")
	}
}

func (k SinkSpec) checkWebhook() error {
	if k.Path != "" {
		return fmt.Errorf("a sink of type webhook has a url, not a path")
	}
	if !slices.Contains([]string{"", FormatPlain, FormatSlack}, k.Format) {
		return fmt.Errorf("format is %s or %s", FormatPlain, FormatSlack)
	}
	for i, e := range k.Events {
		if !slices.Contains(SinkEvents, e) {
			return fmt.Errorf("%q is not an event; events are %s", e, strings.Join(SinkEvents, ", "))
		}
		if slices.Contains(k.Events[:i], e) {
			return fmt.Errorf("the event %s stands twice", e)
		}
	}
	if len(k.Groups) > MaxSinkGroups {
		return fmt.Errorf("%d groups; at most %d are allowed", len(k.Groups), MaxSinkGroups)
	}
	for _, g := range k.Groups {
		if err := checkName(g); err != nil {
			return fmt.Errorf("groups: %w", err)
		}
	}
	if k.URL == "" {
		return nil
	}
	return checkSinkURL(k.URL)
}

// checkSinkURL reads an address by hand: a library's parser may judge otherwise
// in another build, and replicas would differ (HAZARDS 2). Its errors do not
// quote it, because it may be a secret.
func checkSinkURL(u string) error {
	if len(u) > MaxSinkURLBytes {
		return fmt.Errorf("the url has %d bytes; at most %d are allowed", len(u), MaxSinkURLBytes)
	}
	for i := range len(u) {
		if u[i] <= ' ' || u[i] >= 0x7f {
			return fmt.Errorf("the url may hold visible ASCII only; percent-encode the rest")
		}
	}
	rest, secure := strings.CutPrefix(u, "https://")
	if !secure {
		var clear bool
		if rest, clear = strings.CutPrefix(u, "http://"); !clear {
			return fmt.Errorf("the url begins with https://")
		}
	}
	host := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		host = rest[:i]
	}
	switch {
	case strings.Contains(host, "@"):
		return fmt.Errorf("the url may not hold a user or a password")
	case strings.Contains(rest, "#"):
		return fmt.Errorf("the url may not have a fragment")
	case strings.ContainsAny(host, `\%<>"`):
		return fmt.Errorf("the url's host holds a character that no host has")
	}
	name := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		name = host[:i]
	}
	if name == "" {
		return fmt.Errorf("the url has no host")
	}
	if !secure && !slices.Contains([]string{"localhost", "127.0.0.1", "[::1]"}, name) {
		return fmt.Errorf("the url begins with https://; http:// is for localhost, 127.0.0.1 and [::1] only")
	}
	return nil
}

// webhook decodes a sink's spec; ok is false where it is none.
func webhook(spec json.RawMessage) (k SinkSpec, ok bool) {
	return k, json.Unmarshal(spec, &k) == nil && k.Type == SinkWebhook
}

// checkSink checks what a webhook needs beside its spec. Its spec is checked.
func (s *state) checkSink(c *context, o ObjectChange, old Object) Result {
	k, ok := webhook(o.Spec)
	if !ok {
		return done("")
	}
	travels := func(field string) ([]byte, bool) {
		name := KindSink + "/" + o.Name + "/" + field
		i := slices.IndexFunc(c.secrets, func(x Secret) bool { return x.Name == name })
		if i < 0 || !slices.Contains(o.Secrets, name) {
			return nil, slices.Contains(old.Secrets, field)
		}
		return c.secrets[i].Value, true
	}
	switch url, sealed := travels(SinkURL); {
	case k.URL == "" && !sealed:
		return refuse(CodeInvalid, "Sink %s: a webhook has a url, in its spec or as the secret %s.", o.Name, SinkURL)
	case k.URL != "" && url != nil:
		return refuse(CodeInvalid, "Sink %s: the url stands in the spec and is a secret. Give one.", o.Name)
	case url != nil:
		if err := checkSinkURL(string(url)); err != nil {
			return refuse(CodeInvalid, "Sink %s: %v.", o.Name, err)
		}
	}
	switch key, sealed := travels(SinkSecret); {
	case key != nil && len(key) < MinSinkSecretBytes:
		return refuse(CodeInvalid, "Sink %s: the secret has %d bytes; at least %d are needed, better 32 random ones.", o.Name, len(key), MinSinkSecretBytes)
	case !sealed && k.Format != FormatSlack:
		return refuse(CodeInvalid, "Sink %s: a webhook needs the secret that signs its messages: secret: {from_file: …}.", o.Name)
	}
	return done("")
}

// checkWebhookCount bounds the webhooks, each of which the leader follows.
func (s *state) checkWebhookCount(changes []ObjectChange) Result {
	var hooks []string
	s.Scan(bucketObject, []byte(KindSink+"/"), nil, func(k, b []byte) bool {
		var o Object
		if err := json.Unmarshal(b, &o); err != nil {
			s.corrupt(bucketObject, k, err)
			return false
		}
		if _, is := webhook(o.Spec); is {
			hooks = append(hooks, o.Name)
		}
		return true
	})
	grows := false
	for _, o := range changes {
		if o.Kind != KindSink {
			continue
		}
		i := slices.Index(hooks, o.Name)
		switch _, is := webhook(o.Spec); {
		case is && !o.Delete && i < 0:
			hooks, grows = append(hooks, o.Name), true
		case (!is || o.Delete) && i >= 0:
			hooks = slices.Delete(hooks, i, i+1)
		}
	}
	if grows && len(hooks) > MaxWebhooks {
		return refuse(CodeCapCount, "At most %d sinks of type webhook are allowed.", MaxWebhooks)
	}
	return done("")
}
