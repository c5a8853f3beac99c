package kubernetes

import (
	"context"
	"crypto/rand"
	"net/http"
	"strings"
	"time"
)

const (
	probeAge    = 5 * time.Minute // of leftovers that are cleared away
	maxProbed   = 16              // service accounts that are tried
	probePasses = 45              // of a third of a second: longer than a token is remembered
)

// revocation tries on the real thing that a token ends with its anchor: an account
// of the check's own, or each service account whose tokens scopes may ask for. The
// token is not used before its anchor is gone, so that no API server remembers it.
func (x *examination) revocation(ctx context.Context) error {
	s := x.is.spec
	if err := x.clearProbes(ctx); err != nil {
		return lookError("clear away what an earlier check left", err)
	}
	if s.grants() {
		name := probePrefix + strings.ToLower(rand.Text())
		account := ref{serviceAccounts, s.Namespace, name}
		no := false
		made, err := x.makeProbe(ctx, account, object{Automount: &no})
		if err != nil {
			return sentError("make "+account.String(), err)
		}
		err = x.tryToken(ctx, account)
		if e := x.is.end.remove(context.WithoutCancel(ctx), account, made); e != nil && err == nil {
			err = sentError("delete "+account.String(), e)
		}
		if err != nil {
			return err
		}
	}
	for i, a := range s.ServiceAccounts {
		if i == maxProbed {
			break
		}
		ns, name, _ := strings.Cut(a, "/")
		if err := x.tryToken(ctx, ref{serviceAccounts, ns, name}); err != nil {
			return err
		}
	}
	return nil
}

// tryToken binds a token of an account to a Secret, deletes that, and sees the
// token refused.
func (x *examination) tryToken(ctx context.Context, account ref) error {
	name := "revocation for " + account.namespace + "/" + account.name
	if strings.HasPrefix(account.name, probePrefix) {
		name = "revocation"
	}
	at := ref{secrets, account.namespace, probePrefix + strings.ToLower(rand.Text())}
	anchor, err := x.makeProbe(ctx, at, object{Type: anchorType})
	if err != nil {
		return sentError("make "+at.String(), err)
	}
	t, err := x.is.end.tokenRequest(ctx, account, anchor, nil, time.Time{})
	if e := x.is.end.remove(context.WithoutCancel(ctx), at, anchor); e != nil {
		return sentError("delete "+at.String(), e)
	}
	if isStatus(err, http.StatusNotFound) {
		x.add(name, false, false, "there is no service account "+account.name+" in "+account.namespace, "kubectl -n "+account.namespace+" create serviceaccount "+account.name)
		return nil
	}
	if err != nil {
		return sentError("ask for a token of "+account.String(), err)
	}
	if err := pause(ctx, longestPause); err != nil { // a watch follows; who is too quick is remembered for ten seconds
		return lookError("try a token whose anchor is gone", err)
	}
	for range probePasses {
		_, _, err := x.is.end.whoami(ctx, t.text)
		switch {
		case isStatus(err, http.StatusUnauthorized):
			x.add(name, true, false, "a token was refused once its anchor was deleted", "")
			return nil
		case isStatus(err, http.StatusNotFound):
			x.add(name, false, true, "this API server has no SelfSubjectReview (before 1.28): that a token ends with its anchor was not tried", "")
			return nil
		case err != nil && !isStatus(err, http.StatusForbidden):
			return lookError("try a token whose anchor is gone", err)
		}
		// it was accepted after its anchor had gone: by a cache that lags, or for ever
		if err := pause(ctx, longestPause); err != nil {
			return lookError("try a token whose anchor is gone", err)
		}
	}
	x.add(name, false, false, "a token is accepted though its anchor is gone: leases could not be ended. Is there a proxy before the API server that answers for it?", "")
	return nil
}

func (x *examination) makeProbe(ctx context.Context, at ref, obj object) (metadata, error) {
	obj.APIVersion, obj.Kind = at.res.version(), at.res.kind
	obj.Metadata = x.is.marks.meta(at, mark{term: x.is.term}, time.Time{})
	obj.Metadata.Labels[labelProbe] = managedBy
	var out object
	err := x.is.end.do(ctx, call{method: http.MethodPost, path: at.res.in(at.namespace), body: obj, accept: asMetadata}, &out)
	return out.Metadata, err
}

// clearProbes deletes what a check that was killed has left behind.
func (x *examination) clearProbes(ctx context.Context) error {
	for _, c := range x.is.spec.collections() {
		if c.res != secrets && c.res != serviceAccounts {
			continue
		}
		var old []metadata
		err := x.is.end.list(ctx, c.res, c.namespace, x.is.marks.selector()+","+labelProbe, func(m metadata) {
			_, ours := x.is.marks.read(ref{c.res, m.Namespace, m.Name}, m)
			if ours && strings.HasPrefix(m.Name, probePrefix) && m.CreationTimestamp != nil && time.Since(*m.CreationTimestamp) > probeAge {
				old = append(old, m)
			}
		})
		if err != nil {
			return err
		}
		for _, m := range old {
			if err := x.is.end.remove(ctx, ref{c.res, m.Namespace, m.Name}, m); err != nil && !isStatus(err, http.StatusNotFound) {
				return err
			}
		}
	}
	return nil
}
