package github

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Issuer mints on one target. Everything but closed and installation is made once,
// in Open.
type Issuer struct {
	spec         spec
	log          *slog.Logger
	app          *app
	client       *client
	memory       *memory
	installation atomic.Int64 // looked up; 0 before
	closed       atomic.Bool
}

// answer is what GitHub says of a token (schema installation-token).
type answer struct {
	Token               string            `json:"token"`
	ExpiresAt           time.Time         `json:"expires_at"`
	Permissions         map[string]string `json:"permissions"`
	RepositorySelection string            `json:"repository_selection"`
	Repositories        []struct {
		FullName string `json:"full_name"`
	} `json:"repositories"`
}

const (
	maxTokenBytes = 4 << 10 // of the stateless form, about 520
	minTokenBytes = 20
	longerLife    = 5 * time.Minute // that two clocks may differ
)

// Mint implements [issuers.Issuer]. A re-mint is a token of its own; those of lower
// generations that this process holds are revoked then.
func (is *Issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	switch {
	case is.closed.Load():
		return none, refused("the issuer is closed")
	case l.Name != Kind{}.CredentialName(l.ID, l.Generation):
		return none, refused("the lease's name is not the one of its id and generation")
	}
	r, err := is.memory.enter(ctx, l, true)
	switch {
	case err != nil:
		return none, tooLate("the caller no longer waits")
	case r == nil:
		return none, refused("%d leases live in this process; it could not withdraw another one", maxLeases)
	}
	defer r.leave()
	r.seen[l.Generation] = true // also where nothing is asked: then nothing was made
	now, end := time.Now(), is.expiry(l)
	switch {
	case ctx.Err() != nil:
		return none, tooLate("the caller no longer waits")
	case !now.Before(l.MintDeadline):
		return none, tooLate("the mint deadline has passed")
	case !now.Before(end):
		return none, tooLate("the lease, or the target's max_ttl from its start on, has ended")
	case l.Generation < r.highest:
		return none, &issuers.Error{Kind: issuers.Superseded, Detail: "a newer generation was minted; nothing was asked of GitHub"}
	}
	ctx, cancel := context.WithDeadline(ctx, l.MintDeadline)
	defer cancel()
	w, err := is.spec.compile(l.Scope)
	if err != nil {
		return none, refused("%v", err)
	}
	a, err := is.make(ctx, r, l, w)
	if err != nil {
		return none, err
	}
	r.highest = l.Generation
	is.revokeOlder(ctx, r, l.Generation)
	return is.deliver(a, w, end), nil
}

// make asks for one token and remembers it, or that there may be one.
func (is *Issuer) make(ctx context.Context, r *record, l issuers.Lease, w wanted) (answer, error) {
	var a answer
	if len(w.Repositories) == 0 || len(w.Permissions) == 0 { // GitHub would give everything
		return a, refused("nothing narrows the token; nothing was asked of GitHub")
	}
	jwt, err := is.app.token(time.Now(), l.MintDeadline)
	if err != nil {
		return a, refused("%v", err)
	}
	id, err := is.installed(ctx, jwt)
	if err != nil {
		return a, err
	}
	reply, err := is.client.do(ctx, asApp, jwt, http.MethodPost, "/app/installations/"+strconv.FormatInt(id, 10)+"/access_tokens", w)
	if err == nil && reply.status != http.StatusCreated {
		err = reply.refusal("create an installation access token")
		if reply.status == http.StatusNotFound {
			is.installation.Store(0)
		}
	}
	if err != nil {
		if issuers.KindOf(err) == issuers.Unknown {
			r.lost = lastEnd(l)
		}
		return a, err
	}
	if err := json.Unmarshal(reply.body, &a); err != nil || !whole(a.Token) {
		r.lost = lastEnd(l)
		return a, &issuers.Error{Kind: issuers.Unknown, Detail: "create an installation access token: the answer holds no token that can be read"}
	}
	r.held = append(r.held, token{secret.New(a.Token), l.Generation})
	more := w.exceeds(is.spec.Owner, a)
	if life := time.Until(a.ExpiresAt); more == "" && (life <= 0 || life > tokenLife+longerLife) {
		more = "it ends at " + a.ExpiresAt.UTC().Format(time.RFC3339)
	}
	if more == "" {
		return a, nil
	}
	is.log.Error("GitHub gave more than was asked; the token is revoked", "lease", l.ID, "more", more)
	if _, err := is.revokeAll(context.WithoutCancel(ctx), r); err != nil {
		return a, &issuers.Error{Kind: issuers.Unknown, Detail: "GitHub gave more than was asked (" + more + "), and the token is not revoked yet", Err: err}
	}
	return a, refused("GitHub gave more than was asked: %s; the token was revoked and delivered to nobody", more)
}

