package aws

import (
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/federation"
	"github.com/mayfly-broker/mayfly/scope"
)

// Compile is what a scope becomes.
func Compile(raw []byte, s scope.Scope, end time.Time) (string, error) {
	sp, err := parseSpec(raw)
	if err != nil {
		return "", err
	}
	return sp.compile(s, end)
}

// Through has an issuer's requests go through another transport.
func Through(is issuers.Issuer, rt http.RoundTripper) {
	var i *Issuer
	switch x := is.(type) {
	case *Issuer:
		i = x
	case identityIssuer:
		i = x.Issuer
	case *users:
		i = x.Issuer
	}
	i.sts.http.Transport = federation.Watch(rt)
}
