package main

import (
	"net"
	"strings"

	"github.com/urfave/cli/v2"
)

// draftNATS fills in where the servers of an account are and, where it is given,
// by what seed users are signed; without one the broker makes itself a key.
func (s *shell) draftNATS(c *cli.Context, d *draft, address string) error {
	if address == "" {
		return usage("where is it? want mayfly target add nats ADDRESS --name T")
	}
	at, err := parseAddress("nats", address, "4222")
	if err != nil {
		return err
	}
	if at.user != "" || !at.password.IsZero() || at.database != "" {
		return usage("the address of NATS servers is host:port alone; the account goes by --set account=A…, its signing key by --password-file")
	}
	d.spec["address"] = net.JoinHostPort(at.host, at.port)
	tls := map[string]any{"mode": or(c.String("tls-mode"), guessTLS(at.host, c.String("tls-ca-file")))}
	if f := c.String("tls-ca-file"); f != "" {
		pem, err := readFile(f, maxDocument)
		if err != nil {
			return failed("no_file", "--tls-ca-file: %v", err)
		}
		tls["ca"] = string(pem)
	}
	d.spec["tls"] = tls
	if !c.IsSet("password-file") {
		return nil
	}
	return s.draftSecret(d, "signing_key", c.String("password-file"), "--password-file")
}

// draftSecrets reads what --secret names.
func (s *shell) draftSecrets(c *cli.Context, d *draft) error {
	for _, pair := range c.StringSlice("secret") {
		name, file, ok := strings.Cut(pair, "=")
		if !ok || name == "" || file == "" {
			return usage("--secret: want NAME=FILE; the secret itself never stands in a command")
		}
		if err := s.draftSecret(d, name, file, "--secret "+clean(name)+"="); err != nil {
			return err
		}
	}
	return nil
}

func (s *shell) draftSecret(d *draft, name, file, flag string) error {
	text, err := s.secretFrom(file, clean(name), flag)
	if err != nil {
		return err
	}
	if d.secrets == nil {
		d.secrets = map[string]string{}
	}
	d.secrets[name] = text.Reveal()
	return nil
}
