package approve

import (
	"net"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/mayfly-broker/mayfly/client/wire"
)

const (
	agentDial = 3 * time.Second
	// agentTime bounds one question to the agent: somebody may have to find the
	// security key and touch it.
	agentTime = 2 * time.Minute
	// maxAgentKeys is how many of an agent's keys are looked at.
	maxAgentKeys = 256
)

// Agent is a connection to a running ssh-agent. Close it. Not for concurrent use.
type Agent struct {
	conn net.Conn
	keys agent.ExtendedAgent
}

// OpenAgent connects to the agent at a socket, SSH_AUTH_SOCK's. Errors are
// *[Error] of code [CodeAgent].
func OpenAgent(socket string) (*Agent, error) {
	if socket == "" {
		return nil, refuse(CodeAgent, nil, "there is no ssh-agent: SSH_AUTH_SOCK is not set")
	}
	conn, err := net.DialTimeout("unix", socket, agentDial)
	if err != nil {
		return nil, refuse(CodeAgent, err, "the ssh-agent that SSH_AUTH_SOCK names does not answer")
	}
	return &Agent{conn: conn, keys: agent.NewClient(conn)}, nil
}

// Close gives the connection back; signers that came from it sign no more.
func (a *Agent) Close() error { return a.conn.Close() }

// Signers returns the keys that the agent holds and that can approve; others,
// certificates among them, are passed over.
func (a *Agent) Signers() ([]Signer, error) {
	if err := a.conn.SetDeadline(time.Now().Add(agentTime)); err != nil {
		return nil, refuse(CodeAgent, err, "the ssh-agent does not answer")
	}
	list, err := a.keys.Signers()
	if err != nil {
		return nil, refuse(CodeAgent, err, "the ssh-agent does not list its keys")
	}
	var out []Signer
	for _, signer := range list[:min(len(list), maxAgentKeys)] {
		public, err := ssh.ParsePublicKey(signer.PublicKey().Marshal())
		if err != nil {
			continue
		}
		key, err := sshKey(public, "ssh-agent")
		if err != nil {
			continue
		}
		out = append(out, &agentSigner{sshSigner{key: key, signer: signer, hash: hashSHA512}, a})
	}
	return out, nil
}

// agentSigner gives each signature time of its own.
type agentSigner struct {
	sshSigner
	agent *Agent
}

// Sign implements [Signer].
func (s *agentSigner) Sign(domain string, hash [32]byte) (wire.Signature, error) {
	if err := s.agent.conn.SetDeadline(time.Now().Add(agentTime)); err != nil {
		return wire.Signature{}, refuse(CodeAgent, err, "the ssh-agent does not answer")
	}
	return s.sshSigner.Sign(domain, hash)
}
