package federation

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/mayfly-broker/mayfly/issuers"
)

// minToken is shorter than any access token, in bytes.
const minToken = 8

// Issuer is what the issuers of such kinds have in common. Kinds embed it.
// Everything but closed is made once, by [Issuer.Init].
type Issuer struct {
	Log      *slog.Logger
	Provider *Provider
	HTTP     *http.Client
	longest  time.Duration
	closed   atomic.Bool
}

// Init fills in an issuer from a target and its spec. It makes no connection.
func (is *Issuer) Init(t issuers.Target, alg jose.SignatureAlgorithm, s *Spec) error {
	is.Log, is.longest = t.Log, s.Longest
	if is.Log == nil {
		is.Log = slog.New(slog.DiscardHandler)
	}
	var err error
	if is.Provider, err = Open(t, alg, s.Identity.Issuer, s.Identity.Audience); err != nil {
		return err
	}
	roots, err := Roots(s.TLS.CA, s.TLS.CAFile)
	if err != nil {
		return err
	}
	is.HTTP = NewHTTP(roots)
	return nil
}

// Admit says whether a lease may be minted now, under the name that the kind gives it.
func (is *Issuer) Admit(ctx context.Context, l issuers.Lease, name string) error {
	now := time.Now()
	switch {
	case is.closed.Load():
		return is.Usable()
	case ctx.Err() != nil:
		return TooLate("the caller no longer waits")
	case !now.Before(l.MintDeadline):
		return TooLate("the mint deadline has passed")
	case !now.Before(is.Expiry(l)):
		return TooLate("the lease, or the target's max_ttl from its start on, has ended")
	case l.Name != name:
		return Refused("the lease's name is not the one of its id and generation")
	}
	return nil
}

// Usable is an error once the issuer is closed.
func (is *Issuer) Usable() error {
	if is.closed.Load() {
		return Refused("the issuer is closed")
	}
	return nil
}

// Expiry is when a lease's credential ends: never after its lease.
func (is *Issuer) Expiry(l issuers.Lease) time.Time {
	end := l.NotAfter
	if capped := l.NotBefore.Add(is.longest); capped.Before(end) {
		end = capped
	}
	return end
}

// Publish implements [issuers.Publisher]: the documents of the target's identity
// provider.
func (is *Issuer) Publish(context.Context) (map[string][]byte, error) {
	return maps.Clone(is.Provider.Documents()), nil
}

// Close implements [issuers.Issuer]; it may be called again.
func (is *Issuer) Close() error {
	is.closed.Store(true)
	is.HTTP.CloseIdleConnections()
	return nil
}

// IsToken says whether a text can stand in a header as it is (RFC 6750 §2.1). longest
// is in bytes.
func IsToken(s string, longest int) bool {
	return len(s) >= minToken && len(s) <= longest && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// Refused is an error of that kind.
func Refused(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: fmt.Sprintf(format, args...)}
}

// TooLate is an error of that kind: nobody holds what may have been made.
func TooLate(detail string) *issuers.Error {
	return &issuers.Error{Kind: issuers.TooLate, Detail: detail + "; nothing was delivered"}
}

// HalfAnswer is a success of the question what that is none: half a credential is none.
func HalfAnswer(what string) *issuers.Error {
	return &issuers.Error{Kind: issuers.Unknown, Detail: what + ": the answer is not whole"}
}
