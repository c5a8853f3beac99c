package redis

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"
)

// found is what ACL GETUSER says of a user.
type found struct {
	there  bool
	ours   bool
	mark   mark
	flags  []string
	hashes int
	blank  bool // it may do nothing: what ACL SETUSER makes of a name that is new
}

// readUser reads the answer to ACL GETUSER: nil, or a flat array of which only
// the flags and the password hashes matter here.
func (m marker) readUser(name string, cmd *goredis.Cmd) (found, error) {
	reply, err := cmd.Slice()
	if errors.Is(err, goredis.Nil) {
		return found{}, nil
	}
	if err != nil {
		return found{}, err
	}
	f := found{there: true}
	var hashes []string
	for i := 0; i+1 < len(reply); i += 2 {
		switch reply[i] {
		case "flags":
			f.flags = texts(reply[i+1])
		case "passwords":
			hashes = texts(reply[i+1])
		case "commands":
			f.blank = reply[i+1] == "-@all"
		}
	}
	f.blank = f.blank && slices.Contains(f.flags, "off")
	f.hashes = len(hashes)
	f.mark, f.ours = m.read(name, hashes)
	return f, nil
}

func texts(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, x := range list {
		if s, ok := x.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// session is one line of CLIENT LIST.
type session struct{ id, user, name string }

// sessions reads CLIENT LIST. Names and users hold no spaces.
func sessions(list string) []session {
	var out []session
	for line := range strings.Lines(list) {
		var s session
		for _, word := range strings.Fields(line) {
			k, v, _ := strings.Cut(word, "=")
			switch k {
			case "id":
				s.id = v
			case "user":
				s.user = v
			case "name":
				s.name = v
			}
		}
		out = append(out, s)
	}
	return out
}

// locks keep mints of one lease apart within this process; between processes
// their gates do.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	ch    chan struct{}
	users int
}

func newLocks() *locks { return &locks{held: map[string]*lock{}} }

// take waits for the lock of a name, at most until ctx ends.
func (l *locks) take(ctx context.Context, name string) (release func(), err error) {
	l.mu.Lock()
	k, ok := l.held[name]
	if !ok {
		k = &lock{ch: make(chan struct{}, 1)}
		l.held[name] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case k.ch <- struct{}{}:
		return func() { <-k.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
