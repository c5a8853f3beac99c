package htpasswd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// cost of the hash. A password here is 128 random bits, which no amount of
// hashing makes harder to guess; and a web server computes the hash anew for
// every request.
const cost = 5

// Issuer mints and withdraws lines of password files.
type Issuer struct {
	spec spec

	mu     sync.Mutex
	closed bool
}

var (
	_ issuers.Issuer   = (*Issuer)(nil)
	_ issuers.Extender = (*Issuer)(nil)
	_ issuers.Checker  = (*Issuer)(nil)
	_ issuers.Lister   = (*Issuer)(nil)

	_ issuers.RevocationPublisher = (*Issuer)(nil)
)

func failed(kind issuers.ErrorKind, format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: kind, Detail: fmt.Sprintf(format, args...)}
}

// classify is the error for a file that could not be read, locked or written.
// Nothing was written by then.
func classify(realm string, err error) *issuers.Error {
	kind := issuers.Unreachable
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		kind = issuers.Refused
	}
	return &issuers.Error{Kind: kind, Detail: "the password file of realm " + realm, Err: err}
}

// with locks and reads the files of some realms, in one order for all, and hands
// them to fn.
func (i *Issuer) with(ctx context.Context, realms []string, fn func(files map[string]*file) error) error {
	i.mu.Lock()
	closed := i.closed
	i.mu.Unlock()
	if closed || ctx.Err() != nil {
		return failed(issuers.Unreachable, "the target is closed, or the caller has gone")
	}
	realms = slices.Sorted(slices.Values(realms))
	slices.SortFunc(realms, func(a, b string) int { return strings.Compare(i.spec.Realms[a], i.spec.Realms[b]) })
	files := map[string]*file{}
	for _, r := range realms {
		if _, err := os.Lstat(i.spec.Realms[r]); err != nil { // a lock file is not left where there is nothing to lock
			return classify(r, err)
		}
		unlock, err := lock(ctx, i.spec.Realms[r])
		if err != nil {
			return classify(r, err)
		}
		defer unlock()
		if files[r], err = read(i.spec.Realms[r]); err != nil {
			return classify(r, err)
		}
	}
	return fn(files)
}

// Mint implements [issuers.Issuer]. The lock is held from the look at the clock to
// the rename: the target's clock is this machine's, and nothing of a mint that
// came too late can follow (HAZARDS 8).
func (i *Issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	none := issuers.Credential{}
	realms, err := i.spec.compile(l.Scope)
	if err != nil {
		return none, &issuers.Error{Kind: issuers.Refused, Detail: err.Error()}
	}
	if l.Name != (Kind{}).CredentialName(l.ID, l.Generation) || strings.ContainsAny(l.Name, ":# \t\r\n") {
		return none, failed(issuers.Refused, "%.80q is not a name that this kind gives", l.Name)
	}
	password := rand.Text()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		return none, &issuers.Error{Kind: issuers.Unreachable, Detail: "hashing the password", Err: err}
	}
	a := account{name: l.Name, leaseID: l.ID, generation: l.Generation, notAfter: l.NotAfter,
		hash: "$2y" + strings.TrimPrefix(string(hash), "$2a")} // the same hash, by the name that Apache gives it
	err = i.with(ctx, realms, func(files map[string]*file) error {
		for _, r := range realms {
			if err := mayPut(files[r], r, l); err != nil {
				return err
			}
		}
		for n, r := range realms {
			files[r].put(a)
			if err := files[r].write(); err != nil {
				if n == 0 {
					return classify(r, err)
				}
				return &issuers.Error{Kind: issuers.Unknown, Detail: "some realms were written, " + r + " was not", Err: err}
			}
		}
		return nil
	})
	if err != nil {
		return none, err
	}
	return issuers.Credential{
		Public: map[string]string{"username": l.Name, "realms": strings.Join(realms, ",")},
		Secret: map[string]secret.Text{"password": secret.New(password)},
		Env:    map[string]string{"HTPASSWD_USER": "username", "HTPASSWD_PASSWORD": "password"},
	}, nil
}

// mayPut says why a lease's account may not be written.
func mayPut(f *file, realm string, l issuers.Lease) error {
	now := time.Now()
	cur := f.ours[l.Name]
	switch {
	case now.After(l.MintDeadline) || now.After(l.NotAfter):
		return failed(issuers.TooLate, "the mint deadline or the lease's end has passed")
	case f.users[l.Name], cur != nil && cur.leaseID != l.ID:
		return failed(issuers.Foreign, "realm %s has the user %s without our mark", realm, l.Name)
	case cur != nil && cur.generation > l.Generation:
		return failed(issuers.Superseded, "realm %s has generation %d of it", realm, cur.generation)
	}
	return nil
}

