package ssh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/mayfly-broker/mayfly/scope"
)

const scopeType = "ssh"

// Types of certificate; a scope's actions hold exactly one.
const (
	typeUser = "user"
	typeHost = "host"
)

// permissions are a user certificate's extensions (PROTOCOL.certkeys), by the
// word in a scope's actions. What is not listed is not allowed in the session.
// no-touch-required is not among them: it would weaken a hardware key.
var permissions = map[string]string{
	"permit-pty":              "permit-pty",
	"permit-port-forwarding":  "permit-port-forwarding",
	"permit-agent-forwarding": "permit-agent-forwarding",
	"permit-x11-forwarding":   "permit-X11-forwarding", // words of scopes are lower-case
	"permit-user-rc":          "permit-user-rc",
}

const allowedActions = "allowed are one of user and host, and for a user permit-pty, permit-port-forwarding, permit-agent-forwarding, permit-x11-forwarding and permit-user-rc"

// grant is what a certificate says of its scope.
type grant struct {
	certType   uint32
	principals []string
	critical   map[string]string
	extensions map[string]string
}

// compile checks a scope and says what its certificate carries. One certificate
// has one detail: OpenSSH knows no "this principal from there, that one from
// here".
//
// Which member holds what follows from how scopes narrow. Permissions are
// actions, because a scope that leaves one out has it not. Restrictions (source
// addresses in locations, the forced command in identifier) are members that a
// narrower scope cannot drop. Nothing may end in *, because no prefix of an
// address range or of a command bounds it.
func (sp spec) compile(in scope.Scope) (grant, error) {
	var g grant
	s, err := in.Normalise()
	if err != nil {
		return g, err
	}
	if len(s) != 1 {
		return g, fmt.Errorf("a certificate has one authorization detail, not %d; ask for one certificate each", len(s))
	}
	d := s[0]
	switch {
	case d.Type != scopeType:
		return g, fmt.Errorf("type: %q; allowed is %s", d.Type, scopeType)
	case len(d.Datatypes) > 0 || len(d.Tables) > 0:
		return g, errors.New("datatypes and tables mean nothing for a certificate; allowed are actions, privileges (principals), locations (source addresses) and identifier (a forced command)")
	}
	kind, err := sp.compileActions(d.Actions, &g)
	if err != nil {
		return g, err
	}
	if g.principals, err = sp.compilePrincipals(kind, d.Privileges); err != nil {
		return g, err
	}
	if kind == typeHost && (len(g.extensions) > 0 || len(d.Locations) > 0 || d.Identifier != "") {
		return g, errors.New("a host certificate has principals (privileges) and nothing else: clients would refuse it")
	}
	g.critical = map[string]string{}
	if len(d.Locations) > 0 {
		if err := checkSources(d.Locations); err != nil {
			return g, err
		}
		g.critical["source-address"] = strings.Join(d.Locations, ",")
	}
	if d.Identifier != "" {
		if strings.Contains(d.Identifier, "*") || strings.TrimSpace(d.Identifier) != d.Identifier {
			return g, fmt.Errorf("identifier: %q; a forced command is exact, without * and without spaces at its ends; put what is longer into a script on the server", d.Identifier)
		}
		g.critical["force-command"] = d.Identifier
	}
	return g, nil
}

// compileActions reads the type of certificate and its extensions.
func (sp spec) compileActions(actions []string, g *grant) (kind string, err error) {
	g.extensions = map[string]string{}
	for _, a := range actions {
		extension, known := permissions[a]
		switch {
		case known:
			g.extensions[extension] = ""
		case a != typeUser && a != typeHost:
			return "", fmt.Errorf("actions: %q; %s", a, allowedActions)
		case kind != "":
			return "", errors.New("actions: user and host are two certificates; ask for one each")
		default:
			kind = a
		}
	}
	switch {
	case kind == "":
		return "", errors.New("actions: the type of certificate is missing; " + allowedActions)
	case !slices.Contains(sp.Types, kind):
		return "", fmt.Errorf("actions: the target issues no %s certificates; its types are %s", kind, strings.Join(sp.Types, ", "))
	}
	g.certType = ssh.UserCert
	if kind == typeHost {
		g.certType = ssh.HostCert
	}
	return kind, nil
}

// compilePrincipals never returns an empty list: a certificate without
// principals is one for all of them (PROTOCOL.certkeys).
func (sp spec) compilePrincipals(kind string, names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, errors.New("privileges: at least one principal is needed: an account, a name that AuthorizedPrincipalsFile maps to accounts, or a host's name")
	}
	for _, n := range names {
		if err := checkPrincipal(kind, n); err != nil {
			return nil, fmt.Errorf("privileges: %w", err)
		}
		if len(sp.Principals) > 0 && !slices.Contains(sp.Principals, n) {
			return nil, fmt.Errorf("privileges: the target does not certify the principal %q", n)
		}
	}
	return names, nil
}

// checkPrincipal accepts the words that scopes have, without those that
// something along the way may take for an option, a path or a list. Clients
// match the principals of hosts as patterns, so a host's has no * and no ?.
func checkPrincipal(kind, s string) error {
	if kind == typeHost {
		if addr, err := netip.ParseAddr(s); err == nil && addr.String() == s && addr.Zone() == "" {
			return nil
		}
	}
	if s == "" || len(s) > scope.MaxName {
		return fmt.Errorf("a principal has 1 to %d characters", scope.MaxName)
	}
	for _, r := range s {
		word := r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("-.", r)
		if kind == typeUser {
			word = word || strings.ContainsRune("_:/", r)
		}
		if !word {
			return fmt.Errorf("%q: a %s principal holds only a-z, 0-9, - and .%s", s, kind, map[string]string{typeUser: ", _ : and /", typeHost: ", or is an IP address"}[kind])
		}
	}
	if strings.ContainsRune("-.", rune(s[0])) || strings.Contains(s, "..") || s[0] == '/' {
		return fmt.Errorf("%q: a principal begins with a letter, a digit or _, and has no two dots in a row", s)
	}
	return nil
}

// checkSources accepts addresses and networks in their one canonical spelling, so
// that comparing texts compares networks.
func checkSources(sources []string) error {
	for _, s := range sources {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return fmt.Errorf("locations: %q; a source address is a network such as 10.1.0.0/16 or 192.0.2.7/32", s)
		case p.Masked().String() != s || p.Addr().Is4In6():
			return fmt.Errorf("locations: %q; write %q", s, p.Masked().String())
		}
	}
	return nil
}
