package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mayfly-broker/mayfly/client"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// cached is a credential kept in the home between two calls of a client that
// asks for it again and again.
type cached struct {
	Access wire.AccessAnswer `json:"access"`
}

// requestFor prints a credential as another program expects it. It is kept in
// the home, mode 0600, until it should be renewed; then its lease is renewed
// where that can be, since the program may still use what it was given.
func (s *shell) requestFor(c *cli.Context, cl *client.Client, in wire.AccessRequest) error {
	if s.field != "" {
		return usage("--field goes with table, json and yaml; -o %s has a form of its own", s.output)
	}
	a, err := s.cachedAccess(c, cl, in)
	if err != nil {
		return err
	}
	return s.showDelivered(a)
}

func (s *shell) showDelivered(a wire.AccessAnswer) error {
	text, err := s.deliver(a)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(s.out, text)
	return err
}

func (s *shell) cachedAccess(c *cli.Context, cl *client.Client, in wire.AccessRequest) (wire.AccessAnswer, error) {
	home := cl.Home()
	if home == nil {
		a, err := s.issued(c, cl, in)
		return a, err
	}
	name, err := s.cacheName(cl, in)
	if err != nil {
		return wire.AccessAnswer{}, err
	}
	// Several programs that start together get one credential, not one each.
	lockCtx, cancel := context.WithTimeout(c.Context, time.Minute)
	defer cancel()
	release, err := home.Lock(lockCtx.Done(), "cache")
	if err != nil {
		return wire.AccessAnswer{}, err
	}
	defer release()
	var kept cached
	err = home.ReadJSON(name, &kept)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return wire.AccessAnswer{}, err
	case time.Now().Before(kept.Access.RenewAfter):
		return kept.Access, nil
	case time.Now().Before(kept.Access.ExpiresAt) && kept.Access.Renewable:
		if a, ok := prolong(c.Context, cl, kept.Access, in.TTL); ok {
			return a, home.WriteJSON(name, cached{a})
		}
	}
	a, err := s.issued(c, cl, in)
	if err != nil {
		return a, err
	}
	return a, home.WriteJSON(name, cached{a})
}

// issued requests and insists on a credential.
func (s *shell) issued(c *cli.Context, cl *client.Client, in wire.AccessRequest) (wire.AccessAnswer, error) {
	a, err := s.request(c, cl, in)
	if err != nil {
		return a.AccessAnswer, err
	}
	if a.Status == client.StatusWaiting {
		return a.AccessAnswer, s.waitingError(c, a)
	}
	return a.AccessAnswer, nil
}

// prolong renews a kept credential's lease; false if it cannot be.
func prolong(ctx context.Context, cl *client.Client, a wire.AccessAnswer, ttl string) (wire.AccessAnswer, bool) {
	l, err := cl.Renew(ctx, a.LeaseID, wire.RenewRequest{TTL: ttl})
	if err != nil || !l.ExpiresAt.After(a.ExpiresAt) {
		return a, false
	}
	now := time.Now()
	a.ExpiresAt, a.NotAfter = l.ExpiresAt, l.NotAfter
	a.RenewAfter = now.Add(l.ExpiresAt.Sub(now) / 2)
	return a, true
}

// cacheName names a request: the same one by the same key to the same cluster.
func (s *shell) cacheName(cl *client.Client, in wire.AccessRequest) (string, error) {
	doc, err := json.Marshal(struct {
		Key   string
		Nodes []string
		In    wire.AccessRequest
	}{cl.Key().Thumbprint(), cl.Nodes(), in})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(doc)
	return "cache/" + hex.EncodeToString(sum[:16]) + ".json", nil
}

// deliver writes a credential in the form that s.output names.
func (s *shell) deliver(a wire.AccessAnswer) (string, error) {
	switch s.output {
	case asCredentialProcess:
		return credentialProcess(a)
	case asExecCredential:
		return s.execCredential(a)
	default:
		return envExports(a)
	}
}

// childEnv is what a program sees of its credential: the target's own
// variables, and which lease, task and end they have.
func childEnv(a wire.AccessAnswer) map[string]string {
	out := map[string]string{"MAYFLY_TASK_ID": a.TaskID, "MAYFLY_LEASE_ID": a.LeaseID, "MAYFLY_EXPIRES_AT": a.ExpiresAt.UTC().Format(time.RFC3339)}
	for variable, field := range a.Env {
		if v, ok := a.Credential[field]; ok && validVariable(variable) {
			out[variable] = v
		}
	}
	return out
}

// validVariable accepts what a shell takes for a name, and nothing of ours or
// of the loader's: the broker says which variables, but not which program runs.
func validVariable(name string) bool {
	for i, r := range name {
		letter := r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r == '_'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return name != "" && name != "PATH" && !strings.HasPrefix(name, "LD_") && !strings.HasPrefix(name, "MAYFLY_")
}

func envExports(a wire.AccessAnswer) (string, error) {
	if len(a.Env) == 0 {
		return "", failed("no_variables", "this kind of target has no variables of its own; take -o json, or --field credential.NAME")
	}
	env := childEnv(a)
	var b strings.Builder
	for i, list := 0, pairs(env); i < len(list); i += 2 {
		name := list[i]
		if strings.ContainsRune(env[name], 0) {
			return "", failed("no_variables", "%s cannot stand in a variable", name)
		}
		fmt.Fprintf(&b, "export %s=%s\n", name, quoteShell(env[name]))
	}
	return b.String(), nil
}

// quoteShell quotes for any POSIX shell: nothing is special within ' but '.
func quoteShell(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// credentialProcess is what AWS clients' credential_process reads, version 1.
func credentialProcess(a wire.AccessAnswer) (string, error) {
	c := a.Credential
	if c["access_key_id"] == "" || c["secret_access_key"] == "" {
		return "", failed("wrong_form", "%s is not an AWS credential; -o credential-process is for those", a.Role)
	}
	return encodeLine(struct {
		Version         int
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string
		SessionToken    string `json:",omitempty"`
		Expiration      string
	}{1, c["access_key_id"], c["secret_access_key"], c["session_token"], a.ExpiresAt.UTC().Format(time.RFC3339)})
}

// execCredential is what kubectl's exec plugins print
// (client.authentication.k8s.io), in the version that kubectl asked for.
func (s *shell) execCredential(a wire.AccessAnswer) (string, error) {
	version := "client.authentication.k8s.io/v1"
	if info, ok := s.lookup("KUBERNETES_EXEC_INFO"); ok {
		var asked struct {
			APIVersion string `json:"apiVersion"`
		}
		if json.Unmarshal([]byte(info), &asked) == nil && asked.APIVersion == version+"beta1" {
			version = asked.APIVersion
		}
	}
	type status struct {
		Expires string `json:"expirationTimestamp"`
		Token   string `json:"token,omitempty"`
		Cert    string `json:"clientCertificateData,omitempty"`
		Key     string `json:"clientKeyData,omitempty"`
	}
	st := status{a.ExpiresAt.UTC().Format(time.RFC3339), a.Credential["token"], a.Credential["certificate"], a.Credential["private_key"]}
	if st.Token == "" && (st.Cert == "" || st.Key == "") {
		return "", failed("wrong_form", "%s is neither a token nor a certificate with its key; -o exec-credential is for those", a.Role)
	}
	return encodeLine(struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Status     status `json:"status"`
	}{version, "ExecCredential", st})
}

func encodeLine(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b) + "\n", err
}
