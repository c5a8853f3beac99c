package identity

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// endpoint is a normalised URL without query and fragment (RFC 3986 §6.2.2 and
// §6.2.3): the form in which a proof's htu and a request are compared.
type endpoint struct {
	origin string // https://host or https://host:port, lower case, no default port
	path   string // starts with /; escapes in upper case, unreserved characters plain
}

// parseEndpoint normalises an absolute https URL. Its query and fragment are
// ignored, as RFC 9449 §4.3 asks.
func parseEndpoint(text string) (endpoint, error) {
	if len(text) > maxURL {
		return endpoint{}, fmt.Errorf("it is longer than %d bytes", maxURL)
	}
	u, err := url.Parse(text)
	if err != nil {
		return endpoint{}, errors.New("it is not a URL")
	}
	if !strings.EqualFold(u.Scheme, "https") || u.Host == "" || u.User != nil || u.Opaque != "" {
		return endpoint{}, errors.New("it is not an absolute https URL without user")
	}
	host := strings.ToLower(u.Hostname())
	for _, r := range host {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune(`%\/?#@[]`, r) {
			return endpoint{}, errors.New("its host is not a plain name or address")
		}
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port := u.Port(); port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return endpoint{}, errors.New("its port is not a port")
		}
		if n != 443 {
			host += ":" + strconv.FormatUint(n, 10)
		}
	} else if strings.HasSuffix(u.Host, ":") && host == "" {
		return endpoint{}, errors.New("it has no host")
	}
	if host == "" {
		return endpoint{}, errors.New("it has no host")
	}
	path, err := normalPath(u.EscapedPath())
	if err != nil {
		return endpoint{}, err
	}
	return endpoint{origin: "https://" + host, path: path}, nil
}

const upperHex = "0123456789ABCDEF"

// normalPath normalises an escaped path. Dot segments are refused, not
// resolved: proxies and routers disagree about them, and a proof must name one
// endpoint.
func normalPath(escaped string) (string, error) {
	if escaped == "" {
		return "/", nil
	}
	if escaped[0] != '/' || len(escaped) > maxURL {
		return "", errors.New("its path does not start with /")
	}
	var out strings.Builder
	out.Grow(len(escaped))
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		switch {
		case c == '%':
			if i+2 >= len(escaped) {
				return "", errors.New("its path has a broken escape")
			}
			n, err := strconv.ParseUint(escaped[i+1:i+3], 16, 8)
			if err != nil {
				return "", errors.New("its path has a broken escape")
			}
			i += 2
			if b := byte(n); unreserved(b) {
				out.WriteByte(b)
			} else {
				out.Write([]byte{'%', upperHex[b>>4], upperHex[b&15]})
			}
		case c <= ' ' || c >= 0x7f || c == '\\' || c == '?' || c == '#':
			return "", errors.New("its path has characters that must be escaped")
		default:
			out.WriteByte(c)
		}
	}
	path := out.String()
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return "", errors.New("its path has dot segments")
		}
	}
	return path, nil
}

// unreserved: RFC 3986 §2.3.
func unreserved(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '.' || b == '_' || b == '~'
}

// externals are the URLs under which this cluster's nodes are reached.
type externals []endpoint

func parseExternals(urls []string) (externals, error) {
	if len(urls) == 0 {
		return nil, errors.New("no external URL is configured")
	}
	var out externals
	for _, text := range urls {
		e, err := parseEndpoint(text)
		if err != nil {
			return nil, fmt.Errorf("external URL %q: %w", clip(text), err)
		}
		if strings.ContainsAny(text, "?#") {
			return nil, fmt.Errorf("external URL %q: it has a query or a fragment", clip(text))
		}
		e.path = strings.TrimSuffix(e.path, "/")
		out = append(out, e)
	}
	return out, nil
}

// match reports whether htu names target on one of the external URLs. target
// is the request's escaped path, or its absolute URL, whose origin must then be
// the proof's own; the Host header's word is not taken for where we are.
func (x externals) match(htu, target string) error {
	claimed, err := parseEndpoint(htu)
	if err != nil {
		return fmt.Errorf("htu: %w", err)
	}
	if !strings.HasPrefix(target, "/") {
		asked, err := parseEndpoint(target)
		if err != nil {
			return fmt.Errorf("the request's URL: %w", err)
		}
		for _, e := range x {
			if e.origin == claimed.origin && claimed == asked && under(asked.path, e.path) {
				return nil
			}
		}
		return errOtherURL
	}
	path, _, _ := strings.Cut(target, "?")
	path, err = normalPath(path)
	if err != nil {
		return fmt.Errorf("the request's URL: %w", err)
	}
	for _, e := range x {
		if e.origin == claimed.origin && claimed.path == e.path+path {
			return nil
		}
	}
	return errOtherURL
}

var errOtherURL = errors.New("htu is another URL than the request's, or not one of this cluster's")

func under(path, prefix string) bool {
	return prefix == "" || path == prefix || strings.HasPrefix(path, prefix+"/")
}
