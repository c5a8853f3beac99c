package main

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/urfave/cli/v2"
	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/wire"
)

func keyCommand(s *shell) *cli.Command {
	principal := func() cli.Flag {
		return &cli.StringFlag{Name: "principal", Usage: "whose keys, if not your own (`P`)"}
	}
	return &cli.Command{
		Name: "key", Category: forOperators, Usage: "the public keys by which a principal is known",
		Subcommands: []*cli.Command{
			{
				Name: "list", Usage: "list keys",
				Description: `Examples:
  mayfly key list
  mayfly key list --principal human:ann -o json`,
				Flags: []cli.Flag{principal(), &cli.StringFlag{Name: "use", Usage: "only keys for `session|approve`"}},
				Action: s.with(0, 0, func(c *cli.Context, cl *client.Client, _ []string) error {
					if err := checkUse(c.String("use")); err != nil {
						return err
					}
					all, err := cl.Keys(c.Context, c.String("principal"))
					if err != nil {
						return err
					}
					list := []wire.Key{}
					for _, k := range all {
						if u := c.String("use"); u == "" || u == k.Use {
							list = append(list, k)
						}
					}
					return s.show(list, func(p *page) { keyTable(p, list) })
				}),
			},
			keyAddCommand(s, principal()),
			{
				Name: "remove", Usage: "withdraw a key", ArgsUsage: "THUMBPRINT",
				Description: `Examples:
  mayfly key remove 3Qk0…
  mayfly key remove --use approve 3Qk0…
  mayfly key remove --principal human:ann 3Qk0…`,
				Flags: []cli.Flag{principal(), &cli.StringFlag{Name: "use", Usage: "of which use the key must be: `session|approve`"}},
				Action: s.with(1, 1, func(c *cli.Context, cl *client.Client, args []string) error {
					if err := checkRemoval(c, cl, args[0]); err != nil {
						return err
					}
					if err := cl.RemoveKey(c.Context, c.String("principal"), args[0]); err != nil {
						return err
					}
					return s.show(map[string]string{"removed": args[0]}, func(p *page) { p.line("removed " + args[0]) })
				}),
			},
		},
	}
}

func keyAddCommand(s *shell, principal cli.Flag) *cli.Command {
	return &cli.Command{
		Name: "add", Usage: "register a public key", ArgsUsage: "[FILE|-]",
		Description: `FILE holds a public key as JWK, PEM or in OpenSSH's one-line form. Without it,
the key of this home is registered.

With --use approve the key signs its own registration: --ssh through ssh-agent or
the private file beside it, --jwk itself. Without either a new OpenSSH key is made
in this home, approve_key. Every key but a person's first is vouched for by one
that the person has already (--key, --agent), or approved by others. Passkeys are
registered in the console.

Examples:
  mayfly key add --use approve
  mayfly key add --use approve --ssh ~/.ssh/id_ed25519_sk.pub
  mayfly key add --use approve --jwk bot.jwk --key ~/.ssh/id_ed25519.pub
  mayfly key add --principal workload:ci key.jwk`,
		Flags: []cli.Flag{
			principal, &cli.StringFlag{Name: "use", Value: useSession, Usage: "what the key is for: `session|approve`"},
			&cli.StringFlag{Name: "ssh", Usage: "an SSH key to approve with (`FILE.pub`)"},
			&cli.StringFlag{Name: "jwk", Usage: "a private JWK to approve with (`FILE`)"},
			&cli.StringFlag{Name: "key", Usage: "the key that vouches for the new one (`FILE`)"},
			&cli.BoolFlag{Name: "agent", Usage: "the one registered key that the ssh-agent holds vouches"},
			waitFlag(),
		},
		Action: s.with(0, 1, func(c *cli.Context, cl *client.Client, args []string) error {
			if err := checkUse(c.String("use")); err != nil {
				return err
			}
			if c.String("use") == useApprove {
				file := ""
				if len(args) == 1 {
					file = args[0]
				}
				return s.addApproveKey(c, cl, file)
			}
			if or(c.String("ssh"), c.String("jwk")) != "" {
				return usage("--ssh and --jwk go with --use approve; keys for sessions are named as FILE")
			}
			jwk, err := s.publicKey(cl, args)
			if err != nil {
				return err
			}
			k, err := cl.AddKey(c.Context, wire.AddKeyRequest{Principal: c.String("principal"), Use: c.String("use"), JWK: jwk})
			if err != nil {
				return err
			}
			return s.show(k, func(p *page) { keyTable(p, []wire.Key{k}) })
		}),
	}
}

