package cosign

import (
	"slices"
	"strings"
)

// Bounds of a key.
const (
	maxCredentialID = 1023 // bytes; WebAuthn §4, "credential ID"
	maxOrigins      = 16
	maxHost         = 253 // bytes; RFC 1035 §2.3.4, without the last dot
	maxApplication  = 255 // bytes; OpenSSH's is "ssh:" and seldom more
)

// Types of SSH keys.
const (
	sshEd25519   = "ssh-ed25519"
	sshECDSA     = "ecdsa-sha2-nistp256"
	sshEd25519SK = "sk-ssh-ed25519@openssh.com"
	sshECDSASK   = "sk-ecdsa-sha2-nistp256@openssh.com"
)

// Check says whether the key is well formed for its kind and has nothing of
// another's. Errors are [*Error] of rule "key". It does not say that anybody
// holds the private key: that is what a [KeyDocument] signed by it shows.
func (k Key) Check() error {
	_, err := k.check()
	return err
}

func (k Key) check() (*public, error) {
	p, err := parseJWK(k.JWK)
	if err != nil {
		return nil, err
	}
	if k.Kind != KindPasskey && (len(k.CredentialID) > 0 || k.RPID != "" || len(k.Origins) > 0) {
		return nil, refuse(ruleKey, "only a passkey has credential_id, rp_id and origins")
	}
	if k.Kind != KindSSH && (k.SSHType != "" || k.Application != "") {
		return nil, refuse(ruleKey, "only an SSH key has ssh_type and application")
	}
	switch k.Kind {
	case KindPasskey:
		return p, k.checkPasskey()
	case KindSSH:
		return p, k.checkSSH(p)
	case KindJWS:
		return p, nil
	}
	return nil, refuse(ruleKey, "the key's kind is %s; passkey, ssh and jws are known", echo(k.Kind))
}

func (k Key) checkPasskey() error {
	if n := len(k.CredentialID); n < 1 || n > maxCredentialID {
		return refuse(ruleKey, "a passkey's credential_id has 1 to %d bytes, this one %d", maxCredentialID, n)
	}
	if !isHost(k.RPID) {
		return refuse(ruleKey, "a passkey's rp_id is a host name in lower case, not %s", echo(k.RPID))
	}
	if n := len(k.Origins); n < 1 || n > maxOrigins {
		return refuse(ruleKey, "a passkey has 1 to %d origins, this one %d", maxOrigins, n)
	}
	for i, o := range k.Origins {
		if !isOrigin(o) {
			return refuse(ruleKey, "an origin is https://host[:port] or http://localhost[:port] as browsers write it, not %s", echo(o))
		}
		if slices.Contains(k.Origins[:i], o) {
			return refuse(ruleKey, "the origin %s comes twice", echo(o))
		}
	}
	return nil
}

// isOrigin says whether a browser would write an origin so (RFC 6454 §6.2): the
// default port is left out, and nothing follows. Whether a page of that origin may
// use the RP id is the browser's to say: related origins need not share a suffix.
func isOrigin(s string) bool {
	scheme, rest, ok := strings.Cut(s, "://")
	host, port, hasPort := strings.Cut(rest, ":")
	switch {
	case !ok || hasPort && !isPort(port):
		return false
	case scheme == "https":
		return isHost(host) && port != "443"
	case scheme == "http":
		return host == "localhost" && port != "80"
	}
	return false
}

func isPort(s string) bool {
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || len(s) > 5 {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return s != "" && s[0] != '0' && n <= 65535
}

// isHost says whether s is a host name (RFC 1123 §2.1) in lower case, and not
// what a browser would read as an address: passkeys know no addresses.
func isHost(s string) bool {
	if len(s) > maxHost {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
		last = label
	}
	return strings.Trim(last, "0123456789") != "" && !strings.HasPrefix(last, "0x")
}

func isLabel(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

func (k Key) checkSSH(p *public) error {
	switch k.SSHType {
	case sshEd25519, sshEd25519SK:
		if p.ed25519 == nil {
			return refuse(ruleKey, "an SSH key of type %s is an Ed25519 key", k.SSHType)
		}
	case sshECDSA, sshECDSASK:
		if p.p256 == nil {
			return refuse(ruleKey, "an SSH key of type %s is a P-256 key", k.SSHType)
		}
	default:
		return refuse(ruleKey, "the SSH key's type is %s; ssh-ed25519, ecdsa-sha2-nistp256 and their sk- forms are known", echo(k.SSHType))
	}
	if !k.hardware() {
		if k.Application != "" {
			return refuse(ruleKey, "only an SSH key of an sk- type has an application")
		}
		return nil
	}
	if !strings.HasPrefix(k.Application, "ssh:") || len(k.Application) > maxApplication || !printable(k.Application) {
		return refuse(ruleKey, "the application of an sk- key begins with \"ssh:\" and has at most %d printable ASCII characters, not %s", maxApplication, echo(k.Application))
	}
	return nil
}

// hardware says whether an SSH key is of an sk- type.
func (k Key) hardware() bool { return k.SSHType == sshEd25519SK || k.SSHType == sshECDSASK }

func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < 0x20 || c > 0x7e {
			return false
		}
	}
	return true
}
