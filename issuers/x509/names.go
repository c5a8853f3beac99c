package x509

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/mayfly-broker/mayfly/scope"
)

// What a certificate is for; each action is one extended key usage.
const (
	actionClient = "client"
	actionServer = "server"
)

// Prefixes of locations. A SPIFFE ID is its own prefix.
const (
	prefixDNS    = "dns:"
	prefixIP     = "ip:"
	prefixEmail  = "email:"
	prefixSPIFFE = "spiffe://"
)

const allowedNames = "allowed are spiffe://trust-domain/path, dns:NAME, ip:ADDRESS and email:ADDRESS"

// name is one subject alternative name, checked and in canonical form.
type name struct {
	dns   string
	ip    netip.Addr
	email string
	id    spiffeid.ID
}

// text is the name as a scope's location.
func (n name) text() string {
	switch {
	case n.dns != "":
		return prefixDNS + n.dns
	case n.ip.IsValid():
		return prefixIP + n.ip.String()
	case n.email != "":
		return prefixEmail + n.email
	default:
		return n.id.String()
	}
}

// parseName reads an exact location. It refuses every spelling but the canonical
// one, so that comparing texts compares names.
func parseName(location string) (name, error) {
	var n name
	var err error
	switch {
	case strings.HasPrefix(location, prefixDNS):
		n.dns = strings.TrimPrefix(location, prefixDNS)
		err = checkDNS(n.dns)
	case strings.HasPrefix(location, prefixIP):
		n.ip, err = netip.ParseAddr(strings.TrimPrefix(location, prefixIP))
		if err == nil && (n.ip.Zone() != "" || n.ip.Is4In6()) {
			err = errors.New("an address without a zone is needed")
		}
	case strings.HasPrefix(location, prefixEmail):
		n.email = strings.TrimPrefix(location, prefixEmail)
		err = checkEmail(n.email)
	case strings.HasPrefix(location, prefixSPIFFE):
		n.id, err = spiffeid.FromString(location)
		if err == nil && n.id.Path() == "" {
			err = errors.New("a workload's SPIFFE ID has a path") // the bare trust domain is the CA's
		}
		if err == nil {
			err = checkTrustDomain(n.id.TrustDomain().Name())
		}
	default:
		err = errors.New(allowedNames)
	}
	if err != nil {
		return n, fmt.Errorf("%q: %w", location, err)
	}
	if n.text() != location {
		return n, fmt.Errorf("%q: write %q", location, n.text())
	}
	return n, nil
}

// checkDNS accepts lower-case host names (RFC 1123 §2.1; IDNs as xn--). It has
// no place for a *: wildcard certificates are not issued.
func checkDNS(s string) error {
	if len(s) == 0 || len(s) > 253 {
		return errors.New("a DNS name has 1 to 253 characters")
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("a DNS name's labels have 1 to 63 characters, with no hyphen at either end")
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return errors.New("a DNS name holds only a-z, 0-9, hyphens and dots")
			}
		}
	}
	return nil
}

// checkTrustDomain asks for a DNS name, which SPIFFE only recommends: verifiers
// (crypto/x509 among them) refuse a certificate with another host in a URI, and
// name constraints cannot match an address there (RFC 5280 §4.2.1.10).
func checkTrustDomain(s string) error {
	if _, err := netip.ParseAddr(s); err == nil || checkDNS(s) != nil {
		return errors.New("a trust domain has the form of a DNS name, such as example.org")
	}
	return nil
}

// checkEmail accepts the plain part of RFC 5321 §4.1.2: no quoting, no comments.
func checkEmail(s string) error {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || len(local) > 64 || local[0] == '.' || local[len(local)-1] == '.' || strings.Contains(local, "..") {
		return errors.New("an address such as ann@example.com is needed")
	}
	for _, c := range []byte(local) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._%+-", rune(c)) {
			return errors.New("an address holds only letters, digits and . _ % + - before its @")
		}
	}
	return checkDNS(domain)
}

// checkCommonName bounds a subject common name (RFC 5280 appendix A: 64).
func checkCommonName(s string) error {
	if s == "" || len(s) > 64 || !utf8.ValidString(s) {
		return errors.New("a common name has 1 to 64 bytes of UTF-8")
	}
	for _, r := range s {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '*' || r == utf8.RuneError {
			return errors.New("a common name has no control or formatting characters and no *")
		}
	}
	return nil
}

// compile checks a scope and returns its one detail. A certificate allows every
// use for every name in it, so two details (a client of A, a server of B) cannot
// become one certificate without widening both.
func (sp spec) compile(in scope.Scope) (scope.Detail, error) {
	s, err := in.Normalise()
	if err != nil {
		return scope.Detail{}, err
	}
	if len(s) != 1 {
		return scope.Detail{}, fmt.Errorf("a certificate has one authorization detail, not %d: every use would count for every name; ask for one certificate each", len(s))
	}
	d := s[0]
	switch {
	case d.Type != "x509":
		return d, fmt.Errorf("type: %q; allowed is x509", d.Type)
	case len(d.Datatypes) > 0 || len(d.Privileges) > 0 || len(d.Tables) > 0:
		return d, errors.New("datatypes, privileges and tables mean nothing for a certificate; allowed are locations (names), actions and identifier (common name)")
	case len(d.Locations) == 0:
		return d, errors.New("locations: at least one name is needed; " + allowedNames)
	}
	for _, a := range d.Actions {
		if a != actionClient && a != actionServer {
			return d, fmt.Errorf("actions: %q; allowed are client and server", a)
		}
	}
	for _, l := range d.Locations {
		if err := sp.checkLocation(l); err != nil {
			return d, fmt.Errorf("locations: %w", err)
		}
	}
	return d, sp.checkIdentifier(d.Identifier)
}

