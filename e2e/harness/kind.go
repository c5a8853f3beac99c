package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/client/wire"
)

// Kind is a kind of target as the tests of all kinds see it.
type Kind struct {
	// Name is that of `mayfly target add`.
	Name string
	// Start runs a server of its own; ctx bounds the start alone.
	Start func(ctx context.Context) (Server, error)
	// Clients is how many use it at once; 0 is five.
	Clients int
	// Shortest and Longest is how long leases live; 0 is two and six seconds.
	Shortest, Longest time.Duration
	// Patience is how long clients may wait for the next credentials, a restart of
	// the server included; 0 is a minute.
	Patience time.Duration
	// Late is how long after a lease's end the server may still clear away what was on
	// its way when the broker died; 0 is at once.
	Late time.Duration
	// ExpiresOnly: nothing is withdrawn there. A credential works until its lease's
	// first end, whatever ends the lease before.
	ExpiresOnly bool
	// Unlisted: the server has no list of all credentials by which [Server.Ours] could
	// tell that none is left. So each that was received is tried at the end.
	Unlisted bool
	// Apart: the broker never connects to the server, or there is none. So it cannot be
	// away.
	Apart bool
	// Pause is how long a client rests between two credentials, where nothing else
	// takes time.
	Pause time.Duration
	// EndedEarly is how long those leases live that a client ends, where a credential
	// must be refused for that reason and not because its time is over; 0 is as long as
	// others.
	EndedEarly time.Duration
	// Lasting: nothing takes back what was given out; a lease ends the giving.
	Lasting bool
	// Rotates: secrets that live on can be replaced there; its server is a [Rotating].
	Rotates bool
	// Stuck says that the ledger tells of a lease, which is ending, that nobody can end
	// its credential before its time, since the process that minted it has died; nil
	// where none can be.
	Stuck func(wire.Lease) bool
}

// Witness is a [Server] that keeps a record of its own of what was made there.
type Witness interface {
	// Contradicts holds that record against all leases that the ledger has of the
	// target, and all credentials that anybody was given. It returns what the ledger
	// should know and does not, and what lives though its lease is over.
	Contradicts(leases []wire.Lease, given []Given) []string
}

// Given is a credential that somebody received.
type Given struct {
	Lease      string
	Credential map[string]string
}

// pause keeps kinds that cost nobody anything from filling the ledger.
const pause = 100 * time.Millisecond

// Kinds are all kinds of target. A further one is a line here and a file like
// kind_redis.go.
func Kinds() []Kind {
	return []Kind{
		{Name: "postgres", Start: startPostgres, Rotates: true},
		{Name: "mysql", Start: startMySQL, Rotates: true},
		{Name: "redis", Start: startRedis, Rotates: true},
		// a node is back some twenty seconds after it was killed
		{Name: "rabbitmq", Start: startRabbitMQ, Rotates: true, Clients: 3, Patience: 4 * time.Minute},
		{Name: "nats", Start: startNATS, Unlisted: true},
		// a mint is six requests, and a withdrawal waits for two seconds
		{Name: "kubernetes", Start: startKubernetes, Clients: 3, Shortest: 3 * time.Second, Longest: 10 * time.Second, Patience: 3 * time.Minute},
		{Name: "vault", Start: startVault, Clients: 3, Patience: 2 * time.Minute, Late: 3 * time.Minute, Unlisted: true},
		{Name: "aws", Start: startMinIO, Clients: 3, Shortest: 3 * time.Second, Longest: 8 * time.Second, Patience: 2 * time.Minute, ExpiresOnly: true, Unlisted: true},
		{Name: "gcp", Start: startGoogle, Clients: 3, Shortest: 3 * time.Second, Longest: 8 * time.Second, Patience: 2 * time.Minute, ExpiresOnly: true, Unlisted: true},
		{Name: "azure", Start: startAzure, Clients: 3, Shortest: 3 * time.Second, Longest: 8 * time.Second, Patience: 2 * time.Minute, ExpiresOnly: true, Unlisted: true},
		{Name: "github", Start: startGitHub, Clients: 3, Patience: 2 * time.Minute, EndedEarly: 20 * time.Minute, Unlisted: true, Stuck: stuckAtGitHub},
		{Name: "ssh", Start: startSSHD, Clients: 3, Pause: pause, EndedEarly: time.Hour, Unlisted: true, Apart: true},
		{Name: "jwt", Start: startTokenVerifier, Clients: 3, Pause: pause, Shortest: 3 * time.Second, ExpiresOnly: true, Unlisted: true, Apart: true},
		{Name: "x509", Start: startCertVerifier, Clients: 3, Pause: pause, Shortest: 3 * time.Second, ExpiresOnly: true, Unlisted: true, Apart: true},
		{Name: "kv", Start: startReader, Clients: 3, Pause: pause, Lasting: true, Apart: true},
	}
}

