package federation

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
)

// maxSkew is how far clocks may differ before a person should look: identity
// tokens live as long as a mint may take.
const maxSkew = 5 * time.Second

// CheckDocuments fetches what the verifier will fetch, from where it will. The
// finding warns where a target that is not written yet would look alike. portless
// says that the verifier takes no provider at a port; spec is the spec's member
// that names another place for the documents.
func (p *Provider) CheckDocuments(ctx context.Context, hc *http.Client, verifier, spec string, portless bool) issuers.Finding {
	f := issuers.Finding{Name: "identity provider", Warning: true}
	var discovery struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	where := p.Issuer + "/.well-known/" + DocDiscovery
	if err := fetch(ctx, hc, where, &discovery); err != nil {
		f.Detail = fmt.Sprintf("%s: %v; %s", where, err, meaning(err, verifier, spec))
		return f
	}
	if u, err := url.Parse(p.Issuer); err == nil && u.Port() != "" && portless {
		f.Detail = fmt.Sprintf("%s has a port, which %s does not take; put the documents at a URL without one and name it in %s", p.Issuer, verifier, spec)
		return f
	}
	if discovery.Issuer != p.Issuer {
		f.Warning, f.Detail = false, fmt.Sprintf("%s names the issuer %q; tokens say %q", where, OneLine(discovery.Issuer), p.Issuer)
		return f
	}
	if discovery.Keys != p.Issuer+"/"+DocKeys { // nor is anything fetched that a stranger names
		f.Warning, f.Detail = false, fmt.Sprintf("%s names the keys %q; they are published at %s", where, OneLine(discovery.Keys), p.Issuer+"/"+DocKeys)
		return f
	}
	var set jose.JSONWebKeySet
	if err := fetch(ctx, hc, discovery.Keys, &set); err != nil {
		f.Detail = fmt.Sprintf("%s: %v; %s", OneLine(discovery.Keys), err, meaning(err, verifier, spec))
		return f
	}
	if len(set.Key(p.keys[0].KeyID)) == 0 {
		f.Detail = fmt.Sprintf("%s lacks this target's key; where the documents are copied to a place of their own, copy them again", OneLine(discovery.Keys))
		return f
	}
	return issuers.Finding{Name: f.Name, OK: true, Detail: p.Issuer + " publishes this target's key"}
}

// notThere is an answer that is no document.
type notThere struct{ status int }

// Error implements error.
func (n notThere) Error() string { return fmt.Sprintf("status %d", n.status) }

// meaning says what a document that this node could not read means to the verifier,
// who reads it from elsewhere and trusts public authorities alone.
func meaning(err error, verifier, spec string) string {
	var stranger x509.UnknownAuthorityError
	switch {
	case errors.Is(err, notThere{http.StatusNotFound}):
		return "a target that is not written yet publishes nothing: write it, then run target check"
	case errors.As(err, &stranger):
		return fmt.Sprintf("%s has to know that authority: a public one, or put the documents where there is one and name the place in %s. This check knows the system's, or those of tls.ca in their place", verifier, spec)
	}
	return fmt.Sprintf("%s must be able to fetch it from where it stands; if it can, never mind that this node cannot", verifier)
}

// fetch reads a small JSON document.
func fetch(ctx context.Context, hc *http.Client, where string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	if err := CheckIssuer(where); err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return err
	}
	resp, err := hc.Do(r)
	var asked *url.Error
	if errors.As(err, &asked) {
		err = asked.Err // its address stands before it already
	}
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return notThere{resp.StatusCode}
	}
	if json.Unmarshal(body, into) != nil {
		return errors.New("not the JSON document that it should be")
	}
	return nil
}

// Skew compares whose's clock with this node's.
func Skew(whose string, ahead, unsure time.Duration) issuers.Finding {
	off := ahead.Abs()-unsure > maxSkew
	f := issuers.Finding{Name: "clock", OK: !off, Warning: off}
	f.Detail = fmt.Sprintf("%s's is %s ahead of this node's", whose, ahead.Round(time.Second))
	if ahead < 0 {
		f.Detail = fmt.Sprintf("%s's is %s behind this node's", whose, (-ahead).Round(time.Second))
	}
	return f
}

// IsAnswer says whether an error is the other side's own no, and not that nobody
// could be asked.
func IsAnswer(err error) bool {
	k := issuers.KindOf(err)
	return k != issuers.Unreachable && k != issuers.Unknown
}

// Failed is the finding of that name for an error. fix is the command that mends it,
// empty where none does. An error that names the finding first is not repeated.
func Failed(name string, err error, fix string) issuers.Finding {
	detail := err.Error()
	var e *issuers.Error
	if errors.As(err, &e) {
		detail = e.Detail
	}
	return issuers.Finding{Name: name, Detail: OneLine(strings.TrimPrefix(detail, name+": ")), Fix: fix}
}

// Quote quotes for any POSIX shell: nothing is special within ' but '.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
