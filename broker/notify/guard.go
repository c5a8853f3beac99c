package notify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// errRefused is an address that no message is sent to.
var errRefused = errors.New("the address is refused")

// neverDialled are addresses at which machines are told their own secrets:
// link-local ones, and the metadata services of clouds that stand elsewhere.
// Private networks are not among them: that is where many receivers are, and who
// writes a sink's address administers sinks.
var neverDialled = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),     // link-local: metadata of most clouds
	netip.MustParsePrefix("fe80::/10"),          // link-local
	netip.MustParsePrefix("fd00:ec2::/32"),      // Amazon's, over IPv6
	netip.MustParsePrefix("fd20:ce::254/128"),   // Google's, over IPv6
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba's
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure's
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle's
	netip.MustParsePrefix("0.0.0.0/8"),          // this host, by another name
	netip.MustParsePrefix("::/128"),
	netip.MustParsePrefix("224.0.0.0/4"), // multicast
	netip.MustParsePrefix("ff00::/8"),
	netip.MustParsePrefix("255.255.255.255/32"),
}

// embedding are the prefixes of IPv6 addresses that carry an IPv4 one, and at
// which byte.
var embedding = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12}, // NAT64, RFC 6052
	{netip.MustParsePrefix("2002::/16"), 2},     // 6to4, RFC 3056
	{netip.MustParsePrefix("::/96"), 12},        // IPv4-compatible, RFC 4291 §2.5.5.1
}

// mayDial says whether a message may go to an address. Messages without TLS go
// to this host only.
func mayDial(a netip.Addr, secure bool) error {
	a = a.Unmap().WithZone("")
	if !secure && !a.IsLoopback() {
		return fmt.Errorf("%w: http is for this host only", errRefused)
	}
	if a.IsLoopback() {
		return nil
	}
	for _, e := range embedding {
		if b := a.As16(); a.Is6() && e.prefix.Contains(a) {
			inner := netip.AddrFrom4([4]byte(b[e.at : e.at+4]))
			if slices.ContainsFunc(neverDialled, func(p netip.Prefix) bool { return p.Contains(inner) }) {
				return fmt.Errorf("%w: link-local and metadata addresses are not told anything", errRefused)
			}
		}
	}
	if slices.ContainsFunc(neverDialled, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return fmt.Errorf("%w: link-local and metadata addresses are not told anything", errRefused)
	}
	return nil
}

// dialer connects to what mayDial lets it. The check is of the address that is
// dialled, after the name was looked up: a name that changes between a check and
// its use gains nothing.
func dialer(secure bool) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{
		Timeout: attemptTimeout,
		// The next attempt opens another connection: nothing to keep alive.
		KeepAliveConfig: net.KeepAliveConfig{Enable: false},
		KeepAlive:       -time.Second,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("%w: it is none", errRefused)
			}
			return mayDial(at.Addr(), secure)
		},
	}
	return d.DialContext
}
