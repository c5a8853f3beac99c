// Command rogue is a plugin that misbehaves, for tests of the host: at its start
// as its name says, and in its calls as the spec of its target says. It speaks the
// protocol by itself, without the SDK, so that nothing keeps it from lying.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
)

var name = strings.TrimPrefix(filepath.Base(os.Args[0]), "mayfly-plugin-")

// leftBehind is the name of a child that a plugin leaves behind.
const leftBehind = "left-behind-by-"

// leave starts a child in a session of its own, which holds the plugin's outputs.
func leave() {
	c := exec.Command("/proc/self/exe")
	c.Args = []string{leftBehind + name}
	c.Stdout, c.Stderr, c.SysProcAttr = os.Stdout, os.Stderr, &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "nothing is left behind:", err)
	}
}

func main() {
	if strings.HasPrefix(os.Args[0], leftBehind) {
		time.Sleep(time.Minute)
		return
	}
	switch name {
	case "orphan":
		leave()
	case "leaves-its-pipes":
		leave()
		os.Exit(3)
	case "litters":
		_ = os.Chdir(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"))
		for range 100 {
			_, _ = os.Mkdir("d", 0o700), os.Chdir("d")
		}
		_ = os.Chdir("/")
	case "crashes-at-start":
		os.Exit(3)
	case "listens-elsewhere":
		fmt.Println("1|1|unix|/run/docker.sock|grpc|" + strings.Repeat("x", 60))
		select {}
	case "listens-on-tcp":
		fmt.Println("1|1|tcp|127.0.0.1:22|grpc|" + strings.Repeat("x", 60))
		select {}
	case "never-ends-its-line":
		for {
			fmt.Print(strings.Repeat("x", 1<<16))
		}
	case "speaks-another-version":
		serve(99)
	}
	serve(protocol.Version)
}

func serve(version int) {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  protocol.Handshake(),
		VersionedPlugins: map[int]plugin.PluginSet{version: {protocol.Part: &part{}}},
		Logger:           hclog.NewNullLogger(),
		GRPCServer: func(o []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(o, grpc.MaxRecvMsgSize(32<<20), grpc.MaxConcurrentStreams(1024))...)
		},
	})
}

type part struct{ plugin.NetRPCUnsupportedPlugin }

func (*part) GRPCServer(_ *plugin.GRPCBroker, g *grpc.Server) error {
	protocol.Register(g, &rogue{open: map[uint64]protocol.OpenRequest{}, stderr: os.Stderr})
	return nil
}

func (*part) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

type rogue struct {
	mu     sync.Mutex // calls come side by side
	open   map[uint64]protocol.OpenRequest
	stderr *os.File
}

func (r *rogue) target(handle uint64) protocol.OpenRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open[handle]
}

// fault is what the target's spec asks for.
func fault(spec []byte) string {
	var s struct{ Fault string }
	_ = json.Unmarshal(spec, &s)
	return s.Fault
}

func (r *rogue) fault(handle uint64) string { return fault(r.target(handle).Spec) }

func (r *rogue) Describe(context.Context, protocol.Nothing) (protocol.Manifest, error) {
	m := protocol.Manifest{Name: name, Revocable: true, CredentialName: "mf-{lease}", Abilities: []protocol.Ability{protocol.AbleCheck, protocol.AbleList, protocol.AblePublish, protocol.AbleSecrets, protocol.AbleRoles}}
	switch name {
	case "serves-another":
		m.Name = "postgres"
	case "names-others":
		m.CredentialName = "root"
	case "tells-another-story":
		note := filepath.Join(os.TempDir(), "rogue-"+generation())
		if _, err := os.Stat(note); err == nil {
			m.Abilities = m.Abilities[:1]
		}
		_ = os.WriteFile(note, nil, 0o600)
	case "revokes":
		m.Abilities = append(m.Abilities, protocol.AbleRevoked)
	case "renames":
		if strings.HasPrefix(generation(), "2") {
			m.CredentialName = "other-{lease}"
		}
	}
	return m, nil
}

// generation is what the test has appended to this file.
var generation = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return ""
	}
	_, g, _ := strings.Cut(string(b[max(0, len(b)-32):]), "generation ")
	return g
})

func (r *rogue) Examine(_ context.Context, q protocol.SpecRequest) (protocol.Examination, error) {
	switch fault(q.Spec) {
	case "refuses the spec":
		return protocol.Examination{Problem: "no\x1b[31m way\nforged"}, nil
	case "proposes a thousand roles":
		return protocol.Examination{Roles: make([]protocol.Role, 1000)}, nil
	case "hangs while examined":
		time.Sleep(time.Hour)
	}
	return protocol.Examination{}, nil
}

func (r *rogue) CheckScope(context.Context, protocol.ScopeRequest) (protocol.Verdict, error) {
	return protocol.Verdict{}, nil
}

