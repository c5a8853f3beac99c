package client

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// DefaultRetry is how long a call goes on trying where the configuration
	// says nothing.
	DefaultRetry = 30 * time.Second
	// DefaultPort is the port of an address that names none.
	DefaultPort = "8700"

	maxAddresses = 32
	maxCAFile    = 1 << 20 // a bundle of some hundred certificates
	maxTokenFile = 64 << 10
)

// Ways to bind a session to the client's key.
const (
	BindDPoP = "dpop" // a signed proof with each request (RFC 9449)
	BindMTLS = "mtls" // the TLS client certificate (RFC 8705)
)

// Config says where the cluster is and how to log in. The zero value uses what
// an enrolment left in the default home.
type Config struct {
	// Addresses are the nodes: host:port or https URLs, tried in this order.
	// Empty means those that the home remembers from its enrolment.
	Addresses []string
	// CAFile is a PEM file with the only CA that the cluster's certificates may
	// come from. Empty means the home's, and where there is none, the system's.
	CAFile string
	// Home is the directory of keys and session, made with mode 0700. Empty
	// means that key and session live in memory only.
	Home string
	// Method is the name of the AuthMethod; "key" is the home's key; empty picks
	// by what is there.
	Method string
	// JWTFile holds an ID token; it is read anew for each login.
	JWTFile string
	// Audience is what ID tokens are asked for; empty means the cluster's issuer.
	Audience string
	// PlainAudience leaves the key's thumbprint out of the audience that is asked
	// of a CI provider, for methods without key_in_audience.
	PlainAudience bool
	// Principal is who the home's key belongs to; empty means who enrolled it.
	Principal string
	// Binding is [BindDPoP] (also when empty) or [BindMTLS].
	Binding string
	// CertFile and KeyFile are a TLS client certificate of another authority,
	// such as an X.509-SVID; they imply [BindMTLS].
	CertFile, KeyFile string
	// Retry is how long unavailability is retried; 0 means not at all. See
	// [DefaultRetry].
	Retry time.Duration
	// OnRetry, where set, hears of each wait before a retry.
	OnRetry func(err error, wait time.Duration)
	// LookupEnv reads what a CI provider or SPIFFE left in the environment;
	// nil means that there is nothing to find.
	LookupEnv func(string) (string, bool)

	caPEM []byte // instead of CAFile, while enrolling
}

// FromEnvironment reads a configuration from MAYFLY_ADDR, MAYFLY_CACERT,
// MAYFLY_HOME, MAYFLY_METHOD, MAYFLY_JWT_FILE and their like; lookup is
// usually [os.LookupEnv]. The error is an *[Error] of kind invalid.
func FromEnvironment(lookup func(string) (string, bool)) (Config, error) {
	get := func(name string) string {
		v, _ := lookup("MAYFLY_" + name)
		return strings.TrimSpace(v)
	}
	cfg := Config{
		CAFile: get("CACERT"), Home: get("HOME"), Method: get("METHOD"), JWTFile: get("JWT_FILE"),
		Audience: get("AUDIENCE"), Principal: get("PRINCIPAL"), Binding: get("BINDING"),
		CertFile: get("CERT_FILE"), KeyFile: get("KEY_FILE"), Retry: DefaultRetry, LookupEnv: lookup,
	}
	cfg.Addresses = SplitAddresses(get("ADDR"))
	if cfg.Home == "" {
		if home, ok := lookup("HOME"); ok && home != "" {
			cfg.Home = filepath.Join(home, ".mayfly")
		}
	}
	if v := get("RETRY"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return cfg, newError(KindInvalid, CodeConfiguration, "MAYFLY_RETRY=%q is not a duration; write it like 30s.", v)
		}
		cfg.Retry = d
	}
	if v := get("PLAIN_AUDIENCE"); v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return cfg, newError(KindInvalid, CodeConfiguration, "MAYFLY_PLAIN_AUDIENCE=%q is neither true nor false.", v)
		}
		cfg.PlainAudience = b
	}
	return cfg, nil
}

// SplitAddresses takes MAYFLY_ADDR's comma-separated list apart.
func SplitAddresses(list string) []string {
	var out []string
	for _, a := range strings.Split(list, ",") {
		if a = strings.TrimSpace(a); a != "" {
			out = append(out, a)
		}
	}
	return out
}

// baseURL makes an address an https URL without a trailing slash.
func baseURL(address string) (string, error) {
	bare := !strings.Contains(address, "://")
	if bare {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Host, ":") {
		return "", newError(KindInvalid, CodeConfiguration, "%q is not a node's address; write host:port or https://host:port.", address)
	}
	if u.Scheme != "https" {
		return "", newError(KindInvalid, CodeConfiguration, "%q is not https; Mayfly speaks TLS only.", address)
	}
	if bare && u.Port() == "" {
		u.Host += ":" + DefaultPort
	}
	return strings.TrimRight(u.String(), "/"), nil
}

func baseURLs(addresses []string) ([]string, error) {
	if len(addresses) > maxAddresses {
		return nil, newError(KindInvalid, CodeConfiguration, "%d addresses; at most %d are allowed.", len(addresses), maxAddresses)
	}
	var out []string
	for _, a := range addresses {
		u, err := baseURL(a)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}

// readBounded reads a small file; more than limit bytes are an error.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return data, nil
}

// tlsConfig trusts the one CA, or with none given the system's.
func tlsConfig(pool *x509.CertPool, certificate *tls.Certificate) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	if certificate != nil {
		// Nobody's list of acceptable CAs applies: the broker knows a
		// self-signed certificate by its thumbprint.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	return cfg
}

func loadPool(path string) (*x509.CertPool, error) {
	pem, err := readBounded(path, maxCAFile)
	if err != nil {
		e := newError(KindInvalid, CodeConfiguration, "The CA file %s cannot be read; MAYFLY_CACERT names it.", path)
		e.Err = err
		return nil, e
	}
	return poolOf(pem, "The CA file "+path)
}

func poolOf(pem []byte, what string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, newError(KindInvalid, CodeConfiguration, "%s holds no certificate in PEM.", what)
	}
	return pool, nil
}
