package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mayfly-broker/mayfly/issuers/rabbitmq/rabbitmqtest"
)

// rabbitMQ is a RabbitMQ as a [Server].
type rabbitMQ struct{ *rabbitmqtest.Server }

func startRabbitMQ(ctx context.Context) (Server, error) {
	s, err := rabbitmqtest.Run(ctx)
	if err != nil {
		return nil, err
	}
	return rabbitMQ{s}, nil
}

// Add makes a queue in the virtual host that every server has.
func (r rabbitMQ) Add(t testing.TB, admin CLI, dir, target string) string {
	t.Helper()
	for path, body := range map[string]string{"/api/permissions/%2F/" + rabbitmqtest.AdminUser: `{"configure":".*","write":".*","read":".*"}`, "/api/queues/%2F/greetings": `{"durable":true}`} {
		if status, answer, err := r.Call(t.Context(), http.MethodPut, path, body); err != nil || status >= 300 {
			t.Fatalf("%s: %d %s: %v", path, status, answer, err)
		}
	}
	addTarget(t, admin, dir, r.Password, "rabbitmq", r.API, "--name", target, "--username", rabbitmqtest.AdminUser, "--set", `amqp={"address":"`+r.AMQP+`"}`)
	return target + "/readonly"
}

// Name is the user's.
func (r rabbitMQ) Name(credential map[string]string) string { return credential["username"] }

// Login reads from a queue. AMQP lets whom it does not know wait for three seconds,
// so the management API is asked first.
func (r rabbitMQ) Login(ctx context.Context, credential map[string]string) error {
	_, answer, err := r.CallAs(ctx, credential["username"], credential["password"], http.MethodGet, "/api/whoami", "")
	if err != nil {
		return err
	}
	if !strings.Contains(answer, "Not management user") { // which it says to whom it knows
		return errors.New("the login is refused: " + answer)
	}
	conn, err := amqp.DialConfig(credential["url"], amqp.Config{Heartbeat: 10 * time.Second, Locale: "en_US", Dial: amqp.DefaultDial(5 * time.Second)})
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	if err == nil {
		_, _, err = ch.Get("greetings", true)
	}
	return errors.Join(err, conn.Close())
}

// Ours lists users, what they may do, and connections that are theirs by the table
// that counts them.
func (r rabbitMQ) Ours(ctx context.Context) ([]string, error) {
	seen := map[string]bool{}
	var out []string
	for what, path := range map[string]string{"user": "/api/users?columns=name", "permission of": "/api/permissions?columns=user", "topic permission of": "/api/topic-permissions?columns=user", "": "/api/connections?columns=user"} {
		var list []struct{ Name, User string }
		if err := r.list(ctx, path, &list); err != nil {
			return nil, err
		}
		for _, x := range list {
			if name := x.Name + x.User; strings.HasPrefix(name, "mayfly_") {
				seen[name] = true
				if what != "" {
					out = append(out, what+" "+name)
				}
			}
		}
	}
	for name := range seen { // the list above comes from statistics, which lag
		var live []any
		if err := r.list(ctx, "/api/connections/username/"+name, &live); err != nil {
			return nil, err
		}
		if len(live) > 0 {
			out = append(out, fmt.Sprintf("%d connections of %s", len(live), name))
		}
	}
	return out, nil
}

func (r rabbitMQ) list(ctx context.Context, path string, into any) error {
	status, answer, err := r.Call(ctx, http.MethodGet, path, "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, answer)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return json.Unmarshal([]byte(answer), into)
}

// Account makes a user.
func (r rabbitMQ) Account(t testing.TB, _, username, password string) {
	t.Helper()
	for _, put := range [][2]string{
		{"/api/users/" + username, `{"password":"` + password + `","tags":""}`},
		{"/api/permissions/%2F/" + username, `{"configure":"","write":"","read":".*"}`},
	} {
		if status, answer, err := r.Call(t.Context(), http.MethodPut, put[0], put[1]); err != nil || status >= 300 {
			t.Fatalf("%s: %d %s: %v", put[0], status, answer, err)
		}
	}
}

// Enters asks the management API whether it knows the user, and then AMQP, which
// lets whom it does not know wait for three seconds.
func (r rabbitMQ) Enters(ctx context.Context, credential map[string]string) (bool, error) {
	status, answer, err := r.CallAs(ctx, credential["username"], credential["password"], http.MethodGet, "/api/whoami", "")
	switch {
	case err != nil:
		return false, err
	case status != http.StatusOK && !strings.Contains(answer, "Not management user"):
		if status != http.StatusUnauthorized {
			err = fmt.Errorf("whoami: %d %s", status, answer)
		}
		return false, err
	case credential["url"] == "":
		return true, nil
	}
	conn, err := amqp.DialConfig(credential["url"], amqp.Config{Heartbeat: 10 * time.Second, Locale: "en_US", Dial: amqp.DefaultDial(5 * time.Second)})
	if errors.Is(err, amqp.ErrCredentials) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, conn.Close()
}

// Admin is the administrator.
func (r rabbitMQ) Admin() (username, password string) { return rabbitmqtest.AdminUser, r.Password }
