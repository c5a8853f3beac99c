package rabbitmq_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/scope"
)

// dialAs logs in without TLS.
func dialAs(f *fixture, user, password, vhost string) (*amqp.Connection, error) {
	link := "amqp://" + user + ":" + password + "@" + f.server.AMQP + "/" + url.PathEscape(vhost)
	return amqp.DialConfig(link, amqp.Config{Heartbeat: 10 * time.Second, Dial: amqp.DefaultDial(10 * time.Second)})
}

// try is one thing that a client does, and whether it may.
type try struct {
	what string
	do   func() error
	ok   bool
}

func check(t *testing.T, tries []try) {
	t.Helper()
	for _, x := range tries {
		err := x.do()
		switch {
		case x.ok && err != nil:
			t.Errorf("law 3: %s is within the scope: %v", x.what, err)
		case !x.ok && err == nil:
			t.Errorf("law 3: %s is allowed", x.what)
		case !x.ok && !isRefusal(err):
			t.Errorf("%s: %v; want ACCESS_REFUSED", x.what, err)
		}
	}
}

func declare(conn *amqp.Connection, queue string) func() error {
	return func() error {
		return on(conn, func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare(queue, false, true, false, false, nil)
			return err
		})
	}
}

func TestLaw3RabbitMQUserDoesNoMoreThanItsScope(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	l := lease(append(append(allow([]string{"read"}, "name:orders*"), allow([]string{"write"}, "name:plain")...), allow([]string{"configure"}, "name:mine.*")...))
	c := f.mint(is, l)
	conn := f.login(c)
	get := func(q string) func() error { return func() error { return canRead(conn, q) } }
	put := func(e, k string) func() error { return func() error { return publish(conn, e, k, nil) } }
	check(t, []try{
		{"reading orders", get("orders"), true}, {"reading orders.eu", get("orders.eu"), true}, {"reading secret", get("secret"), false},
		{"publishing to plain", put("plain", "x"), true}, {"publishing to events", put("events", "eu.x"), false}, {"publishing to a queue itself", put("", "orders"), false},
		{"declaring mine.a", declare(conn, "mine.a"), true}, {"declaring orders.new", declare(conn, "orders.new"), false}, {"declaring mine", declare(conn, "mine"), false},
		{"purging orders", func() error {
			return on(conn, func(ch *amqp.Channel) error { _, err := ch.QueuePurge("orders", false); return err })
		}, true}, // what may be read may be emptied
		{"deleting orders", func() error {
			return on(conn, func(ch *amqp.Channel) error { _, err := ch.QueueDelete("orders", false, false, false); return err })
		}, false},
		{"deleting events", func() error {
			return on(conn, func(ch *amqp.Channel) error { return ch.ExchangeDelete("events", false, false) })
		}, false},
		{"binding orders to events", func() error {
			return on(conn, func(ch *amqp.Channel) error { return ch.QueueBind("orders", "#", "events", false, nil) })
		}, false},
	})
	for _, vhost := range []string{"/", other} {
		if conn, err := dialAs(f, l.Name, c.Secret["password"].Reveal(), vhost); err == nil {
			_ = conn.Close()
			t.Errorf("law 3: the lease enters the virtual host %q", vhost)
		}
	}
	for _, path := range []string{"/api/whoami", "/api/overview", "/api/users", "/api/queues", "/api/definitions"} {
		status, _, err := f.server.CallAs(t.Context(), l.Name, c.Secret["password"].Reveal(), http.MethodGet, path, "")
		if err != nil || status != http.StatusUnauthorized {
			t.Errorf("law 3: the management API answers the lease's GET %s with %d, %v", path, status, err)
		}
	}
	f.withdraw(is, l)
}

func TestLaw3RabbitMQSeveralVirtualHosts(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	l := lease(append(allow([]string{"read"}, "name:orders"), scope.Detail{Type: "rabbitmq", Identifier: other, Actions: []string{"write"}, Locations: []string{"name:amq.default"}}))
	c := f.mint(is, l)
	if c.Public["vhost"] != bus {
		t.Errorf("the credential's virtual host is %q; want the target's own", c.Public["vhost"])
	}
	here := f.login(c)
	there, err := dialAs(f, l.Name, c.Secret["password"].Reveal(), other)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = there.Close() }()
	check(t, []try{
		{"reading orders here", func() error { return canRead(here, "orders") }, true},
		{"reading orders there", func() error { return canRead(there, "orders") }, false},
		{"publishing there", func() error { return publish(there, "", "orders", nil) }, true},
		{"publishing here", func() error { return publish(here, "", "orders", nil) }, false},
	})
	if n := f.withdraw(is, l)[0].Receipt.SessionsEnded; n != 2 {
		t.Errorf("the receipt says %d sessions ended; there were 2, in two virtual hosts", n)
	}
	if canRead(here, "orders") == nil || publish(there, "", "orders", nil) == nil {
		t.Error("law 2: a session outlives the withdrawal")
	}
}

