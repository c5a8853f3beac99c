package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/clienttest"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ann = "human:ann"

// config is of a fresh home with nobody's key.
func config(t *testing.T, c *clienttest.Cluster) client.Config {
	t.Helper()
	return client.Config{Addresses: client.SplitAddresses(c.Addr()), CAFile: c.CAFile, Home: filepath.Join(t.TempDir(), "home"), Retry: 5 * time.Second}
}

func open(t *testing.T, cfg client.Config) *client.Client {
	t.Helper()
	cl, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// asAnn opens a client whose home's key is ann's.
func asAnn(t *testing.T, c *clienttest.Cluster, cfg client.Config) *client.Client {
	t.Helper()
	cfg.Principal = ann
	cl := open(t, cfg)
	c.Register(cl.Key().Thumbprint(), ann)
	return cl
}

func kind(t *testing.T, err error, want string) *client.Error {
	t.Helper()
	var e *client.Error
	if !errors.As(err, &e) || e.Problem.Kind != want {
		t.Fatalf("error %v, want one of kind %s", err, want)
	}
	return e
}

func TestNonceIsFetchedOnceAndRemembered(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	for range 3 {
		if _, err := cl.Whoami(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(c.Calls("POST", "/api/v1/login")); got != 1 {
		t.Errorf("%d logins that reached the handler with a nonce, want 1", got)
	}
	c.RotateNonces()
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatalf("after the node's nonce changed: %v", err)
	}
	// The call with the stale nonce and its repetition, no new login.
	if got := len(c.Calls("POST", "/api/v1/login")); got != 1 {
		t.Errorf("a stale nonce made the client log in again: %d logins", got)
	}
}

func TestANodeThatAlwaysAsksForANonceIsNotAskedForEver(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Fail(clienttest.Failure{Prefix: "/api/v1/whoami", Problem: wire.Problem{Status: 401, Kind: "unauthenticated", Code: "use_dpop_nonce"}})
	_, err := cl.Whoami(t.Context())
	kind(t, err, client.KindUnauthenticated)
}

// A transport sends a call again whose connection broke, and the node has seen its
// proof by then.
func TestAProofThatCameTwiceIsMadeAnew(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	replayed := wire.Problem{Status: 401, Kind: "unauthenticated", Code: "dpop_proof_replayed"}
	c.Fail(clienttest.Failure{Prefix: "/api/v1/whoami", Times: 2, Problem: replayed})
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(c.Calls("POST", "/api/v1/login")); got != 1 {
		t.Errorf("a proof that came twice made the client log in again: %d logins", got)
	}
	c.Fail(clienttest.Failure{Prefix: "/api/v1/whoami", Problem: replayed})
	_, err := cl.Whoami(t.Context())
	kind(t, err, client.KindUnauthenticated)
}

func TestFailoverToTheNextNode(t *testing.T) {
	c := clienttest.New(t, 3)
	cl := asAnn(t, c, config(t, c))
	c.Stop(1)
	c.Fail(clienttest.Failure{Node: 2, Problem: clienttest.Unavailable("sealed")})
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, k := range c.Calls("", "") {
		if k.Node != 3 {
			t.Errorf("node %d answered %s %s", k.Node, k.Method, k.Path)
		}
	}
}

func TestOneIdempotencyKeyOverAllAttempts(t *testing.T) {
	c := clienttest.New(t, 2)
	cl := asAnn(t, c, config(t, c))
	// The first answer is lost after the work was done; then a node is down.
	c.Fail(clienttest.Failure{Prefix: "/api/v1/requests", Times: 1, After: true})
	c.Fail(clienttest.Failure{Prefix: "/api/v1/requests", Times: 1, Problem: clienttest.Unavailable("no_leader")})
	a, err := cl.Request(t.Context(), wire.AccessRequest{Role: "orders/readonly", Purpose: "test"})
	if err != nil {
		t.Fatal(err)
	}
	calls := c.Calls("POST", "/api/v1/requests")
	if len(calls) != 2 || calls[0].Idem == "" || calls[0].Idem != calls[1].Idem {
		t.Fatalf("calls %+v, want two with one key", calls)
	}
	if open := c.Open(); len(open) != 1 || open[0].ID != a.LeaseID {
		t.Errorf("a lost answer left %d leases", len(open))
	}
}

func TestAGivenIdempotencyKeyIsUsed(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	ctx := client.WithIdempotencyKey(t.Context(), "mine")
	one, err := cl.Request(ctx, wire.AccessRequest{Role: "orders/readonly", Purpose: "test"})
	if err != nil {
		t.Fatal(err)
	}
	two, err := cl.Request(ctx, wire.AccessRequest{Role: "orders/readonly", Purpose: "test"})
	if err != nil || one.LeaseID != two.LeaseID {
		t.Errorf("leases %s and %s, %v", one.LeaseID, two.LeaseID, err)
	}
}

func TestWhatIsRetriedAndWhatIsNot(t *testing.T) {
	p := func(status int, kind string) wire.Problem {
		return wire.Problem{Status: status, Kind: kind, Code: "x", Title: "x"}
	}
	for name, c := range map[string]struct {
		problem wire.Problem
		retried bool
		exit    int
	}{
		"unavailable":   {p(503, "unavailable"), true, 5},
		"indeterminate": {p(503, "indeterminate"), true, 5},
		"denied":        {p(403, "denied"), false, 3},
		"rate limited":  {p(429, "rate_limited"), false, 5},
		"upstream":      {p(502, "upstream"), false, 5},
		"conflict":      {p(409, "conflict"), false, 1},
		"invalid":       {p(400, "invalid"), false, 2},
		"not found":     {p(404, "not_found"), false, 1},
		"internal":      {p(500, ""), false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := clienttest.New(t, 1)
			cl := asAnn(t, cluster, config(t, cluster))
			if _, err := cl.Whoami(t.Context()); err != nil {
				t.Fatal(err)
			}
			cluster.Fail(clienttest.Failure{Prefix: "/api/v1/whoami", Times: 1, Problem: c.problem})
			_, err := cl.Whoami(t.Context())
			if c.retried {
				if err != nil {
					t.Fatalf("not retried: %v", err)
				}
				return
			}
			var e *client.Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v", err)
			}
			if e.ExitCode() != c.exit {
				t.Errorf("exit code %d, want %d", e.ExitCode(), c.exit)
			}
		})
	}
}