func (r *rogue) MakeSecrets(context.Context, protocol.SpecRequest) (protocol.Secrets, error) {
	return protocol.Secrets{Values: map[string][]byte{"../../etc": []byte("x")}}, nil
}

func (r *rogue) Open(_ context.Context, q protocol.OpenRequest) (protocol.Verdict, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[q.Handle] = q
	return protocol.Verdict{}, nil
}

func (r *rogue) Close(context.Context, protocol.HandleRequest) (protocol.Verdict, error) {
	return protocol.Verdict{}, nil
}

func (r *rogue) Mint(ctx context.Context, q protocol.LeaseRequest) (protocol.Minted, error) {
	good := protocol.Minted{Public: map[string]string{"username": q.Lease.Name, "generation": generation() + "."}, Secret: map[string][]byte{"password": []byte("sixteen bytes or more")}}
	target := r.target(q.Handle)
	if variable, ok := strings.CutPrefix(r.fault(q.Handle), "sets "); ok && !strings.Contains(variable, " ") {
		good.Env = map[string]string{variable: "username"}
	}
	switch r.fault(q.Handle) {
	case "crashes":
		os.Exit(7)
	case "hangs":
		note(target, "arrived")
		time.Sleep(time.Hour)
	case "leaves a child":
		leave()
	case "eats memory":
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
			if len(all) > 4096 {
				return good, nil
			}
		}
	case "waits for the caller":
		note(target, "arrived")
		<-ctx.Done()
		note(target, ctx.Err().Error())
		return good, ctx.Err()
	case "says when it must be done":
		d, ok := ctx.Deadline()
		return protocol.Minted{Public: map[string]string{"deadline": fmt.Sprint(ok, " ", time.Until(d).Round(time.Second))}}, nil
	case "answers hugely":
		good.Public["big"] = strings.Repeat("x", 900<<10)
		good.Public["bigger"] = strings.Repeat("x", 900<<10)
	case "has too many fields":
		for i := range 100 {
			good.Public[fmt.Sprintf("f%d", i)] = "x"
		}
	case "has too large a field":
		good.Secret["password"] = []byte(strings.Repeat("x", 64<<10))
	case "has a field twice":
		good.Public["password"] = "x"
	case "has nothing":
		return protocol.Minted{}, nil
	case "has control characters":
		good.Public["host"] = "a\x1b]0;owned\x07"
	case "sets a variable of no field":
		good.Env = map[string]string{"PGUSER": "nobody"}
	case "has a field with a strange name":
		good.Public["../x"] = "y"
	case "fails in an unknown way":
		return protocol.Minted{Error: &protocol.Error{Kind: "catastrophe", Detail: "boom\nforged=line \x1b[2J"}}, nil
	case "tells its secret":
		secret := string(target.Secrets["admin_password"])
		fmt.Println("on stdout:", secret)
		fmt.Fprintln(os.Stderr, "on stderr:", secret)
		fmt.Fprintln(r.stderr, "straight:", secret)
		return protocol.Minted{Error: &protocol.Error{Kind: "refused", Detail: "wrong password " + secret, Cause: secret}}, nil
	case "shouts":
		fmt.Fprintln(r.stderr, `{"@message":1,"@level":{},"@timestamp":[]}`) // go-plugin's own reader panics on this
		fmt.Fprintln(r.stderr, "level=ERROR bad\x1b[31m news \u202e \x00")
		fmt.Fprintln(r.stderr, strings.Repeat("L", 1<<20))
		for i := range 20_000 {
			fmt.Fprintln(r.stderr, "line", i)
		}
	}
	return good, nil
}

// note tells the test how far a call has come, in the file that the target names.
func note(target protocol.OpenRequest, text string) {
	if file, ok := target.Secrets["file"]; ok {
		_ = os.WriteFile(string(file), []byte(text), 0o644)
	}
}

func (r *rogue) Withdraw(_ context.Context, q protocol.LeasesRequest) (protocol.Withdrawn, error) {
	receipt := issuers.Receipt{Proof: issuers.ProofAbsent, Detail: "looked: not there"}
	a := protocol.Withdrawn{}
	for range q.Leases {
		a.Outcomes = append(a.Outcomes, protocol.Outcome{Receipt: &receipt})
	}
	switch r.fault(q.Handle) {
	case "ends too few":
		a.Outcomes = a.Outcomes[1:]
	case "ends too many":
		a.Outcomes = append(a.Outcomes, protocol.Outcome{Receipt: &receipt})
	case "says neither":
		a.Outcomes[0] = protocol.Outcome{}
	case "proves nothing":
		receipt.Proof = "trust me"
	case "proves what it cannot":
		receipt.Proof = issuers.ProofExpiresOnly
	case "gives no detail":
		receipt.Detail = " "
	case "ends minus one session":
		receipt.SessionsEnded = -1
	case "ends more sessions than there are":
		receipt.SessionsEnded = math.MaxInt
	case "forges lines":
		receipt.Detail = "gone\nlevel=INFO forged"
	case "crashes":
		os.Exit(7)
	}
	return a, nil
}

