package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// draftKubernetes fills in where an API server is and how the broker logs in to
// it: by a token, unless --set names another way.
func (s *shell) draftKubernetes(c *cli.Context, d *draft, address string) error {
	if address == "" {
		return usage("where is it? want mayfly target add kubernetes https://HOST:PORT --name T")
	}
	for _, flag := range []string{"username", "database"} {
		if c.IsSet(flag) {
			return usage("--%s means nothing for kubernetes: the token says who the broker is", flag)
		}
	}
	d.spec["address"] = address
	tls := map[string]any{}
	if m := c.String("tls-mode"); m != "" {
		tls["mode"] = m
	}
	if f := c.String("tls-ca-file"); f != "" {
		pem, err := readFile(f, maxDocument)
		if err != nil {
			return failed("no_file", "--tls-ca-file: %v", err)
		}
		tls["ca"] = string(pem)
	}
	d.spec["tls"] = tls
	for _, pair := range c.StringSlice("set") {
		if strings.HasPrefix(pair, "token_file=") {
			return nil
		}
	}
	token, err := s.secretFrom(c.String("password-file"), "Token of the broker's own service account on "+clean(address), "--password-file")
	if err != nil {
		return err
	}
	d.secrets = map[string]string{"token": token.Reveal()}
	return nil
}
