package main

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/approve"
	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	useApprove = "approve"
	useSession = "session"
	// approveKeyName is the approval key that `key add --use approve` makes in
	// the home.
	approveKeyName = "approve_key"
)

// signer finds the key to approve with: --key, --agent, the home's, or the only
// registered one that the ssh-agent holds. Done gives the agent back.
func (s *shell) signer(c *cli.Context, cl *client.Client) (signer approve.Signer, done func(), err error) {
	file := c.String("key")
	switch {
	case file != "" && c.Bool("agent"):
		return nil, nil, usage("--key and --agent: one key signs")
	case file != "":
		return s.signerOf(file)
	case !c.Bool("agent") && cl.Home() != nil:
		signer, err = approve.Open(cl.Home().Path(approveKeyName), s.passphrase)
		if !errors.Is(err, fs.ErrNotExist) {
			return signer, func() {}, err
		}
	}
	keys, err := cl.Keys(c.Context, "")
	if err != nil {
		return nil, nil, err
	}
	registered := map[string]bool{}
	for _, k := range keys {
		if k.Use == useApprove {
			registered[k.Thumbprint] = true
		}
	}
	if len(registered) == 0 {
		return nil, nil, failed(approve.CodeKey, "you have no key to approve with; make one with: mayfly key add --use approve")
	}
	return s.fromAgent("you have registered", func(k approve.Key) bool { return registered[k.Thumbprint] })
}

// signerOf opens a key file; of a public half, the agent signs or the private
// file beside it.
func (s *shell) signerOf(file string) (approve.Signer, func(), error) {
	if public, ok := s.publicHalf(file); ok {
		signer, done, err := s.fromAgent("is "+file, func(k approve.Key) bool { return k.Thumbprint == public.Thumbprint })
		if err == nil {
			return signer, done, nil
		}
		beside, isPub := strings.CutSuffix(file, ".pub")
		if !isPub {
			return nil, nil, err
		}
		opened, openErr := approve.Open(beside, s.passphrase)
		if errors.Is(openErr, fs.ErrNotExist) {
			return nil, nil, err
		}
		if openErr == nil && opened.Key().Thumbprint != public.Thumbprint {
			return nil, nil, failed(approve.CodeKey, "%s is not the private half of %s", clean(beside), clean(file))
		}
		return opened, func() {}, openErr
	}
	signer, err := approve.Open(file, s.passphrase)
	if errors.Is(err, fs.ErrNotExist) {
		err = failed(approve.CodeKey, "there is no key file %s", clean(file))
	}
	return signer, func() {}, err
}

// publicHalf reads a file that holds an SSH public key, and says whether it does.
func (s *shell) publicHalf(file string) (approve.Key, bool) {
	data, err := readFile(file, maxSecret)
	if err != nil || strings.HasPrefix(strings.TrimSpace(string(data)), "{") {
		return approve.Key{}, false
	}
	k, err := approve.PublicKey(data, file)
	return k, err == nil
}

// fromAgent takes the one key of the ssh-agent that fits; what says which those
// are.
func (s *shell) fromAgent(what string, fits func(approve.Key) bool) (approve.Signer, func(), error) {
	socket, _ := s.lookup("SSH_AUTH_SOCK")
	agent, err := approve.OpenAgent(socket)
	if err != nil {
		return nil, nil, err
	}
	list, err := agent.Signers()
	if err == nil {
		list = slices.DeleteFunc(list, func(x approve.Signer) bool { return !fits(x.Key()) })
		switch len(list) {
		case 1:
			return list[0], func() { _ = agent.Close() }, nil
		case 0:
			err = failed(approve.CodeKey, "the ssh-agent holds no key that %s", clean(what))
		default:
			var names []string
			for _, x := range list {
				names = append(names, x.Key().Fingerprint)
			}
			err = failed(approve.CodeKey, "the ssh-agent holds %d keys that %s (%s); say which with --key FILE.pub", len(list), clean(what), clean(strings.Join(names, ", ")))
		}
	}
	_ = agent.Close()
	return nil, nil, err
}

// passphrase asks for a key's passphrase on the terminal.
func (s *shell) passphrase(file string) ([]byte, error) {
	if !s.interactive() {
		return nil, failed(approve.CodeKey, "%s is protected by a passphrase and nobody can be asked for it here; add it to ssh-agent", clean(file))
	}
	typed, err := s.ask("Passphrase of " + clean(file))
	if err != nil {
		return nil, err
	}
	return []byte(typed.Reveal()), nil
}

func keyTitle(k approve.Key) string {
	return k.Kind + " key " + or(k.Fingerprint, k.Thumbprint) + " (" + k.Where + ")"
}

