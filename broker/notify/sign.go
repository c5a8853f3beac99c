package notify

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/mayfly-broker/mayfly/secret"
)

// Headers of a message.
const (
	// HeaderSignature is "t=<Unix seconds>,v1=<hex>" with HMAC-SHA-256 over the
	// seconds' digits, a dot and the body's bytes.
	HeaderSignature = "Mayfly-Signature"
	// HeaderEventID repeats the event's id, by which a receiver knows what it has.
	HeaderEventID = "Mayfly-Event-Id"
)

// sign returns the value of [HeaderSignature].
func sign(key secret.Text, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(key.Reveal()))
	mac.Write([]byte(t))
	mac.Write([]byte{'.'})
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
