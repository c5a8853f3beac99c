package redis_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers/redis"
	"github.com/mayfly-broker/mayfly/scope"
)

const plainSpec = `{"address":"127.0.0.1:6379","deployment":"cache","tls":{"mode":"disable"},"admin":{"username":"mayfly"}}`

func TestSpecs(t *testing.T) {
	for name, x := range map[string]struct {
		change string // members that replace those of plainSpec
		ok     bool
	}{
		"as it is":                      {`{}`, true},
		"sentinel":                      {`{"topology":"sentinel","master_name":"m","addresses":["127.0.0.1:2","127.0.0.1:3"]}`, true},
		"cluster":                       {`{"topology":"cluster","addresses":["[::1]:2"]}`, true},
		"TLS":                           {`{"address":"cache.internal:6380","tls":{}}`, true},
		"an aclfile":                    {`{"persist":"aclfile"}`, true},
		"sentinel without a name":       {`{"topology":"sentinel"}`, false},
		"two standalone servers":        {`{"addresses":["127.0.0.1:2"]}`, false},
		"no TLS over a network":         {`{"address":"cache.internal:6379"}`, false},
		"no TLS over a network, second": {`{"topology":"cluster","addresses":["cache.internal:6379"]}`, false},
		"TLS without verifying":         {`{"tls":{"mode":"require"}}`, false},
		"two CAs":                       {`{"tls":{"ca":"x","ca_file":"y"}}`, false},
		"no port":                       {`{"address":"127.0.0.1"}`, false},
		"port 0":                        {`{"address":"127.0.0.1:0"}`, false},
		"another topology":              {`{"topology":"ring"}`, false},
		"another way to persist":        {`{"persist":"rdb"}`, false},
		"no admin":                      {`{"admin":{}}`, false},
		"an admin called like a lease":  {`{"admin":{"username":"mayfly_00000000000000000000000000"}}`, false},
		"an admin with a space":         {`{"admin":{"username":"a b"}}`, false},
		"too many connections":          {`{"max_connections":100000}`, false},
		"a master name for nothing":     {`{"master_name":"m"}`, false},
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
		if err := (redis.Kind{}).CheckSpec(raw); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The rules of a scope, as a person can read them.
func TestCompiledRules(t *testing.T) {
	for _, x := range []struct {
		s    scope.Scope
		want string
	}{
		{allow([]string{"read"}), "(resetchannels +@read -@scripting +watch -@admin -@dangerous %R~* &*)"},
		{allow([]string{"read"}, "key:a*"), "(resetchannels +@read -@scripting -scan -randomkey -dbsize +watch -@admin -@dangerous %R~a*)"},
		{allow([]string{"write", "cmd:xinfo/stream"}, "key:a?", "channel:n*"), `(resetchannels +@write -@scripting -scan -randomkey -dbsize +xinfo|stream +watch -@admin -@dangerous ~a\? &n*)`},
		{allow([]string{"publish"}, "channel:n"), "(resetchannels -@scripting -scan -randomkey -dbsize +publish +spublish +watch -@admin -@dangerous &n)"},
	} {
		got, err := redis.Compile([]byte(plainSpec), x.s)
		if err != nil || len(got) != 1 || got[0] != x.want {
			t.Errorf("%s:\n got %s, %v\nwant %s", x.s, got, err, x.want)
		}
	}
	if _, err := redis.Compile([]byte(plainSpec), scope.Scope{{Type: "redis", Identifier: "ca*", Actions: []string{"read"}}}); err != nil {
		t.Error(err)
	}
}

func TestMarkBindsNameAndGeneration(t *testing.T) {
	const key, name = "0123456789abcdef0123456789abcdef", "mayfly_00000000000000000000000000"
	h := redis.WriteMark(key, name, 7, 3)
	if len(h) != 64 || strings.Trim(h, "0123456789abcdef") != "" {
		t.Fatalf("%q is no hash that Redis takes", h)
	}
	if g, term, ok := redis.ReadMark(key, name, strings.Repeat("a", 64), h); !ok || g != 7 || term != 3 {
		t.Errorf("read %d, %d, %t", g, term, ok)
	}
	for what, got := range map[string]func() (uint64, uint64, bool){
		"another key":        func() (uint64, uint64, bool) { return redis.ReadMark("x"+key, name, h) },
		"another name":       func() (uint64, uint64, bool) { return redis.ReadMark(key, name+"x", h) },
		"another generation": func() (uint64, uint64, bool) { return redis.ReadMark(key, name, "0000000000000008"+h[16:]) },
		"no mark":            func() (uint64, uint64, bool) { return redis.ReadMark(key, name) },
	} {
		if _, _, ok := got(); ok {
			t.Errorf("%s reads as ours", what)
		}
	}
}

// FuzzCompile: whatever a scope says, it becomes rules that can be written to a
// file and read back, and that end by taking back what is harmful.
func FuzzCompile(f *testing.F) {
	for _, s := range append(append(accepted(), hostile()...), invalid()...) {
		raw, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(plainSpec), raw)
	}
	f.Fuzz(func(t *testing.T, spec, raw []byte) {
		s, err := scope.Parse(raw)
		if err != nil {
			return
		}
		selectors, err := redis.Compile(spec, s)
		if err != nil {
			return
		}
		for _, sel := range selectors {
			inner := strings.TrimSuffix(strings.TrimPrefix(sel, "("), ")")
			if len(inner) != len(sel)-2 || strings.ContainsAny(inner, "()\"'\r\n\x00\t") {
				t.Fatalf("a file would not hold %q", sel)
			}
			words := strings.Split(inner, " ")
			end := slices.Index(words, "-@admin")
			if end < 0 || words[end+1] != "-@dangerous" || slices.Contains(words, "") {
				t.Fatalf("%q", sel)
			}
			for _, w := range words[end+2:] {
				if !strings.HasPrefix(w, "~") && !strings.HasPrefix(w, "%R~") && !strings.HasPrefix(w, "&") {
					t.Fatalf("%q has the rule %q after its end", sel, w)
				}
			}
		}
	})
}

// FuzzClusterNodes: whatever a node says of its cluster, it is read or refused.
func FuzzClusterNodes(f *testing.F) {
	f.Add("id1 127.0.0.1:30001@31001,host myself,master - 0 0 1 connected 0-5460\nid2 127.0.0.1:30004@31004 slave id1 0 1 4 connected\n")
	f.Add("id1 :0@0 master,noaddr - 0 0 1 disconnected\n")
	f.Add("id1 127.0.0.1:1@2 handshake - 0 0 0 connected\n")
	f.Add("x\n")
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := redis.ParseClusterNodes(text); err == nil && n == 0 {
			t.Fatal("no node, and no error")
		}
	})
}
