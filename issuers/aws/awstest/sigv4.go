package awstest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// signature is what a request's Authorization header says (Signature Version 4).
type signature struct {
	keyID, date, region, service string
	headers                      []string
	hex                          string
	at                           time.Time
}

// maxAge is how old a signature may be: what AWS documents.
const maxAge = 5 * time.Minute

func readSignature(r *http.Request) (s signature, err error) {
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return s, errors.New("no signature")
	}
	parts := map[string]string{}
	for p := range strings.SplitSeq(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		parts[k] = v
	}
	scope := strings.Split(parts["Credential"], "/")
	if len(scope) != 5 || scope[4] != "aws4_request" {
		return s, errors.New("the credential scope does not read")
	}
	s = signature{keyID: scope[0], date: scope[1], region: scope[2], service: scope[3], headers: strings.Split(parts["SignedHeaders"], ";"), hex: parts["Signature"]}
	if s.at, err = time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date")); err != nil || s.at.Format("20060102") != s.date {
		return s, errors.New("X-Amz-Date does not read, or is not the scope's")
	}
	need := []string{"host", "x-amz-date"}
	if r.Header.Get("X-Amz-Security-Token") != "" {
		need = append(need, "x-amz-security-token")
	}
	for _, h := range need {
		if !slices.Contains(s.headers, h) {
			return s, errors.New(h + " is not signed")
		}
	}
	return s, nil
}

// valid computes the signature anew, by the specification and none of the SDK's code.
func (s signature) valid(r *http.Request, body []byte, secret string) bool {
	hash := func(b []byte) string { sum := sha256.Sum256(b); return hex.EncodeToString(sum[:]) }
	sign := func(key []byte, text string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	var headers strings.Builder
	for _, h := range s.headers {
		v := r.Header.Get(h)
		switch h {
		case "host":
			v = r.Host
		case "content-length":
			v = r.Header.Get("Content-Length")
		}
		headers.WriteString(h + ":" + strings.TrimSpace(v) + "\n")
	}
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	query := strings.ReplaceAll(url.Values(r.URL.Query()).Encode(), "+", "%20")
	canonical := strings.Join([]string{r.Method, path, query, headers.String(), strings.Join(s.headers, ";"), hash(body)}, "\n")
	scope := strings.Join([]string{s.date, s.region, s.service, "aws4_request"}, "/")
	text := strings.Join([]string{"AWS4-HMAC-SHA256", s.at.Format("20060102T150405Z"), scope, hash([]byte(canonical))}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range strings.Split(scope, "/") {
		key = sign(key, part)
	}
	return hmac.Equal([]byte(hex.EncodeToString(sign(key, text))), []byte(s.hex))
}
