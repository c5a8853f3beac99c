package rabbitmq_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers/rabbitmq"
	"github.com/mayfly-broker/mayfly/scope"
)

const plainSpec = `{"address":"127.0.0.1:15672","tls":{"mode":"disable"},"admin":{"username":"mayfly"}}`

func TestSpecs(t *testing.T) {
	for name, x := range map[string]struct {
		change string // members that replace those of plainSpec
		ok     bool
	}{
		"as it is":                     {`{}`, true},
		"TLS":                          {`{"address":"rabbit.internal:15671","tls":{}}`, true},
		"a cluster":                    {`{"addresses":["127.0.0.1:2","[::1]:3"],"amqp":{"address":"127.0.0.1:4","addresses":["127.0.0.1:5"]}}`, true},
		"a virtual host":               {`{"vhost":"orders/eu"}`, true},
		"TLS for AMQP alone":           {`{"tls":{"mode":"disable","ca":"x"},"amqp":{"tls":"verify-full"}}`, true},
		"no TLS over a network":        {`{"address":"rabbit.internal:15672"}`, false},
		"no TLS over a network, AMQP":  {`{"amqp":{"address":"rabbit.internal:5672"}}`, false},
		"no TLS over a network, third": {`{"addresses":["rabbit.internal:15672"]}`, false},
		"TLS without verifying":        {`{"tls":{"mode":"require"}}`, false},
		"AMQP TLS without verifying":   {`{"amqp":{"tls":"require"}}`, false},
		"two CAs":                      {`{"tls":{"ca":"x","ca_file":"y"}}`, false},
		"a CA for nothing":             {`{"tls":{"mode":"disable","ca":"x"}}`, false},
		"no port":                      {`{"address":"127.0.0.1"}`, false},
		"port 0":                       {`{"address":"127.0.0.1:0"}`, false},
		"a path in the address":        {`{"address":"127.0.0.1/x:1"}`, false},
		"a user in the address":        {`{"address":"evil@127.0.0.1:1"}`, false},
		"addresses without an address": {`{"amqp":{"addresses":["127.0.0.1:5"]}}`, false},
		"no admin":                     {`{"admin":{}}`, false},
		"an admin called like a lease": {`{"admin":{"username":"mayfly_00000000000000000000000000"}}`, false},
		"an admin with a colon":        {`{"admin":{"username":"a:b"}}`, false},
		"a pattern of virtual hosts":   {`{"vhost":"*"}`, false},
		"a virtual host that is a way": {`{"vhost":".."}`, false},
		"too many connections":         {`{"max_connections":100000}`, false},
	} {
		var members, change map[string]any
		if err := json.Unmarshal([]byte(plainSpec), &members); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(x.change), &change); err != nil {
			t.Fatal(err)
		}
		for k, v := range change {
			members[k] = v
		}
		raw, err := json.Marshal(members)
		if err != nil {
			t.Fatal(err)
		}
		if err := (rabbitmq.Kind{}).CheckSpec(raw); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The permissions of a scope, as a person can read them.
func TestCompiledPermissions(t *testing.T) {
	for _, x := range []struct {
		s    scope.Scope
		want rabbitmq.Granted
	}{
		{allow([]string{"read"}), rabbitmq.Granted{VHost: bus, Configure: "^$", Write: "^$", Read: ".*"}},
		{allow([]string{"read", "write"}, "name:a.b*", "name:c"), rabbitmq.Granted{VHost: bus, Configure: "^$", Write: `^(?:a\.b|c\z)`, Read: `^(?:a\.b|c\z)`}},
		{append(allow([]string{"read"}, "name:q"), allow([]string{"write"}, "name:x*")...), rabbitmq.Granted{VHost: bus, Configure: "^$", Write: `^(?:x)`, Read: `^(?:q\z)`}},
		{
			append(allow([]string{"read"}, "topic:events/eu.*"), allow([]string{"read"}, "name:ev*")...),
			rabbitmq.Granted{VHost: bus, Configure: "^$", Write: "^$", Read: `^(?:ev|events\z)`, Topics: [][2]string{{"events", ".*"}}},
		},
		{
			allow([]string{"read"}, "topic:events/eu", "topic:events/us.*", "topic:logs/*"),
			rabbitmq.Granted{VHost: bus, Configure: "^$", Write: "^$", Read: `^(?:events\z|logs\z)`, Topics: [][2]string{{"events", `^(?:eu\z|us\.)`}, {"logs", ".*"}}},
		},
	} {
		got, limits, err := rabbitmq.Compile(x.s)
		if err != nil || limits != nil || len(got) != 1 || !slices.Equal(got[0].Topics, x.want.Topics) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", x.s, got, err, x.want)
			continue
		}
		got[0].Topics, x.want.Topics = nil, nil
		if g, w := got[0], x.want; g.VHost != w.VHost || g.Configure != w.Configure || g.Write != w.Write || g.Read != w.Read {
			t.Errorf("%s:\n got %+v\nwant %+v", x.s, g, w)
		}
	}
}

