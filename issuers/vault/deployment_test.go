package vault_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/vault"
	"github.com/mayfly-broker/mayfly/issuers/vault/vaulttest"
	"github.com/mayfly-broker/mayfly/secret"
)

// Sealed, hung, dead and back again: nothing is claimed meanwhile, and everything
// is done afterwards.
func TestVaultIsSealedHangsDiesAndComesBack(t *testing.T) {
	s := vaulttest.Start(t)
	if err := furnish(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, s)
	is := f.open(1)
	l := lease(allow("read", "database/creds/app"))
	c := f.mint(is, l)
	away := func(what string) {
		t.Helper()
		fresh := lease(allow("read", "database/creds/app"))
		fresh.MintDeadline = time.Now().Add(3 * time.Second)
		start := time.Now()
		_, err := is.Mint(t.Context(), fresh)
		if err == nil || issuers.KindOf(err) != issuers.Unreachable && issuers.KindOf(err) != issuers.Unknown {
			t.Errorf("%s: Mint: %v", what, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if out := is.Withdraw(ctx, []issuers.Lease{l, fresh}); out[0].Err == nil || out[1].Err == nil {
			t.Errorf("%s: Withdraw claims %+v", what, out)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("%s: it took %s", what, took)
		}
	}
	if err := s.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := is.Mint(t.Context(), lease(allow("read", "database/creds/app")))
	wantKind(t, err, issuers.Unreachable)
	away("sealed")
	if findings, err := is.Check(t.Context()); err != nil || len(findings) != 1 || findings[0].OK || findings[0].Warning || !strings.Contains(findings[0].Detail, "sealed") {
		t.Errorf("Check of a sealed Vault: %+v, %v", findings, err)
	}
	if err := s.Unseal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	away("hung")
	if err := s.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	away("dead")
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := use(t.Context(), c); err != nil {
		t.Errorf("the lease did not survive: %v", err)
	}
	f.withdraw(is, l)
	if err := f.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
	next := lease(allow("read", "database/creds/app"))
	f.mint(is, next)
	f.withdraw(is, next)
}

// The seal closes while a mint reads: nothing is handed over, and nothing is left.
func TestVaultIsSealedWhileAMintReads(t *testing.T) {
	s := vaulttest.Start(t)
	if err := furnish(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, s)
	is := f.open(1)
	l := lease(allow("read", "database/creds/slow"))
	failed := make(chan error, 1)
	go func() { _, err := is.Mint(t.Context(), l); failed <- err }()
	eventually(t, "the mint reads", func() bool { return f.sleeping() })
	if err := s.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantKind(t, <-failed, issuers.Unknown)
	if err := s.Unseal(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the withdrawal is done", func() bool { return is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err == nil })
	eventually(t, "nothing is left", func() bool { return f.gone(t.Context(), l) == nil })
}

// A read makes a secret: one whose connection broke is not sent a second time by
// the transport, as a GET usually is.
func TestVaultReadIsNeverRepeated(t *testing.T) {
	const own = "a token of the broker's"
	var reads atomic.Int32
	var id, meta atomic.Value
	answer := func(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			ID, Token string
			Meta      map[string]string
		}
		_ = json.NewDecoder(r.Body).Decode(&body)
		switch path := strings.TrimPrefix(r.URL.Path, "/v1/"); {
		case strings.HasPrefix(path, "auth/token/create/"):
			id.Store(body.ID)
			meta.Store(body.Meta)
			answer(w, map[string]any{"auth": map[string]any{"client_token": body.ID, "orphan": true, "lease_duration": 30}})
		case path == "auth/token/lookup-self" || body.Token == own || path == "auth/token/lookup" && body.Token == id.Load():
			answer(w, map[string]any{"data": map[string]any{"ttl": 0, "orphan": true, "meta": meta.Load()}})
		case path == "database/creds/app":
			reads.Add(1)
			if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
				_ = c.Close()
			}
		default:
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer server.Close()
	f := &fixture{t: t, spec: map[string]any{"address": server.URL}, log: slog.New(slog.DiscardHandler), secrets: map[string]secret.Text{
		vault.SecretToken: secret.New(own), vault.SecretMark: secret.New(strings.Repeat("k", 64)),
	}}
	_, err := f.open(1).Mint(t.Context(), lease(allow("read", "database/creds/app")))
	wantKind(t, err, issuers.Unknown)
	if n := reads.Load(); n != 1 {
		t.Errorf("the secret was asked for %d times", n)
	}
}

// Vault is there and the system behind it is not: the lease stays overdue.
func TestVaultCannotReachTheDatabase(t *testing.T) {
	f := newFixture(t, shared)
	is := f.open(1)
	l, other := lease(allow("read", "database/creds/app")), lease(allow("static", "kv/plain"))
	f.mint(is, l)
	f.mint(is, other)
	if err := database.Stop(); err != nil {
		t.Fatal(err)
	}
	out := is.Withdraw(t.Context(), []issuers.Lease{l, other})
	_, minted := is.Mint(t.Context(), lease(allow("read", "database/creds/app")))
	if err := database.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out[0].Err == nil || issuers.KindOf(out[0].Err) == issuers.Unreachable {
		t.Errorf("the lease whose account stands: %+v", out[0])
	}
	if out[1].Err != nil {
		t.Errorf("a lease that has nothing in the database: %v", out[1].Err)
	}
	wantKind(t, minted, issuers.Unknown)
	eventually(t, "the withdrawal is done", func() bool { return is.Withdraw(t.Context(), []issuers.Lease{l})[0].Err == nil })
	if err := f.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// Nothing of the broker's own environment decides where, as whom, or how Vault is
// asked.
func TestVaultEnvironmentIsNotHeeded(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".vault-token"), []byte("s.wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"HOME": home, "VAULT_ADDR": "https://127.0.0.1:1", "VAULT_AGENT_ADDR": "https://127.0.0.1:1", "VAULT_TOKEN": "s.wrong", "VAULT_NAMESPACE": "wrong", "VAULT_SKIP_VERIFY": "true",
		"VAULT_HEADERS": `{"X-Wrong": "1"}`, "VAULT_WRAP_TTL": "5m", "VAULT_HTTP_PROXY": "http://127.0.0.1:1", "VAULT_PROXY_ADDR": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1",
	} {
		t.Setenv(k, v)
	}
	f := newFixture(t, shared)
	is := f.open(1)
	l := lease(allow("read", "database/creds/app"))
	f.mint(is, l)
	f.withdraw(is, l)
	untrusted := newFixture(t, vaulttest.Start(t, vaulttest.TLS()))
	delete(untrusted.spec, "tls") // VAULT_SKIP_VERIFY must not help
	_, err := untrusted.open(1).Mint(t.Context(), lease(allow("read", "database/creds/app")))
	wantKind(t, err, issuers.Unreachable)
	if !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v", err)
	}
}

// The broker's own token is kept alive, and one that was revoked is fetched anew.
func TestVaultOwnTokenIsRenewedAndFetchedAnew(t *testing.T) {
	f := newFixture(t, shared)
	token, err := f.server.Token(t.Context(), []string{"mayfly-broker", "self"}, map[string]any{"period": "4s"})
	if err != nil {
		t.Fatal(err)
	}
	f.secrets[vault.SecretToken] = secret.New(token)
	is := f.open(1)
	end := time.Now().Add(9 * time.Second)
	eventually(t, "nine seconds pass", func() bool {
		if err := is.Sweep(t.Context()); err != nil {
			t.Fatalf("the token was not kept alive: %v", err)
		}
		return time.Now().After(end)
	})
	l := lease(allow("read", "database/creds/app"))
	f.mint(is, l)
	f.withdraw(is, l)

	g := newFixture(t, shared)
	g.appRole("1h")
	is = g.open(1)
	l = lease(allow("read", "database/creds/app"))
	g.mint(is, l)
	g.server.Do(t, http.MethodPut, "sys/leases/revoke-prefix/auth/approle/login", map[string]any{"sync": true})
	g.withdraw(is, l)
	if err := g.gone(t.Context(), l); err != nil {
		t.Error(err)
	}
}

// The other ways to log in.
func TestVaultLoginByCertificateAndByJWT(t *testing.T) {
	s := vaulttest.Start(t, vaulttest.TLS())
	if err := furnish(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, s)
	delete(f.secrets, vault.SecretToken)
	cert, key, err := s.ClientCertificate("broker")
	if err != nil {
		t.Fatal(err)
	}
	s.Do(t, http.MethodPut, "auth/cert/certs/broker", map[string]any{"certificate": s.CAPEM, "allowed_common_names": "broker", "token_policies": "mayfly-broker", "token_no_default_policy": false})
	f.spec["auth"] = map[string]any{"method": "cert", "role": "broker"}
	f.spec["tls"] = map[string]any{"ca": s.CAPEM, "client_cert": cert}
	f.secrets[vault.SecretClientKey] = secret.New(key)
	l := lease(allow("read", "database/creds/app"))
	is := f.open(1)
	f.mint(is, l)
	f.withdraw(is, l)

	g := newFixture(t, s)
	delete(g.secrets, vault.SecretToken)
	file := filepath.Join(t.TempDir(), "jwt")
	pem := g.signJWT(file, "system:broker")
	s.Do(t, http.MethodPut, "auth/jwt/config", map[string]any{"jwt_validation_pubkeys": []string{pem}})
	s.Do(t, http.MethodPut, "auth/jwt/role/mayfly", map[string]any{"role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault", "bound_subject": "system:broker", "token_policies": "mayfly-broker", "token_no_default_policy": false})
	g.spec["auth"] = map[string]any{"method": "jwt", "role": "mayfly", "jwt_file": file}
	is = g.open(1)
	l = lease(allow("read", "database/creds/app"))
	g.mint(is, l)
	g.withdraw(is, l)
	g.signJWT(file, "system:stranger")
	_, err = g.open(1).Mint(t.Context(), lease(allow("read", "database/creds/app")))
	wantKind(t, err, issuers.Refused)
}

// signJWT writes a token to a file, signed by a key of its own, whose public part
// it returns in PEM.
func (f *fixture) signJWT(file, subject string) string {
	f.t.Helper()
	key, pem := newKey(f.t)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	now := time.Now()
	text, err := jwt.Signed(signer).Claims(jwt.Claims{Subject: subject, Audience: jwt.Audience{"vault"}, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(time.Hour))}).Serialize()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	return pem
}

// What is no Vault, or one that has lost its mind, gives errors and no panic; what
// is too long is not read; and no redirect is followed.
func TestVaultOddAnswers(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("a redirect was followed, with the token %q", r.Header.Get("X-Vault-Token"))
	}))
	defer elsewhere.Close()
	answers := map[string]http.HandlerFunc{
		"nothing": func(http.ResponseWriter, *http.Request) {},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"other types": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"data": {"ttl": "x", "meta": 3, "keys": {"a": 1}, "policies": "root"}, "auth": {"client_token": ""}}`))
		},
		"empty data": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"data": null, "auth": null}`)) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		},
		"a standby":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(473) },
		"asked enough": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
		"behind":       func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPreconditionFailed) },
		"a teapot": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, strings.Repeat("\x1b[31m", 1000), http.StatusTeapot)
		},
		"too much": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"data": {"x": "`))
			for range 20 << 10 {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<10)); err != nil {
					return
				}
			}
			_, _ = w.Write([]byte(`"}}`))
		},
	}
	for name, h := range answers {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(h)
			defer server.Close()
			f := &fixture{t: t, spec: map[string]any{"address": server.URL}, log: slog.New(slog.DiscardHandler), secrets: map[string]secret.Text{
				vault.SecretToken: secret.New("a token of the broker's"), vault.SecretMark: secret.New(strings.Repeat("k", 64)),
			}}
			is := f.open(1)
			l := lease(allow("read", "database/creds/app"))
			if c, err := is.Mint(t.Context(), l); err == nil {
				t.Errorf("a credential: %v", c)
			} else if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("%q", err)
			} else if name == "too much" && !strings.Contains(err.Error(), "an answer of more than") {
				t.Errorf("it was read to its end: %v", err)
			}
			if out := is.Withdraw(t.Context(), []issuers.Lease{l}); out[0].Err == nil {
				t.Errorf("a receipt: %+v", out[0])
			}
			if err := is.Extend(t.Context(), l); err == nil {
				t.Error("an extension")
			}
			if found, err := is.List(t.Context()); err == nil {
				t.Errorf("a list: %v", found)
			}
			if findings, err := is.Check(t.Context()); err == nil {
				for _, x := range findings {
					if x.OK && !strings.HasPrefix(x.Name, "connect") && x.Name != "login" {
						t.Errorf("a good finding: %+v", x)
					}
				}
			}
		})
	}
}

