package notify

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// window keeps what the newest entries told, so that many webhooks that keep up
// read the ledger once. One that lags behind reads for itself.
type window struct {
	source Source

	mu    sync.Mutex
	first uint64 // entries from here on
	next  uint64 // to here were read
	told  []Entry
}

// read is [Source.Entries] with a limit of its own.
func (w *window) read(ctx context.Context, from uint64) ([]Entry, uint64, error) {
	w.mu.Lock()
	if from < w.first {
		w.mu.Unlock()
		return w.source.Entries(ctx, from, readEntries)
	}
	defer w.mu.Unlock()
	if from > w.next { // the furthest of all that ask
		w.first, w.next, w.told = from, from, nil
	}
	if from == w.next {
		more, next, err := w.source.Entries(ctx, from, readEntries)
		if err != nil {
			return nil, from, err
		}
		w.told, w.next = append(w.told, more...), next
		if extra := len(w.told) - windowEntries; extra > 0 {
			w.first = w.told[extra-1].Seq + 1
			w.told = slices.Clone(w.told[extra:])
		}
	}
	i, _ := slices.BinarySearchFunc(w.told, from, func(e Entry, seq uint64) int { return cmp.Compare(e.Seq, seq) })
	return slices.Clone(w.told[i:]), w.next, nil
}