// whole says whether a text can be a token: opaque, and fit for a header.
func whole(t string) bool {
	return len(t) >= minTokenBytes && len(t) <= maxTokenBytes && !strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' })
}

// installed is the installation's id, looked up once by its owner.
func (is *Issuer) installed(ctx context.Context, jwt secret.Text) (int64, error) {
	if is.spec.InstallationID != 0 {
		return is.spec.InstallationID, nil
	}
	if id := is.installation.Load(); id != 0 {
		return id, nil
	}
	in, _, err := is.lookUp(ctx, jwt)
	if err != nil {
		if issuers.KindOf(err) == issuers.Unknown { // looking makes nothing
			return 0, &issuers.Error{Kind: issuers.Refused, Detail: "the installation cannot be looked up; no token was asked for", Err: err}
		}
		return 0, err
	}
	is.installation.Store(in.ID)
	return in.ID, nil
}

// installation is what GitHub says of one.
type installation struct {
	ID      int64 `json:"id"`
	Account struct {
		Login string `json:"login"`
	} `json:"account"`
	Permissions         map[string]string `json:"permissions"`
	RepositorySelection string            `json:"repository_selection"`
	SuspendedAt         *time.Time        `json:"suspended_at"`
}

// lookUp asks for the installation by its id, or by its owner, which is an
// organisation or a user.
func (is *Issuer) lookUp(ctx context.Context, jwt secret.Text) (installation, reply, error) {
	var in installation
	owner := url.PathEscape(is.spec.Owner)
	paths := []string{"/orgs/" + owner + "/installation", "/users/" + owner + "/installation"}
	if id := is.spec.InstallationID; id != 0 {
		paths = []string{"/app/installations/" + strconv.FormatInt(id, 10)}
	}
	var r reply
	for _, p := range paths {
		var err error
		if r, err = is.client.do(ctx, asApp, jwt, http.MethodGet, p, nil); err != nil {
			return in, r, err
		}
		if r.status != http.StatusNotFound {
			break
		}
	}
	if r.status != http.StatusOK {
		return in, r, r.refusal("look the installation up")
	}
	if err := json.Unmarshal(r.body, &in); err != nil || in.ID <= 0 || !strings.EqualFold(in.Account.Login, is.spec.Owner) {
		return in, r, refused("the installation is not one on %s, but on %q", is.spec.Owner, oneLine(in.Account.Login))
	}
	return in, r, nil
}

// expiry is when the lease ends: the token is revoked then.
func (is *Issuer) expiry(l issuers.Lease) time.Time {
	end := l.NotAfter
	if capped := l.NotBefore.Add(is.spec.maxTTL); capped.Before(end) {
		end = capped
	}
	return end.Truncate(time.Second)
}

func (is *Issuer) deliver(a answer, w wanted, end time.Time) issuers.Credential {
	var repositories []string
	for _, r := range a.Repositories {
		repositories = append(repositories, oneLine(r.FullName))
	}
	slices.Sort(repositories)
	if a.ExpiresAt.Before(end) {
		end = a.ExpiresAt
	}
	c := issuers.Credential{
		Public: map[string]string{
			"api": is.spec.API, "username": "x-access-token", "repositories": strings.Join(repositories, " "), "permissions": words(a.Permissions),
			"expires_at": end.UTC().Format(time.RFC3339), "token_expires_at": a.ExpiresAt.UTC().Format(time.RFC3339),
		},
		Secret: map[string]secret.Text{"token": secret.New(a.Token)},
		Env:    map[string]string{"GH_TOKEN": "token", "GITHUB_TOKEN": "token"},
	}
	if is.spec.API != publicAPI {
		u, _ := url.Parse(is.spec.API) // parseSpec did
		c.Public["host"] = u.Host
		c.Env = map[string]string{"GH_ENTERPRISE_TOKEN": "token", "GITHUB_ENTERPRISE_TOKEN": "token", "GH_HOST": "host", "GITHUB_API_URL": "api"}
	}
	if missing := fewer(w, a); missing != "" {
		c.Public["missing"] = missing
	}
	return c
}

// fewer says what was asked and not given.
func fewer(w wanted, a answer) string {
	missing := map[string]string{}
	for name, level := range w.Permissions {
		if order[a.Permissions[name]] < order[level] {
			missing[name] = level
		}
	}
	out := words(missing)
	if n := len(w.Repositories) - len(a.Repositories); n > 0 {
		out = strings.TrimSpace(fmt.Sprintf("%s %d repositories", out, n))
	}
	return out
}

// Close implements [issuers.Issuer]; it may be called again. What was minted stays
// remembered by the kind.
func (is *Issuer) Close() error {
	is.closed.Store(true)
	is.client.http.CloseIdleConnections()
	return nil
}
