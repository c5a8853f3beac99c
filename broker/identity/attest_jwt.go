package identity

import (
	"context"
	"errors"
)

// newJWT attests by JWTs whose issuer's keys are configured: the same checks as
// for oidc, and no network. Kubernetes without public discovery and CI systems
// behind a firewall work this way.
func newJWT(m Method, deps Deps) (Attestor, error) {
	keys, err := configuredKeys(m, deps)
	if err != nil {
		return nil, err
	}
	return &tokenAttestor{method: m, keys: keys, types: idTokenTypes}, nil
}

// configuredKeys serves inline keys as they are, and a file's like an issuer's:
// read at first use, and again at bounded intervals, so that a rotated file
// needs no restart.
func configuredKeys(m Method, deps Deps) (keySource, error) {
	if m.keysFile == "" {
		return staticKeys(m.keys), nil
	}
	if deps.ReadFile == nil {
		return nil, unusable(m, "jwks_file is not read here; give jwks inline")
	}
	return newKeyCache(func(context.Context) ([]verificationKey, error) {
		data, err := deps.ReadFile(m.keysFile)
		if err != nil {
			return nil, err
		}
		set, err := parseKeySet(data, m.Type == MethodSPIFFE)
		if err == nil && len(set.keys) == 0 {
			err = errors.New("it holds no key to verify with")
		}
		return set.keys, err
	}), nil
}
