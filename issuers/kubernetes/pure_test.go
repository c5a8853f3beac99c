package kubernetes_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers/kubernetes"
	"github.com/mayfly-broker/mayfly/scope"
)

const plainSpec = `{"address":"10.0.0.1:6443","namespaces":["shop","web"],"service_accounts":["shop/deployer"],"tls":{"ca":""}}`

func TestSpecs(t *testing.T) {
	for name, x := range map[string]struct {
		change string // members that replace those of plainSpec
		ok     bool
	}{
		"as it is":                     {`{}`, true},
		"a URL":                        {`{"address":"https://k.internal"}`, true},
		"a URL with a path":            {`{"address":"https://proxy.internal/k8s/clusters/c-1/"}`, true},
		"an IPv6 address":              {`{"address":"[::1]:6443"}`, true},
		"the whole cluster":            {`{"namespaces":["*"]}`, true},
		"accounts alone":               {`{"namespaces":null}`, true},
		"audiences":                    {`{"audiences":["https://vault.internal","sts.amazonaws.com"]}`, true},
		"times":                        {`{"settle":"20s","max_ttl":"1h"}`, true},
		"no place":                     {`{"namespaces":[],"service_accounts":[]}`, false},
		"no TLS":                       {`{"address":"http://10.0.0.1:8080"}`, false},
		"TLS without verifying":        {`{"tls":{"mode":"disable"}}`, false},
		"two CAs":                      {`{"tls":{"ca":"x","ca_file":"/y"}}`, false},
		"no address":                   {`{"address":""}`, false},
		"a password in the address":    {`{"address":"https://a:b@10.0.0.1"}`, false},
		"a query in the address":       {`{"address":"https://10.0.0.1/?x"}`, false},
		"port 0":                       {`{"address":"10.0.0.1:0"}`, false},
		"a path that climbs":           {`{"address":"https://10.0.0.1/../x"}`, false},
		"its own namespace":            {`{"namespaces":["mayfly"]}`, false},
		"an account of its own":        {`{"service_accounts":["mayfly/x"]}`, false},
		"a namespace that is none":     {`{"namespaces":["Shop"]}`, false},
		"a path for a namespace":       {`{"namespace":"a/../b"}`, false},
		"all and one":                  {`{"namespaces":["*","shop"]}`, false},
		"a pattern":                    {`{"namespaces":["sh*"]}`, false},
		"an account without namespace": {`{"service_accounts":["deployer"]}`, false},
		"an audience with a space":     {`{"audiences":["a b"]}`, false},
		"no time":                      {`{"settle":"soon"}`, false},
		"too long a wait":              {`{"settle":"10m"}`, false},
		"too short a life":             {`{"max_ttl":"5m"}`, false},
		"two logins":                   {`{"token_file":"/x","client_certificate":"y"}`, false},
		"a relative file":              {`{"token_file":"token"}`, false},
		"too many connections":         {`{"max_connections":100000}`, false},
		"a name that is none":          {`{"tls":{"server_name":"a b"}}`, false},
	} {
		raw := merged(t, x.change)
		if err := (kubernetes.Kind{}).CheckSpec(raw); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func merged(t *testing.T, change string) json.RawMessage {
	t.Helper()
	var members, with map[string]any
	if err := json.Unmarshal([]byte(plainSpec), &members); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(change), &with); err != nil {
		t.Fatal(err)
	}
	for k, v := range with {
		members[k] = v
	}
	raw, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestLongestLeases(t *testing.T) {
	for change, want := range map[string]time.Duration{
		`{}`: 24 * time.Hour, `{"max_ttl":"2h"}`: 2 * time.Hour, `{"audiences":["x"]}`: time.Hour, `{"max_ttl":"nonsense"}`: time.Millisecond,
	} {
		if got := (kubernetes.Kind{}).MaxTTL(merged(t, change)); got != want {
			t.Errorf("%s: %s; want %s", change, got, want)
		}
	}
}

func TestRolesThatAreProposed(t *testing.T) {
	for change, want := range map[string]int{`{}`: 2, `{"namespaces":["*"]}`: 0, `{"namespaces":null}`: 0} {
		roles, err := kubernetes.Kind{}.Roles(merged(t, change))
		if err != nil || len(roles) != want {
			t.Errorf("%s: %+v, %v", change, roles, err)
		}
	}
}

// The rules of a scope, as a person can read them.
func TestCompiledRules(t *testing.T) {
	for _, x := range []struct {
		s    scope.Scope
		want string
	}{
		{rules("get list", "pods pods/log", "shop/*"), `shop: {"apiGroups":[""],"resources":["pods","pods/log"],"verbs":["get","list"]}`},
		{rules("patch", "deployments.apps/scale", "shop/web", "shop/api"), `shop: {"apiGroups":["apps"],"resources":["deployments/scale"],"resourceNames":["api","web"],"verbs":["patch"]}`},
		{rules("get", "pods deployments.apps", "shop/web", "shop/*"), `shop: {"apiGroups":[""],"resources":["pods"],"verbs":["get"]} {"apiGroups":["apps"],"resources":["deployments"],"verbs":["get"]}`},
		{named("view edit", "shop/*", "web/*"), `shop: edit view; web: edit view`},
		{rules("get", "nodes", "/node-1"), `*: {"apiGroups":[""],"resources":["nodes"],"resourceNames":["node-1"],"verbs":["get"]}`},
		{append(rules("get", "widgets.example.com", "*"), named("view", "*")...), `*: {"apiGroups":["example.com"],"resources":["widgets"],"verbs":["get"]} view`},
		{tokenFor("shop/deployer", "audience:x"), `token of shop/deployer for x`},
	} {
		got, err := kubernetes.Compile(x.s)
		if err != nil || got != x.want {
			t.Errorf("%s:\n got %s, %v\nwant %s", x.s, got, err, x.want)
		}
	}
}

// FuzzCompile: whatever a scope says, its plan holds no wildcard, no path that
// leaves its place, and never what a wider scope would not cover.
func FuzzCompile(f *testing.F) {
	for _, s := range append(append(accepted(), hostile()...), invalid()...) {
		raw, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := scope.Parse(raw)
		if err != nil {
			return
		}
		text, err := kubernetes.Compile(s)
		if err != nil {
			return
		}
		for _, r := range kubernetes.CompiledRules(s) {
			if len(r.Verbs) == 0 || len(r.Resources) == 0 || len(r.APIGroups) == 0 {
				t.Fatalf("%s: a rule of nothing: %s", raw, text)
			}
			for _, w := range slices.Concat(r.Verbs, r.Resources, r.APIGroups, r.ResourceNames) {
				if strings.ContainsAny(w, "*%\x00\r\n") {
					t.Fatalf("%s: %q in %s", raw, w, text)
				}
			}
		}
		for _, p := range kubernetes.Paths(s) {
			if strings.Contains(p, "//") || strings.Contains(p, "..") || strings.ContainsAny(p, "?#* ") || !strings.HasPrefix(p, "/api") {
				t.Fatalf("%s: the path %q", raw, p)
			}
		}
	})
}

// FuzzMark: a mark is read as what was written, and no changed field passes.
func FuzzMark(f *testing.F) {
	f.Add("shop", "mayfly-x", "lease", uint64(1), uint64(2))
	f.Add("", "a\x00b", "", uint64(0), uint64(1<<63))
	f.Fuzz(func(t *testing.T, namespace, name, lease string, generation, term uint64) {
		const key = "0123456789abcdef0123456789abcdef"
		read := kubernetes.MarkOf(key, namespace, name, lease, generation, term)
		if !read(key, namespace, name, lease, generation, term) {
			t.Fatal("it does not read as ours")
		}
		if read("x"+key, namespace, name, lease, generation, term) || read(key, namespace+"x", name, lease, generation, term) || read(key, namespace, name+"x", lease, generation, term) ||
			read(key, namespace, name, lease+"x", generation, term) || read(key, namespace, name, lease, generation+1, term) || read(key, namespace, name, lease, generation, term+1) {
			t.Fatal("another object reads as ours")
		}
	})
}
