package gcp

import (
	"net/http"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/scope"
)

// Compile is what a scope becomes.
func Compile(raw []byte, s scope.Scope) (string, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return "", err
	}
	return sp.compile(s)
}

// Through has an issuer's requests go through another transport.
func Through(is issuers.Issuer, rt http.RoundTripper) {
	is.(*Issuer).HTTP.Transport = federation.Watch(rt)
}
