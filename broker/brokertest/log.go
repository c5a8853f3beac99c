package brokertest

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/ledger/ledgertest"
)

// Log is a replicated log with one replica, in memory. The zero value is ready.
type Log struct {
	// Before, where set, is asked before a command is committed; its error is
	// what the proposer gets, and nothing is committed.
	Before func(d ledger.Decoded) error
	// After, where set, is told of each committed command; its error is what
	// the proposer gets, though the command stands.
	After func(d ledger.Decoded, res ledger.Result) error
	// Skew moves the instant of each command, as a clock that steps between the
	// look at the state and the proposal does.
	Skew atomic.Int64 // nanoseconds
	// Stale, where set, is what Fresh returns.
	Stale error

	term     atomic.Uint64
	mu       sync.Mutex
	mem      ledgertest.Mem
	commands [][]byte
}

// Propose implements broker.Log.
func (l *Log) Propose(_ context.Context, command []byte, _ bool) (ledger.Result, error) {
	d, err := ledger.Decode(command)
	if err != nil {
		return ledger.Result{}, err
	}
	if l.Before != nil {
		if err := l.Before(d); err != nil {
			return ledger.Result{}, err
		}
	}
	if skew := time.Duration(l.Skew.Load()); skew != 0 {
		d.Header.AtMS += skew.Milliseconds()
		if command, err = ledger.Encode(d.Header, d.Body); err != nil {
			return ledger.Result{}, err
		}
	}
	l.mu.Lock()
	res, err := ledger.Apply(&l.mem, command)
	l.commands = append(l.commands, slices.Clone(command))
	l.mu.Unlock()
	if err == nil && l.After != nil {
		err = l.After(d, res)
	}
	return res, err
}

// View implements broker.Log.
func (l *Log) View(fn func(ledger.Reader) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fn(&l.mem)
}

// Query reads the state.
func (l *Log) Query(fn func(q ledger.Query)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn(ledger.NewQuery(&l.mem))
}

// Fresh implements broker.Log.
func (l *Log) Fresh() error { return l.Stale }

// Term implements broker.Log.
func (l *Log) Term() uint64 { return l.term.Load() }

// SetTerm begins another term.
func (l *Log) SetTerm(n uint64) { l.term.Store(n) }

// Commands returns the raw bytes of everything committed.
func (l *Log) Commands() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.commands)
}

// Types returns the types of everything committed, in order.
func (l *Log) Types() []string {
	var out []string
	for _, raw := range l.Commands() {
		d, err := ledger.Decode(raw)
		if err == nil {
			out = append(out, d.Type)
		}
	}
	return out
}
