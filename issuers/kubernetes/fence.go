package kubernetes

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/mayfly-broker/mayfly/issuers"
)

// The fence is a ConfigMap that holds the highest term that has fenced the target.
// A mint makes its anchor, then reads the fence, then asks for its token. A leader
// that has raised the fence and then deletes an anchor can be sure: an older
// leader's mint that reads the fence later stops; one that read it before had its
// anchor made before that, so that it is deleted, and a token bound to it is
// refused, whenever the request for it arrives.

func (is *Issuer) fenceAt() ref { return ref{configMaps, is.spec.Namespace, is.marks.fenceName()} }

// readFence returns the fence's term and metadata; there is false without one.
func (is *Issuer) readFence(ctx context.Context, c *client) (term uint64, m metadata, there bool, err error) {
	at := is.fenceAt()
	m, there, err = c.look(ctx, at)
	if err != nil || !there {
		return 0, m, there, err
	}
	k, ours := is.marks.read(at, m)
	if !ours {
		return 0, m, true, foreign(at)
	}
	return k.term, m, true, nil
}

// fenced stops a mint of an older leader.
func (is *Issuer) fenced(ctx context.Context) error {
	term, _, _, err := is.readFence(ctx, is.mint)
	if err != nil {
		return lookError("read the fence", err)
	}
	return is.notOlder(term)
}

func (is *Issuer) notOlder(term uint64) error {
	if term <= is.term {
		return nil
	}
	at := is.fenceAt()
	return &issuers.Error{Kind: issuers.Superseded, Detail: "a leader of term " + strconv.FormatUint(term, 10) + " has fenced the target, and this one is of term " +
		strconv.FormatUint(is.term, 10) + "; if no other cluster of brokers uses the target: kubectl -n " + at.namespace + " delete configmap " + at.name}
}

// Fence implements [issuers.Fencer]: it raises the fence to the target's term. There
// are no connections to end.
func (is *Issuer) Fence(ctx context.Context) error {
	at := is.fenceAt()
	for i := range attempts {
		term, seen, there, err := is.readFence(ctx, is.end)
		if err != nil {
			return lookError("read the fence", err)
		}
		if there && term >= is.term {
			return is.notOlder(term)
		}
		obj := object{APIVersion: at.res.version(), Kind: at.res.kind, Metadata: is.marks.meta(at, mark{term: is.term}, time.Time{})}
		x := call{method: http.MethodPost, path: at.res.in(at.namespace), body: &obj, accept: asMetadata}
		if there {
			obj.Metadata.ResourceVersion = seen.ResourceVersion // refused if another has been quicker
			x.method, x.path = http.MethodPut, at.path()
		}
		err = is.end.do(ctx, x, nil)
		switch {
		case err == nil:
			return nil
		case isStatus(err, http.StatusConflict), there && isStatus(err, http.StatusNotFound):
		default:
			return is.makeError(at, "raise the fence", err)
		}
		if pause(ctx, i) != nil {
			break
		}
	}
	return &issuers.Error{Kind: issuers.Unknown, Detail: "the fence is never left alone"}
}
