// Package host runs plugins: kinds of targets in processes of their own, each
// under a user of its own, from a copy of its file that was hashed and cannot
// change. To the broker each looks like a kind that is built in.
//
// A plugin is a stranger. Whatever it answers is checked here before anybody
// sees it; it gets its own targets' secrets and no others; and when it crashes,
// hangs or lies, its own targets fail and nothing else. The package must know
// nothing of the ledger, of policy or of HTTP: which plugins there are is told
// to it ([Host.Set]).
package host

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Spec is one registered plugin.
type Spec struct {
	// Name is the plugin's, and the kind of target that it serves.
	Name string
	// File is a file's name in the plugin directory, never a path.
	File   string
	SHA256 [sha256.Size]byte
	// User is whom it runs as: a name, or a number. Empty means the node's own
	// user, which needs [Options.SameUser].
	User   string
	Limits Limits
}

// Options configure a Host.
type Options struct {
	// Dir is the plugin directory. Empty: this node runs no plugins, and says so.
	Dir string
	// SameUser lets plugins run as the node's own user. They can then read the
	// node's files, and where that user is root, its memory.
	SameUser bool
	Log      *slog.Logger
}

// Host runs the plugins that it is told to. It is safe for concurrent use.
type Host struct {
	o      Options
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// spawn runs fn beside everything else, with a context that ends with the host.
	spawn func(fn func(ctx context.Context))

	mu     sync.Mutex
	all    map[string]*supervised
	users  map[uint32]claim // whose processes run as whom
	closed bool
}

// claim is a user whose processes are one plugin's.
type claim struct {
	plugin    string
	processes int
}

// New returns a Host without plugins.
func New(o Options) *Host {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &Host{o: o, all: map[string]*supervised{}, users: map[uint32]claim{}}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	h.spawn = func(fn func(context.Context)) { h.wg.Go(func() { fn(ctx) }) }
	return h
}

// Set says which plugins there shall be. New ones start, those with another spec
// are replaced without a gap, and the rest ends. It does not wait for any of it.
func (h *Host) Set(specs []Spec) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	for name, s := range h.all {
		if !slices.ContainsFunc(specs, func(x Spec) bool { return x.Name == name }) {
			delete(h.all, name)
			close(s.over)
		}
	}
	for _, spec := range specs {
		s := h.all[spec.Name]
		if s == nil {
			s = newSupervised(h, spec)
			h.all[spec.Name] = s
			h.spawn(s.run)
			continue
		}
		s.want(spec)
	}
}

// Kind returns the kind that a plugin serves. found is false where no plugin of
// that name is registered. A plugin that has not started yet is a
// *[issuers.Pending]; any other error says why this node cannot use it.
//
// What the kind does not know yet it asks for by *[issuers.Pending] errors;
// [Direct] makes of it a kind that waits instead.
func (h *Host) Kind(name string) (k issuers.Kind, found bool, err error) {
	h.mu.Lock()
	s := h.all[name]
	h.mu.Unlock()
	if s == nil {
		return nil, false, nil
	}
	kind, err := s.kind()
	if err != nil {
		return nil, true, err
	}
	return kind, true, nil
}

// Status is how a plugin does on this node.
type Status struct {
	Name    string
	SHA256  string // of what runs, in hex; of what shall run where nothing does
	Wanted  string // of what shall run
	Running bool
	PID     string
	// Problem is why it does not run, or why the newer one that is registered
	// does not.
	Problem  string
	Restarts int
	Failures int // starts that failed
	// Lies counts its answers that could not be true, and were refused.
	Lies  int
	Since time.Time // of the process that runs
}

// Status returns all plugins by name.
func (h *Host) Status() []Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Status
	for _, s := range h.all {
		out = append(out, s.status())
	}
	slices.SortFunc(out, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// background runs fn unless the host has closed; Close waits for it.
func (h *Host) background(fn func(ctx context.Context)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.spawn(fn)
	}
}

// Close ends all plugins and waits until they are gone.
func (h *Host) Close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	h.wg.Wait()
}

// prepare reads a plugin's file, unless it is at hand, and finds out whom it runs as.
func (h *Host) prepare(spec Spec, atHand *os.File) (launch, error) {
	l := launch{spec: spec}
	if h.o.Dir == "" {
		return l, errors.New("this node has no plugin directory; set plugins.dir in its configuration")
	}
	var err error
	if l.account, err = accountOf(spec.User, h.o.SameUser); err != nil {
		return l, err
	}
	l.unclaim = func() {}
	if l.account.own {
		other := ""
		if other, l.unclaim = h.claim(spec.Name, l.account.uid); other != "" {
			return l, fmt.Errorf("plugin %s runs as user %d too, and could read this one's memory; give each a user of its own", other, l.account.uid)
		}
	} else if err := hideMemory(); err != nil {
		return l, err
	}
	if l.binary = atHand; l.binary == nil {
		if l.binary, err = openBinary(h.o.Dir, spec.File, spec.SHA256); err != nil {
			l.unclaim()
		}
	}
	return l, err
}

// claim notes that a process of a plugin is about to run as that user, unless
// processes of another do: who runs has the right to its user, and before anybody
// runs, who stands first in the alphabet. unclaim is for when the process is gone.
func (h *Host) claim(name string, uid uint32) (other string, unclaim func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.users[uid]
	if c.processes > 0 && c.plugin != name {
		return c.plugin, nil
	}
	for other, s := range h.all {
		if a, err := accountOf(s.wanted().User, h.o.SameUser); c.processes == 0 && other < name && err == nil && a.own && a.uid == uid {
			return other, nil
		}
	}
	h.users[uid] = claim{plugin: name, processes: c.processes + 1}
	return "", sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if c := h.users[uid]; c.processes > 1 {
			h.users[uid] = claim{plugin: c.plugin, processes: c.processes - 1}
			return
		}
		delete(h.users, uid)
	})
}

// hash is a SHA-256 in hex.
func hash(h [sha256.Size]byte) string { return hex.EncodeToString(h[:]) }
