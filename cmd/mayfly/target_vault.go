package main

import (
	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/issuers/vault"
)

// draftVault fills in where a Vault is and how the broker logs in to it: with
// --username, a role_id, by AppRole; else with a token, unless --set auth says
// another way. What it logs in with is read as a password is.
func (s *shell) draftVault(c *cli.Context, d *draft, address string) error {
	if address == "" {
		return usage("where is it? want mayfly target add vault https://HOST:8200 --name T")
	}
	d.spec["address"] = address
	if m := c.String("tls-mode"); m != "" && m != "verify-full" {
		return usage("--tls-mode %s: a Vault is asked by https and verified in full, or by http on this machine", clean(m))
	}
	if f := c.String("tls-ca-file"); f != "" {
		pem, err := readFile(f, maxDocument)
		if err != nil {
			return failed("no_file", "--tls-ca-file: %v", err)
		}
		d.spec["tls"] = map[string]any{"ca": string(pem)}
	}
	auth, _ := d.spec["auth"].(map[string]any)
	method, _ := auth["method"].(string)
	if u := c.String("username"); u != "" {
		if auth != nil {
			return usage("--username and --set auth both say how to log in; leave one out")
		}
		method = "approle"
		d.spec["auth"] = map[string]any{"method": method, "role_id": u}
	}
	name, what := "", ""
	switch method {
	case "", "token":
		name, what = vault.SecretToken, "The broker's token for "
	case "approle":
		name, what = vault.SecretSecretID, "The secret_id for "
	default: // what it logs in with stands on the broker's nodes
		return nil
	}
	text, err := s.secretFrom(c.String("password-file"), what+clean(address), "--password-file")
	if err != nil {
		return err
	}
	if d.secrets == nil {
		d.secrets = map[string]string{}
	}
	d.secrets[name] = text.Reveal()
	return nil
}
