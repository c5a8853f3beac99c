package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// outcome is what an attempt came to.
type outcome struct {
	// problem is "" for success. It is made of our own words alone: nothing that
	// the receiver wrote, and no part of the address, which may be a secret.
	problem string
	// refused says that the receiver calls the message itself wrong.
	refused bool
	// after is how long the receiver asks to be left alone; 0 where it does not.
	after time.Duration
}

// poster sends one body to one sink.
type poster interface {
	post(ctx context.Context, s Sink, eventID string, body []byte) outcome
}

// web posts over HTTP, with verified TLS, to where [mayDial] lets it. It follows
// no redirect, keeps no cookie and uses no proxy.
type web struct {
	secure, local *http.Transport
	now           func() time.Time
}

func newWeb(roots *x509.CertPool, now func() time.Time) *web {
	transport := func(secure bool) *http.Transport {
		return &http.Transport{
			DialContext:            dialer(secure),
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    attemptTimeout,
			ResponseHeaderTimeout:  attemptTimeout,
			MaxResponseHeaderBytes: maxAnswerHeaders,
			DisableKeepAlives:      true,
			DisableCompression:     true,
		}
	}
	return &web{secure: transport(true), local: transport(false), now: now}
}

func (w *web) post(ctx context.Context, s Sink, eventID string, body []byte) outcome {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL.Reveal(), bytes.NewReader(body))
	if err != nil || req.URL.User != nil {
		return outcome{problem: "the url cannot be read"}
	}
	var transport *http.Transport
	switch req.URL.Scheme {
	case "https":
		transport = w.secure
	case "http":
		transport = w.local
	default:
		return outcome{problem: "the url is not https"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "mayfly")
	req.Header.Set(HeaderEventID, eventID)
	if !s.Secret.IsZero() {
		req.Header.Set(HeaderSignature, sign(s.Secret, w.now(), body))
	}
	resp, err := transport.RoundTrip(req) // no client, so no redirects
	if err != nil {
		return outcome{problem: describe(err)}
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer)
	_ = resp.Body.Close()
	return judge(resp)
}

// judge reads an answer's status. A body that stays open or is cut off changes
// nothing: the receiver has answered.
func judge(resp *http.Response) outcome {
	code := resp.StatusCode
	switch {
	case code >= 200 && code < 300:
		return outcome{}
	case code >= 300 && code < 400:
		return outcome{problem: fmt.Sprintf("status %d: redirects are not followed; configure where they lead", code)}
	}
	out := outcome{problem: fmt.Sprintf("status %d", code)}
	out.refused = code == http.StatusBadRequest || code == http.StatusRequestEntityTooLarge || code == http.StatusUnprocessableEntity
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		out.after = min(time.Duration(min(s, int(maxBackoff/time.Second)))*time.Second, maxBackoff)
	}
	return out
}

// describe says in our own words what went wrong: an error's text may quote the
// receiver or the address.
func describe(err error) string {
	var (
		dns     *net.DNSError
		cert    *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		alert   tls.AlertError
		errno   syscall.Errno
		timeout interface{ Timeout() bool }
	)
	switch {
	case errors.Is(err, errRefused):
		return "the address is refused: link-local and metadata addresses are not told anything, and http is for this host only"
	case errors.As(err, &cert):
		return "its certificate is not trusted or is not for this name"
	case errors.As(err, &record), errors.As(err, &alert):
		return "it does not speak TLS as it should"
	case errors.As(err, &dns):
		return "its name does not resolve"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no answer within %v", attemptTimeout)
	case errors.As(err, &errno):
		return "cannot connect: " + errno.Error()
	}
	return "the connection broke, or the answer was not HTTP"
}
