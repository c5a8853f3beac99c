package nats

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bounds on what a server may send.
const (
	maxLine    = 64 << 10 // INFO names every server of a cluster
	maxMessage = 32 << 20 // an account's INFO holds its JWT three times over
	maxAnswers = 512      // to one request
)

// serverInfo is what this package reads of a server's greeting.
type serverInfo struct {
	ID           string `json:"server_id"`
	Version      string `json:"version"`
	Headers      bool   `json:"headers"`
	AuthRequired bool   `json:"auth_required"`
	TLSRequired  bool   `json:"tls_required"`
	TLSAvailable bool   `json:"tls_available"`
	MaxPayload   int    `json:"max_payload"` // bytes
	Nonce        string `json:"nonce"`
}

// conn is one connection to a server, logged in, that makes requests. It is safe
// for concurrent use. Only what requests need is there of the protocol.
type conn struct {
	nc   net.Conn
	info serverInfo
	// inbox is the subject below which answers come.
	inbox string

	writing sync.Mutex

	mu      sync.Mutex
	asked   uint64
	waiting map[string]chan<- message // by the last word of their inbox
	err     error                     // why it ended
	ended   chan struct{}
}

type message struct {
	body []byte
	err  error
}

// start reads what comes, in a goroutine of its own that close ends.
func (c *conn) start(r *bufio.Reader) {
	c.waiting, c.ended = map[string]chan<- message{}, make(chan struct{})
	go func() {
		defer close(c.ended)
		err := c.read(r)
		_ = c.nc.Close()
		c.fail(err)
	}()
}

// close ends the connection and waits for its goroutine. What still stands in the
// socket's buffer is thrown away: nothing that was given up may arrive later.
func (c *conn) close() {
	raw := c.nc
	if t, ok := raw.(interface{ NetConn() net.Conn }); ok { // TLS
		raw = t.NetConn()
	}
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
		_ = t.Close() // not TLS's own, which would first send its farewell
	}
	_ = c.nc.Close()
	<-c.ended
}

// dead says whether the connection has ended.
func (c *conn) dead() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// fail hands err to all who wait; after it, nobody may begin to.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	for _, to := range c.waiting {
		deliver(to, message{err: c.err})
	}
	c.waiting = nil
}

// deliver never blocks: who waits for more than its channel holds is not served.
func deliver(to chan<- message, m message) {
	select {
	case to <- m:
	default:
	}
}

func (c *conn) write(text []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.nc.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return err
	}
	_, err := c.nc.Write(text)
	return err
}

func (c *conn) read(r *bufio.Reader) error {
	for {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		word, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(word) {
		case "MSG", "HMSG":
			if err := c.message(r, strings.EqualFold(word, "HMSG"), strings.Fields(rest)); err != nil {
				return err
			}
		case "PING":
			if err := c.write([]byte("PONG\r\n")); err != nil {
				return err
			}
		case "PONG", "INFO", "+OK":
		case "-ERR":
			e := &serverError{strings.Trim(rest, "' ")}
			if !strings.HasPrefix(strings.ToLower(e.text), "permissions violation") {
				return e
			}
			c.refuse(e) // the connection lives on
		default:
			return fmt.Errorf("the server sent %.20q, which is not NATS's protocol", word)
		}
	}
}

// refuse tells all who wait that a right is missing; the server names the
// subject, but not whose request it was.
func (c *conn) refuse(e *serverError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, to := range c.waiting {
		deliver(to, message{err: e})
	}
}

// message reads one: subject, sid, [reply], [length of the header], length.
func (c *conn) message(r *bufio.Reader, headed bool, f []string) error {
	least := 3
	if headed {
		least = 4
	}
	if len(f) < least || len(f) > least+1 {
		return errors.New("the server sent a message without its lengths")
	}
	head := 0
	n, err := strconv.Atoi(f[len(f)-1])
	if headed && err == nil {
		head, err = strconv.Atoi(f[len(f)-2])
	}
	if err != nil || n < 0 || n > maxMessage || head < 0 || head > n {
		return fmt.Errorf("the server sent a message of %q bytes; at most %d are read", f[len(f)-1], maxMessage)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n))) // grows with what comes, not with what is promised
	if err != nil {
		return err
	}
	if len(body) < n {
		return io.ErrUnexpectedEOF
	}
	if _, err := r.Discard(2); err != nil {
		return err
	}
	m := message{body: body[head:]}
	if status, _, _ := bytes.Cut(body[:head], []byte("\r\n")); bytes.HasPrefix(status, []byte("NATS/1.0 503")) {
		m = message{err: errNobody}
	}
	token, ok := strings.CutPrefix(f[0], c.inbox+".")
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if to := c.waiting[token]; to != nil {
		deliver(to, m)
	}
	return nil
}

func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLine:
			return "", fmt.Errorf("the server sent a line of more than %d bytes", maxLine)
		case err == nil:
			return strings.TrimRight(string(line), "\r\n"), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		}
	}
}

// ask publishes a request and hands each answer to hear until it says done. An
// error of hear's, of the connection's or of the context's ends it.
func (c *conn) ask(ctx context.Context, subject string, payload []byte, hear func(body []byte) (done bool, err error)) error {
	answers := make(chan message, maxAnswers) // more than the servers there can be
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.asked++
	token := strconv.FormatUint(c.asked, 10)
	c.waiting[token] = answers
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, token)
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.write(fmt.Appendf(nil, "PUB %s %s.%s %d\r\n%s\r\n", subject, c.inbox, token, len(payload), payload)); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-answers:
			if m.err != nil {
				return fmt.Errorf("%s: %w", subject, m.err)
			}
			if done, err := hear(m.body); done || err != nil {
				return err
			}
		}
	}
}

// login is how a connection says who it is. Only the signature over the server's
// nonce proves it; the JWT is no secret.
type login struct {
	jwt  string
	name string // of the connection
	sign func(nonce []byte) ([]byte, error)
}

// connectLine is what CONNECT says.
func connectLine(l login, signature string) ([]byte, error) {
	opts, err := json.Marshal(map[string]any{
		"verbose": false, "pedantic": false, "lang": "go", "version": "1", "protocol": 1, "echo": false, "headers": true, "no_responders": true,
		"name": l.name, "jwt": l.jwt, "sig": signature,
	})
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "CONNECT %s\r\nPING\r\n", opts), nil
}

// newInbox is a subject that nobody can guess.
func newInbox() string { return defaultInbox + "." + rand.Text() }
