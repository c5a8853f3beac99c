package cosign_test

import (
	"encoding/base64"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/cosign/cosigntest"
)

const domain = cosign.DomainGrant

// Two grants: whoever signed the first has not signed the other.
var (
	hash  = cosign.Sum(domain, []byte(`{"grant_id":"g1"}`))
	other = cosign.Sum(domain, []byte(`{"grant_id":"g2"}`))
)

// attempt is one try to have a signature of hash under domain believed.
type attempt struct {
	name string
	key  cosign.Key
	sig  cosign.Signature
	want string // part of the error; "" where it is an honest one
}

func (a attempt) file() string { return strings.ReplaceAll(a.name, " ", "-") + ".json" }

func (a attempt) vector() *vector {
	return &vector{Why: a.name, Key: a.key, Domain: domain, Hash: hash.String(), Signature: a.sig}
}

func seeded(variant string) *cosigntest.Person { return cosigntest.Seeded(variant, "alice") }

// attempts are the attacks that we know, and what they must not be confused with.
func attempts(t testing.TB) []attempt {
	var out []attempt
	for _, v := range cosigntest.Variants() {
		p := seeded(v)
		good := p.Sign(domain, hash)
		add := func(name string, k cosign.Key, s cosign.Signature, want string) {
			out = append(out, attempt{v + " " + name, k, s, want})
		}
		add("honest", p.Key(), good, "")
		add("of another grant", p.Key(), p.Sign(domain, other), map[string]string{
			cosign.KindPasskey: "challenge is not the hash", cosign.KindSSH: "not the key's", cosign.KindJWS: "payload is not",
		}[good.Kind])
		stranger := cosigntest.Seeded(v, "mallory")
		add("by another key", p.Key(), stranger.Sign(domain, hash), "names the key")
		renamed := stranger.Sign(domain, hash)
		renamed.Key = p.Thumbprint()
		if good.Kind == cosign.KindSSH {
			add("by another key renamed", p.Key(), renamed, "made with another key")
		} else if good.Kind == cosign.KindPasskey {
			add("by another key renamed", p.Key(), renamed, "is not the key's")
		} else {
			add("by another key renamed", p.Key(), renamed, "kid is")
		}
		unknown := good
		unknown.Verifier = 2
		add("of an unknown verifier", p.Key(), unknown, "verifier 2 is unknown")
	}
	out = append(out, passkeys(t)...)
	out = append(out, sshs(t)...)
	out = append(out, jwss()...)
	return append(out, confusions()...)
}

