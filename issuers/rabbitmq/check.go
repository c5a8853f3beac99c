package rabbitmq

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// The oldest server that has what this package needs: limits that come with the
// user, and a user's connections in one list.
const (
	oldestMajor = 3
	oldestMinor = 10
)

// Check implements [issuers.Checker]. It changes nothing.
func (is *Issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	c := &examination{is: is}
	r, err := is.api.do(ctx, is.api.end, call{method: http.MethodGet, path: at("whoami")})
	if err == nil && r.status != http.StatusOK {
		err = said(r)
	}
	var d *denial
	if err != nil && (!errors.As(err, &d) || !d.weak()) {
		return nil, beforeError("ask the management API who we are", err)
	}
	var me struct {
		Tags json.RawMessage `json:"tags"`
	}
	_ = json.Unmarshal(r.body, &me) // no tags, no administrator
	user := is.spec.Admin.Username
	c.add("connect", true, false, "as "+user+" to "+is.spec.nodes[is.api.last.Load()], "")
	admin := err == nil && slices.Contains(tagsOf(me.Tags), "administrator")
	detail := "the broker's own user has the tag administrator"
	if !admin {
		detail = "the broker's own user lacks the tag administrator, by which it makes and deletes users"
	}
	c.add("administrator", admin, false, detail, "rabbitmqctl set_user_tags "+user+" administrator")
	if !admin {
		return c.findings, nil
	}
	for _, step := range []func(context.Context) error{c.version, c.users, c.connections, c.vhost, c.guest} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	if err := c.cluster(ctx); err != nil {
		return nil, err
	}
	c.nodes(ctx)
	for _, n := range is.spec.AMQP.nodes {
		c.listener(ctx, n)
	}
	return c.findings, nil
}

// tagsOf reads tags as servers write them: a list, or one text with commas.
func tagsOf(raw json.RawMessage) []string {
	var list []string
	if json.Unmarshal(raw, &list) == nil {
		return list
	}
	var text string
	_ = json.Unmarshal(raw, &text) // neither: no tags
	return strings.Split(text, ",")
}

// examination collects findings.
type examination struct {
	is       *Issuer
	findings []issuers.Finding
}

func (c *examination) add(name string, ok, warning bool, detail, fix string) {
	if ok {
		fix = ""
	}
	c.findings = append(c.findings, issuers.Finding{Name: name, OK: ok, Warning: warning && !ok, Detail: detail, Fix: fix})
}

// get asks for something. A refusal is no error: it is the reply.
func (c *examination) get(ctx context.Context, path string) (reply, error) {
	r, err := c.is.api.do(ctx, c.is.api.end, call{method: http.MethodGet, path: path})
	if err != nil {
		return r, beforeError("ask the management API", err)
	}
	return r, nil
}

func (c *examination) version(ctx context.Context) error {
	r, err := c.get(ctx, at("overview")+"?columns=rabbitmq_version")
	if err != nil {
		return err
	}
	var body struct {
		Version string `json:"rabbitmq_version"`
	}
	_ = json.Unmarshal(r.body, &body) // an empty version says enough
	ok := newEnough(body.Version)
	detail := "RabbitMQ " + body.Version
	if !ok {
		detail = fmt.Sprintf("the server says version %.20q; RabbitMQ %d.%d or later is needed", body.Version, oldestMajor, oldestMinor)
	}
	c.add("version", ok, false, detail, "")
	return nil
}

// newEnough reads the first two numbers of a version.
func newEnough(version string) bool {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	major, err1 := strconv.ParseUint(first, 10, 16)
	minor, err2 := strconv.ParseUint(second, 10, 16)
	return err1 == nil && err2 == nil && (major > oldestMajor || major == oldestMajor && minor >= oldestMinor)
}

func (c *examination) users(ctx context.Context) error {
	_, err := c.is.look(ctx, c.is.api.end, c.is.spec.Admin.Username)
	detail := "users can be listed with their tags"
	if err != nil {
		e := beforeError("look at a user", err)
		if e.Kind == issuers.Unreachable {
			return e
		}
		detail = e.Error()
	}
	c.add("look at users", err == nil, false, detail, "")
	return nil
}

