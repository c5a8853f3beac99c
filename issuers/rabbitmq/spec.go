package rabbitmq

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
)

// Limits of a target's spec.
const (
	maxSpecBytes   = 256 << 10 // a CA bundle is the largest part
	maxAddresses   = 16
	maxConnections = 64
	defaultConns   = 8 // for mints, to each node
	maxName        = 128
)

// TLS modes a spec can name. There is none that encrypts without verifying.
const (
	tlsDisable    = "disable"
	tlsVerifyFull = "verify-full"
)

// spec is a Target's spec as far as this kind is concerned.
type spec struct {
	Address   string   `json:"address"` // of the management API
	Addresses []string `json:"addresses"`
	AMQP      amqpSpec `json:"amqp"`
	VHost     string   `json:"vhost"`
	TLS       tlsSpec  `json:"tls"`
	Admin     struct {
		Username string `json:"username"`
	} `json:"admin"`
	MaxConnections int `json:"max_connections"`

	nodes []string // address and addresses
}

// amqpSpec is where the leases' own clients go.
type amqpSpec struct {
	Address   string   `json:"address"`
	Addresses []string `json:"addresses"`
	TLS       string   `json:"tls"` // mode

	nodes []string // address and addresses
}

type tlsSpec struct {
	Mode       string `json:"mode"`
	CA         string `json:"ca"`          // PEM
	CAFile     string `json:"ca_file"`     // on the broker's nodes
	ServerName string `json:"server_name"` // in every node's certificate; the address's host when empty
}

const allowedKeys = "allowed keys are address, addresses, amqp (address, addresses, tls), vhost, tls (mode, ca, ca_file, server_name), admin (username), max_connections"

var wordPattern = regexp.MustCompile(`^[A-Za-z0-9._@-]+$`)

func parseSpec(raw json.RawMessage) (spec, error) {
	var s spec
	if len(raw) > maxSpecBytes {
		return s, fmt.Errorf("rabbitmq: spec: %d bytes; at most %d are allowed", len(raw), maxSpecBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := issuers.ReadableSpec(dec.Decode(&s)); err != nil {
		return s, fmt.Errorf("rabbitmq: %w; %s", err, allowedKeys)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("rabbitmq: more follows after the spec's object")
	}
	for _, check := range []func() error{s.checkAddresses, s.checkTLS, s.checkAMQP, s.checkNames} {
		if err := check(); err != nil {
			return s, fmt.Errorf("rabbitmq: %w", err)
		}
	}
	return s, nil
}

// places checks a first address and further ones, and returns them without
// doubles.
func places(field, first string, more []string) ([]string, error) {
	if len(more) > maxAddresses {
		return nil, fmt.Errorf("%s: %d addresses; at most %d are allowed", field, len(more), maxAddresses)
	}
	var out []string
	for _, a := range append([]string{first}, more...) {
		host, port, err := net.SplitHostPort(a)
		if err != nil || host == "" {
			return nil, fmt.Errorf("%s: %q must be host:port, as in rabbit.internal:15671", field, a)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
			return nil, fmt.Errorf("%s: port %q must be a number from 1 to 65535", field, port)
		}
		if len(host) > 255 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/,@\?#%[]"<>^{|}`+"`", r) }) {
			return nil, fmt.Errorf("%s: %q is not one host name or IP address", field, host)
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

func (s *spec) checkAddresses() (err error) {
	s.nodes, err = places("address", s.Address, s.Addresses)
	return err
}

func (s *spec) checkTLS() error {
	if s.TLS.Mode == "" {
		s.TLS.Mode = tlsVerifyFull
	}
	if err := checkMode("tls.mode", s.TLS.Mode, s.nodes); err != nil {
		return err
	}
	if s.TLS.CA != "" && s.TLS.CAFile != "" {
		return errors.New("tls: give ca or ca_file, not both")
	}
	return nil
}

func checkMode(field, mode string, nodes []string) error {
	switch mode {
	case tlsVerifyFull:
		return nil
	case tlsDisable:
		for _, a := range nodes {
			host, _, _ := net.SplitHostPort(a) // checked by places
			if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
				return fmt.Errorf("%s: disable is allowed for loopback addresses alone, and %q is none; use verify-full", field, host)
			}
		}
		return nil
	}
	return fmt.Errorf("%s: %q; allowed are verify-full, and disable for loopback addresses", field, mode)
}

// checkAMQP fills in what follows from the management API's address: the same
// host, the usual port.
func (s *spec) checkAMQP() (err error) {
	if s.AMQP.TLS == "" {
		s.AMQP.TLS = s.TLS.Mode
	}
	if s.AMQP.Address == "" {
		if len(s.AMQP.Addresses) > 0 {
			return errors.New("amqp: addresses go with an address")
		}
		host, _, _ := net.SplitHostPort(s.Address) // checked by places
		s.AMQP.Address = net.JoinHostPort(host, map[string]string{tlsVerifyFull: "5671", tlsDisable: "5672"}[s.AMQP.TLS])
	}
	if s.AMQP.nodes, err = places("amqp.address", s.AMQP.Address, s.AMQP.Addresses); err != nil {
		return err
	}
	if err := checkMode("amqp.tls", s.AMQP.TLS, s.AMQP.nodes); err != nil {
		return err
	}
	if s.TLS.Mode == tlsDisable && s.AMQP.TLS == tlsDisable && s.TLS != (tlsSpec{Mode: tlsDisable}) {
		return errors.New("tls: ca, ca_file and server_name have no meaning where nothing uses TLS")
	}
	return nil
}

func (s *spec) checkNames() error {
	if n := s.Admin.Username; n == "" || len(n) > maxName || !wordPattern.MatchString(n) {
		return fmt.Errorf("admin.username: %q must be the name of the broker's own user, of up to %d characters of A-Z, a-z, 0-9 and . _ @ -", n, maxName)
	}
	if userPattern.MatchString(s.Admin.Username) {
		return fmt.Errorf("admin.username: %q is a name that leases have", s.Admin.Username)
	}
	if s.VHost == "" {
		s.VHost = "/"
	}
	if err := checkVHost(s.VHost); err != nil {
		return fmt.Errorf("vhost: %w", err)
	}
	if s.MaxConnections == 0 {
		s.MaxConnections = defaultConns
	}
	if s.MaxConnections < 1 || s.MaxConnections > maxConnections {
		return fmt.Errorf("max_connections: %d; allowed are 1 to %d", s.MaxConnections, maxConnections)
	}
	return nil
}

// config is the client's side of TLS, for the management API and for AMQP.
func (s *spec) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.TLS.ServerName}
	ca := []byte(s.TLS.CA)
	if s.TLS.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(s.TLS.CAFile); err != nil {
			return nil, fmt.Errorf("rabbitmq: tls.ca_file: %w", err)
		}
	}
	if len(ca) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("rabbitmq: tls: the CA holds no PEM certificate")
		}
	}
	return c, nil
}
