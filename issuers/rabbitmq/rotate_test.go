package rabbitmq_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/issuertest"
	"github.com/mayfly-broker/mayfly/issuers/rabbitmq"
	"github.com/mayfly-broker/mayfly/secret"
)

// makeUser makes a user that is no lease's, with further members of its body.
func (f *fixture) makeUser(t *testing.T, name, more string) secret.Text {
	t.Helper()
	first, path := issuertest.NewSecret(), "/api/users/"+url.PathEscape(name)
	f.put(path, `{"password":"`+first.Reveal()+`"`+more+`}`)
	t.Cleanup(func() { f.remove(path) })
	f.put("/api/permissions/"+bus+"/"+url.PathEscape(name), `{"configure":"","write":".*","read":".*"}`)
	return first
}

func (f *fixture) rotation() *issuertest.Rotation {
	present := func(ctx context.Context, username string, s secret.Text) (issuers.Credential, error) {
		is, err := rabbitmq.Kind{}.Open(f.target(1))
		if err != nil {
			return issuers.Credential{}, err
		}
		defer func() { _ = is.Close() }()
		return is.(issuers.Presenter).Present(ctx, username, s)
	}
	return &issuertest.Rotation{
		Account: func(t *testing.T, name string) secret.Text { return f.makeUser(t, name, `,"tags":""`) },
		Login: func(ctx context.Context, username string, s secret.Text) error {
			c, err := present(ctx, username, s)
			if err != nil {
				return err
			}
			if err := f.known(ctx, c); err != nil {
				return err
			}
			conn, err := dial(c)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			return canRead(conn, "orders")
		},
		Hold: func(ctx context.Context, username string, s secret.Text) (issuertest.Session, error) {
			c, err := present(ctx, username, s)
			if err != nil {
				return nil, err
			}
			conn, err := dial(c)
			if err != nil {
				return nil, err
			}
			return held{conn}, canRead(conn, "orders")
		},
		Freeze: func(t *testing.T) func() {
			signal := func(s syscall.Signal) {
				if err := f.server.Signal(s); err != nil {
					t.Error(err)
				}
			}
			signal(syscall.SIGSTOP)
			t.Cleanup(func() { signal(syscall.SIGCONT) })
			return func() { signal(syscall.SIGCONT) }
		},
		Names: []string{"a;b", "%s", "a b", "a/b", "a%2Fb", "?x", "#x", "ключ", "$(id)", `a"b`, "{username}", "...", strings.Repeat("x", 255)},
	}
}

func (f *fixture) replaceIn(is *rabbitmq.Issuer, username string, next secret.Text, d time.Duration) error {
	f.t.Helper()
	return is.Replace(f.t.Context(), issuers.Replacement{Username: username, Next: next, Deadline: time.Now().Add(d)})
}

func (f *fixture) mustHold(is *rabbitmq.Issuer, username string, one secret.Text, others ...secret.Text) {
	f.t.Helper()
	if err := is.TryLogin(f.t.Context(), username, one); err != nil {
		f.t.Fatalf("the secret that should hold: %v", err)
	}
	for _, o := range others {
		wantKind(f.t, is.TryLogin(f.t.Context(), username, o), issuers.Refused)
	}
}

