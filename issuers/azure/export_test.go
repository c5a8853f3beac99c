package azure

import (
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/scope"
)

// Grant is what a scope becomes.
func Grant(raw []byte, s scope.Scope) (kind, container, path, permissions string, err error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return "", "", "", "", err
	}
	g, err := sp.compile(s)
	return g.kind, g.container, g.path, g.permissions, err
}

// Through has an issuer's requests go through another transport.
func Through(is issuers.Issuer, rt http.RoundTripper) {
	is.(*Issuer).http.Transport = federation.Watch(rt)
}

// Sign signs a SAS for a scope by a key as the account answers it.
func Sign(raw []byte, s scope.Scope, answer []byte, start, end time.Time) (string, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return "", err
	}
	g, err := sp.compile(s)
	if err != nil {
		return "", err
	}
	k, err := readKey(answer)
	if err != nil {
		return "", err
	}
	t, err := sp.sas(g, k, start, end)
	return t.Reveal(), err
}
