package cosign

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
)

// maxSSHLine bounds an authorized key, in bytes, comment included.
const maxSSHLine = 2048

// ParseSSH reads an SSH public key as it stands in an authorized_keys or .pub
// file, without options. Errors are [*Error].
func ParseSSH(line string) (Key, error) {
	fields := strings.Fields(line)
	if len(line) > maxSSHLine || len(fields) < 2 {
		return Key{}, refuse(ruleKey, "an SSH public key is a line of type, key in base64 and comment, of at most %d bytes", maxSSHLine)
	}
	blob, err := base64.StdEncoding.Strict().DecodeString(fields[1])
	if err != nil {
		return Key{}, refuse(ruleKey, "the SSH key is no base64")
	}
	k := Key{Kind: KindSSH, SSHType: fields[0]}
	var name, curve, point, application []byte
	w := wire(blob)
	ok := false
	switch k.SSHType {
	case sshEd25519:
		ok = w.texts(0, &name, &point)
	case sshEd25519SK:
		ok = w.texts(0, &name, &point, &application)
	case sshECDSA:
		ok = w.texts(0, &name, &curve, &point)
	case sshECDSASK:
		ok = w.texts(0, &name, &curve, &point, &application)
	default:
		return Key{}, refuse(ruleKey, "the SSH key's type is %s; %s, %s and their sk- forms are known", echo([]byte(k.SSHType)), sshEd25519, sshECDSA)
	}
	if !ok || string(name) != k.SSHType {
		return Key{}, refuse(ruleKey, "the SSH key is cut, or is not of the type that it begins with")
	}
	k.Application = string(application)
	encode := base64.RawURLEncoding.EncodeToString
	jwk := `{"crv":"Ed25519","kty":"OKP","x":"` + encode(point) + `"}`
	if curve != nil {
		if len(point) != 65 || point[0] != 4 {
			return Key{}, refuse(ruleKey, "the SSH key's point is not an uncompressed one of P-256")
		}
		jwk = `{"crv":"P-256","kty":"EC","x":"` + encode(point[1:33]) + `","y":"` + encode(point[33:]) + `"}`
	}
	k.JWK = json.RawMessage(jwk)
	p, err := k.check()
	if err != nil {
		return Key{}, err
	}
	if !bytes.Equal(k.sshPublic(p), blob) {
		return Key{}, refuse(ruleKey, "the SSH key is written in another way than it would be here")
	}
	return k, nil
}

// SSH returns an SSH key as it stands in an authorized_keys file, without a
// comment. Other kinds have no such form, which is an error.
func (k Key) SSH() (string, error) {
	p, err := k.check()
	if err != nil {
		return "", err
	}
	if k.Kind != KindSSH {
		return "", refuse(ruleKey, "a key of kind %s has no SSH form", k.Kind)
	}
	return k.SSHType + " " + base64.StdEncoding.EncodeToString(k.sshPublic(p)), nil
}