// The id of a lease's token opens all that the lease may read: it is said nowhere.
func TestLaw6VaultTokenReachesNoLogOrError(t *testing.T) {
	f := newFixture(t, shared)
	var said bytes.Buffer
	f.log = slog.New(slog.NewJSONHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	is := f.open(1)
	secrets := []string{f.secrets[vault.SecretToken].Reveal(), f.secrets[vault.SecretMark].Reveal()}
	for _, s := range []issuers.Lease{
		lease(allow("read", "database/creds/app")), lease(allow("read", "database/creds/absent")), lease(allow("read", "unmounted/creds/x")),
		lease(allow("write", "pki/issue/leased?common_name=a.example&ttl=nonsense")), lease(allow("static", "kv/absent")),
	} {
		c, err := is.Mint(t.Context(), s)
		text, _ := json.Marshal([]any{c, err})
		said.Write(text)
		if err != nil {
			said.WriteString(err.Error())
		}
		for _, o := range is.Withdraw(t.Context(), []issuers.Lease{s}) {
			said.WriteString(o.Receipt.Detail)
		}
		secrets = append(secrets, vault.TokenOf(f.secrets[vault.SecretMark], s.ID))
		for _, v := range c.Secret {
			secrets = append(secrets, v.Reveal())
		}
	}
	for _, s := range secrets {
		if strings.Contains(said.String(), s) || strings.Contains(said.String(), base64.StdEncoding.EncodeToString([]byte(s))) {
			t.Errorf("a secret of %d bytes is said", len(s))
		}
	}
}
