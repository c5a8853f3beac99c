package broker

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// kind returns a kind of target: a built-in one before a plugin's.
func (e *Engine) kind(name string) (issuers.Kind, error) {
	if k, ok := e.kinds[name]; ok {
		return k, nil
	}
	if e.cfg.Plugins != nil {
		k, found, err := e.cfg.Plugins.Kind(name)
		switch {
		case err != nil:
			return nil, unusable(err)
		case found:
			return k, nil
		}
	}
	return nil, fault.New(fault.Invalid, "unknown_target_type", "There is no kind of target %q: no plugin of that name is registered, and what is built in is %s.", name, strings.Join(slices.Sorted(mapKeys(e.kinds)), ", "))
}

// unusable is the error for a plugin that this node cannot use. What is only
// pending stays in it, for asking.
func unusable(err error) *fault.Error {
	x := fault.Wrap(err, fault.Unavailable, "plugin_unavailable", "%v. Nothing was done.", err)
	x.RetryAfter = 5 * time.Second
	return x
}

// asking runs try until no plugin must be asked first. What is asked is asked
// between two tries: most of them read the ledger, and a plugin that hangs must
// not keep it open (law 8).
func asking(ctx context.Context, try func() error) error {
	for range maxAsks {
		err := try()
		var p *issuers.Pending
		if !errors.As(err, &p) {
			return err
		}
		if err := fetch(ctx, p); err != nil {
			return unusable(err)
		}
	}
	return fault.New(fault.Unavailable, "busy", "A plugin kept changing while it was asked. Retry.")
}

const (
	// maxAsks is more than an apply with roles in all its objects needs.
	maxAsks = 2*ledger.MaxObjectsPut + 16
	askWait = 10 * time.Second
)

func fetch(ctx context.Context, p *issuers.Pending) error {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	return p.Fetch(ctx)
}

// viewing is view for readers that ask kinds. fn may run several times.
func (e *Engine) viewing(ctx context.Context, fn func(q ledger.Query) error) error {
	return asking(ctx, func() error { return e.view(fn) })
}

// NodePlugins says how the registered plugins do on this node: those that the caller
// may read.
func (e *Engine) NodePlugins(ctx context.Context, c Caller) ([]wire.NodePlugin, error) {
	objects, err := e.Objects(ctx, c, ledger.KindPlugin)
	if err != nil {
		return nil, err
	}
	here := map[string]wire.NodePlugin{}
	if e.cfg.Plugins != nil {
		for _, p := range e.cfg.Plugins.Status() {
			here[p.Name] = p
		}
	}
	out := []wire.NodePlugin{}
	for _, o := range objects {
		p, ok := here[o.Name]
		if _, builtIn := e.kinds[o.Name]; !ok {
			p.Problem = "this node has not looked at it yet"
			if builtIn {
				p.Problem = "it is not run: this version has its kind built in"
			}
		}
		p.Node, p.Name = e.cfg.Node, o.Name
		out = append(out, p)
	}
	return out, nil
}

// plugged is of which epoch the plugins are that run.
type plugged struct {
	mu    sync.Mutex
	begun bool
	epoch uint64
}

// SyncPlugins has the plugins run that the ledger names now. Every node calls it
// now and then, and a leader after each change that it makes, so that whoever
// registers a plugin can name it at once.
func (e *Engine) SyncPlugins() error {
	if e.cfg.Plugins == nil {
		return nil
	}
	e.plugged.mu.Lock()
	defer e.plugged.mu.Unlock()
	all := map[string]ledger.PluginSpec{}
	var epoch uint64
	err := e.view(func(q ledger.Query) error {
		if epoch = q.PolicyEpoch(); e.plugged.begun && epoch == e.plugged.epoch {
			return nil
		}
		for _, o := range q.Objects(ledger.KindPlugin) {
			var p ledger.PluginSpec
			if json.Unmarshal(o.Spec, &p) == nil {
				all[o.Name] = p
			}
		}
		return nil
	})
	if err != nil || e.plugged.begun && epoch == e.plugged.epoch {
		return err
	}
	e.cfg.Plugins.Set(all)
	e.plugged.begun, e.plugged.epoch = true, epoch
	return nil
}