// Server is a target's server, which tests break. What it once confirmed must
// survive the end of its process, as it does in production.
type Server interface {
	// Add prepares something to read and adds the target; the role is one by which
	// that may be read.
	Add(t testing.TB, admin CLI, dir, target string) (role string)
	// Name is the word by which `whohas` and [Server.Ours] know a credential; empty
	// where the credential itself does not hold it.
	Name(credential map[string]string) string
	// Login logs in with a credential and reads what was prepared.
	Login(ctx context.Context, credential map[string]string) error
	// Ours lists what bears the broker's mark in the server's own catalogue: accounts,
	// the sessions that are theirs, and traces of mints. What accounts share does not
	// count.
	Ours(ctx context.Context) ([]string, error)

	// Stop ends the server in order, Kill without warning; both keep its data.
	Stop() error
	Kill() error
	// StartAgain starts it where it was, and waits until it answers.
	StartAgain(ctx context.Context) error
	// Signal sends SIGSTOP, by which the server hangs, or SIGCONT.
	Signal(sig syscall.Signal) error
	// Close ends it for good.
	Close() error
}

// Rotating is a [Server] on which secrets that live on are replaced.
type Rotating interface {
	Server
	// Account makes an account that lives on and may read what was prepared for the
	// target.
	Account(t testing.TB, target, username, password string)
	// Enters says whether a credential is let in; of what an Account is given out by,
	// all of it is used. The error is for a server that did not answer that.
	Enters(ctx context.Context, credential map[string]string) (bool, error)
	// Admin is the account by which the broker was told to enter, and its first
	// password.
	Admin() (username, password string)
}

// startKindsTimeout bounds the start of all servers together.
const startKindsTimeout = 5 * time.Minute

// StartKinds runs a server of each kind, all at once, until the test ends.
func StartKinds(t testing.TB, kinds []Kind) map[string]Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startKindsTimeout)
	defer cancel()
	servers, errs := make([]Server, len(kinds)), make([]error, len(kinds))
	var wg sync.WaitGroup
	for i, k := range kinds {
		wg.Go(func() { servers[i], errs[i] = k.Start(ctx) })
	}
	wg.Wait()
	out := map[string]Server{}
	for i, k := range kinds {
		if errs[i] != nil {
			errs[i] = fmt.Errorf("%s: %w", k.Name, errs[i])
			continue
		}
		out[k.Name] = servers[i]
		t.Cleanup(func() {
			if err := servers[i].Close(); err != nil {
				t.Errorf("%s: %v", k.Name, err)
			}
		})
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return out
}

// addTarget runs `target add` with an administrator's password.
func addTarget(t testing.TB, admin CLI, dir, password string, args ...string) {
	t.Helper()
	file, err := os.CreateTemp(dir, "pw-")
	if err == nil {
		_, err = file.WriteString(password + "\n")
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	admin.Must(t, append(append([]string{"target", "add"}, args...), "--password-file", filepath.Clean(file.Name()))...)
}

// NothingLeft waits until nothing of ours is on the server.
func NothingLeft(t testing.TB, s Server, d time.Duration) {
	t.Helper()
	Within(t, d, "nothing is left on the target", func() error {
		left, err := s.Ours(t.Context())
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("%d left:\n  %s", len(left), strings.Join(left[:min(len(left), 20)], "\n  "))
		}
		return nil
	})
}
