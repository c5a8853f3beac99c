package console

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// policyHeader lets a page use what this server sends and nothing else. No
// style and no script may stand in a page itself.
const policyHeader = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// harden puts on every answer what keeps other sites out of it.
func harden(h http.Header) {
	h.Set("Content-Security-Policy", policyHeader)
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	// With no-referrer browsers would keep the origin of forms to themselves, too
	// (Fetch, "append a request Origin header"), and checkOrigin needs it.
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "publickey-credentials-get=(self), publickey-credentials-create=(self), camera=(), microphone=(), geolocation=()")
	h.Set("Cache-Control", "no-store")
	h.Del("DPoP-Nonce")
}

// origins maps the hosts under which the console is reached to their origins.
func origins(urls []string) (map[string]string, error) {
	out := map[string]string{}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, fault.New(fault.Invalid, "", "The external URL %q is not https://HOST[:PORT].", text)
		}
		host := normalHost(u.Host)
		out[host] = "https://" + host
	}
	return out, nil
}

// normalHost is a host in lower case without the default port.
func normalHost(h string) string { return strings.TrimSuffix(strings.ToLower(h), ":443") }

// checkHost refuses names that were bound to this node's address elsewhere.
func (s *Console) checkHost(r *http.Request) error {
	if _, ok := s.origins[normalHost(r.Host)]; !ok {
		return fault.New(fault.Denied, "foreign_host", "The console is not reached under this name. Open %s.", s.home)
	}
	return nil
}

// checkOrigin refuses a POST that another page has sent, or nobody knows which.
func (s *Console) checkOrigin(r *http.Request) error {
	foreign := fault.New(fault.Denied, "foreign_origin", "The request came from another page than this console's. Open %s and try again.", s.home)
	values := r.Header.Values("Origin")
	if len(values) != 1 || strings.TrimSuffix(strings.ToLower(values[0]), ":443") != s.origins[normalHost(r.Host)] {
		return foreign
	}
	if site := r.Header.Values("Sec-Fetch-Site"); len(site) > 0 && (len(site) > 1 || site[0] != "same-origin") {
		return foreign
	}
	return nil
}
