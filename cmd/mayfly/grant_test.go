package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/clienttest"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// grants tells the cluster's grants what to do. Where a command names none, the
// last one is meant.
func grants(ts *testscript.TestScript, _ bool, args []string) {
	c := ts.Value("cluster").(*clienttest.Cluster)
	switch args[0] {
	case "ask": // ask PRINCIPAL ROLE KIND PURPOSE [JSON]: sets G and HASH; JSON is laid over the document
		extra := map[string]any{}
		if len(args) > 5 {
			ts.Check(json.Unmarshal([]byte(args[5]), &extra))
		}
		ts.Setenv("G", c.Ask(args[1], args[2], args[4], args[3], extra))
		c.Alter("", func(g *wire.Grant) { ts.Setenv("HASH", g.Hash[:12]) })
	case "approve": // approve PRINCIPAL …
		for _, p := range args[1:] {
			c.Approve("", p)
		}
	case "end": // end STATE BY REASON
		c.End("", args[1], args[2], args[3])
	case "lie": // changes the document under the same hash
		c.Alter("", func(g *wire.Grant) { g.Document = bytes.ReplaceAll(g.Document, []byte(args[1]), []byte(args[2])) })
	case "review": // wants a review that is overdue
		c.Alter("", func(g *wire.Grant) {
			g.State = wire.GrantOpen
			g.Review = &wire.Review{Due: time.Now().Add(-time.Hour), Overdue: true, Needs: []wire.Need{{Group: "security", Required: 1, Eligible: 2}}}
		})
	case "opens": // opens JSON: what the cluster says that it gives out
		c.Alter("", func(g *wire.Grant) { ts.Check(json.Unmarshal([]byte(args[1]), &g.Opens)) })
	case "cosign": // every change waits for approvers from now on
		c.CoSign = true
	case "until": // until METHOD PREFIX N: so many calls have come
		n, err := strconv.Atoi(args[3])
		ts.Check(err)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(20 * time.Second); len(c.Calls(args[1], args[2])) < n; <-tick.C {
			if time.Now().After(deadline) {
				ts.Fatalf("%d calls of %s %s, want %d", len(c.Calls(args[1], args[2])), args[1], args[2], n)
			}
		}
	case "waits": // waits N: the next grant to be asked about has been, N times; how often the one before was is the clock's to say
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		before := ts.Getenv("WAITED")
		polled := func() (id string, times int) {
			for _, k := range c.Calls("GET", "/api/v1/grants/") {
				of := askedAbout(k)
				if of != id {
					id, times = of, 0
				}
				times++
			}
			return id, times
		}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
			id, times := polled()
			if id != before && times >= n {
				break
			}
			if time.Now().After(deadline) {
				ts.Fatalf("grant %s has been asked about %d times, want %d of another than %s", id, times, n, before)
			}
		}
	case "mark": // mark: the grant that was asked about last is no longer the next
		ts.Setenv("WAITED", "")
		if calls := c.Calls("GET", "/api/v1/grants/"); len(calls) > 0 {
			ts.Setenv("WAITED", askedAbout(calls[len(calls)-1]))
		}
	case "signed": // signed PUBFILE DOMAIN: the last approve call's signature is that key's, over the grant's hash
		ts.Check(signedBy(c, ts.MkAbs(args[1]), args[2]))
	default:
		ts.Fatalf("grant %s?", args[0])
	}
}

// askedAbout is the grant that a call is about.
func askedAbout(k clienttest.Call) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(k.Path, "/api/v1/grants/"), "?")
	return id
}