// passkeys vary one thing of an assertion each, and sign it properly.
func passkeys(t testing.TB) (out []attempt) {
	p := seeded(cosign.KindPasskey)
	origin := cosigntest.Origin
	client := string(cosigntest.ClientData(hash, origin))
	touch := func(flags byte, more ...byte) []byte {
		b := cosigntest.Touch(cosigntest.RPID)
		b[32] = flags
		return append(b, more...)
	}
	sign := func(name string, authenticator []byte, client, want string) {
		out = append(out, attempt{"passkey " + name, p.Key(), p.Passkey(authenticator, []byte(client)), want})
	}
	edit := func(name, from, to, want string) {
		edited := strings.Replace(client, from, to, 1)
		if edited == client {
			t.Fatalf("the client data lacks %s", from)
		}
		sign(name, touch(5), edited, want)
	}
	edit("origin of another", origin, "https://broker.example.evil.com", "origin is")
	edit("origin over http", origin, "http://broker.example", "origin is")
	edit("origin with a slash", origin, origin+"/", "origin is")
	edit("origin missing", `"origin":`, `"origim":`, "origin is")
	edit("second origin", origin, cosigntest.OtherOrigin, "")
	edit("origin with an escape", "https:", `https\u003a`, "")
	edit("cross origin", `"crossOrigin":false`, `"crossOrigin":true`, "crossOrigin is")
	edit("cross origin null", `"crossOrigin":false`, `"crossOrigin":null`, "crossOrigin is")
	edit("cross origin absent", `,"crossOrigin":false`, ``, "")
	edit("top origin", `"crossOrigin":false`, `"crossOrigin":false,"topOrigin":"https://evil.com"`, "topOrigin")
	edit("top origin empty", `"crossOrigin":false`, `"crossOrigin":false,"topOrigin":""`, "topOrigin")
	edit("type create", "webauthn.get", "webauthn.create", "type is")
	edit("challenge padded", `","origin"`, `=","origin"`, "challenge is not the hash")
	edit("challenge twice", `"origin"`, `"challenge":"AAAA","origin"`, "two members")
	edit("challenge twice by escape", `"origin"`, `"challeng\u0065":"AAAA","origin"`, "two members")
	edit("unknown member", `"crossOrigin":false`, `"crossOrigin":false,"other_keys":{"a":[1.5e3,null,{}]}`, "")
	edit("client data not UTF-8", `"crossOrigin"`, "\"\xff\"", "not UTF-8")
	sign("client data and more", touch(5), client+"{}", "something follows")
	sign("client data large", touch(5), client+strings.Repeat(" ", 4<<10), "at most 4096")
	sign("client data no object", touch(5), `"webauthn.get"`, "not an object")
	sign("UP missing", touch(4), client, "user presence")
	sign("UV missing", touch(1), client, "user verification")
	sign("flags without extensions", touch(0x85), client, "disagree")
	sign("extensions without flags", touch(5, 0xa0), client, "disagree")
	sign("extensions", touch(0x85, 0xa0), client, "")
	sign("extensions large", touch(0x85, make([]byte, 4<<10)...), client, "authenticator data has")
	sign("authenticator data cut", touch(5)[:36], client, "authenticator data has")
	sign("backed up", touch(0x1d), client, "")
	sign("RP of another", cosigntest.Touch("evil.com"), client, "another RP id")
	good := p.Sign(domain, hash)
	assert := func(name string, der []byte, want string) {
		s := good
		s.Assertion = der
		out = append(out, attempt{"passkey " + name, p.Key(), s, want})
	}
	r, s := split(good.Assertion)
	assert("high s", join(r, new(big.Int).Sub(order, s)), "") // see Verify: nobody's name
	assert("s beyond the order", join(r, new(big.Int).Add(order, s)), "ECDSA signature")
	assert("zeros", []byte{0x30, 6, 2, 1, 0, 2, 1, 0}, "not the key's")
	assert("DER and more", append(slices.Clone(good.Assertion), 0), "in DER")
	assert("DER long length", append([]byte{0x30, 0x81}, good.Assertion[1:]...), "in DER")
	assert("DER cut", good.Assertion[:len(good.Assertion)-1], "in DER")
	assert("empty", nil, "in DER")
	ed := seeded(cosigntest.PasskeyEd25519)
	long := ed.Sign(domain, hash)
	long.Assertion = append(long.Assertion, 0)
	return append(out, attempt{"passkey ed25519 and more", ed.Key(), long, "Ed25519 signature"})
}

