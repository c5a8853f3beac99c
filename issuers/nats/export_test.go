package nats

import (
	"bufio"
	"net"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/mayfly-broker/mayfly/scope"
)

// What tests look at from outside.
const (
	MaxGenerations = maxGenerations
	LockPrefix     = lockPrefix
	KeepRevoked    = keepRevoked
)

var (
	Subject  = subject
	Moment   = moment
	OurEnd   = ourEnd
	ReadSeed = readSeed
)

// Compiled are the patterns of a scope.
func Compiled(raw []byte, s scope.Scope) (pub, sub []string, err error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return nil, nil, err
	}
	p, err := compile(sp, s)
	return p.pub, p.sub, err
}

// Resign reads an account's JWT, adds revocations and signs it anew.
func Resign(token, public string, trusted map[string]bool, add map[string]int64, operator nkeys.KeyPair, now time.Time) (string, error) {
	a, err := readAccount(token, public, trusted)
	if err != nil {
		return "", err
	}
	a.edit(change{revoke: add}, now)
	return a.sign(operator, now)
}

// ReadAll has a connection read what a server sends.
func ReadAll(nc net.Conn) error {
	c := &conn{nc: nc, inbox: "_INBOX.x", waiting: map[string]chan<- message{"1": make(chan message, 1)}}
	return c.read(bufio.NewReader(nc))
}