func TestTheRetryBudgetEnds(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	cfg.Retry = 2 * time.Second // one answer must come within it, on a busy machine too
	waits, waited := 0, time.Duration(0)
	cfg.OnRetry = func(_ error, wait time.Duration) { waits, waited = waits+1, waited+wait }
	cl := asAnn(t, c, cfg)
	if _, err := cl.Whoami(t.Context()); err != nil { // logging in does not count
		t.Fatal(err)
	}
	c.Fail(clienttest.Failure{Problem: clienttest.Unavailable("sealed")})
	_, err := cl.Whoami(t.Context())
	if e := kind(t, err, client.KindUnavailable); e.Problem.Code != "sealed" || e.ExitCode() != 5 {
		t.Errorf("%v", e)
	}
	if waits == 0 || waited > cfg.Retry {
		t.Errorf("%d retries, after %s of waiting", waits, waited)
	}
}

func TestARetryAfterBeyondTheBudgetFailsAtOnce(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	cfg.OnRetry = func(_ error, wait time.Duration) { t.Errorf("waits %s", wait) }
	cl := asAnn(t, c, cfg)
	p := clienttest.Unavailable("target_unavailable")
	p.RetryAfter = 60
	c.Fail(clienttest.Failure{Problem: p})
	_, err := cl.Whoami(t.Context())
	kind(t, err, client.KindUnavailable)
}

// Shares are shown or taken once: such a call is not repeated once it may have
// arrived.
func TestInitIsNotSentTwiceWhenItsAnswerIsLost(t *testing.T) {
	c := clienttest.New(t, 2)
	cl := open(t, config(t, c))
	c.Handle("POST /api/v1/sys/init", func(clienttest.Call) (int, any) { return 200, wire.InitAnswer{Cluster: "x"} })
	c.Fail(clienttest.Failure{Prefix: "/api/v1/sys/init", Times: 1, After: true})
	_, err := cl.Init(t.Context(), cl.Nodes()[0], wire.InitRequest{Admins: []string{ann}})
	kind(t, err, client.KindIndeterminate)
	if n := len(c.Calls("POST", "/api/v1/sys/init")); n != 1 {
		t.Errorf("sent %d times", n)
	}
}

func TestLeaderIsFollowedUnderTheClustersCA(t *testing.T) {
	c := clienttest.New(t, 2)
	cfg := config(t, c)
	cfg.Binding = client.BindMTLS
	cfg.Addresses = []string{c.Node(1)} // the leader is learnt of, not configured
	c.Lead(2)
	cl := asAnn(t, c, cfg)
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, k := range c.Calls("", "") {
		if k.Node != 2 || k.Proofs || !k.ClientCert {
			t.Errorf("%s %s: node %d, proof %v, certificate %v", k.Method, k.Path, k.Node, k.Proofs, k.ClientCert)
		}
	}
}