// signedBy has the cluster's own verifier look at what was sent last.
func signedBy(c *clienttest.Cluster, pub, domain string) error {
	calls := c.Calls("POST", "/api/v1/grants")
	var in wire.ApproveRequest
	if err := json.Unmarshal(calls[len(calls)-1].Body, &in); err != nil {
		return err
	}
	line, err := os.ReadFile(pub)
	if err != nil {
		return err
	}
	parsed, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return err
	}
	var k struct{ Type, Key string }
	if err := ssh.Unmarshal(parsed.Marshal(), &k); err != nil { // ed25519
		return err
	}
	jwk, err := json.Marshal(map[string]string{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString([]byte(k.Key))})
	if err != nil {
		return err
	}
	var hash cosign.Hash
	c.Alter("", func(g *wire.Grant) { hash = cosign.Sum(g.Domain, g.Document) })
	return cosign.Verify(cosign.Key{Kind: cosign.KindSSH, JWK: jwk, SSHType: k.Type}, domain, hash,
		cosign.Signature{Verifier: cosign.Verifier1, Kind: in.Signature.Kind, Key: in.Signature.Key, SSHSIG: in.Signature.SSHSIG})
}

// agent starts a real ssh-agent with keys, made by ssh-keygen where they are not
// there yet: agent FILE …
func agent(ts *testscript.TestScript, _ bool, args []string) {
	dir, err := os.MkdirTemp("", "agent") // a socket's path is short
	ts.Check(err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	_, err = bufio.NewReader(out).ReadString('\n') // it listens once it has spoken
	ts.Check(err)
	ts.Setenv("SSH_AUTH_SOCK", socket)
	for _, name := range args {
		path := ts.MkAbs(name)
		if _, err := os.Stat(path); err != nil {
			ts.Check(ts.Exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path))
		}
		ts.Check(ts.Exec("ssh-add", "-q", path))
	}
}

func TestNeedsInWords(t *testing.T) {
	got := needsText([]wire.Need{{Group: "dba", Required: 2, Have: 1}, {Group: "s\u202ere", Required: 1}})
	if want := `2 of dba (1 so far) and 1 of s\u202ere (none so far)`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A diff whose old side nobody signed shows the new side whole.
func TestWholeDiffLeavesNothingOut(t *testing.T) {
	var long strings.Builder
	for i := range 40 {
		long.WriteString("line " + strconv.Itoa(i) + "\n")
	}
	changed := strings.Replace(long.String(), "line 3\n", "line three\n", 1) + "more\n"
	for name, c := range map[string]struct{ before, after string }{
		"new": {"", long.String()}, "same": {long.String(), long.String()}, "changed": {long.String(), changed}, "gone": {long.String(), ""}, "no end of line": {"a\nb", "a\nc"},
		"begins with signs": {"- x\n", "- x\n+ y\n  z\n"},
	} {
		var kept []string
		for _, line := range wholeDiff([]byte(c.before), []byte(c.after)) {
			if !strings.HasPrefix(line, "- ") {
				kept = append(kept, line[2:])
			}
		}
		if got := strings.Join(kept, "\n"); got != strings.TrimSuffix(c.after, "\n") {
			t.Errorf("%s: what is new reads\n%s", name, got)
		}
	}
	lines := strings.Join(wholeDiff([]byte(long.String()), []byte(changed)), "\n")
	for _, want := range []string{"- line 3\n+ line three\n", "  line 20\n", "+ more"} {
		if !strings.Contains(lines, want) {
			t.Errorf("no %q in\n%s", want, lines)
		}
	}
}

// Of a policy's spec nothing but its text may be left out, and only where it has
// nothing else.
func TestSignedTextIsTheWholeSpec(t *testing.T) {
	if got := string(signedText(json.RawMessage(`{"text":"permit(principal,action,resource);"}`))); got != "permit(principal,action,resource);\n" {
		t.Errorf("%q", got)
	}
	if got := string(signedText(json.RawMessage(`{"text":"forbid","x":"hidden"}`))); !strings.Contains(got, "hidden") || !strings.Contains(got, "forbid") {
		t.Errorf("%q", got)
	}
}

func TestPassphrasesAreAskedOfPeopleOnly(t *testing.T) {
	_, err := testShell(nil).passphrase("key")
	if p, code, _ := problemOf(err); code != exitFailed || p.Code != approve.CodeKey {
		t.Errorf("%+v, %d", p, code)
	}
}
