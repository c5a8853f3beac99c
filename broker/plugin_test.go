package broker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/brokertest"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// watchedLog counts the readings of the ledger that are open.
type watchedLog struct {
	*brokertest.Log
	open atomic.Int32
}

func (l *watchedLog) View(fn func(ledger.Reader) error) error {
	l.open.Add(1)
	defer l.open.Add(-1)
	return l.Log.View(fn)
}

// remote is a kind out of process, of the name "remote", over a kind in memory: it
// knows nothing until it is asked.
type remote struct {
	*brokertest.Kind
	log     *watchedLog
	mu      sync.Mutex
	known   map[string]bool
	fetches int
	reading bool  // asked while the ledger was read
	down    error // why it cannot be asked
}

func (k *remote) Name() string { return "remote" }

func (k *remote) ask(what string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known[what] {
		return nil
	}
	return &issuers.Pending{What: what, Fetch: func(context.Context) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.fetches++
		k.reading = k.reading || k.log.open.Load() > 0
		k.known[what] = k.down == nil
		return k.down
	}}
}

func (k *remote) CheckSpec(spec json.RawMessage) error {
	if err := k.ask(string(spec)); err != nil {
		return err
	}
	return k.Kind.CheckSpec(spec)
}

func (k *remote) CheckScope(spec json.RawMessage, s scope.Scope) error {
	if err := k.ask(fmt.Sprint(string(spec), s)); err != nil {
		return err
	}
	return k.Kind.CheckScope(spec, s)
}

// someplugins has one plugin, once the ledger names it.
type someplugins struct {
	kind *remote
	mu   sync.Mutex
	set  map[string]ledger.PluginSpec
	err  error
}

func (p *someplugins) Kind(name string) (issuers.Kind, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.set[name]; !ok || name != "remote" {
		return nil, false, nil
	}
	return p.kind, true, p.err
}

func (p *someplugins) Set(all map[string]ledger.PluginSpec) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set = all
}

func (p *someplugins) Status() []wire.NodePlugin {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return []wire.NodePlugin{{Name: "remote", Problem: p.err.Error()}}
	}
	return []wire.NodePlugin{{Name: "remote", Running: true}}
}

func (p *someplugins) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