func TestALeaderWithoutTheClustersCAIsNotBelieved(t *testing.T) {
	ours, foreign := clienttest.New(t, 2), clienttest.New(t, 1)
	cl := asAnn(t, ours, config(t, ours))
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	foreignCalls := len(foreign.Calls("", ""))
	// A node that lies about the leader.
	ours.LeadElsewhere("https://" + foreign.Node(1))
	_, err := cl.Whoami(t.Context())
	if err == nil {
		t.Fatal("a leader of another CA was believed")
	}
	if len(foreign.Calls("", "")) != foreignCalls {
		t.Error("the session token went to a node of another CA")
	}
}

func TestForgottenSessionIsReplacedOnce(t *testing.T) {
	c := clienttest.New(t, 1)
	cl := asAnn(t, c, config(t, c))
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.EndSessions()
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatalf("a forgotten session was not replaced: %v", err)
	}
	if n := len(c.Calls("POST", "/api/v1/login")); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
}

func TestSessionIsSharedBetweenProcesses(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	first := asAnn(t, c, cfg)
	if _, err := first.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		cl := asAnn(t, c, cfg)
		wg.Go(func() { _, errs[i] = cl.Whoami(context.Background()) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if n := len(c.Calls("POST", "/api/v1/login")); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	info, err := os.Stat(filepath.Join(cfg.Home, "session.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("session file: %v, %v", info, err)
	}
}

func TestProcessesThatStartTogetherLogInOnce(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		cl := asAnn(t, c, cfg)
		wg.Go(func() { _, errs[i] = cl.Whoami(context.Background()) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if n := len(c.Calls("POST", "/api/v1/login")); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
}

// Another key, method or cluster must not use the session that is there.
func TestSessionOfOtherSettingsIsNotUsed(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	if _, err := asAnn(t, c, cfg).Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("id-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Accept("ci", "id-token", "workload:ci")
	cfg.Method, cfg.JWTFile = "ci", file
	me, err := open(t, cfg).Whoami(t.Context())
	if err != nil || me.Principal != "workload:ci" {
		t.Errorf("%v, %v", me.Principal, err)
	}
}

// The cluster's session lives on all the while, so that whoever logs in anew does it
// for the end that the home's file tells.
func TestSessionIsRenewedBeforeItsEnd(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	cfg.Principal = ann
	logins := func() int { return len(c.Calls("POST", "/api/v1/login")) }
	use := func(cl *client.Client) {
		t.Helper()
		if me, err := cl.Whoami(t.Context()); err != nil || me.Principal != ann {
			t.Fatalf("%s, %v", me.Principal, err)
		}
	}
	use(asAnn(t, c, cfg))
	file := filepath.Join(cfg.Home, "session.json")
	for _, x := range []struct {
		left time.Duration
		want int
	}{{5 * time.Minute, 1}, {50 * time.Second, 2}, {-time.Second, 3}} { // of an hour and more
		kept := map[string]any{}
		raw, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(raw, &kept)
		}
		kept["opened_at"], kept["expires_at"] = time.Now().Add(-time.Hour), time.Now().Add(x.left)
		if raw, merr := json.Marshal(kept); err == nil && merr == nil {
			err = os.WriteFile(file, raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		cl := open(t, cfg)
		use(cl)
		use(cl) // by what it has now
		if got := logins(); got != x.want {
			t.Errorf("%d logins, want %d, with a session that has %s left", got, x.want, x.left)
		}
	}
	for _, k := range c.Calls("GET", "/api/v1/whoami") {
		if k.Principal != ann {
			t.Fatal("a call came without a session that works")
		}
	}
}

func TestEnrolment(t *testing.T) {
	c := clienttest.New(t, 1)
	token := c.Enrolment(ann)
	home := filepath.Join(t.TempDir(), "home")
	// Nothing is configured: the token knows where and who the cluster is.
	a, err := client.Enrol(t.Context(), client.Config{Home: home}, secret.New(token[:20]+" \n"+token[20:]))
	if err != nil {
		t.Fatal(err)
	}
	if a.Principal != ann {
		t.Errorf("enrolled as %s", a.Principal)
	}
	cl := open(t, client.Config{Home: home})
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(c.Calls("POST", "/api/v1/login")); n != 1 {
		t.Errorf("%d logins; the enrolment's session was not kept", n)
	}
	c.EndSessions()
	if _, err := cl.Whoami(t.Context()); err != nil {
		t.Fatalf("the enrolled key does not log in: %v", err)
	}
	for _, f := range []string{"key.pem", "ca.pem", "identity.json", "session.json"} {
		info, err := os.Stat(filepath.Join(home, f))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, info, err)
		}
	}
}

func TestEnrolmentAtAnotherClusterIsRefused(t *testing.T) {
	real, fake := clienttest.New(t, 1), clienttest.New(t, 1)
	token := real.Enrolment(ann)
	real.Stop(1)
	home := filepath.Join(t.TempDir(), "home")
	_, err := client.Enrol(t.Context(), client.Config{Home: home, Addresses: []string{fake.Node(1)}}, secret.New(token))
	if err == nil {
		t.Fatal("enrolled at a cluster with another CA")
	}
	if n := len(fake.Calls("", "")); n != 0 {
		t.Errorf("the token went to the wrong cluster: %d calls", n)
	}
	if _, err := os.Stat(filepath.Join(home, "ca.pem")); err == nil {
		t.Error("the wrong cluster's CA was kept")
	}
}

func TestUntrustedNodeIsNoUnavailability(t *testing.T) {
	c, other := clienttest.New(t, 1), clienttest.New(t, 1)
	cfg := config(t, c)
	cfg.CAFile = other.CAFile
	cfg.OnRetry = func(error, time.Duration) { t.Error("a wrong certificate is retried") }
	cl := asAnn(t, c, cfg)
	_, err := cl.Whoami(t.Context())
	if e := kind(t, err, client.KindInternal); e.Problem.Code != "untrusted" {
		t.Errorf("%v", err)
	}
}

func TestLooseHomeIsRefused(t *testing.T) {
	c := clienttest.New(t, 1)
	cfg := config(t, c)
	if err := os.MkdirAll(cfg.Home, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := client.New(cfg); err == nil || !strings.Contains(err.Error(), "0700") {
		t.Errorf("%v", err)
	}
}

func TestSettingsThatCannotWork(t *testing.T) {
	for name, cfg := range map[string]client.Config{
		"no address":    {},
		"plain http":    {Addresses: []string{"http://127.0.0.1:1"}},
		"a password":    {Addresses: []string{"https://a:b@127.0.0.1:1"}},
		"odd binding":   {Addresses: []string{"127.0.0.1:1"}, Binding: "bearer"},
		"no CA file":    {Addresses: []string{"127.0.0.1:1"}, CAFile: "/nonexistent"},
		"cert sans key": {Addresses: []string{"127.0.0.1:1"}, CertFile: "/nonexistent"},
	} {
		_, err := client.New(cfg)
		if client.KindOf(err) != client.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	cl := open(t, client.Config{Addresses: []string{"a.example", "b.example:1", "https://c.example", "https://d.example/base/"}})
	want := []string{"https://a.example:8700", "https://b.example:1", "https://c.example", "https://d.example/base"}
	if got := cl.Nodes(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestFromEnvironment(t *testing.T) {
	env := map[string]string{"MAYFLY_ADDR": " a:1 ,b:2,", "MAYFLY_RETRY": "5s", "MAYFLY_METHOD": "ci", "HOME": "/home/x"}
	lookup := func(k string) (string, bool) { v, ok := env[k]; return v, ok }
	cfg, err := client.FromEnvironment(lookup)
	if err != nil || len(cfg.Addresses) != 2 || cfg.Retry != 5*time.Second || cfg.Home != "/home/x/.mayfly" {
		t.Errorf("%+v, %v", cfg, err)
	}
	env["MAYFLY_RETRY"] = "soon"
	if _, err := client.FromEnvironment(lookup); client.KindOf(err) != client.KindInvalid {
		t.Errorf("%v", err)
	}
}

// TestALongLedgerIsVerifiedByManyCalls: as many as the node says, and no more by one
// that never comes to an end.
func TestALongLedgerIsVerifiedByManyCalls(t *testing.T) {
	c := clienttest.New(t, 1)
	next := map[string]uint64{"from=0": 40, "from=40": 90}
	c.Handle("GET /api/v1/audit/verify", func(k clienttest.Call) (int, any) {
		n := next[strings.TrimPrefix(k.Path, "/api/v1/audit/verify?")]
		return http.StatusOK, wire.VerifyAnswer{Size: 100, OK: n == 0, Next: n}
	})
	cl := asAnn(t, c, config(t, c))
	var told []int64
	a, err := cl.AuditVerify(t.Context(), func(done, total int64) { told = append(told, done, total) })
	if err != nil || !a.OK || !slices.Equal(told, []int64{40, 100, 90, 100}) {
		t.Errorf("%+v %v; told %v", a, err, told)
	}
	next["from=90"] = 90
	if a, err := cl.AuditVerify(t.Context(), nil); err == nil || a.OK {
		t.Errorf("a node that goes in circles: %+v", a)
	}
}
