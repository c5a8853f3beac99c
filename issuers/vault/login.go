package vault

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// login keeps the broker's own token: a given one is renewed, another is fetched
// anew before it ends.
type login struct {
	spec    spec
	secrets map[string]secret.Text
	fleet   *fleet

	turn    chan struct{} // of whoever renews
	token   secret.Text
	renewAt time.Time // zero: never
	ends    time.Time // zero: never
}

func newLogin(sp spec, secrets map[string]secret.Text, f *fleet) *login {
	return &login{spec: sp, secrets: secrets, fleet: f, turn: make(chan struct{}, 1)}
}

// get returns a token that Vault accepted not long ago. refusedToken, where it is
// the present one, is not returned again if another can be had.
func (l *login) get(ctx context.Context, refusedToken secret.Text) (secret.Text, error) {
	ctx = upkeep(ctx)
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return secret.Text{}, lookError("wait for the broker's own login", &failure{path: "login", err: ctx.Err()})
	}
	now := time.Now()
	again := !refusedToken.IsZero() && l.token.Equal(refusedToken) && l.spec.Auth.Method != authToken
	if !l.token.IsZero() && !again && (l.renewAt.IsZero() || now.Before(l.renewAt)) {
		return l.token, nil
	}
	err := l.renew(ctx)
	if err == nil {
		return l.token, nil
	}
	if !l.token.IsZero() && !again && (l.ends.IsZero() || now.Before(l.ends)) && issuers.KindOf(err) != issuers.Refused {
		l.renewAt = now.Add(2 * time.Second) // it still works; do not hold up every call
		return l.token, nil
	}
	return secret.Text{}, err
}

func (l *login) renew(ctx context.Context) error {
	if l.spec.Auth.Method == authToken {
		return l.renewSelf(ctx)
	}
	body, err := l.proof()
	if err != nil {
		return &issuers.Error{Kind: issuers.Refused, Detail: "log in to Vault by " + l.spec.Auth.Method, Err: err}
	}
	s, err := l.fleet.call(ctx, op{method: http.MethodPut, path: "auth/" + l.spec.Auth.Mount + "/login", body: body})
	switch {
	case err != nil:
		e := lookError("log in to Vault by "+l.spec.Auth.Method, err)
		if e.Kind == issuers.Refused {
			e.Detail = "Vault refuses the broker's login by " + l.spec.Auth.Method
		}
		return e
	case s == nil || s.Auth == nil || s.Auth.ClientToken == "":
		return refused("log in to Vault by %s: the answer holds no token", l.spec.Auth.Method)
	}
	l.keep(secret.New(s.Auth.ClientToken), time.Duration(s.Auth.LeaseDuration)*time.Second)
	return nil
}

// renewSelf looks at the given token, and moves its end where it has one.
func (l *login) renewSelf(ctx context.Context) error {
	token := l.secrets[SecretToken]
	if token.IsZero() {
		return refused("the target has no secret auth.token")
	}
	s, err := l.fleet.call(ctx, op{method: http.MethodGet, path: "auth/token/lookup-self", token: token})
	if err != nil || s == nil {
		e := lookError("look at the broker's own token", err)
		if e.Kind == issuers.Refused {
			e.Detail = "Vault refuses the broker's own token: it has ended, was revoked, or may not look at itself (policy default)"
		}
		return e
	}
	ttl := number(s.Data["ttl"])
	if renewable, _ := s.Data["renewable"].(bool); renewable && ttl > 0 {
		r, err := l.fleet.call(ctx, op{method: http.MethodPut, path: "auth/token/renew-self", token: token, body: map[string]any{}})
		if err == nil && r != nil && r.Auth != nil {
			ttl = int64(r.Auth.LeaseDuration)
		}
	}
	l.keep(token, time.Duration(ttl)*time.Second)
	return nil
}

func (l *login) keep(token secret.Text, ttl time.Duration) {
	now := time.Now()
	l.token, l.renewAt, l.ends = token, time.Time{}, time.Time{}
	if ttl > 0 {
		l.renewAt, l.ends = now.Add(ttl/2), now.Add(ttl)
	}
}

// proof is what the login method asks for.
func (l *login) proof() (map[string]any, error) {
	a := l.spec.Auth
	switch a.Method {
	case authAppRole:
		out := map[string]any{"role_id": a.RoleID}
		if id := l.secrets[SecretSecretID]; !id.IsZero() {
			out["secret_id"] = id.Reveal()
		}
		return out, nil
	case authCert:
		out := map[string]any{}
		if a.Role != "" {
			out["name"] = a.Role
		}
		return out, nil
	}
	jwt, err := readBounded(a.JWTFile, maxLoginFile)
	if err != nil {
		return nil, err
	}
	text := strings.TrimSpace(string(jwt))
	if text == "" {
		return nil, errors.New(a.JWTFile + " is empty")
	}
	return map[string]any{"role": a.Role, "jwt": text}, nil
}

// close gives back a token that was fetched by a login. It is not waited for long:
// it ends by itself.
func (l *login) close() {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	default:
		return
	}
	if l.token.IsZero() || l.spec.Auth.Method == authToken {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, _ = l.fleet.call(ctx, op{method: http.MethodPut, path: "auth/token/revoke-self", token: l.token, body: map[string]any{}})
}

// call asks Vault as the broker itself. A login that has ended meanwhile is
// repeated once: whatever Vault refused with 403 it did not do. A login that still
// looks at itself lacks a right, and another one would too.
func (is *Issuer) call(ctx context.Context, o op) (*api.Secret, error) {
	token, err := is.own.get(ctx, secret.Text{})
	if err != nil {
		return nil, err
	}
	o.token = token
	s, err := is.fleet.call(ctx, o)
	if statusOf(err) != http.StatusForbidden || is.spec.Auth.Method == authToken {
		return s, err
	}
	if _, serr := is.fleet.call(upkeep(ctx), op{method: http.MethodGet, path: "auth/token/lookup-self", token: token}); serr == nil {
		return s, err
	}
	fresh, lerr := is.own.get(ctx, token)
	if lerr != nil || fresh.Equal(token) {
		return s, err
	}
	o.token = fresh
	return is.fleet.call(ctx, o)
}

// Sweep implements [issuers.Sweeper]: a target that nobody uses still keeps its
// own token alive. Nothing is pooled between leases.
func (is *Issuer) Sweep(ctx context.Context) error {
	_, err := is.own.get(ctx, secret.Text{})
	return err
}
