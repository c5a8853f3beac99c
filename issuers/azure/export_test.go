package azure

import (
	"time"

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

// ReadToken reads an answer of Entra's.
func ReadToken(status int, body []byte, deadline time.Time) (token string, expires time.Time, err error) {
	t, err := readToken(federation.Answer{Status: status, Body: body}, deadline)
	return t.text.Reveal(), t.expires, err
}

// SignBy signs a SAS for a scope by the account's answer to the question for a key.
func SignBy(raw []byte, s scope.Scope, status int, body []byte, start, end time.Time) (string, error) {
	k, err := readDelegation(federation.Answer{Status: status, Body: body})
	if err != nil {
		return "", err
	}
	sp, err := parseSpec(raw)
	if err != nil {
		return "", err
	}
	g, err := sp.compile(s)
	if err != nil {
		return "", err
	}
	t, err := sp.sas(g, k, start, end)
	if err != nil {
		return "", federation.HalfAnswer(stepKey)
	}
	return t.Reveal(), nil
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