func TestLaw3RabbitMQTopics(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	l := lease(append(allow([]string{"read"}, "topic:events/eu.*", "topic:events/us"), allow([]string{"configure", "write", "read"}, "name:mine.*")...))
	r := f.login(f.mint(is, l))
	bind := func(k string) func() error {
		return func() error {
			return on(r, func(ch *amqp.Channel) error {
				if _, err := ch.QueueDeclare("mine."+l.ID, false, true, true, false, nil); err != nil {
					return err
				}
				return ch.QueueBind("mine."+l.ID, k, "events", false, nil)
			})
		}
	}
	relay := func(k string) func() error {
		return func() error {
			return on(r, func(ch *amqp.Channel) error {
				if err := ch.ExchangeDeclare("mine.e", "fanout", false, true, false, false, nil); err != nil {
					return err
				}
				return ch.ExchangeBind("mine.e", k, "events", false, nil)
			})
		}
	}
	check(t, []try{
		{"binding eu.#", bind("eu.#"), true}, {"binding us", bind("us"), true}, {"binding #", bind("#"), false}, {"binding us.*", bind("us.*"), false}, {"binding *.x", bind("*.x"), false},
		{"binding eu", bind("eu"), false}, {"binding with no key", bind(""), false}, {"binding xeu.x", bind("xeu.x"), false},
		{"binding an exchange by eu.x", relay("eu.x"), true}, {"binding an exchange by #", relay("#"), false},
		{"publishing to events", func() error { return publish(r, "events", "eu.x", nil) }, false},
		{"making events anew", func() error {
			return on(r, func(ch *amqp.Channel) error { return ch.ExchangeDelete("events", false, false) })
		}, false},
	})
	f.withdraw(is, l)
}

