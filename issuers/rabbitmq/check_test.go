package rabbitmq_test

import (
	"net"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/rabbitmq"
	"github.com/mayfly-broker/mayfly/secret"
)

func (f *fixture) findings() map[string]issuers.Finding {
	f.t.Helper()
	list, err := f.open(1).Check(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	out := map[string]issuers.Finding{}
	for _, x := range list {
		out[x.Name] = x
		if x.OK && x.Fix != "" {
			f.t.Errorf("%+v", x)
		}
	}
	return out
}

func TestCheckOfAGoodTarget(t *testing.T) {
	for name, f := range map[string]*fixture{"plain": newFixture(t), "TLS": secured(t)} {
		for _, x := range f.findings() {
			if !x.OK {
				t.Errorf("%s: %+v", name, x)
			}
		}
	}
}

// A user that lacks the tag is told which, and by what command it gets it.
func TestCheckNamesTheMissingTag(t *testing.T) {
	f := newFixture(t)
	const password = "a-password-of-a-weak-user"
	for _, tags := range []string{"", "management", "monitoring", "policymaker"} {
		f.put("/api/users/weak", `{"password":"`+password+`","tags":"`+tags+`"}`)
		f.spec["admin"] = map[string]any{"username": "weak"}
		f.secrets[rabbitmq.SecretPassword] = secret.New(password)
		x, ok := f.findings()["administrator"]
		if !ok || x.OK || x.Warning || x.Fix != "rabbitmqctl set_user_tags weak administrator" {
			t.Errorf("tags %q: %+v", tags, x)
		}
		_, err := f.open(1).Mint(t.Context(), lease(allow([]string{"read"})))
		wantKind(t, err, issuers.Refused)
		wantText(t, err, "administrator")
	}
	f.remove("/api/users/weak")
}

func TestCheckOfAVirtualHostThatIsNotThere(t *testing.T) {
	f := newFixture(t)
	f.spec["vhost"] = "it's/not"
	if x := f.findings()["virtual host"]; x.OK || x.Warning || x.Fix != `rabbitmqctl add_vhost 'it'\''s/not'` {
		t.Errorf("%+v", x)
	}
}

// Of several nodes one is enough, and each that does not answer is named.
func TestCheckNamesTheNodesThatDoNotAnswer(t *testing.T) {
	f := newFixture(t)
	f.spec["addresses"] = []string{"127.0.0.1:1"}
	list, err := f.open(1).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, x := range list {
		if x.Name == "node" && (x.OK != strings.HasSuffix(x.Detail, " answers") || x.Warning == x.OK) {
			t.Errorf("%+v", x)
		}
		if x.Name == "node" && !x.OK {
			said = append(said, x.Detail)
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], "127.0.0.1:1") {
		t.Errorf("%q", said)
	}
}

// Clients need the AMQP listener; the broker only looks, so it warns.
func TestCheckOfTheAMQPListener(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mute.Close() }()
	go func() {
		for {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = c.Close()
		}
	}()
	for what, change := range map[string]map[string]any{
		"nobody listens":          {"address": "127.0.0.1:1"},
		"something else":          {"address": mute.Addr().String()},
		"TLS where there is none": {"address": server(t).AMQP, "tls": "verify-full"},
		"a CA nobody knows":       {"address": server(t).AMQPTLS, "tls": "verify-full"},
	} {
		f := newFixture(t)
		f.spec["amqp"] = change
		if x := f.findings()["amqp"]; x.OK || !x.Warning || x.Detail == "" {
			t.Errorf("%s: %+v", what, x)
		}
	}
}

func TestCheckWarnsOfTheDefaultUser(t *testing.T) {
	f := newFixture(t)
	f.put("/api/users/guest", `{"password":"guest","tags":"administrator"}`)
	x := f.findings()["default user"]
	f.remove("/api/users/guest")
	if x.OK || !x.Warning || x.Fix != "rabbitmqctl delete_user guest" {
		t.Errorf("%+v", x)
	}
}

// A certificate that the CA did not sign, or that is for another host, opens no
// connection to send a password by.
func TestCertificatesAreVerified(t *testing.T) {
	for what, tls := range map[string]map[string]any{
		"no CA": {"mode": "verify-full"}, "another name": {"mode": "verify-full", "ca": server(t).CAPEM, "server_name": "rabbit.internal"},
	} {
		f := secured(t)
		f.spec["tls"] = tls
		_, err := f.open(1).Mint(t.Context(), lease(allow([]string{"read"})))
		wantKind(t, err, issuers.Unreachable)
		if !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestRolesAreForTheTargetsVirtualHost(t *testing.T) {
	f := newFixture(t)
	roles, err := rabbitmq.Kind{}.Roles(f.target(1).Spec)
	if err != nil || len(roles) != 2 {
		t.Fatalf("%+v, %v", roles, err)
	}
	for _, r := range roles {
		if len(r.Scope) != 1 || r.Scope[0].Identifier != bus || strings.Contains(r.Scope.String(), "configure") {
			t.Errorf("%+v", r)
		}
	}
}
