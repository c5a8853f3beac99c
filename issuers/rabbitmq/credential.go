package rabbitmq

import (
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// credential returns what the client gets. The virtual host of the URL is the
// target's own where the scope has it, else the first.
func (is *Issuer) credential(u *user) issuers.Credential {
	vhost := u.grants.vhosts[0].name
	if slices.ContainsFunc(u.grants.vhosts, func(v vhostGrant) bool { return v.name == is.spec.VHost }) {
		vhost = is.spec.VHost
	}
	return is.credentialOf(u.lease.Name, u.password, vhost)
}

func (is *Issuer) credentialOf(username string, password secret.Text, vhost string) issuers.Credential {
	at := is.spec.AMQP
	host, port, _ := net.SplitHostPort(at.nodes[0]) // checked by places
	scheme := "amqp"
	if at.TLS != tlsDisable {
		scheme = "amqps"
	}
	link := scheme + "://" + url.UserPassword(username, password.Reveal()).String() + "@" + at.nodes[0] + "/" + url.PathEscape(vhost)
	c := issuers.Credential{
		Public: map[string]string{"username": username, "host": host, "port": port, "vhost": vhost, "tls": at.TLS},
		Secret: map[string]secret.Text{"password": password, "url": secret.New(link)},
		Env: map[string]string{
			"AMQP_URL": "url", "RABBITMQ_URL": "url", "RABBITMQ_HOST": "host", "RABBITMQ_PORT": "port", "RABBITMQ_VHOST": "vhost",
			"RABBITMQ_USERNAME": "username", "RABBITMQ_PASSWORD": "password",
		},
	}
	if len(at.nodes) > 1 {
		c.Public["addresses"] = strings.Join(at.nodes, ",")
		c.Env["RABBITMQ_ADDRESSES"] = "addresses"
	}
	if at.TLS != tlsDisable && is.spec.TLS.CA != "" {
		c.Public["ca"] = is.spec.TLS.CA
	}
	if at.TLS != tlsDisable && is.spec.TLS.CAFile != "" {
		c.Public["ca_file"] = is.spec.TLS.CAFile
	}
	return c
}
