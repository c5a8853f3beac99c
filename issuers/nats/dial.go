package nats

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// Times of connections.
const (
	dialTimeout = 3 * time.Second // until logged in, for each address
	ioTimeout   = 5 * time.Second // one answer, and how long a write may wait in our own socket buffer
)

// dialer opens connections to a target's servers.
type dialer struct {
	addresses []string
	tls       *tls.Config // nil without TLS
}

func tlsConfig(sp spec) (*tls.Config, error) {
	if sp.TLS.Mode == tlsDisable {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: sp.TLS.ServerName}
	ca := []byte(sp.TLS.CA)
	if sp.TLS.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(sp.TLS.CAFile); err != nil {
			return nil, fmt.Errorf("nats: tls.ca_file: %w", err)
		}
	}
	if len(ca) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("nats: tls: the CA holds no PEM certificate")
		}
	}
	return c, nil
}

// dial logs in on the first of the addresses that answers. A server that refuses
// the login is not passed over: the others trust the same keys.
func (d dialer) dial(ctx context.Context, l login) (*conn, error) {
	var all []error
	for _, addr := range d.addresses {
		c, err := d.dialOne(ctx, addr, l)
		if err == nil {
			return c, nil
		}
		err = fmt.Errorf("%s: %w", addr, err)
		var said *serverError
		if errors.As(err, &said) && !passing(said.text) {
			return nil, err
		}
		all = append(all, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(all...)
}

func (d dialer) dialOne(ctx context.Context, addr string, l login) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var nd net.Dialer
	nc, err := nd.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	// what follows reads and writes without a context
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	c, r, err := d.greet(ctx, nc, addr, l)
	if err != nil || !stop() {
		_ = nc.Close()
		return nil, errors.Join(err, ctx.Err())
	}
	if err := c.nc.SetDeadline(time.Time{}); err != nil {
		_ = nc.Close()
		return nil, err
	}
	c.start(r)
	if err := c.write([]byte("SUB " + c.inbox + ".* 1\r\n")); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// greet reads the server's INFO, goes over to TLS, and logs in.
func (d dialer) greet(ctx context.Context, nc net.Conn, addr string, l login) (*conn, *bufio.Reader, error) {
	c := &conn{nc: nc, inbox: newInbox()}
	r := bufio.NewReaderSize(nc, 4<<10)
	line, err := readLine(r)
	if err != nil {
		return nil, nil, err
	}
	text, ok := strings.CutPrefix(line, "INFO ")
	if !ok {
		return nil, nil, errors.New("what listens there is no NATS server")
	}
	if err := json.Unmarshal([]byte(text), &c.info); err != nil {
		return nil, nil, errors.New("the server's INFO cannot be read")
	}
	if d.tls != nil {
		switch {
		case !c.info.TLSRequired && !c.info.TLSAvailable:
			return nil, nil, errors.New("the server has no TLS, and the target's tls.mode wants it")
		case r.Buffered() > 0: // said in the clear, before anything was verified
			return nil, nil, errors.New("the server sent more before TLS than its greeting")
		}
		config := d.tls.Clone()
		if config.ServerName == "" {
			config.ServerName, _, _ = net.SplitHostPort(addr) // checked in the spec
		}
		secure := tls.Client(nc, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, nil, err
		}
		c.nc = secure
		r = bufio.NewReaderSize(secure, 4<<10)
	}
	return c, r, logIn(c, r, l)
}

// logIn says who we are and waits for the server's word that it believes it.
func logIn(c *conn, r *bufio.Reader, l login) error {
	if c.info.Nonce == "" {
		return &serverError{"no nonce: it does not run in operator mode, or asks nobody who he is"}
	}
	signature, err := l.sign([]byte(c.info.Nonce))
	if err != nil {
		return err
	}
	hello, err := connectLine(l, base64.RawURLEncoding.EncodeToString(signature))
	if err != nil {
		return err
	}
	if err := c.write(hello); err != nil {
		return err
	}
	for {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		word, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(word) {
		case "PONG":
			return nil
		case "-ERR":
			return &serverError{strings.Trim(rest, "' ")}
		case "INFO", "+OK":
		default:
			return fmt.Errorf("the server sent %.20q while we logged in", word)
		}
	}
}