// sshs vary one thing of an SSHSIG each.
func sshs(t testing.TB) (out []attempt) {
	add := func(name string, p *cosigntest.Person, s cosign.Signature, want string) {
		out = append(out, attempt{"ssh " + name, p.Key(), s, want})
	}
	p := seeded(cosign.KindSSH)
	add("sha256", p, p.SSH(cosigntest.SSHMessage(domain, "", "sha256", hash[:]), 0), "")
	add("domain of a change", p, p.Sign(cosign.DomainChange, hash), "namespace is")
	add("namespace of git", p, p.SSH(cosigntest.SSHMessage("git", "", "sha512", hash[:]), 0), "namespace is")
	add("reserved", p, p.SSH(cosigntest.SSHMessage(domain, "x", "sha512", hash[:]), 0), "reserved")
	add("unknown hash algorithm", p, p.SSH(cosigntest.SSHMessage(domain, "", "sha1", hash[:]), 0), "hash algorithm is")
	add("hash in hex", p, p.SSH(cosigntest.SSHMessage(domain, "", "sha512", []byte(hash.String())), 0), "not the key's")
	good := p.Sign(domain, hash)
	blob := func(name string, b []byte, want string) {
		s := good
		s.SSHSIG = b
		add(name, p, s, want)
	}
	blob("and more", append(slices.Clone(good.SSHSIG), 0), "something follows")
	blob("cut", good.SSHSIG[:len(good.SSHSIG)-1], "is cut")
	blob("empty", nil, "does not begin")
	blob("large", append(slices.Clone(good.SSHSIG), make([]byte, 2<<10)...), "at most 2048")
	v2 := slices.Clone(good.SSHSIG)
	v2[9] = 2
	blob("version 2", v2, "version 1")
	huge := slices.Clone(good.SSHSIG)
	huge[10] = 0xff // the length of the key
	blob("length beyond the end", huge, "is cut")

	ec := seeded(cosigntest.SSHECDSA)
	sig := ec.Sign(domain, hash)
	swap := func(name string, from, to []byte, want string) {
		s := sig
		s.SSHSIG = replaceInner(t, sig.SSHSIG, from, to)
		add(name, ec, s, want)
	}
	r, s := mpints(t, sig.SSHSIG)
	neg := new(big.Int).Sub(order, s)
	swap("ecdsa high s", pair(mpint(r), mpint(s)), pair(mpint(r), mpint(neg)), "")
	swap("ecdsa leading zeros", pair(mpint(r), mpint(s)), pair(append([]byte{0, 0}, mpint(r)...), mpint(s)), "canonical mpints")
	swap("ecdsa negative", pair(mpint(r), mpint(s)), pair(mpint(r), append([]byte{0xff}, mpint(s)...)), "canonical mpints")
	swap("ecdsa zero", pair(mpint(r), mpint(s)), pair(mpint(r), []byte{}), "canonical mpints")
	swap("ecdsa beyond the order", pair(mpint(r), mpint(s)), pair(mpint(r), mpint(new(big.Int).Add(order, s))), "ECDSA signature")
	swap("ecdsa three numbers", pair(mpint(r), mpint(s)), append(pair(mpint(r), mpint(s)), 0, 0, 0, 0), "canonical mpints")

	for _, v := range []string{cosigntest.SSHEd25519SK, cosigntest.SSHECDSASK} {
		name := strings.TrimPrefix(v, "ssh ")
		sk := seeded(v)
		message := cosigntest.SSHMessage(domain, "", "sha512", hash[:])
		add(name+" UP missing", sk, sk.SSH(message, 0x04), "user presence")
		add(name+" with UV", sk, sk.SSH(message, 0x05), "")
		renamed := sk.Key()
		renamed.Application = "ssh:other"
		out = append(out, attempt{"ssh " + name + " of another application", renamed, sk.Sign(domain, hash), "made with another key"})
		flagged := sk.SSH(message, 0)
		n := len(flagged.SSHSIG)
		flagged.SSHSIG[n-5] = 1
		add(name+" UP set afterwards", sk, flagged, "not the key's")
	}
	return out
}

