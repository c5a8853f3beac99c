package main

import (
	"github.com/urfave/cli/v2"
)

// draftGitHub fills in which GitHub, and the App's private key: --password-file, or a
// --set private_key that names a file. It is of several lines, so nobody is asked for
// it. The address is the API of an Enterprise Server.
func (s *shell) draftGitHub(c *cli.Context, d *draft, address string) error {
	if address != "" {
		d.spec["api"] = address
	}
	if f := c.String("tls-ca-file"); f != "" {
		pem, err := readFile(f, maxDocument)
		if err != nil {
			return failed("no_file", "--tls-ca-file: %v", err)
		}
		d.spec["tls"] = map[string]any{"ca": string(pem)}
	}
	if !c.IsSet("password-file") {
		return nil
	}
	key, err := s.secretFrom(c.String("password-file"), "Private key of the App", "--password-file")
	d.secrets = map[string]string{"private_key": key.Reveal()}
	return err
}
