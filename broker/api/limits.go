package api

import "time"

// The bounds on everything that comes from outside, each with its reason.
const (
	// maxHeaderBytes: a proof (4 KiB), a token and what proxies add fit thrice.
	maxHeaderBytes = 32 << 10
	maxHeaders     = 64
	maxPathBytes   = 2 << 10
	maxQueryBytes  = 4 << 10
	// smallBody fits every request but the ones that carry documents.
	smallBody = 64 << 10
	largeBody = 1 << 20
	// maxDepth is deeper than any spec, shallower than any stack.
	maxDepth = 32
	// maxIdemKey: a UUID has 36 characters.
	maxIdemKey = 128
	maxToken   = 256

	// shownName bounds what an answer repeats of a caller's own words.
	shownName = 64
)

// Times. There is no read timeout for the whole request: it would end long
// answers too; bodies have a deadline of their own.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	// writeTimeout is above the longest route's timeout.
	writeTimeout = 120 * time.Second
	// shortCall bounds what touches no target; longCall what waits for one.
	shortCall = 30 * time.Second
	longCall  = 90 * time.Second
	maxWait   = 60 * time.Second
	// exportStall is how long one write of a stream may take.
	exportStall = 30 * time.Second
)

// Limits bounds what strangers and callers may do to this node. Zero fields
// have their defaults.
type Limits struct {
	// Logins per second and client address; default 100, bursts of ten times
	// that.
	Logins float64
	// Failures is how many refused credentials per second one address may
	// present before it is answered 429; default 20, bursts of 20 times that.
	// Callers with good credentials behind the same address are not affected.
	Failures float64
	// Operator is how many calls of init, unseal, recover and rekey one address
	// may make per second; default 2, bursts of ten times that.
	Operator float64
	// Open is how many other calls without a session one address may make per
	// second; default 200, bursts of twice that.
	Open float64
	// InFlight is how many requests are served at once; default 4096.
	InFlight int64
	// BodyWait is how long a body may take to arrive; default 15 s.
	BodyWait time.Duration
}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		v *float64
		d float64
	}{{&l.Logins, 100}, {&l.Failures, 20}, {&l.Operator, 2}, {&l.Open, 200}} {
		if *f.v <= 0 {
			*f.v = f.d
		}
	}
	if l.InFlight <= 0 {
		l.InFlight = 4096
	}
	if l.BodyWait <= 0 {
		l.BodyWait = 15 * time.Second
	}
	return l
}
