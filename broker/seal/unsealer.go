package seal

import (
	"slices"
	"sync"

	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/secret"
)

// An Unsealer collects shares, one operator at a time, until there are enough.
// It is safe for concurrent use. Make one with [NewUnsealer].
type Unsealer struct {
	wrapped *Wrapped
	allow   func() error

	mu     sync.Mutex
	shares []Share // distinct, at most the threshold
}

// Progress says how far unsealing has come.
type Progress struct {
	SetID string
	// Have of Need shares have been given, of Total that exist.
	Have, Need, Total int
}

// NewUnsealer starts collecting for a document sealed by shares. allow, which may
// be nil, is called before each attempt and refuses it by returning an error, by
// which the caller limits the rate of attempts. Errors: ErrMethod.
func NewUnsealer(w *Wrapped, allow func() error) (*Unsealer, error) {
	if w.header.Method.Type != MethodShamir {
		return nil, as(ErrMethod, nil, "This keyring is sealed by method %s: it has no shares.", w.header.Method.Type)
	}
	return &Unsealer{wrapped: w, allow: allow}, nil
}

// Add takes one share as typed. It returns the keyring, and forgets the shares,
// when the share completes the threshold; before that the keyring is nil. The
// same share again changes nothing. Shares that complete the threshold and do not
// make the root key are all forgotten, because nothing says which one is false.
// Errors: what allow returned; ErrShare; ErrCorrupt.
func (u *Unsealer) Add(text secret.Text) (*Keyring, Progress, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.allow != nil {
		if err := u.allow(); err != nil {
			return nil, u.progress(), err
		}
	}
	s, err := ParseShare(text)
	if err != nil {
		return nil, u.progress(), err
	}
	next, err := u.wrapped.distinct(append(slices.Clone(u.shares), s))
	if err != nil {
		return nil, u.progress(), err
	}
	u.shares = next
	if len(u.shares) < u.wrapped.header.Method.Threshold {
		return nil, u.progress(), nil
	}
	p := u.progress()
	k, err := u.wrapped.UnsealShares(u.shares)
	u.forget()
	if err != nil {
		return nil, u.progress(), as(fault.As(err), err, "%s Begin again with the first share.", detail(err))
	}
	return k, p, nil
}

// Progress says how far it has come.
func (u *Unsealer) Progress() Progress {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.progress()
}

// Reset forgets the shares collected so far.
func (u *Unsealer) Reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.forget()
}

func (u *Unsealer) progress() Progress {
	m := u.wrapped.header.Method
	return Progress{SetID: m.SetID, Have: len(u.shares), Need: m.Threshold, Total: m.Shares}
}

func (u *Unsealer) forget() {
	for i := range u.shares {
		clear(u.shares[i].value[:])
	}
	u.shares = nil
}

// detail is the sentence for a person in err.
func detail(err error) string { return fault.As(err).Detail }
