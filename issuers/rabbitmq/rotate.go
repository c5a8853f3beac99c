package rabbitmq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Limits of a lasting user's name and secret.
const (
	maxUser   = 255 // bytes; AMQP's short strings hold no more
	maxSecret = 256
)

// Admin implements [issuers.AdminHolder].
func (Kind) Admin(raw json.RawMessage) (username, secretName string, err error) {
	s, err := parseSpec(raw)
	return s.Admin.Username, SecretPassword, err
}

// Replace implements [issuers.Rotator]. The API replaces a user whole, so tags and
// limits are read and written again as they were; permissions stand elsewhere. It
// has no time (DESIGN.md): the secret leaves this machine only once the server has
// answered that it is about to read it, and nothing leaves after the deadline.
func (is *Issuer) Replace(ctx context.Context, r issuers.Replacement) error {
	if err := checkReplacement(r); err != nil {
		return err
	}
	deadline := r.Deadline
	if deadline.IsZero() {
		deadline = time.Now().Add(defaultDeadline)
	}
	if !time.Now().Before(deadline) {
		return tooLate()
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	release, err := is.minting.take(ctx, r.Username)
	if err != nil {
		return beforeError("wait for another replacement of the secret", err)
	}
	defer release()
	before, err := is.look(ctx, is.api.mint, r.Username)
	switch {
	case err != nil:
		return beforeError("look for the user", err)
	case !before.there:
		return &issuers.Error{Kind: issuers.Gone, Detail: fmt.Sprintf("there is no user %q", r.Username)}
	case before.ours:
		return leased(r.Username)
	}
	if err := is.whole(ctx, is.api.mint); err != nil {
		// it may come back, or let others in, with the secret before
		return &issuers.Error{Kind: issuers.Unreachable, Detail: "replace a secret in a cluster that is not whole", Err: err}
	}
	return is.put(ctx, r, before)
}

func checkReplacement(r issuers.Replacement) error {
	plain := r.Next.Reveal()
	switch {
	case checkUser(r.Username) != nil:
		return checkUser(r.Username)
	case userPattern.MatchString(r.Username):
		return leased(r.Username)
	case plain == "" || len(plain) > maxSecret:
		return refused("a secret has 1 to %d characters; this one has %d", maxSecret, len(plain))
	case strings.ContainsFunc(plain, func(c rune) bool { return c <= ' ' || c > '~' }):
		return refused("a secret is made of printable ASCII characters without blanks here; this one is not")
	}
	return nil
}

// checkUser accepts what a path of the API can name, and what can log in to it.
func checkUser(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxUser || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f || c == ':' }) {
		return refused("the user %.60q: a name has 1 to %d bytes, without colons and control characters, and is not . or ..", name, maxUser)
	}
	return nil
}

func leased(name string) *issuers.Error {
	return &issuers.Error{Kind: issuers.Foreign, Detail: fmt.Sprintf("%q is a lease's user; its secret is not rotated", name)}
}

// put writes the user again, under a condition that the server itself checks, that
// it is there, and looks what has come of it.
func (is *Issuer) put(ctx context.Context, r issuers.Replacement, before found) error {
	hash, err := hashOf(r.Next)
	if err != nil {
		return refused("no random numbers: %v", err)
	}
	body := map[string]any{"password_hash": hash, "hashing_algorithm": hashing, "tags": before.tags}
	if len(before.limits) > 0 {
		body["limits"] = before.limits
	}
	a, err := is.api.do(ctx, is.api.mint, call{method: http.MethodPut, path: at("users", r.Username), body: body, header: "If-Match: *", asked: true})
	switch {
	case err != nil:
		return sentError("replace a secret", err)
	case a.status == http.StatusPreconditionFailed:
		return &issuers.Error{Kind: issuers.Gone, Detail: fmt.Sprintf("there is no user %q any more", r.Username)}
	case a.status != http.StatusCreated && a.status != http.StatusNoContent:
		return sentError("replace a secret", said(a))
	}
	by := is.api
	if r.Username == is.spec.Admin.Username {
		by = is.api.as(r.Username, r.Next)
	}
	after, err := is.with(by).look(ctx, by.mint, r.Username)
	switch {
	case err != nil:
		return &issuers.Error{Kind: issuers.Unknown, Detail: "look whether the secret is replaced", Err: err}
	case !after.there:
		return &issuers.Error{Kind: issuers.Gone, Detail: fmt.Sprintf("there is no user %q any more", r.Username)}
	case after.hash != hash || !slices.Equal(after.tags, before.tags) || !maps.Equal(after.limits, before.limits):
		return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("the user %q was changed by somebody else at the same time; replace it again", r.Username)}
	}
	return nil
}

// with is the issuer as another user.
func (is *Issuer) with(a *api) *Issuer { return &Issuer{spec: is.spec, api: a, own: is.own} }

// as is the API as another user. It shares the connections: each request says
// who asks.
func (a *api) as(username string, password secret.Text) *api {
	return &api{bases: a.bases, username: username, password: password, mint: a.mint, end: a.end, tls: a.tls}
}

// TryLogin implements [issuers.Rotator]. The API knows who may log in by AMQP
// alone, too: it says of a right secret that the user has no business there.
func (is *Issuer) TryLogin(ctx context.Context, username string, candidate secret.Text) error {
	if err := checkUser(username); err != nil {
		return &issuers.Error{Kind: issuers.Unknown, Detail: "log in", Err: err}
	}
	if is.api.closed.Load() {
		return beforeError("log in", &lost{err: errClosed})
	}
	by := is.api.as(username, candidate)
	r, err := by.do(ctx, by.end, call{method: http.MethodGet, path: at("whoami")})
	if err != nil {
		return &issuers.Error{Kind: issuers.Unreachable, Detail: "log in", Err: err}
	}
	var d *denial
	switch {
	case r.status == http.StatusOK:
		return nil
	case !errors.As(said(r), &d) || r.status != http.StatusUnauthorized:
		return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("log in as %q", username), Err: said(r)}
	case d.weak():
		return nil
	case !strings.Contains(d.reason, "Login failed"):
		return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("log in as %q: it is not the secret that is turned down", username), Err: d}
	}
	// The same is said of a user that is not there; the admin may know.
	if f, err := is.look(ctx, is.api.end, username); err == nil && !f.there {
		return &issuers.Error{Kind: issuers.Unknown, Detail: fmt.Sprintf("there is no user %q", username), Err: d}
	}
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf("log in as %q", username), Err: d}
}

// Present implements [issuers.Presenter].
func (is *Issuer) Present(_ context.Context, username string, s secret.Text) (issuers.Credential, error) {
	if err := checkUser(username); err != nil {
		return issuers.Credential{}, err
	}
	return is.credentialOf(username, s, is.spec.VHost), nil
}
