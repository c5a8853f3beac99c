package redis

import (
	"context"
	"net"
	"net/url"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// Present implements [issuers.Presenter].
func (is *Issuer) Present(ctx context.Context, username string, s secret.Text) (issuers.Credential, error) {
	nodes, err := is.fleet.topology(ctx)
	if err != nil {
		return issuers.Credential{}, err
	}
	return is.present(username, s, nodes), nil
}

// present is what a client needs to log in: the master's address, or a cluster's
// nodes, or the Sentinels to ask.
func (is *Issuer) present(username string, password secret.Text, nodes []node) issuers.Credential {
	address := is.spec.seeds[0]
	if is.spec.Topology == topologySentinel {
		address = nodes[0].addr
	}
	host, port, _ := net.SplitHostPort(address) // checked, or made by JoinHostPort
	scheme := "redis"
	if is.spec.TLS.Mode != tlsDisable {
		scheme = "rediss"
	}
	link := url.URL{Scheme: scheme, User: url.UserPassword(username, password.Reveal()), Host: address, Path: "/0"}
	c := issuers.Credential{
		Public: map[string]string{"username": username, "host": host, "port": port, "database": "0", "tls": is.spec.TLS.Mode},
		Secret: map[string]secret.Text{"password": password, "url": secret.New(link.String())},
		Env: map[string]string{
			"REDIS_URL": "url", "REDIS_HOST": "host", "REDIS_PORT": "port", "REDIS_USERNAME": "username", "REDIS_PASSWORD": "password",
			"REDISCLI_AUTH": "password",
		},
	}
	switch is.spec.Topology {
	case topologySentinel:
		c.Public["sentinels"], c.Public["master_name"] = strings.Join(is.spec.seeds, ","), is.spec.MasterName
		c.Env["REDIS_SENTINELS"], c.Env["REDIS_MASTER_NAME"] = "sentinels", "master_name"
	case topologyCluster:
		c.Public["addresses"] = strings.Join(is.spec.seeds, ",")
		c.Env["REDIS_ADDRESSES"] = "addresses"
	}
	if is.spec.TLS.CA != "" {
		c.Public["ca"] = is.spec.TLS.CA
	}
	if is.spec.TLS.CAFile != "" {
		c.Public["ca_file"] = is.spec.TLS.CAFile
	}
	return c
}
