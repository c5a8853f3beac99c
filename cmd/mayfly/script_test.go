package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/mayfly-broker/mayfly/client/clienttest"
	"github.com/mayfly-broker/mayfly/client/keys"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"mayfly": main})
}

// leakChecked fails a run that leaves goroutines behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

const ann = "human:ann"

// home makes a client's home whose key the cluster knows as ann's.
func home(tb testing.TB, c *clienttest.Cluster, dir string) {
	tb.Helper()
	key, err := keys.LoadOrGenerate(filepath.Join(dir, "key.pem"), keys.P256)
	if err != nil {
		tb.Fatal(err)
	}
	c.Register(key.Thumbprint(), ann)
	if err := os.WriteFile(filepath.Join(dir, "identity.json"), []byte(`{"principal":"`+ann+`"}`), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// TestScripts runs testdata/script against a cluster of two nodes each.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			c := clienttest.New(t, 2)
			dir := filepath.Join(env.WorkDir, ".home")
			home(t, c, dir)
			env.Values["cluster"] = c
			for k, v := range map[string]string{"MAYFLY_ADDR": c.Addr(), "MAYFLY_CACERT": c.CAFile, "MAYFLY_HOME": dir, "MAYFLY_RETRY": "3s", "HOME": env.WorkDir} {
				env.Setenv(k, v)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code, "cluster": cluster, "grant": grants, "agent": agent, "token": token, "export": export},
	})
}

// code runs a program and wants its exit code: code 3 mayfly request …
func code(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	if neg || err != nil {
		ts.Fatalf("usage: code N program [args...]")
	}
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// token writes an enrolment token for a principal: token FILE PRINCIPAL
func token(ts *testscript.TestScript, neg bool, args []string) {
	c := ts.Value("cluster").(*clienttest.Cluster)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(c.Enrolment(args[1])+"\n"), 0o600))
}

// cluster tells the cluster what to do, or looks at what it saw.
func cluster(ts *testscript.TestScript, neg bool, args []string) {
	c := ts.Value("cluster").(*clienttest.Cluster)
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		ts.Check(err)
		return n
	}
	switch args[0] {
	case "fail": // fail METHOD PREFIX TIMES CODE: a 503, or "cut"
		f := clienttest.Failure{Method: args[1], Prefix: args[2], Times: number(3)}
		if args[4] != "cut" {
			f.Problem = clienttest.Unavailable(args[4])
		}
		c.Fail(f)
	case "problem": // problem PREFIX STATUS KIND CODE: once
		c.Fail(clienttest.Failure{Prefix: args[1], Times: 1, Problem: wire.Problem{Status: number(2), Kind: args[3], Code: args[4], Title: "No", Detail: "Detail of " + args[4] + "."}})
	case "stop":
		c.Stop(1)
		c.Stop(2)
	case "lives": // lives LEASE MAX
		var err error
		c.LeaseTTL, err = time.ParseDuration(args[1])
		ts.Check(err)
		c.LeaseMax, err = time.ParseDuration(args[2])
		ts.Check(err)
	case "calls": // calls METHOD PREFIX N
		if got := len(c.Calls(args[1], args[2])); got != number(3) {
			ts.Fatalf("%d calls of %s %s, want %d: %+v", got, args[1], args[2], number(3), c.Calls(args[1], args[2]))
		}
	case "sent": // sent METHOD PREFIX FILE: writes the last call's body
		calls := c.Calls(args[1], args[2])
		if len(calls) == 0 {
			ts.Fatalf("no call of %s %s", args[1], args[2])
		}
		last := calls[len(calls)-1]
		reason, err := url.QueryUnescape(last.Reason)
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(args[3]), []byte(string(last.Body)+"\nreason="+reason+"\nidem="+last.Idem+"\n"), 0o600))
	case "open": // open N: leases
		if got := len(c.Open()); got != number(1) {
			ts.Fatalf("%d open leases, want %d", got, number(1))
		}
	case "tasks": // tasks N: open ones
		if got := len(c.OpenTasks()); got != number(1) {
			ts.Fatalf("%d open tasks, want %d", got, number(1))
		}
	case "answer": // answer METHOD PATH FILE: a document for an endpoint
		doc := []byte(ts.ReadFile(args[3]))
		c.Handle(args[1]+" "+args[2], func(clienttest.Call) (int, any) { return 200, rawDocument(doc) })
	default:
		ts.Fatalf("cluster %s?", args[0])
	}
}

// rawDocument goes out as it is.
type rawDocument []byte

func (d rawDocument) MarshalJSON() ([]byte, error) { return d, nil }
