package mysql

import (
	"context"
	"net"
	"net/url"
	"strconv"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// credential returns what the client gets. The database is the target's main one
// or, where the scope does not name it, the first that it names. MYSQL_HOST,
// MYSQL_TCP_PORT and MYSQL_PWD are what the servers' own clients read; user and
// database they take as arguments alone.
func (is *Issuer) credential(a *account) issuers.Credential {
	database := is.spec.Database
	named := false
	for _, g := range a.grants.grants {
		named = named || g.Database == database
	}
	if !named && len(a.grants.grants) > 0 {
		database = a.grants.grants[0].Database
	}
	return is.present(a.lease.Name, a.password, database)
}

// Present implements [issuers.Presenter].
func (is *Issuer) Present(_ context.Context, username string, s secret.Text) (issuers.Credential, error) {
	return is.present(username, s, is.spec.Database), nil
}

func (is *Issuer) present(username string, password secret.Text, database string) issuers.Credential {
	port := strconv.Itoa(int(is.spec.port))
	c := issuers.Credential{
		Public: map[string]string{
			"username": username, "host": is.spec.host, "port": port, "database": database, "sslmode": is.spec.TLS.Mode,
		},
		Secret: map[string]secret.Text{"password": password},
		Env: map[string]string{
			"MYSQL_HOST": "host", "MYSQL_TCP_PORT": "port", "MYSQL_PWD": "password", "MYSQL_USER": "username", "MYSQL_DATABASE": "database",
		},
	}
	if is.spec.TLS.CA != "" {
		c.Public["ca"] = is.spec.TLS.CA
	}
	if is.spec.TLS.CAFile != "" {
		c.Public["ca_file"] = is.spec.TLS.CAFile
	}
	u := url.URL{Scheme: "mysql", Host: net.JoinHostPort(is.spec.host, port), Path: "/" + database, User: url.UserPassword(username, password.Reveal())}
	c.Secret["url"] = secret.New(u.String())
	return c
}
