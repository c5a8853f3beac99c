package azure

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/secret"
)

// version is that of the storage services' protocol, and of what a SAS signs.
const version = "2022-11-02"

const timeForm = "2006-01-02T15:04:05Z"

// delegationKey is Get User Delegation Key's answer.
type delegationKey struct {
	XMLName xml.Name `xml:"UserDelegationKey"`
	OID     string   `xml:"SignedOid"`
	TID     string   `xml:"SignedTid"`
	Start   string   `xml:"SignedStart"`
	Expiry  string   `xml:"SignedExpiry"`
	Service string   `xml:"SignedService"`
	Version string   `xml:"SignedVersion"`
	Value   string   `xml:"Value"`
}

// readKey takes an answer if it is whole. What goes into the signed text holds no
// line of another's.
func readKey(body []byte) (delegationKey, error) {
	var k delegationKey
	if xml.Unmarshal(body, &k) != nil {
		return k, errors.New("the answer is no user delegation key")
	}
	for _, v := range []string{k.OID, k.TID, k.Start, k.Expiry, k.Service, k.Version, k.Value} {
		if v == "" || len(v) > 256 || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return delegationKey{}, errors.New("the user delegation key is not whole")
		}
	}
	return k, nil
}

// sas signs a shared access signature ("Create a user delegation SAS", version
// 2020-12-06 and later). It returns the query string.
func (s *spec) sas(g grant, k delegationKey, start, end time.Time) (secret.Text, error) {
	raw, err := base64.StdEncoding.DecodeString(k.Value)
	if err != nil || len(raw) < 16 {
		return secret.Text{}, errors.New("the user delegation key is not base64")
	}
	from, until := start.UTC().Format(timeForm), end.UTC().Format(timeForm)
	resource := "/blob/" + s.Account + "/" + g.container
	if g.path != "" {
		resource += "/" + g.path
	}
	mac := hmac.New(sha256.New, raw)
	_, _ = fmt.Fprint(mac, strings.Join([]string{
		g.permissions, from, until, resource,
		k.OID, k.TID, k.Start, k.Expiry, k.Service, k.Version,
		"", "", "", // authorised and unauthorised user's object id, correlation id
		s.IPRange, "https", version, g.kind,
		"", "", // snapshot, encryption scope
		"", "", "", "", "", // headers of the answer
	}, "\n"))
	q := url.Values{
		"sv": {version}, "sr": {g.kind}, "sp": {g.permissions}, "st": {from}, "se": {until}, "spr": {"https"},
		"skoid": {k.OID}, "sktid": {k.TID}, "skt": {k.Start}, "ske": {k.Expiry}, "sks": {k.Service}, "skv": {k.Version},
		"sig": {base64.StdEncoding.EncodeToString(mac.Sum(nil))},
	}
	if s.IPRange != "" {
		q.Set("sip", s.IPRange)
	}
	if g.kind == ofDirectory {
		q.Set("sdd", strconv.Itoa(g.depth()))
	}
	return secret.New(q.Encode()), nil
}