// Withdraw implements [issuers.Issuer]: one rewrite of each file for the whole
// batch, and then a look at what stands there.
func (i *Issuer) Withdraw(ctx context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	err := i.with(ctx, i.spec.names(), func(files map[string]*file) error {
		for _, r := range i.spec.names() {
			f, changed := files[r], false
			for n, l := range leases {
				cur := f.ours[l.Name]
				switch {
				case f.users[l.Name], cur != nil && cur.leaseID != l.ID:
					out[n].Err = failed(issuers.Poison, "realm %s has the user %s without our mark; somebody must look, and delete the line", r, l.Name)
				case cur != nil:
					delete(f.ours, l.Name)
					changed = true
				}
			}
			if !changed {
				continue
			}
			if err := f.write(); err != nil {
				return classify(r, err)
			}
			var err error
			if files[r], err = read(f.path); err != nil {
				return classify(r, err)
			}
		}
		for n, l := range leases {
			if out[n].Err == nil {
				out[n] = i.prove(files, l)
			}
		}
		return nil
	})
	if err != nil {
		for n := range out {
			out[n] = issuers.Outcome{Err: err}
		}
	}
	return out
}

// prove looks for a lease's account in the files as they are.
func (i *Issuer) prove(files map[string]*file, l issuers.Lease) issuers.Outcome {
	for _, r := range i.spec.names() {
		if files[r].ours[l.Name] != nil || files[r].users[l.Name] {
			return issuers.Outcome{Err: failed(issuers.Unknown, "realm %s still has %s", r, l.Name)}
		}
	}
	return issuers.Outcome{Receipt: issuers.Receipt{
		Proof: issuers.ProofAbsent, Detail: "read the password files of " + strings.Join(i.spec.names(), ", ") + ": none has " + l.Name,
	}}
}

// Extend implements [issuers.Extender]. The files carry the end for people who
// read them; web servers know no end.
func (i *Issuer) Extend(ctx context.Context, l issuers.Lease) error {
	realms, err := i.spec.compile(l.Scope)
	if err != nil {
		return failed(issuers.Refused, "%v", err)
	}
	return i.with(ctx, realms, func(files map[string]*file) error {
		for _, r := range realms {
			if cur := files[r].ours[l.Name]; cur == nil || cur.leaseID != l.ID || cur.hash == "" {
				return failed(issuers.Gone, "realm %s has no %s", r, l.Name)
			}
		}
		for _, r := range realms {
			cur := files[r].ours[l.Name]
			if !l.NotAfter.After(cur.notAfter) {
				continue
			}
			cur.notAfter = l.NotAfter
			if err := files[r].write(); err != nil {
				return &issuers.Error{Kind: issuers.Unknown, Detail: "the password file of realm " + r, Err: err}
			}
		}
		return nil
	})
}

// List implements [issuers.Lister].
func (i *Issuer) List(ctx context.Context) ([]issuers.Found, error) {
	var out []issuers.Found
	err := i.with(ctx, i.spec.names(), func(files map[string]*file) error {
		seen := map[string]bool{}
		for _, r := range i.spec.names() {
			for _, name := range files[r].order {
				if a := files[r].ours[name]; !seen[name] {
					seen[name] = true
					out = append(out, issuers.Found{Name: name, LeaseID: a.leaseID, Generation: a.generation})
				}
			}
		}
		return nil
	})
	return out, err
}

// PublishRevoked implements [issuers.RevocationPublisher]: "ended" has the names of
// what was withdrawn, a line each. It is for whoever works with a copy of a password
// file, and takes a new copy only now and then.
func (*Issuer) PublishRevoked(_ context.Context, withdrawn iter.Seq[issuers.Lease]) (map[string][]byte, error) {
	var names []string
	for l := range withdrawn {
		names = append(names, (Kind{}).CredentialName(l.ID, l.Generation)+"\n")
	}
	slices.Sort(names)
	return map[string][]byte{"ended": []byte(strings.Join(names, ""))}, nil
}

// Check implements [issuers.Checker].
func (i *Issuer) Check(context.Context) ([]issuers.Finding, error) {
	var out []issuers.Finding
	for _, r := range i.spec.names() {
		path := i.spec.Realms[r]
		f := issuers.Finding{Name: "realm " + r, OK: true, Detail: path}
		if err := writable(path); err != nil {
			f.OK, f.Detail = false, err.Error()
			f.Fix = fmt.Sprintf("install -d -o %d %s && { [ -e %s ] || install -m 640 -o %d /dev/null %s; }", os.Geteuid(), quote(filepath.Dir(path)), quote(path), os.Geteuid(), quote(path))
		}
		out = append(out, f)
	}
	return out, nil
}

// writable tries what a mint does, short of changing anything.
func writable(path string) error {
	if _, err := read(path); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".mayfly-check.*")
	if err != nil {
		return err
	}
	return errors.Join(tmp.Close(), os.Remove(tmp.Name()))
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Close implements [issuers.Issuer].
func (i *Issuer) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	return nil
}
