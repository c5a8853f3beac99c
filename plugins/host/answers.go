package host

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/protocol"
	"github.com/mayfly-broker/mayfly/secret"
)

// What a plugin answers is taken for nothing until it has passed here.

var (
	kindName  = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	fieldName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	envName   = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
	docName   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
)

// loaders are variables by which a program loads or runs other code, or finds
// other programs or servers; `mayfly exec` sets what a credential names, so none of
// them may. A name that ends in _ stands for all that begin with it, one that begins
// with _ for all that end with it. No such list is complete: what a plugin may set
// is one more reason to know its author.
var loaders = []string{"PATH", "HOME", "SHELL", "IFS", "ENV", "BASH_ENV", "PS4", "PROMPT_COMMAND", "EDITOR", "VISUAL", "PAGER", "BROWSER", "TMPDIR", "NODE_PATH", "RUBYOPT", "RUBYLIB",
	"PERL5OPT", "PERL5LIB", "PERL5DB", "PERLLIB", "CLASSPATH", "JAVA_HOME", "GCONV_PATH", "LOCPATH", "NLSPATH", "HOSTALIASES", "ZDOTDIR", "LESSOPEN", "LESSCLOSE", "VIMINIT", "EXINIT", "MANPAGER",
	"TERMINFO", "INPUTRC", "PHPRC", "PSQLRC", "R_PROFILE", "GOROOT", "GOENV", "GOPROXY", "GOTOOLCHAIN", "CC", "CXX", "LD", "MAKE", "GODEBUG", "CURL_HOME", "WGETRC", "NETRC", "PSMODULEPATH",
	"LD_", "DYLD_", "PYTHON", "GIT_", "MAYFLY_", "GLIBC_", "MALLOC_", "SSL_CERT_", "OPENSSL_", "LUA_", "NPM_", "PIP_", "CARGO_", "RUSTC_", "BASH_", "DOTNET_", "CORECLR_", "XDG_", "PHP_",
	"_OPTS", "_OPTIONS", "FLAGS", "_PROXY", "_ASKPASS", "_EDITOR", "_PAGER", "_RSH", "_PRELOAD", "_WRAPPER", "_STARTUP", "_CA_BUNDLE", "_EXTRA_CA_CERTS"}

// checkManifest refuses a plugin that is not what was registered.
func checkManifest(m protocol.Manifest, name string) error {
	if m.Name != name || !kindName.MatchString(m.Name) {
		return fmt.Errorf("it serves the kind %.64q; %q is registered", m.Name, name)
	}
	if err := protocol.NameForm(m.CredentialName).Check(); err != nil {
		return fmt.Errorf("it names credentials %.120q: %w", m.CredentialName, err)
	}
	known := []protocol.Ability{protocol.AbleRoles, protocol.AbleSecrets, protocol.AbleBound, protocol.AbleExtend, protocol.AbleCheck, protocol.AbleList, protocol.AbleFence, protocol.AbleSweep, protocol.AblePublish, protocol.AbleRevoked}
	for i, a := range m.Abilities {
		if !slices.Contains(known, a) || slices.Contains(m.Abilities[:i], a) {
			return fmt.Errorf("it claims the ability %.32q, which does not exist or stands there twice", a)
		}
	}
	return nil
}

// checkExamination refuses an examination that could not be true.
func checkExamination(x *protocol.Examination, m protocol.Manifest) error {
	switch {
	case x.MaxTTL < 0 || x.MaxTTL > 0 && !m.Can(protocol.AbleBound):
		return errors.New("it bounds leases by a time that is none")
	case len(x.Roles) > maxRoles:
		return fmt.Errorf("it proposes %d roles; at most %d are allowed", len(x.Roles), maxRoles)
	case x.Problem != "" && len(x.Roles) > 0:
		return errors.New("it refuses a spec and proposes roles for it")
	}
	for i, r := range x.Roles {
		if !kindName.MatchString(r.Suffix) || r.DefaultTTL < time.Second || r.MaxTTL < r.DefaultTTL {
			return fmt.Errorf("it proposes a role %.64q for %s to %s", r.Suffix, r.DefaultTTL, r.MaxTTL)
		}
		n, err := r.Scope.Normalise()
		if err != nil {
			return fmt.Errorf("it proposes a role whose scope does not read: %w", err)
		}
		x.Roles[i].Scope = n
	}
	return nil
}

// checkSecrets refuses what cannot be a target's secrets.
func checkSecrets(in map[string][]byte) (map[string]secret.Text, error) {
	if len(in) > maxFields {
		return nil, fmt.Errorf("%d secrets; at most %d are allowed", len(in), maxFields)
	}
	for name, v := range in {
		if err := checkField(name, len(v), maxSecretBytes); err != nil {
			return nil, err
		}
	}
	return protocol.DecodeSecrets(in), nil
}

func checkField(name string, n, most int) error {
	switch {
	case len(name) > maxFieldName || !fieldName.MatchString(name):
		return fmt.Errorf("a field is called %.80q; small letters, digits and _ may stand in a name", name)
	case n == 0 || n > most:
		return fmt.Errorf("the field %s has %d bytes; 1 to %d are allowed", name, n, most)
	}
	return nil
}