// plugRig is a rig whose engine has plugins.
func plugRig(t *testing.T) (*rig, *remote, *someplugins) {
	t.Helper()
	r := newRig(t)
	log := &watchedLog{Log: r.log}
	kind := &remote{Kind: r.kind, log: log, known: map[string]bool{}}
	plugins := &someplugins{kind: kind}
	var err error
	r.engine, err = broker.New(broker.Config{Log: log, Node: "n1", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{r.kind}, Plugins: plugins, Hint: broker.Hint{Addresses: []string{"mayfly.example:443"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.engine.Close)
	return r, kind, plugins
}

const pluginDoc = `{"file":"x","sha256":"0000000000000000000000000000000000000000000000000000000000000000"}`

// TestLaw8NoPluginIsAskedWhileTheLedgerIsRead: and whoever registers one can name
// it at once.
func TestLaw8NoPluginIsAskedWhileTheLedgerIsRead(t *testing.T) {
	r, kind, _ := plugRig(t)
	target := wire.Object{Kind: "Target", Name: "far", Spec: json.RawMessage(`{"type":"remote","system":"t1"}`)}
	_, err := r.engine.Apply(t.Context(), callerOf(operator, ""), wire.ApplyRequest{Objects: []wire.Object{target}})
	r.fails(err, fault.Invalid, "unknown_target_type")
	r.put("Plugin", "remote", json.RawMessage(pluginDoc))
	r.put("Target", "far", target.Spec)
	r.put("Role", "far/rw", json.RawMessage(`{"scope":[{"type":"memory","actions":["read","write"]}],"ttl":{"default":"1m","max":"10m"}}`))
	if err := r.engine.SyncPlugins(); err != nil {
		t.Fatal(err)
	}
	r.put("Policy", "far", rawPolicy(`@id("far") permit (principal == Workload::"a", action, resource == Role::"far/rw");`))
	r.put("Policy", "not-far", rawPolicy(`@id("not-far") forbid (principal == Agent::"c", action, resource == Role::"far/rw");`))
	a, err := r.request(appCaller, wire.AccessRequest{Role: "far/rw", Purpose: "work", Scope: json.RawMessage(`[{"type":"memory","actions":["read"]}]`)})
	if err != nil || a.Credential["password"] == "" {
		t.Fatalf("%+v, %v", a, err)
	}
	if kind.fetches < 3 || kind.reading {
		t.Errorf("asked %d times, while reading: %t", kind.fetches, kind.reading)
	}
	// Whom policy refuses cannot have a plugin asked.
	asked := kind.fetches
	_, err = r.request(agentCaller, wire.AccessRequest{Role: "far/rw", Purpose: "work", Scope: json.RawMessage(`[{"type":"memory","actions":["write"]}]`)})
	r.fails(err, fault.Denied, "")
	if kind.fetches != asked {
		t.Error("a refused request had the plugin asked")
	}
	_, err = r.engine.Apply(t.Context(), callerOf(operator, ""), wire.ApplyRequest{Delete: []wire.Ref{{Kind: "Plugin", Name: "remote"}}})
	r.fails(err, fault.Conflict, ledger.CodeInUse)
}

func rawPolicy(text string) json.RawMessage {
	b, _ := json.Marshal(map[string]string{"text": text})
	return b
}

// TestLaw8PluginThatIsAwayRefusesClearly: whatever needs it, and nothing else.
func TestLaw8PluginThatIsAwayRefusesClearly(t *testing.T) {
	r, kind, plugins := plugRig(t)
	r.put("Plugin", "remote", json.RawMessage(pluginDoc))
	r.put("Target", "far", json.RawMessage(`{"type":"remote","system":"t1"}`))
	r.put("Role", "far/rw", json.RawMessage(`{"scope":[{"type":"memory","actions":["read"]}],"ttl":{"default":"1m","max":"10m"}}`))
	r.put("Policy", "far", rawPolicy(`@id("far") permit (principal == Workload::"a", action, resource == Role::"far/rw");`))
	plugins.fail(errors.New("plugin remote does not run on this node: no such file"))
	_, err := r.request(appCaller, wire.AccessRequest{Role: "far/rw", Purpose: "work"})
	r.fails(err, fault.Unavailable, "plugin_unavailable")
	var fe *fault.Error
	if errors.As(err, &fe); fe.RetryAfter <= 0 || !strings.Contains(fe.Detail, "no such file") {
		t.Errorf("the refusal says %q, again after %s", fe.Detail, fe.RetryAfter)
	}
	state, err := r.engine.NodePlugins(t.Context(), callerOf(operator, ""))
	if err != nil || len(state) != 1 || state[0].Node != "n1" || state[0].Running || !strings.Contains(state[0].Problem, "no such file") {
		t.Errorf("an operator is told %+v, %v", state, err)
	}
	if state, err := r.engine.NodePlugins(t.Context(), appCaller); err != nil || len(state) != 0 {
		t.Errorf("who may not read it is told %+v, %v", state, err)
	}
	_, err = r.engine.CheckTarget(t.Context(), callerOf(operator, ""), "far")
	r.fails(err, fault.Unavailable, "plugin_unavailable")
	r.must(appCaller, wire.AccessRequest{Role: "t1/rw", Purpose: "work"})

	plugins.fail(nil)
	kind.mu.Lock()
	kind.known, kind.down = map[string]bool{}, errors.New("plugin remote failed: it hangs")
	kind.mu.Unlock()
	_, err = r.request(appCaller, wire.AccessRequest{Role: "far/rw", Purpose: "work"})
	r.fails(err, fault.Unavailable, "plugin_unavailable")
	kind.mu.Lock()
	kind.down = nil
	kind.mu.Unlock()
	if _, err := r.request(appCaller, wire.AccessRequest{Role: "far/rw", Purpose: "work"}); err != nil {
		t.Errorf("once it is back: %v", err)
	}
}

// TestBuiltInKindGoesBeforeAPlugin: no plugin takes a built-in kind's place.
func TestBuiltInKindGoesBeforeAPlugin(t *testing.T) {
	r, _, plugins := plugRig(t)
	_, err := r.engine.Apply(t.Context(), callerOf(operator, ""), wire.ApplyRequest{Objects: []wire.Object{{Kind: "Plugin", Name: "memory", Spec: json.RawMessage(pluginDoc)}}})
	r.fails(err, fault.Invalid, "name_reserved")
	plugins.Set(map[string]ledger.PluginSpec{"memory": {}}) // an older version let it in
	a := r.must(appCaller, wire.AccessRequest{Role: "t1/rw", Purpose: "work"})
	if err := r.t1.Login(a.Credential["username"], a.Credential["password"]); err != nil {
		t.Errorf("the built-in kind did not mint: %v", err)
	}
}

// loud publishes nothing but errors.
type loud struct{ *remote }

func (k loud) Open(t issuers.Target) (issuers.Issuer, error) {
	i, err := k.remote.Open(t)
	return failing{i}, err
}

type failing struct{ issuers.Issuer }

func (failing) Publish(context.Context) (map[string][]byte, error) {
	return nil, errors.New("it hangs")
}

type loudPlugins struct{ *someplugins }

func (p loudPlugins) Kind(name string) (issuers.Kind, bool, error) {
	k, found, err := p.someplugins.Kind(name)
	if found && err == nil {
		return loud{k.(*remote)}, true, nil
	}
	return nil, found, err
}

// TestLaw8PluginKeepsNoKeysFromBeingPublished: everybody else's still are.
func TestLaw8PluginKeepsNoKeysFromBeingPublished(t *testing.T) {
	r, kind, plugins := plugRig(t)
	var err error
	r.engine, err = broker.New(broker.Config{Log: kind.log, Node: "n1", Issuer: "https://mayfly.example", Kinds: []issuers.Kind{r.kind}, Plugins: loudPlugins{plugins}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.engine.Close)
	r.put("Plugin", "remote", json.RawMessage(pluginDoc))
	r.put("Target", "far", json.RawMessage(`{"type":"remote","system":"t1"}`))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	keys, err := r.engine.Publish(ctx, "jwks")
	if err != nil || !strings.Contains(string(keys), `"keys"`) {
		t.Errorf("published: %s, %v", keys, err)
	}
}