// jwss vary one thing of a JWS each.
func jwss() (out []attempt) {
	p := seeded(cosign.KindJWS)
	add := func(name string, s cosign.Signature, want string) {
		out = append(out, attempt{"jws " + name, p.Key(), s, want})
	}
	header := func(name, json, want string) { add(name, p.JWS([]byte(json), hash[:]), want) }
	header("alg alone", `{"alg":"ES256"}`, "")
	header("spaces", " { \"alg\" : \"ES256\" }\n", "")
	header("alg none", `{"alg":"none"}`, "alg is")
	header("alg HS256", `{"alg":"HS256"}`, "alg is")
	header("alg EdDSA", `{"alg":"EdDSA"}`, "alg is")
	header("alg missing", `{}`, "alg is")
	header("alg twice", `{"alg":"ES256","alg":"none"}`, "two members")
	header("typ JWT", `{"alg":"ES256","typ":"JWT"}`, "typ is")
	header("typ of a change", `{"alg":"ES256","typ":"`+cosign.DomainChange+`+jws"}`, "typ is")
	header("typ", `{"alg":"ES256","typ":"`+domain+`+jws"}`, "")
	header("kid of another", `{"alg":"ES256","kid":"`+cosigntest.Seeded(cosign.KindJWS, "mallory").Thumbprint()+`"}`, "kid is")
	header("crit", `{"alg":"ES256","crit":["b64"]}`, "the member 'crit'")
	header("b64", `{"alg":"ES256","b64":false}`, "the member 'b64'")
	header("jwk", `{"alg":"ES256","jwk":`+string(p.Key().JWK)+`}`, "the member 'jwk'")
	header("x5c", `{"alg":"ES256","x5c":[]}`, "the member 'x5c'")
	header("jku", `{"alg":"ES256","jku":"https://evil.com"}`, "the member 'jku'")
	header("header large", `{"alg":"ES256"`+strings.Repeat(" ", 600)+`}`, "at most")
	header("header and more", `{"alg":"ES256"}{}`, "something follows")
	header("header no object", `[]`, "not an object")
	add("payload in hex", p.JWS([]byte(`{"alg":"ES256"}`), []byte(hash.String())), "payload is not")
	good := p.Sign(domain, hash)
	compact := func(name, jws, want string) {
		s := good
		s.JWS = jws
		add(name, s, want)
	}
	parts := strings.Split(good.JWS, ".")
	compact("four parts", good.JWS+".", "three parts")
	compact("two parts", parts[0]+"."+parts[1], "three parts")
	compact("without signature", parts[0]+"."+parts[1]+".", "0 bytes, not 64")
	compact("padded", good.JWS+"=", "canonical base64url")
	compact("line end", good.JWS+"\n", "canonical base64url")
	compact("line end within", parts[0]+"."+parts[1]+"\r\n."+parts[2], "canonical base64url")
	compact("loose last bits", parts[0]+"."+loosen(parts[1])+"."+parts[2], "canonical base64url")
	compact("large", strings.Repeat("A", 1025), "at most 1024")
	compact("empty", "", "three parts")
	sig, _ := base64.RawURLEncoding.DecodeString(parts[2])
	der := join(new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
	compact("in DER", parts[0]+"."+parts[1]+"."+base64.RawURLEncoding.EncodeToString(der), "not 64")
	compact("zeros", parts[0]+"."+parts[1]+"."+base64.RawURLEncoding.EncodeToString(make([]byte, 64)), "not the key's")
	return out
}

// confusions offer one kind of signature, or of key, for another.
func confusions() (out []attempt) {
	jws, ssh, passkey := seeded(cosigntest.JWSEd25519), seeded(cosign.KindSSH), seeded(cosigntest.PasskeyEd25519)
	add := func(name string, k cosign.Key, s cosign.Signature, want string) {
		out = append(out, attempt{"confused " + name, k, s, want})
	}
	add("jws for ssh", ssh.Key(), jws.Sign(domain, hash), "signature's kind is")
	add("ssh for passkey", passkey.Key(), ssh.Sign(domain, hash), "signature's kind is")
	add("passkey for jws", jws.Key(), passkey.Sign(domain, hash), "signature's kind is")
	add("no kind", jws.Key(), cosign.Signature{Verifier: 1}, "signature's kind is")

	// One private key of two kinds: the parts of one do not serve for the other.
	k := ssh.Key()
	k.Kind, k.SSHType = cosign.KindJWS, ""
	s := ssh.Sign(domain, hash)
	s.Kind = cosign.KindJWS
	add("parts of another kind", k, s, "parts of another kind")
	both := jws.Sign(domain, hash)
	both.SSHSIG = ssh.Sign(domain, hash).SSHSIG
	add("parts of two kinds", jws.Key(), both, "parts of another kind")
	k.JWK = json.RawMessage(`{"kty":"oct","k":"AAAA"}`)
	add("symmetric key", k, jws.Sign(domain, hash), "kty is")
	k.JWK = nil
	add("no key", k, jws.Sign(domain, hash), "the JWK")
	add("no key at all", cosign.Key{}, cosign.Signature{Verifier: 1}, "the JWK")
	// Order 1: R = sB verifies for every message.
	k.JWK = json.RawMessage(`{"kty":"OKP","crv":"Ed25519","x":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`)
	add("key for which anybody can sign", k, jws.Sign(domain, hash), "anybody can sign")
	return out
}