// addApproveKey makes or takes a key to approve with, proves that it is here,
// and registers it.
func (s *shell) addApproveKey(c *cli.Context, cl *client.Client, file string) error {
	signer, done, made, err := s.newApproveKey(c, cl, file)
	if err != nil {
		return err
	}
	defer done()
	if made {
		s.notice("made %s; whoever can read it can approve in your name", clean(signer.Key().Where))
	}
	principal := c.String("principal")
	doc, err := cl.KeyDocument(c.Context, principal, signer.Key().ApproveKey)
	if err != nil {
		return err
	}
	whose := principal
	if whose == "" {
		me, err := cl.Whoami(c.Context)
		if err != nil {
			return err
		}
		whose = me.Principal
	}
	hash, err := approve.CheckKey(doc, whose, signer.Key())
	if err != nil {
		return err
	}
	proof, err := s.sign(signer, approve.DomainKey, hash)
	if err != nil {
		return err
	}
	key := signer.Key().ApproveKey
	in := wire.AddKeyRequest{Principal: principal, Use: useApprove, Approve: &key, Proof: &proof}
	founder := false
	switch doc.Vouch {
	case "key":
		in.Vouch, err = s.vouch(c, cl, signer, hash)
	case "approvers":
		in.Vouch, err = s.founderVouch(cl, principal, hash)
		founder = in.Vouch != nil
	}
	if err != nil {
		return err
	}
	a, err := cl.AddKey(c.Context, in)
	if err != nil {
		return err
	}
	if founder { // what came with the enrolment has served
		if err := cl.Home().ForgetVoucher(); err != nil {
			return err
		}
	}
	if a.GrantID != "" {
		return s.changeWaits(c, cl, a.GrantID, nil, func(waits bool) error { return s.showKey(a, waits) })
	}
	return s.showKey(a, false)
}

// founderVouch signs with what a first approver's enrolment left in the home;
// nil where it left nothing: then others approve.
func (s *shell) founderVouch(cl *client.Client, principal string, hash [32]byte) (*wire.Signature, error) {
	if principal != "" || cl.Home() == nil {
		return nil, nil
	}
	private, err := cl.Home().Voucher()
	if err != nil || private == nil {
		return nil, err
	}
	signer, err := approve.FromEd25519(private, "the enrolment")
	if err != nil {
		return nil, err
	}
	sig, err := signer.Sign(approve.DomainKey, hash)
	if err != nil {
		return nil, err
	}
	s.notice("the enrolment as a first approver vouches for it")
	return &sig, nil
}

func (s *shell) showKey(a wire.Key, waits bool) error {
	return s.show(a, func(p *page) {
		if !waits {
			keyTable(p, []wire.Key{a})
		}
	})
}

// newApproveKey is the key to register: made anew in the home, or --jwk, --ssh
// or FILE.
func (s *shell) newApproveKey(c *cli.Context, cl *client.Client, file string) (signer approve.Signer, done func(), made bool, err error) {
	sshFile, jwkFile := c.String("ssh"), c.String("jwk")
	given := slices.DeleteFunc([]string{file, sshFile, jwkFile}, func(f string) bool { return f == "" })
	switch {
	case len(given) > 1:
		return nil, nil, false, usage("one key at a time: FILE, --ssh or --jwk")
	case len(given) == 1:
		signer, done, err = s.signerOf(given[0])
		if err == nil && (jwkFile != "" && signer.Key().Kind != approve.KindJWS || sshFile != "" && signer.Key().Kind != approve.KindSSH) {
			done()
			return nil, nil, false, usage("%s holds a key of another kind than the flag says", clean(given[0]))
		}
		return signer, done, false, err
	case cl.Home() == nil:
		return nil, nil, false, usage("there is no home to keep a new key in; set MAYFLY_HOME, or give --ssh FILE.pub")
	}
	comment := "mayfly"
	if id, err := cl.Home().Identity(); err == nil && id.Principal != "" {
		comment = "mayfly " + id.Principal
	}
	signer, made, err = approve.OpenOrGenerate(cl.Home().Path(approveKeyName), comment, s.passphrase)
	return signer, func() {}, made, err
}

// vouch signs with a key that the person has already.
func (s *shell) vouch(c *cli.Context, cl *client.Client, fresh approve.Signer, hash [32]byte) (*wire.Signature, error) {
	signer, done, err := s.signer(c, cl)
	if err == nil && signer.Key().Thumbprint == fresh.Key().Thumbprint {
		done()
		keys, listErr := cl.Keys(c.Context, "")
		if listErr != nil {
			return nil, listErr
		}
		signer, done, err = s.fromAgent("could vouch for the new one", func(k approve.Key) bool {
			return k.Thumbprint != fresh.Key().Thumbprint && slices.ContainsFunc(keys, func(x wire.Key) bool { return x.Use == useApprove && x.Thumbprint == k.Thumbprint })
		})
	}
	if err != nil {
		var f *failure
		var a *approve.Error
		if errors.As(err, &f) || errors.As(err, &a) {
			return nil, failed("vouch_missing", "a key that you have already must vouch for the new one: name it with --key FILE or add it to ssh-agent (%s)", brief(err))
		}
		return nil, err
	}
	defer done()
	sig, err := s.sign(signer, approve.DomainKey, hash)
	if err != nil {
		return nil, err
	}
	s.notice("%s vouches for it", clean(keyTitle(signer.Key())))
	return &sig, nil
}