// RabbitMQ takes a message by its routing key and sends it by those in its header
// CC as well. So no scope promises topics to a writer. If this fails, RabbitMQ has
// learnt better, and scopes may learn it, too.
func TestRabbitMQHoldsNoWriterToItsTopics(t *testing.T) {
	f := newFixture(t)
	const user, password = "writer", "a-password-of-somebody"
	f.put("/api/users/"+user, `{"password":"`+password+`","tags":""}`)
	t.Cleanup(func() { f.remove("/api/users/" + user) })
	f.put("/api/topic-permissions/bus/"+user, `{"exchange":"events","write":"^eu\\.","read":""}`)
	f.put("/api/permissions/bus/"+user, `{"configure":"","write":"^events$","read":"^secret$"}`)
	if status, answer, err := f.server.Call(t.Context(), http.MethodPost, "/api/bindings/bus/e/events/q/secret", `{"routing_key":"us.#"}`); err != nil || status >= 300 {
		t.Fatal(status, answer, err)
	}
	conn, err := dialAs(f, user, password, bus)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	check(t, []try{{"publishing us.x", func() error { return publish(conn, "events", "us.x", nil) }, false}})
	if err := publish(conn, "events", "eu.x", amqp.Table{"CC": []any{"us.x"}}); err != nil {
		t.Errorf("a header CC is refused: %v", err)
	}
	err = on(conn, func(ch *amqp.Channel) error {
		_, arrived, err := ch.Get("secret", true)
		if !arrived {
			t.Error("a message does not follow its header CC")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Names with characters that expressions give a meaning stand for themselves.
func TestPatternsAreLiteral(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	for _, name := range []string{"a.b", "a|.", "a+b", "a?", `a\b`, "a[b]", "(a)", "^a$", "a{username}", "a b", "ключ", "a#b", "a/b"} {
		l := lease(allow([]string{"configure"}, "name:"+name))
		conn := f.login(f.mint(is, l))
		tries := []try{{"declaring " + name, declare(conn, name), true}}
		for _, wrong := range []string{"axb", "ab", "aa", "a", "b", name + "x", "x" + name, name + "\u00a0", "a" + l.Name} {
			if wrong != name {
				tries = append(tries, try{name + " opens " + wrong, declare(conn, wrong), false})
			}
		}
		check(t, tries)
		f.withdraw(is, l)
	}
}

func TestLimitsBind(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	l := lease(limited("connections:1/channels:2"))
	c := f.mint(is, l)
	conn := f.login(c)
	if err := canRead(conn, "orders"); err != nil {
		t.Fatal(err)
	}
	if second, err := dial(c); err == nil {
		_ = second.Close()
		t.Error("a second connection is let in")
	}
	refused := false
	for range 3 {
		if _, err := conn.Channel(); err != nil {
			refused = true
		}
	}
	if !refused {
		t.Error("three channels are open")
	}
	f.withdraw(is, l)
}

// The password reaches the server as a salted hash until its owner logs in.
func TestLaw6RabbitMQPasswordCrossesAsAHash(t *testing.T) {
	f := newFixture(t)
	p := newRecorder(t, f.server.API)
	is := f.at(p.address()).open(1)
	l := lease(allow([]string{"read"}))
	c := f.mint(is, l)
	f.withdraw(is, l)
	if text := p.text(); !strings.Contains(text, "password_hash") || strings.Contains(text, c.Secret["password"].Reveal()) {
		t.Error("law 6: the password crosses in the clear, or nothing was recorded")
	}
}

func TestLaw2RabbitMQSessionsEndWhateverTheyDo(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	l := lease(allow([]string{"configure", "read", "write"}, "name:mine.*"))
	c := f.mint(is, l)
	consumer, transaction, idle := f.login(c), f.login(c), f.login(c)
	ch, err := consumer.Channel()
	if err != nil {
		t.Fatal(err)
	}
	q, err := ch.QueueDeclare("mine."+l.ID, false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	deliveries, err := ch.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := transaction.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Tx(); err != nil {
		t.Fatal(err)
	}
	out := f.withdraw(is, l)
	if n := out[0].Receipt.SessionsEnded; n != 3 {
		t.Errorf("the receipt says %d sessions ended; there were 3", n)
	}
	select {
	case _, open := <-deliveries:
		if open {
			t.Error("a message to somebody withdrawn")
		}
	case <-time.After(30 * time.Second):
		t.Error("law 2: a consumer outlives the withdrawal")
	}
	if tx.TxCommit() == nil {
		t.Error("law 2: a transaction goes on after the withdrawal")
	}
	if _, err := idle.Channel(); err == nil {
		t.Error("law 2: an idle connection outlives the withdrawal")
	}
	status, answer, err := f.server.Call(t.Context(), http.MethodGet, "/api/queues/bus/"+q.Name, "")
	if err != nil || status != http.StatusNotFound {
		t.Errorf("its exclusive queue stands: %d %s %v", status, answer, err)
	}
	if conn, err := dial(c); err == nil {
		_ = conn.Close()
		t.Error("law 2: the credential logs in")
	}
}

// Clients log in all the time while the lease ends; none is left.
func TestLaw2RabbitMQLoginsDuringTheWithdrawal(t *testing.T) {
	f := newFixture(t)
	is := f.open(1)
	for range 3 {
		l := lease(allow([]string{"read"}))
		c := f.mint(is, l)
		stop, done := make(chan struct{}), make(chan []*amqp.Connection)
		for range 4 {
			go func() {
				var all []*amqp.Connection
				for {
					select {
					case <-stop:
						done <- all
						return
					default:
					}
					if conn, err := dial(c); err == nil {
						all = append(all, conn)
					}
				}
			}()
		}
		eventually(t, "somebody is logged in", func() bool {
			_, answer, err := f.server.Call(t.Context(), http.MethodGet, "/api/connections/username/"+l.Name, "")
			return err == nil && len(answer) > 2
		})
		f.withdraw(is, l)
		err := f.gone(t.Context(), l)
		close(stop)
		for range 4 {
			for _, conn := range <-done {
				if canRead(conn, "orders") == nil {
					t.Error("law 2: a session that opened during the withdrawal outlives it")
				}
				_ = conn.Close()
			}
		}
		if err != nil {
			t.Errorf("law 2: with a receipt, %v", err)
		}
	}
}

func TestMintsOfOneLeaseByTwoLeaders(t *testing.T) {
	f := newFixture(t)
	a, b := f.open(1), f.open(1)
	for range 4 {
		l := lease(allow([]string{"read"}))
		type minted struct {
			c   issuers.Credential
			err error
		}
		got := make(chan minted, 2)
		for _, is := range []issuers.Issuer{a, b} {
			go func() {
				c, err := is.Mint(t.Context(), l)
				got <- minted{c, err}
			}()
		}
		works := 0
		for _, m := range []minted{<-got, <-got} { // both are done before either is tried
			if m.err != nil {
				continue
			}
			if conn, err := dial(m.c); err == nil {
				_ = conn.Close()
				works++
			}
		}
		if works > 1 {
			t.Errorf("%d secrets open one user", works)
		}
		f.withdraw(a, l)
	}
}