// The request arrives after the deadline, and the client is long gone: the server
// asks for the secret, and nobody gives it.
func TestHazard8RabbitMQLateReplacementDoesNothing(t *testing.T) {
	f := newFixture(t)
	first, next := f.makeUser(t, "late", `,"tags":""`), issuertest.NewSecret()
	p := newCutter(t, f.server.API, "PUT ")
	slow, living := f.at(p.address()).open(1), f.open(2)
	ample := issuertest.Ample(func() {
		if err := f.replaceIn(f.open(2), "late", first, 20*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	wantKind(t, f.replaceIn(slow, "late", next, ample), issuers.Unknown)
	p.waitHeld(t)
	if line := p.deliver(t); !strings.Contains(line, "100") {
		t.Errorf("the server answers %q; it should ask for the body", line)
	}
	f.mustHold(living, "late", first, next)
	if err := f.replaceIn(living, "late", next, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	f.mustHold(living, "late", next, first)
}

// A user that was deleted since the look is not made again.
func TestHazard8RabbitMQReplacementMakesNobody(t *testing.T) {
	f := newFixture(t)
	f.makeUser(t, "going", `,"tags":""`)
	p := newCutter(t, f.server.API, "PUT ")
	slow := f.at(p.address()).open(1)
	done := make(chan error, 1)
	go func() { done <- f.replaceIn(slow, "going", issuertest.NewSecret(), 20*time.Second) }()
	p.waitHeld(t)
	f.remove("/api/users/going")
	p.release()
	wantKind(t, <-done, issuers.Gone)
	if f.user("going") != "" {
		t.Error("the user stands again")
	}
}

// A user by a lease's name, or with this target's mark, is left alone.
func TestHazard16RabbitMQReplaceLeavesLeasesAlone(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	name := "mayfly_" + issuertest.NewLeaseID()
	first := f.makeUser(t, name, `,"tags":""`)
	wantKind(t, f.replaceIn(is, name, issuertest.NewSecret(), 20*time.Second), issuers.Foreign)
	f.mustHold(is, name, first)
	marked := f.makeUser(t, "marked", `,"tags":"`+strings.Join(rabbitmq.OwnTags(is, 0, 1), ",")+`"`)
	wantKind(t, f.replaceIn(is, "marked", issuertest.NewSecret(), 20*time.Second), issuers.Foreign)
	f.mustHold(is, "marked", marked)
}

// Tags, limits and permissions stay, and the secret is on disk.
func TestReplaceKeepsAllElse(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	first, next := f.makeUser(t, "kept", `,"tags":"monitoring,ours","limits":{"max-connections":7}`), issuertest.NewSecret()
	rest := func() string {
		var u map[string]any
		if err := json.Unmarshal([]byte(f.user("kept")), &u); err != nil {
			t.Fatal(err)
		}
		delete(u, "password_hash")
		delete(u, "hashing_algorithm")
		_, rights, err := f.server.Call(t.Context(), http.MethodGet, "/api/users/kept/permissions", "")
		return fmt.Sprint(u, rights, err)
	}
	before := rest()
	if !strings.Contains(before, "max-connections:7") || !strings.Contains(before, "monitoring") {
		t.Fatalf("the user is not as it was made: %s", before)
	}
	if err := f.replaceIn(is, "kept", next, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if after := rest(); after != before {
		t.Errorf("before: %s\nafter: %s", before, after)
	}
	f.mustHold(is, "kept", next, first)
}

// What the server says beside the secret is told apart from what it says of it.
func TestTryLoginTellsTheSecretFromAllElse(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	wrong := issuertest.NewSecret()
	for name, more := range map[string]string{"plain": `,"tags":""`, "watcher": `,"tags":"management"`, "odd": `,"tags":"whatever"`} {
		f.mustHold(is, name, f.makeUser(t, name, more), wrong)
	}
	wantKind(t, is.TryLogin(t.Context(), "nobody", wrong), issuers.Unknown)
	f.put("/api/users/mute", `{"password_hash":"","tags":""}`)
	t.Cleanup(func() { f.remove("/api/users/mute") })
	wantKind(t, is.TryLogin(t.Context(), "mute", wrong), issuers.Refused)
	for _, name := range []string{"", ".", "..", "a:b", "a\nb", strings.Repeat("x", 256)} {
		wantKind(t, is.TryLogin(t.Context(), name, wrong), issuers.Unknown)
		wantKind(t, f.replaceIn(is, name, wrong, 20*time.Second), issuers.Refused)
	}
}

// The right that is missing is named.
func TestReplaceNamesTheMissingRight(t *testing.T) {
	f := newFixture(t)
	f.makeUser(t, "app", `,"tags":""`)
	f.secrets[rabbitmq.SecretPassword] = f.makeUser(t, "poor", `,"tags":"management"`)
	f.spec["admin"] = map[string]any{"username": "poor"}
	err := f.replaceIn(f.open(1), "app", issuertest.NewSecret(), 20*time.Second)
	wantKind(t, err, issuers.Refused)
	wantText(t, err, "administrator")
}