// checkRemoval refuses to remove a key of another use than was said.
func checkRemoval(c *cli.Context, cl *client.Client, thumbprint string) error {
	use := c.String("use")
	if use == "" {
		return nil
	}
	if err := checkUse(use); err != nil {
		return err
	}
	list, err := cl.Keys(c.Context, c.String("principal"))
	if err != nil {
		return err
	}
	for _, k := range list {
		if k.Thumbprint == thumbprint && k.Use != use {
			return usage("the key %s is for %s, not for %s", clean(thumbprint), clean(k.Use), use)
		}
	}
	return nil
}

func checkUse(use string) error {
	if use != "" && use != useSession && use != useApprove {
		return usage("--use %s: want session or approve", clean(use))
	}
	return nil
}

func keyTable(p *page, list []wire.Key) {
	var rows [][]cell
	for _, k := range list {
		rows = append(rows, []cell{plain(k.Thumbprint), plain(k.Principal), plain(k.Use), plain(k.Kind), plain(fingerprint(k)), plain(p.when(k.AddedAt)), plain(k.AddedBy)})
	}
	p.table("no keys", []string{"THUMBPRINT", "PRINCIPAL", "USE", "KIND", "SSH FINGERPRINT", "ADDED", "BY"}, rows)
}

// fingerprint is an SSH key's name as ssh-keygen -l prints it.
func fingerprint(k wire.Key) string {
	if k.SSH == "" {
		return ""
	}
	parsed, err := approve.PublicKey([]byte(k.SSH), "")
	if err != nil {
		return ""
	}
	return parsed.Fingerprint
}

// publicKey reads a public key in any of the forms people have, as a JWK.
func (s *shell) publicKey(cl *client.Client, args []string) (json.RawMessage, error) {
	if len(args) == 0 {
		return cl.Key().PublicJWK()
	}
	data, err := s.document(args[0])
	if err != nil {
		return nil, failed("no_key", "the public key: %v", err)
	}
	return jwkOf(data)
}

func jwkOf(data []byte) (json.RawMessage, error) {
	data = bytes.TrimSpace(data)
	var key crypto.PublicKey
	block, _ := pem.Decode(data)
	switch {
	case bytes.HasPrefix(data, []byte("{")):
		var jwk jose.JSONWebKey
		if err := json.Unmarshal(data, &jwk); err != nil {
			return nil, failed("no_key", "the file holds no JWK: %v", err)
		}
		if !jwk.IsPublic() {
			return nil, failed("private_key", "the file holds a private key; only the public half is ever registered")
		}
		key = jwk.Key
	case block != nil && block.Type == "PUBLIC KEY":
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, failed("no_key", "the file holds no public key: %v", err)
		}
		key = parsed
	case block != nil:
		return nil, failed("private_key", "the file holds a %s; want a PUBLIC KEY", clean(block.Type))
	default:
		parsed, _, _, _, err := ssh.ParseAuthorizedKey(data)
		if err != nil {
			return nil, failed("no_key", "the file is neither a JWK, nor PEM, nor an OpenSSH public key")
		}
		c, ok := parsed.(ssh.CryptoPublicKey)
		if !ok {
			return nil, failed("no_key", "keys of type %s cannot be registered", clean(parsed.Type()))
		}
		key = c.CryptoPublicKey()
	}
	out, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return out, nil
}

func principalCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "principal", Category: forOperators, Usage: "workloads, agents, humans and nodes",
		Subcommands: []*cli.Command{{
			Name: "enroll", Usage: "make a one-time enrolment token", ArgsUsage: "P",
			Description: `The token carries the cluster's addresses and its CA's hash: it is all that the
other machine needs. It is shown once.

Examples:
  mayfly principal enroll human:ann
  mayfly principal enroll workload:ci --ttl 10m --field token > token.txt`,
			Flags: []cli.Flag{&cli.DurationFlag{Name: "ttl", Usage: "how long the token may be used (`D`; default 1h)"}},
			Action: s.with(1, 2, func(c *cli.Context, cl *client.Client, args []string) error {
				name := principalName(args)
				a, err := cl.EnrolPrincipal(c.Context, name, wire.EnrolRequest{TTL: duration(c, "ttl")})
				if err != nil {
					return err
				}
				return s.show(a, func(p *page) {
					p.card("principal", a.Principal, "token", a.Token, "use until", p.both(a.ExpiresAt))
					p.line("\nOn the other machine:\n  " + a.Command)
				})
			}),
		}},
	}
}

// principalName takes "P", "Principal P" and "Principal/P".
func principalName(args []string) string {
	if len(args) == 2 {
		return args[1]
	}
	if kind, name, ok := cutKind(args[0]); ok && kind == "Principal" {
		return name
	}
	return args[0]
}

// duration returns a duration flag in the wire's form, "" when not given.
func duration(c *cli.Context, flag string) string {
	if !c.IsSet(flag) {
		return ""
	}
	return c.Duration(flag).String()
}
