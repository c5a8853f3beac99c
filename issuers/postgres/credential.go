package postgres

import (
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
	port := strconv.Itoa(int(is.spec.port))
	c := issuers.Credential{
		Public: map[string]string{
			"username": a.lease.Name, "host": is.spec.host, "port": port, "database": database, "sslmode": is.spec.TLS.Mode,
		},
		Secret: map[string]secret.Text{},
		Env: map[string]string{
			"PGHOST": "host", "PGPORT": "port", "PGDATABASE": "database", "PGUSER": "username", "PGSSLMODE": "sslmode",
		},
	}
	u := url.URL{
		Scheme: "postgres", Host: net.JoinHostPort(is.spec.host, port), Path: "/" + database, User: url.User(a.lease.Name),
		RawQuery: url.Values{"sslmode": {is.spec.TLS.Mode}}.Encode(),
	}
	if !a.password.IsZero() {
		u.User = url.UserPassword(a.lease.Name, a.password.Reveal())
		c.Secret["password"] = a.password
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
