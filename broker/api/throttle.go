package api

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxAddresses bounds the memory of rate limits: about 100 bytes each. Beyond
// it, new addresses share one limit, so that a flood from many addresses is
// slowed as if it came from one.
const maxAddresses = 20_000

// throttle is the set of this node's rate limits for strangers.
type throttle struct {
	logins, failures, operator, open *perAddress
}

func newThrottle(l Limits, clock func() time.Time) throttle {
	return throttle{
		logins:   newPerAddress(l.Logins, 10, clock),
		failures: newPerAddress(l.Failures, 20, clock),
		operator: newPerAddress(l.Operator, 10, clock),
		open:     newPerAddress(l.Open, 2, clock),
	}
}

// perAddress is a token bucket per client network. Safe for concurrent use.
type perAddress struct {
	rate  rate.Limit
	burst int
	clock func() time.Time

	mu      sync.Mutex
	buckets map[netip.Prefix]*rate.Limiter
	crowd   *rate.Limiter // for those beyond maxAddresses
	swept   time.Time     // at most once a second: it looks at every bucket
}

func newPerAddress(perSecond float64, factor int, clock func() time.Time) *perAddress {
	p := &perAddress{rate: rate.Limit(perSecond), burst: max(1, int(perSecond*float64(factor))), clock: clock, buckets: map[netip.Prefix]*rate.Limiter{}}
	p.crowd = rate.NewLimiter(p.rate, p.burst)
	return p
}

// take takes one token for address, or says how long until there is one.
func (p *perAddress) take(address string) (ok bool, wait time.Duration) {
	now := p.clock()
	b := p.bucket(network(address), now)
	r := b.ReserveN(now, 1)
	if d := r.DelayFrom(now); d > 0 {
		r.CancelAt(now)
		return false, d
	}
	return true, 0
}

// spent reports whether address has no token left, without taking one.
func (p *perAddress) spent(address string) bool {
	now := p.clock()
	return p.bucket(network(address), now).TokensAt(now) < 1
}

func (p *perAddress) bucket(n netip.Prefix, now time.Time) *rate.Limiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b, ok := p.buckets[n]; ok {
		return b
	}
	if len(p.buckets) >= maxAddresses && now.Sub(p.swept) >= time.Second {
		p.swept = now
		p.forget(now)
	}
	if len(p.buckets) >= maxAddresses {
		return p.crowd
	}
	b := rate.NewLimiter(p.rate, p.burst)
	p.buckets[n] = b
	return b
}

// forget drops the addresses that have been quiet until their bucket was full.
func (p *perAddress) forget(now time.Time) {
	for n, b := range p.buckets {
		if b.TokensAt(now) >= float64(p.burst) {
			delete(p.buckets, n)
		}
	}
}

// network is what one client can be taken to have: an IPv4 address, or an IPv6
// /64, within which addresses are free to choose.
func network(address string) netip.Prefix {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{}
	}
	ip = ip.Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	n, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return n
}
