package clienttest

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

var algorithms = []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA}

// word returns 128 random bits as text.
func word() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// openJWS verifies a JWS that carries its own key, and returns the key's
// thumbprint. Whose key it is, is not its business.
func openJWS(text, typ string, claims any) (jkt string, ok bool) {
	tok, err := jwt.ParseSigned(text, algorithms)
	if err != nil || len(tok.Headers) != 1 {
		return "", false
	}
	h := tok.Headers[0]
	if h.ExtraHeaders[jose.HeaderType] != typ || h.JSONWebKey == nil || !h.JSONWebKey.IsPublic() {
		return "", false
	}
	if err := tok.Claims(h.JSONWebKey.Key, claims); err != nil {
		return "", false
	}
	return thumbprint(*h.JSONWebKey), true
}

func thumbprint(jwk jose.JSONWebKey) string {
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// checkProof does RFC 9449 §4.3. It returns the key's thumbprint, or the code
// of what is wrong.
func (nd *node) checkProof(r *http.Request, token string) (jkt, code string) {
	values := r.Header.Values("DPoP")
	if len(values) != 1 {
		return "", "invalid_dpop_proof"
	}
	var c struct {
		ID     string `json:"jti"`
		Method string `json:"htm"`
		URL    string `json:"htu"`
		Issued int64  `json:"iat"`
		Hash   string `json:"ath"`
		Nonce  string `json:"nonce"`
	}
	jkt, ok := openJWS(values[0], "dpop+jwt", &c)
	sum := sha256.Sum256([]byte(token))
	ath := base64.RawURLEncoding.EncodeToString(sum[:])
	if token == "" {
		ath = ""
	}
	age := time.Since(time.Unix(c.Issued, 0))
	want := "https://" + nd.server.Listener.Addr().String() + r.URL.EscapedPath()
	switch {
	case !ok, c.Method != r.Method, c.URL != want, c.Hash != ath, age > time.Minute, age < -time.Minute, c.ID == "":
		return "", "invalid_dpop_proof"
	case c.Nonce != nd.nonce:
		return "", "use_dpop_nonce"
	case nd.seen[c.ID]:
		return "", "dpop_proof_replayed"
	}
	nd.seen[c.ID] = true
	return jkt, ""
}

// assertion verifies a private_key_jwt and returns the key that signed it.
func assertion(token string) (jkt, principal string, ok bool) {
	var c struct {
		Issuer   string          `json:"iss"`
		Subject  string          `json:"sub"`
		Audience json.RawMessage `json:"aud"`
		Expires  int64           `json:"exp"`
		Key      struct {
			Thumbprint string `json:"jkt"`
		} `json:"cnf"`
	}
	jkt, ok = openJWS(token, "client-authentication+jwt", &c)
	aud := []string{`"` + Issuer + `"`, `["` + Issuer + `"]`}
	if !ok || c.Issuer != c.Subject || !slices.Contains(aud, string(c.Audience)) || time.Now().After(time.Unix(c.Expires, 0)) || c.Key.Thumbprint != jkt {
		return "", "", false
	}
	return jkt, c.Subject, true
}

// enrolmentToken writes a token as the broker does: version, length, secret, CA
// hash, addresses, checksum.
func enrolmentToken(caHash [32]byte, addresses []string) string {
	var secret [32]byte
	_, _ = rand.Read(secret[:])
	tail := []byte{byte(len(addresses))}
	for _, a := range addresses {
		tail = append(append(tail, byte(len(a))), a...)
	}
	out := binary.BigEndian.AppendUint16([]byte{1}, uint16(3+64+len(tail)+4))
	out = append(append(append(out, secret[:]...), caHash[:]...), tail...)
	sum := sha256.Sum256(out)
	return "mfe_" + base64.RawURLEncoding.EncodeToString(append(out, sum[:4]...))
}

// presented is how a client hands a token in: with a secret that derives from
// the token's own.
func presented(token string) string {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, "mfe_"))
	if err != nil || len(raw) < 35+4 {
		return token
	}
	mac := hmac.New(sha256.New, raw[3:35])
	mac.Write([]byte("mayfly.enrol.login.v1"))
	copy(raw[3:], mac.Sum(nil))
	raw = raw[:len(raw)-4]
	sum := sha256.Sum256(raw)
	return "mfe_" + base64.RawURLEncoding.EncodeToString(append(raw, sum[:4]...))
}
