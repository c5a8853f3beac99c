package kv

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/secret"
)

// notice is in every credential: what a reader of the answer must know.
const notice = "static: whoever has read it knows it until it is changed at its source; the end of the lease ends nothing there"

// issuer hands out one target's entries. Everything but closed is made once, in
// Open: another version of the target is another issuer.
type issuer struct {
	spec    spec
	version uint64
	secrets map[string]secret.Text
	closed  atomic.Bool
}

// Open implements [issuers.Kind]. An entry without a value is Check's to report: the
// others can be delivered.
func (Kind) Open(t issuers.Target) (issuers.Issuer, error) {
	sp, err := parseSpec(t.Spec)
	if err != nil {
		return nil, err
	}
	i := &issuer{spec: sp, version: t.Version, secrets: map[string]secret.Text{}}
	for _, name := range sp.names {
		i.secrets[name] = t.Secrets[sealedName(name)]
	}
	return i, nil
}

// Mint implements [issuers.Issuer]. The clock of the target is this machine's. It
// hands out what stands there: a late re-mint takes nothing from a newer one
// (HAZARDS 9).
func (i *issuer) Mint(ctx context.Context, l issuers.Lease) (issuers.Credential, error) {
	var none issuers.Credential
	now, end := time.Now(), expiry(l, i.spec.maxTTL)
	switch {
	case i.closed.Load():
		return none, refused("the issuer is closed")
	case ctx.Err() != nil:
		return none, tooLate("the caller no longer waits")
	case !now.Before(l.MintDeadline):
		return none, tooLate("the mint deadline has passed")
	case !now.Before(end):
		return none, tooLate("the lease, or the target's max_ttl from its start on, has ended")
	case l.Name != Kind{}.CredentialName(l.ID, l.Generation):
		return none, refused("the lease's name is not the one of its id and generation")
	}
	names, err := i.spec.compile(l.Scope)
	if err != nil {
		return none, refused(err.Error())
	}
	c := issuers.Credential{
		Public: map[string]string{"version": strconv.FormatUint(i.version, 10), "expires_at": end.UTC().Format(time.RFC3339), "notice": notice},
		Secret: map[string]secret.Text{}, Env: map[string]string{},
	}
	for _, name := range names {
		e := i.spec.Entries[name]
		if !e.Expires.IsZero() && !now.Before(e.Expires) {
			return none, badScope("entry %s expired at %s; %s is to change it at its source and write it here", name, e.Expires.UTC().Format(time.RFC3339), e.Owner)
		}
		if err := e.checkValue(i.secrets[name]); err != nil {
			return none, badScope("entry %s cannot be delivered: %s; %s is to write it", name, err, e.Owner)
		}
		e.deliver(name, i.secrets[name], &c)
	}
	return c, nil
}

// deliver adds an entry to a credential. No entry's field meets one of ours: names
// of entries have no "_", and reserved keeps the plain words from them.
func (e *entry) deliver(name string, value secret.Text, c *issuers.Credential) {
	f := field(name)
	c.Secret[f] = value
	c.Env[variable(name)] = f
	c.Public[f+"_encoding"] = e.Encoding
	c.Public[f+"_owner"] = e.Owner
	if !e.Expires.IsZero() {
		c.Public[f+"_expires"] = e.Expires.UTC().Format(time.RFC3339)
	}
}

// checkValue says what is wrong with a value, and quotes nothing of it.
func (e *entry) checkValue(v secret.Text) error {
	text := v.Reveal()
	switch {
	case v.IsZero():
		return errors.New("it has no value yet")
	case len(text) > maxValueBytes:
		return fmt.Errorf("its value has %d bytes; at most %d are allowed", len(text), maxValueBytes)
	case e.Encoding == encodingBase64:
		// The form that every decoder takes; a file of base64(1) is broken into lines.
		if raw, err := base64.StdEncoding.Strict().DecodeString(text); err != nil || len(raw) == 0 || strings.ContainsAny(text, "\r\n") {
			return errors.New("its value is not base64 of the standard alphabet on one line, as base64 -w0 writes it")
		}
	case !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\ufffd"):
		return errors.New("its value is not text; write it as base64, with encoding: base64")
	}
	return nil
}

// expiry is when the lease no longer speaks for the secret.
func expiry(l issuers.Lease, maxTTL time.Duration) time.Time {
	end := l.NotAfter
	if capped := l.NotBefore.Add(maxTTL); capped.Before(end) {
		end = capped
	}
	return end.Truncate(time.Second)
}

// Withdraw has nothing to ask and nothing to end, and the receipt says so (HAZARDS
// 18). It never fails, also on a lease that was never minted.
func (i *issuer) Withdraw(_ context.Context, leases []issuers.Lease) []issuers.Outcome {
	out := make([]issuers.Outcome, len(leases))
	for n, l := range leases {
		what := "what it was for"
		if names, err := i.spec.compile(l.Scope); err == nil {
			what = strings.Join(names, ", ")
		}
		out[n].Receipt = issuers.Receipt{
			Proof:  issuers.ProofExpiresOnly,
			Detail: "nothing was withdrawn: whoever read " + what + " knows it until it is changed at its source; this lease delivers it no more",
		}
	}
	return out
}

// Check implements [issuers.Checker]: whether each entry can be delivered, and
// which are to be changed.
func (i *issuer) Check(ctx context.Context) ([]issuers.Finding, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now := time.Now()
	var out []issuers.Finding
	for _, name := range i.spec.names {
		e := i.spec.Entries[name]
		f := issuers.Finding{Name: "entry " + name, OK: true, Detail: "of " + e.Owner}
		if i.version > 0 { // of a draft there is none yet
			f.Detail = "version " + strconv.FormatUint(i.version, 10) + ", " + f.Detail
		}
		switch err := e.checkValue(i.secrets[name]); {
		case err != nil:
			f.OK, f.Detail, f.Fix = false, err.Error(), "in the target's document: entries: "+name+": value: {from_file: FILE}"
		case !e.Expires.IsZero() && !now.Before(e.Expires):
			f.OK, f.Detail = false, "expired at "+e.Expires.UTC().Format(time.RFC3339)+" and is no longer delivered; "+e.Owner+" is to change it at its source and write it here, with a new expires"
		case !e.Remind.IsZero() && !now.Before(e.Remind):
			f.OK, f.Warning, f.Detail = false, true, "is to be changed at its source by "+e.Owner+until(e.Expires)
		}
		out = append(out, f)
	}
	return out, nil
}

func until(expires time.Time) string {
	if expires.IsZero() {
		return ", since its remind has passed"
	}
	return "; it expires at " + expires.UTC().Format(time.RFC3339)
}

// Close implements [issuers.Issuer]; it may be called again.
func (i *issuer) Close() error {
	i.closed.Store(true)
	return nil
}

func refused(detail string) *issuers.Error {
	return &issuers.Error{Kind: issuers.Refused, Detail: detail}
}

func badScope(format string, args ...any) *issuers.Error {
	return &issuers.Error{Kind: issuers.BadScope, Detail: fmt.Sprintf(format, args...)}
}

func tooLate(detail string) *issuers.Error {
	return &issuers.Error{Kind: issuers.TooLate, Detail: detail + "; nothing was delivered"}
}