func (r *rogue) Extend(context.Context, protocol.LeaseRequest) (protocol.Verdict, error) {
	return protocol.Verdict{}, nil
}

func (r *rogue) List(_ context.Context, q protocol.HandleRequest) (protocol.Listed, error) {
	switch r.fault(q.Handle) {
	case "lists control characters":
		return protocol.Listed{Found: []protocol.Found{{Name: "a\nb"}}}, nil
	case "lists one twice":
		return protocol.Listed{Found: []protocol.Found{{Name: "mf-a"}, {Name: "mf-a"}}}, nil
	case "lists for ever":
		return protocol.Listed{Found: make([]protocol.Found, 2_000_000)}, nil
	}
	return protocol.Listed{}, nil
}

func (r *rogue) Fence(context.Context, protocol.HandleRequest) (protocol.Verdict, error) {
	return protocol.Verdict{}, nil
}

func (r *rogue) Sweep(context.Context, protocol.HandleRequest) (protocol.Verdict, error) {
	return protocol.Verdict{}, nil
}

func (r *rogue) Publish(_ context.Context, q protocol.HandleRequest) (protocol.Published, error) {
	if r.fault(q.Handle) == "hangs" {
		time.Sleep(time.Hour)
	}
	return protocol.Published{Documents: map[string][]byte{"../passwd": nil}}, nil
}

// Revoked names what it was told, unless it hangs.
func (r *rogue) Revoked(_ context.Context, q protocol.RevokedRequest) (protocol.Published, error) {
	switch r.fault(q.Handle) {
	case "hangs":
		time.Sleep(time.Hour)
	case "publishes too much":
		return protocol.Published{Documents: map[string][]byte{"krl": make([]byte, 9<<20)}}, nil
	}
	var names []string
	for _, l := range q.Withdrawn {
		names = append(names, l.ID+" until "+l.NotAfter.UTC().Format(time.RFC3339))
	}
	return protocol.Published{Documents: map[string][]byte{"krl": []byte(strings.Join(names, "\n"))}}, nil
}

// Check says how the process finds itself.
func (r *rogue) Check(_ context.Context, q protocol.HandleRequest) (protocol.Findings, error) {
	say := func(name, detail string) issuers.Finding {
		return issuers.Finding{Name: name, OK: true, Detail: detail}
	}
	var out []issuers.Finding
	var env []string
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(kv, "=")
		env = append(env, k)
	}
	out = append(out, say("env", strings.Join(env, " ")))
	fds, _ := os.ReadDir("/proc/self/fd")
	var open []string
	for _, fd := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		open = append(open, fd.Name()+"="+to)
	}
	score, _ := os.ReadFile("/proc/self/oom_score_adj")
	out = append(out, say("oom", strings.TrimSpace(string(score))))
	out = append(out, say("fds", strings.Join(open, " ")))
	exe, _ := os.Readlink("/proc/self/exe")
	dir, _ := os.Getwd()
	sid, _, _ := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
	groups, _ := os.Getgroups()
	out = append(out, say("self", fmt.Sprintf("pid=%d uid=%d gid=%d groups=%v pgid=%d sid=%d exe=%s dir=%s", os.Getpid(), os.Getuid(), os.Getgid(), groups, syscall.Getpgrp(), sid, exe, dir)))
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "NoNewPrivs") || strings.HasPrefix(line, "CapEff") {
			out = append(out, say("status", strings.Join(strings.Fields(line), " ")))
		}
	}
	limits, _ := os.ReadFile("/proc/self/limits")
	for _, line := range strings.Split(string(limits), "\n") {
		for _, want := range []string{"Max core", "Max data", "Max open", "Max processes"} {
			if strings.HasPrefix(line, want) {
				out = append(out, say("limit", strings.Join(strings.Fields(line), " ")))
			}
		}
	}
	// In a PID namespace of its own it has none; but what the node's number is, it may
	// guess, and the test says so.
	parent := os.Getppid()
	if text := string(r.target(q.Handle).Secrets["node"]); text != "" {
		_, _ = fmt.Sscan(text, &parent)
	}
	for _, f := range []string{"mem", "environ", "maps"} {
		h, err := os.Open(fmt.Sprintf("/proc/%d/%s", parent, f))
		if err == nil {
			_, err = h.Read(make([]byte, 1))
			if f == "mem" && err != nil && !os.IsPermission(err) {
				err = nil // opened; the first page is never there
			}
		}
		out = append(out, say("parent "+f, fmt.Sprint(err)))
	}
	out = append(out, say("ptrace", fmt.Sprint(syscall.PtraceAttach(parent))))
	return protocol.Findings{Findings: out}, nil
}