// checkIdentifier: an omitted identifier would restrict nothing, and a request
// could narrow it to any user name a database knows. So it is needed everywhere
// or allowed nowhere.
func (sp spec) checkIdentifier(identifier string) error {
	switch {
	case !sp.CommonNames && identifier != "":
		return errors.New("identifier: the target's spec does not say common_names, so its certificates have none")
	case !sp.CommonNames:
		return nil
	case identifier == "" || identifier == "*":
		return errors.New("identifier: the target's certificates carry a common name, so one is needed; it may end in *")
	}
	if err := checkCommonName(strings.TrimSuffix(identifier, "*")); err != nil {
		return fmt.Errorf("identifier: %w", err)
	}
	return nil
}

// checkLocation accepts an exact name, or a pattern whose open end stays within
// one authority. Text that is open at its end leaves a DNS name's or an email
// address's domain open, so there the name constraints must close it.
func (sp spec) checkLocation(location string) error {
	stem, open := strings.CutSuffix(location, "*")
	if !open {
		n, err := parseName(location)
		if err != nil {
			return err
		}
		return sp.permitted(n)
	}
	c := sp.NameConstraints
	switch {
	case strings.HasPrefix(stem, prefixSPIFFE):
		return sp.checkSPIFFEPattern(location, stem)
	case strings.HasPrefix(stem, prefixDNS) && c != nil && len(c.DNS) > 0,
		strings.HasPrefix(stem, prefixEmail) && c != nil && len(c.Email) > 0:
		return nil
	case strings.HasPrefix(stem, prefixDNS), strings.HasPrefix(stem, prefixEmail):
		return fmt.Errorf("%q: the * leaves the domain open; name it exactly, or give the target name_constraints", location)
	case strings.HasPrefix(stem, prefixIP):
		octets, whole := strings.CutSuffix(strings.TrimPrefix(stem, prefixIP), ".")
		if n := strings.Count(octets, "."); whole && n < 3 {
			if _, err := netip.ParseAddr(octets + strings.Repeat(".0", 3-n)); err == nil {
				return nil
			}
		}
		return fmt.Errorf("%q: a * may stand only for whole octets of an IPv4 address, as in ip:10.1.*", location)
	default:
		return fmt.Errorf("%q: %s", location, allowedNames)
	}
}

func (sp spec) checkSPIFFEPattern(location, stem string) error {
	n, err := parseName(stem + "x") // whatever is valid here is valid with any valid ending
	if err != nil || !strings.HasPrefix(stem, prefixSPIFFE+n.id.TrustDomain().Name()+"/") {
		return fmt.Errorf("%q: a * may stand only within the path of spiffe://trust-domain/path", location)
	}
	return sp.permitted(n)
}

// permitted checks a name against the spec's name constraints. A form that they
// do not mention is refused once there are any: RFC 5280 §4.2.1.10 would let it
// pass, which is how constrained CAs have been escaped.
func (sp spec) permitted(n name) error {
	if sp.NameConstraints == nil || sp.NameConstraints.permit(n) {
		return nil
	}
	return fmt.Errorf("%q is outside the target's name_constraints", n.text())
}

// constraints are the only names that a CA may certify.
type constraints struct {
	DNS    []string `json:"dns"`    // a domain, with all below it
	IP     []string `json:"ip"`     // a prefix: 10.0.0.0/8
	Email  []string `json:"email"`  // a host, without what is below it
	SPIFFE []string `json:"spiffe"` // a trust domain

	prefixes []netip.Prefix
}

func (c *constraints) parse() error {
	n := len(c.DNS) + len(c.IP) + len(c.Email) + len(c.SPIFFE)
	if n == 0 || n > maxConstraints {
		return fmt.Errorf("%d entries; 1 to %d are allowed", n, maxConstraints)
	}
	for _, d := range slices.Concat(c.DNS, c.Email) {
		if err := checkDNS(d); err != nil {
			return fmt.Errorf("%q: %w", d, err)
		}
	}
	for _, td := range c.SPIFFE {
		if parsed, err := spiffeid.TrustDomainFromString(td); err != nil || parsed.Name() != td || checkTrustDomain(td) != nil {
			return fmt.Errorf("%q is not a trust domain such as example.org", td)
		}
	}
	for _, text := range c.IP {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Masked() != p || p.Addr().Is4In6() {
			return fmt.Errorf("%q is not a prefix such as 10.0.0.0/8", text)
		}
		c.prefixes = append(c.prefixes, p)
	}
	return nil
}

func (c *constraints) permit(n name) bool {
	switch {
	case n.dns != "":
		return slices.ContainsFunc(c.DNS, func(d string) bool { return n.dns == d || strings.HasSuffix(n.dns, "."+d) })
	case n.ip.IsValid():
		return slices.ContainsFunc(c.prefixes, func(p netip.Prefix) bool { return p.Contains(n.ip) })
	case n.email != "":
		return slices.ContainsFunc(c.Email, func(d string) bool { return strings.HasSuffix(n.email, "@"+d) })
	default:
		return slices.Contains(c.SPIFFE, n.id.TrustDomain().Name())
	}
}