func (c *examination) connections(ctx context.Context) error {
	_, err := c.is.sessions(ctx, c.is.api.end, c.is.spec.Admin.Username)
	detail := "connections can be listed by their user"
	if err != nil {
		e := beforeError("list the connections of a user", err)
		if e.Kind == issuers.Unreachable {
			return e
		}
		detail = e.Error()
	}
	c.add("list sessions", err == nil, false, detail, "")
	return nil
}

func (c *examination) vhost(ctx context.Context) error {
	name := c.is.spec.VHost
	r, err := c.get(ctx, at("vhosts", name)+"?columns=name")
	if err != nil {
		return err
	}
	c.add("virtual host", r.status == http.StatusOK, false, fmt.Sprintf("the target's own virtual host is %q", name), "rabbitmqctl add_vhost '"+strings.ReplaceAll(name, "'", `'\''`)+"'")
	return nil
}

// cluster warns where withdrawals would wait for a node.
func (c *examination) cluster(ctx context.Context) error {
	err := c.is.whole(ctx, c.is.api.end)
	var l *lost
	if errors.As(err, &l) {
		return beforeError("ask for the cluster's nodes", err)
	}
	detail := "every node runs"
	if err != nil {
		detail = err.Error() + "; withdrawals delete users, and wait with their receipts"
	}
	c.add("cluster", err == nil, true, detail, "")
	return nil
}

// nodes asks each node of several, of which one is enough.
func (c *examination) nodes(ctx context.Context) {
	a := c.is.api
	for i, base := range a.bases {
		if len(a.bases) == 1 {
			return
		}
		one := &api{bases: []string{base}, username: a.username, password: a.password}
		r, err := one.do(ctx, a.end, call{method: http.MethodGet, path: at("whoami")})
		if err == nil && r.status != http.StatusOK {
			err = said(r)
		}
		detail := c.is.spec.nodes[i] + " answers"
		if err != nil {
			detail = c.is.spec.nodes[i] + ": " + err.Error()
		}
		c.add("node", err == nil, true, detail, "")
	}
}

// guest: RabbitMQ comes with a user of that name and password, for connections
// from its own machine alone unless somebody changed that.
func (c *examination) guest(ctx context.Context) error {
	a := c.is.api
	open := &api{bases: a.bases, username: "guest", password: secret.New("guest")}
	r, err := open.do(ctx, a.end, call{method: http.MethodGet, path: at("whoami")})
	if err != nil {
		return beforeError("ask the management API", err)
	}
	ok := r.status != http.StatusOK
	detail := "does not open the management API from here"
	if !ok {
		detail = "everybody on this network may log in as guest with the password guest: leases guard nothing here"
	}
	c.add("default user", ok, true, detail, "rabbitmqctl delete_user guest")
	return nil
}

// greeting begins an AMQP 0-9-1 connection (AMQP 0-9-1 §4.2.2).
const greeting = "AMQP\x00\x00\x09\x01"

// listener sees whether AMQP answers where leases will go.
func (c *examination) listener(ctx context.Context, address string) {
	err := c.is.greet(ctx, address)
	detail := address + " answers, " + map[string]string{tlsDisable: "without TLS", tlsVerifyFull: "with TLS and a certificate that is trusted"}[c.is.spec.AMQP.TLS]
	if err != nil {
		detail = address + ": " + err.Error() + "; the broker's nodes need not reach it, the leases' clients must"
	}
	c.add("amqp", err == nil, true, detail, "")
}

// greet opens a connection as far as the server's first word.
func (is *Issuer) greet(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(ioTimeout))
	if is.spec.AMQP.TLS != tlsDisable {
		config := is.api.tls.Clone()
		if config.ServerName == "" {
			config.ServerName, _, _ = net.SplitHostPort(address)
		}
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return err
		}
		conn = secured
	}
	if _, err := io.WriteString(conn, greeting); err != nil {
		return err
	}
	// a method frame on channel 0 with connection.start, class 10, method 10
	var start [11]byte
	if _, err := io.ReadFull(conn, start[:]); err != nil {
		return err
	}
	if start[0] != 1 || start[1] != 0 || start[2] != 0 || string(start[7:]) != "\x00\x0a\x00\x0a" {
		return fmt.Errorf("it does not speak AMQP 0-9-1")
	}
	return nil
}
