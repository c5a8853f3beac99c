package nats_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/nats"
	"github.com/mayfly-broker/mayfly/secret"
)

// listed makes a signing key that the account lists.
func (f *fixture) listed() (seed, public string) {
	f.t.Helper()
	kp, err := nkeys.CreateAccount()
	if err != nil {
		f.t.Fatal(err)
	}
	raw, err := kp.Seed()
	if err == nil {
		public, err = kp.PublicKey()
	}
	claims := f.claims()
	claims.SigningKeys.Add(public)
	if err = errors.Join(err, f.server.Push(f.t.Context(), claims)); err != nil {
		f.t.Fatal(err)
	}
	return string(raw), public
}

// turning has the suite rotate the signing key, from the shapes that a target's
// secrets can have.
func (f *fixture) turning(h *issuertest.Harness) {
	f.t.Helper()
	h.Kind = turningKind{f: f}
	secrets := maps.Clone(f.secrets) // as after a rotation, of which signing_key is no part
	delete(secrets, nats.SecretSigning)
	secrets[nats.SecretMadeSigning] = secret.New(`{"keys":["` + f.secrets[nats.SecretSigning].Reveal() + `"]}`)
	h.Target.Secrets = secrets
	given := maps.Clone(f.secrets)
	seed, _ := f.listed()
	given[nats.SecretSigning] = secret.New(seed)
	h.Keys = &issuertest.Keys{
		Old:         []map[string]secret.Text{given},
		CrossSigned: true, // servers are told; nobody knows the old key alone
		Verify:      func(ctx context.Context, _ map[string][]byte, c issuers.Credential) error { return f.use(ctx, c) },
	}
}

// turningKind is what an operator has besides the kind: the other keys, and nsc.
type turningKind struct {
	nats.Kind
	f *fixture
}

func (k turningKind) MakeSecrets(spec json.RawMessage) (map[string]secret.Text, error) {
	made, err := k.Kind.MakeSecrets(spec)
	if err != nil {
		return nil, err
	}
	seed, _ := k.f.listed()
	made[nats.SecretMadeSigning] = secret.New(seed)
	made[nats.SecretOperator], made[nats.SecretSystem] = k.f.secrets[nats.SecretOperator], k.f.secrets[nats.SecretSystem]
	return made, nil
}

func (k turningKind) Open(t issuers.Target) (issuers.Issuer, error) {
	i, err := k.Kind.Open(t)
	if err != nil {
		return nil, err
	}
	return thief{i.(*nats.Issuer), k.f, t}, nil
}

// thief signs also what an issuer would not: where the account no longer lists its
// key, it asks no server.
type thief struct {
	*nats.Issuer
	f *fixture
	t issuers.Target
}

func (x thief) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	c, err := x.Issuer.Mint(ctx, l)
	if err == nil || !strings.Contains(err.Error(), "does not list") {
		return c, err
	}
	var spec map[string]any
	if err := json.Unmarshal(x.t.Spec, &spec); err != nil {
		return c, err
	}
	delete(spec, "revocation")
	t := x.t
	if t.Spec, err = json.Marshal(spec); err != nil {
		return c, err
	}
	blind, err := nats.Kind{}.Open(t)
	if err != nil {
		return c, err
	}
	return blind.Mint(ctx, l)
}

// book is what the ledger holds of a target's secrets.
type book struct {
	*fixture
	mu      sync.Mutex
	term    uint64
	current *nats.Issuer
}

func newBook(f *fixture) *book {
	b := &book{fixture: f, term: 1}
	b.current = f.open(b.term)
	return b
}

// leader is the target, opened by the secrets as they are.
func (b *book) leader() *nats.Issuer {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current
}

// turn takes one step, and the next leader opens the target by what came of it.
func (b *book) turn(step issuers.KeyTurn) {
	b.t.Helper()
	changed, err := nats.Kind{}.TurnKeys(b.t.Context(), b.raw(), b.secrets, step)
	if err != nil {
		b.t.Fatalf("step %d: %v", step, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.secrets = maps.Clone(b.secrets)
	maps.Copy(b.secrets, changed)
	b.term++
	b.current = b.open(b.term)
}

// key is the public key that signs users now.
func (b *book) key() string {
	b.t.Helper()
	docs, err := b.leader().Publish(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	key, _, _ := strings.Cut(string(docs["account-signing-key"]), "\n")
	return key
}

// mustLogIn mints and logs in, and again by what was minted before.
func (b *book) mustLogIn(when string, before ...issuers.Credential) issuers.Credential {
	b.t.Helper()
	c, err := b.leader().Mint(b.t.Context(), lease(allow([]string{"publish"}, "orders.*")))
	if err != nil {
		b.t.Fatalf("%s: Mint: %v", when, err)
	}
	for i, c := range append(before, c) {
		if err := b.use(b.t.Context(), c); err != nil {
			b.t.Fatalf("%s, credential %d is refused: %v", when, i, err)
		}
	}
	return c
}

func (f *fixture) mustNotLogIn(c issuers.Credential, when string) {
	f.t.Helper()
	if nc, err := f.dial(c); err == nil {
		nc.Close()
		f.t.Errorf("%s, what the old key signed logs in", when)
	}
}

// fragile is a way to a server on which the leader dies at its n-th message.
type fragile struct {
	net.Listener
	mu   sync.Mutex
	left int
	died bool
	all  []net.Conn
}

func newFragile(t *testing.T, to string, n int) *fragile {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &fragile{Listener: l, left: n}
	t.Cleanup(p.die)
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				_ = from.Close()
				continue
			}
			p.mu.Lock()
			p.all = append(p.all, from, server)
			p.mu.Unlock()
			go p.up(from, server)
			go p.down(server, from)
		}
	}()
	return p
}

// up passes what the leader says, message by message.
func (p *fragile) up(from, to net.Conn) {
	r := bufio.NewReaderSize(from, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			_ = to.Close()
			return
		}
		if strings.HasPrefix(string(line), "PUB ") || strings.HasPrefix(string(line), "CONNECT ") {
			p.mu.Lock()
			p.left--
			over := p.left < 0
			p.mu.Unlock()
			if over {
				p.die()
				return
			}
		}
		if _, err := to.Write(line); err != nil {
			return
		}
	}
}

func (p *fragile) down(from, to net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			_ = to.Close()
			return
		}
	}
}

func (p *fragile) die() {
	_ = p.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.died = true
	for _, c := range p.all {
		_ = c.Close()
	}
}

// killedAt has a leader take a step and die at its n-th message; false where the
// step has fewer.
func (b *book) killedAt(t *testing.T, step issuers.KeyTurn, n int) bool {
	t.Helper()
	p := newFragile(t, b.server.Address(), n)
	defer p.die()
	_, err := nats.Kind{}.TurnKeys(t.Context(), b.elsewhere(p.Addr().String()), b.secrets, step)
	p.mu.Lock()
	defer p.mu.Unlock()
	if (err != nil) != p.died {
		t.Fatalf("step %d, killed at message %d: died %v, and %v", step, n, p.died, err)
	}
	return p.died // else what came of it was never written down
}