// checkCredential refuses what no client should be given.
func checkCredential(a protocol.Minted) (issuers.Credential, error) {
	var none issuers.Credential
	if len(a.Public) > maxFields || len(a.Secret) > maxFields || len(a.Env) > 2*maxFields {
		return none, fmt.Errorf("the credential has %d public fields, %d secret ones and %d variables; at most %d, %d and %d are allowed", len(a.Public), len(a.Secret), len(a.Env), maxFields, maxFields, 2*maxFields)
	}
	if len(a.Public)+len(a.Secret) == 0 {
		return none, errors.New("the credential has no field")
	}
	for name, v := range a.Public {
		if err := checkField(name, len(v), maxPublicBytes); err != nil {
			return none, err
		}
		if !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' || unicode.Is(unicode.Cf, r) }) {
			return none, fmt.Errorf("the public field %s holds control characters", name)
		}
		if _, twice := a.Secret[name]; twice {
			return none, fmt.Errorf("the field %s is public and secret at once", name)
		}
	}
	secrets, err := checkSecrets(a.Secret)
	if err != nil {
		return none, err
	}
	for variable, field := range a.Env {
		if err := checkVariable(variable); err != nil {
			return none, err
		}
		_, public := a.Public[field]
		if _, secret := a.Secret[field]; !public && !secret {
			return none, fmt.Errorf("the variable %s stands for the field %.80q, which is not there", variable, field)
		}
	}
	return issuers.Credential{Public: a.Public, Secret: secrets, Env: a.Env}, nil
}

func checkVariable(name string) error {
	if len(name) > maxFieldName || !envName.MatchString(name) {
		return fmt.Errorf("a variable is called %.80q", name)
	}
	for _, l := range loaders {
		begins, ends := strings.HasSuffix(l, "_") || l == "PYTHON", strings.HasPrefix(l, "_") || l == "FLAGS"
		if name == l || begins && strings.HasPrefix(name, l) || ends && strings.HasSuffix(name, l) {
			return fmt.Errorf("the variable %s decides what code a program runs, or where it looks; no credential sets it", name)
		}
	}
	return nil
}

// checkOutcome refuses receipts that prove nothing: what is in the ledger as
// ended is never looked at again.
func (i *issuer) checkOutcome(o protocol.Outcome) issuers.Outcome {
	switch {
	case o.Error != nil:
		return issuers.Outcome{Err: i.failure(o.Error)}
	case o.Receipt == nil:
		return issuers.Outcome{Err: i.lied("a withdrawal with neither receipt nor error")}
	}
	r := *o.Receipt
	r.Detail = i.k.said(r.Detail, maxReceipt)
	proofs := []string{issuers.ProofAbsent, issuers.ProofRevoked}
	if !i.k.Revocable() {
		proofs = []string{issuers.ProofExpiresOnly}
	}
	switch {
	case !slices.Contains(proofs, r.Proof):
		return issuers.Outcome{Err: i.lied("a receipt with the proof %.32q; it can be %s", r.Proof, strings.Join(proofs, " or "))}
	case strings.TrimSpace(r.Detail) == "":
		return issuers.Outcome{Err: i.lied("a receipt that does not say what was asked and answered")}
	case min(r.SessionsEnded, r.OwnedDropped) < 0 || max(r.SessionsEnded, r.OwnedDropped) > maxCount:
		return issuers.Outcome{Err: i.lied("a receipt that counts %d sessions and %d objects", r.SessionsEnded, r.OwnedDropped)}
	}
	return issuers.Outcome{Receipt: r}
}

// checkFound refuses a list that could not be one.
func (i *issuer) checkFound(in []protocol.Found) ([]issuers.Found, error) {
	if len(in) > maxFound {
		return nil, i.lied("a list of %d credentials; at most %d are taken", len(in), maxFound)
	}
	out, seen := make([]issuers.Found, 0, len(in)), make(map[string]struct{}, len(in))
	for _, f := range in {
		if _, twice := seen[f.Name]; twice {
			return nil, i.lied("a list with the name %.80q twice", f.Name)
		}
		seen[f.Name] = struct{}{}
		if f.Name == "" || len(f.Name) > maxNameBytes || len(f.LeaseID) > maxNameBytes || f.Name != clean(f.Name, maxNameBytes) || f.LeaseID != clean(f.LeaseID, maxNameBytes) {
			return nil, i.lied("a list with the name %.80q", f.Name)
		}
		out = append(out, issuers.Found(f))
	}
	return out, nil
}

// checkFindings bounds and cleans what a check says.
func (i *issuer) checkFindings(in []issuers.Finding) ([]issuers.Finding, error) {
	if len(in) > maxChecks {
		return nil, i.lied("%d findings; at most %d are taken", len(in), maxChecks)
	}
	out := make([]issuers.Finding, 0, len(in))
	for _, f := range in {
		f.Name, f.Detail = i.k.said(f.Name, maxNameBytes), i.k.said(f.Detail, maxReceipt)
		lines := strings.Split(f.Fix, "\n") // statements to run, a line each
		for n, line := range lines {
			lines[n] = i.k.said(line, maxReceipt)
		}
		f.Fix = strings.Join(lines[:min(len(lines), 32)], "\n")
		if f.Name == "" {
			return nil, i.lied("a finding without a name")
		}
		out = append(out, f)
	}
	return out, nil
}

// checkDocuments bounds what is published, most in bytes of all.
func (i *issuer) checkDocuments(in map[string][]byte, most int) error {
	total := 0
	for name, text := range in {
		if !docName.MatchString(name) {
			return i.lied("a document called %.80q", name)
		}
		total += len(text)
	}
	if len(in) > maxDocuments || total > most {
		return i.lied("%d documents of %d bytes; at most %d of %d are taken", len(in), total, maxDocuments, most)
	}
	return nil
}
