package postgres

import (
	"context"
	"maps"
	"net"
	"net/url"
	"strconv"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// credential returns what the client gets. The database is the first that the
// scope names; an account may connect to all that it names.
func (is *Issuer) credential(a *account) issuers.Credential {
	database := is.spec.Database
	if len(a.grants.pooled) > 0 && !a.names(database) {
		database = a.grants.pooled[0].Database
	}
	return is.present(a.lease.Name, a.password, database)
}

// Present implements [issuers.Presenter].
func (is *Issuer) Present(_ context.Context, username string, s secret.Text) (issuers.Credential, error) {
	return is.present(username, s, is.spec.Database), nil
}

// present is what a client needs to log in; a password that is zero is left out.
func (is *Issuer) present(username string, password secret.Text, database string) issuers.Credential {
	port := strconv.Itoa(int(is.spec.port))
	c := issuers.Credential{
		Public: map[string]string{
			"username": username, "host": is.spec.host, "port": port, "database": database, "sslmode": is.spec.TLS.Mode,
		},
		Secret: map[string]secret.Text{},
		Env: map[string]string{
			"PGHOST": "host", "PGPORT": "port", "PGDATABASE": "database", "PGUSER": "username", "PGSSLMODE": "sslmode",
		},
	}
	u := url.URL{
		Scheme: "postgres", Host: net.JoinHostPort(is.spec.host, port), Path: "/" + database, User: url.User(username),
		RawQuery: url.Values{"sslmode": {is.spec.TLS.Mode}}.Encode(),
	}
	if !password.IsZero() {
		u.User = url.UserPassword(username, password.Reveal())
		c.Secret["password"] = password
		maps.Copy(c.Env, map[string]string{"PGPASSWORD": "password"})
	}
	if is.spec.TLS.CA != "" {
		c.Public["ca"] = is.spec.TLS.CA
	}
	if is.spec.TLS.CAFile != "" {
		c.Public["sslrootcert"] = is.spec.TLS.CAFile
		c.Env["PGSSLROOTCERT"] = "sslrootcert"
	}
	c.Secret["url"] = secret.New(u.String())
	return c
}

func (a *account) names(database string) bool {
	for _, g := range a.grants.pooled {
		if g.Database == database {
			return true
		}
	}
	return false
}
