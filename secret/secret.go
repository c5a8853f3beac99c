// Package secret holds one type: text that must never be printed.
//
// A credential, an admin password or a private key travels through Mayfly as a
// [Text]. Every way Go has of turning a value into characters (fmt, slog, JSON,
// %#v) yields [Redacted]; only [Text.Reveal] gives the content, so that a
// search for "Reveal(" lists every place where a secret leaves its wrapper.
//
// The package must know nothing of where secrets come from or go to.
package secret

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
)

// Redacted stands wherever a secret would otherwise have been printed.
const Redacted = "[redacted]"

// Text is a secret string. The zero value is the empty secret. A Text may be
// copied and shared freely; it is immutable.
type Text struct{ s string }

// New wraps s.
func New(s string) Text { return Text{s} }

// Reveal returns the secret itself. Call it only where the secret is handed to
// its consumer: a driver, a signer, the response body of the one delivery.
func (t Text) Reveal() string { return t.s }

// IsZero reports whether t is the empty secret.
func (t Text) IsZero() bool { return t.s == "" }

// Equal compares in time that depends only on the lengths.
func (t Text) Equal(u Text) bool {
	return subtle.ConstantTimeCompare([]byte(t.s), []byte(u.s)) == 1
}

// String implements [fmt.Stringer] and never reveals.
func (t Text) String() string { return Redacted }

// GoString implements [fmt.GoStringer] and never reveals.
func (t Text) GoString() string { return Redacted }

// Format implements [fmt.Formatter], so that no verb (%x, %q, %v) reveals.
func (t Text) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Redacted)) }

// LogValue implements [slog.LogValuer].
func (t Text) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalJSON implements [json.Marshaler] and never reveals.
func (t Text) MarshalJSON() ([]byte, error) { return json.Marshal(Redacted) }

// MarshalText implements [encoding.TextMarshaler] (YAML, map keys) and never reveals.
func (t Text) MarshalText() ([]byte, error) { return []byte(Redacted), nil }