func TestStrictestLimitCounts(t *testing.T) {
	s := append(limited("connections:5/channels:9"), limited("connections:2")...)
	s[1].Identifier = "/"
	if _, limits, err := rabbitmq.Compile(s); err != nil || limits["max-connections"] != 2 || limits["max-channels"] != 9 || len(limits) != 2 {
		t.Errorf("%v, %v", limits, err)
	}
}

func TestTagsSayWhoseAndWhich(t *testing.T) {
	const key = "0123456789abcdef0123456789abcdef"
	tags := rabbitmq.Tags(key, 7, 3)
	if g, term, ok := rabbitmq.ReadTags(key, append([]string{"more"}, tags...)...); !ok || g != 7 || term != 3 {
		t.Errorf("read %d, %d, %t", g, term, ok)
	}
	for _, tag := range tags {
		if slices.Contains([]string{"administrator", "monitoring", "policymaker", "management", "impersonator", "protected"}, tag) || strings.ContainsAny(tag, ", ") {
			t.Errorf("the tag %q gives rights, or is two", tag)
		}
	}
	for what, x := range map[string][]string{
		"another target": rabbitmq.Tags("x"+key, 7, 3), "no tags": nil, "no generation": {tags[0], tags[2]}, "two generations": append(slices.Clone(tags), "mayfly-g8"),
		"no number": {tags[0], "mayfly-gx", tags[2]}, "a sign": {tags[0], "mayfly-g+7", tags[2]}, "a zero before": {tags[0], "mayfly-g07", tags[2]},
	} {
		if _, _, ok := rabbitmq.ReadTags(key, x...); ok {
			t.Errorf("%s reads as ours", what)
		}
	}
	// Each tag is an atom for ever, so none may be a lease's own (docs/issuers/rabbitmq.md).
	if !slices.Equal(tags, rabbitmq.Tags(key, 7, 3)) {
		t.Error("two leases of one generation and term have different tags")
	}
}

func TestPasswordHash(t *testing.T) {
	password, hash := rabbitmq.NewPassword()
	raw, err := base64.StdEncoding.DecodeString(hash)
	if err != nil || len(raw) != 4+sha512.Size {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	if sum := sha512.Sum512(append(slices.Clone(raw[:4]), password...)); !bytes.Equal(sum[:], raw[4:]) || len(password) < 26 {
		t.Error("the hash is not that of the password")
	}
}

func TestVersions(t *testing.T) {
	for v, want := range map[string]bool{"3.10.8": true, "3.13.0-rc.1": true, "4.0.1": true, "10.0": true, "3.9.29": false, "2.11": false, "": false, "x": false, "3": false, "-4.1": false} {
		if rabbitmq.NewEnough(v) != want {
			t.Errorf("%q: want %t", v, want)
		}
	}
}

// FuzzCompile: whatever a scope says, its expressions match what it names and
// nothing besides. Go's regular expressions read these alike.
func FuzzCompile(f *testing.F) {
	for _, s := range append(append(accepted(), hostile()...), invalid()...) {
		raw, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, "orders")
	}
	f.Fuzz(func(t *testing.T, raw []byte, name string) {
		s, err := scope.Parse(raw)
		if err != nil {
			return
		}
		granted, _, err := rabbitmq.Compile(s)
		if err != nil {
			return
		}
		for _, g := range granted {
			for action, text := range map[string]string{"configure": g.Configure, "write": g.Write, "read": g.Read} {
				re, err := regexp.Compile("(?s)" + text)
				if err != nil {
					t.Fatalf("%q: %v", text, err)
				}
				names := []string{name, name + "\n", "x" + name}
				want := func(string) bool { return false }
				for _, d := range s {
					if d.Identifier != g.VHost || !slices.Contains(d.Actions, action) {
						continue
					}
					before, locations := want, d.Locations
					if len(locations) == 0 {
						locations = []string{"name:*"}
					}
					for _, l := range locations {
						if n, ok := strings.CutPrefix(l, "name:"); ok {
							names = append(names, strings.TrimSuffix(n, "*"), n, n+"x")
						} else {
							n, _, _ := strings.Cut(strings.TrimPrefix(l, "topic:"), "/")
							names = append(names, n, n+"x")
						}
					}
					want = func(n string) bool {
						return before(n) || slices.ContainsFunc(locations, func(l string) bool { return names1(l, n) })
					}
				}
				for _, n := range names {
					if n != "" && strings.ToValidUTF8(n, "") == n && re.MatchString(n) != want(n) {
						t.Fatalf("%s: %s by %q on %q: %t", s, action, text, n, !want(n))
					}
				}
			}
		}
	})
}

// names1 says whether a location means a name.
func names1(location, name string) bool {
	if n, ok := strings.CutPrefix(location, "name:"); ok {
		prefix, more := strings.CutSuffix(n, "*")
		return more && strings.HasPrefix(name, prefix) || n == name
	}
	exchange, _, _ := strings.Cut(strings.TrimPrefix(location, "topic:"), "/")
	return exchange == name
}
