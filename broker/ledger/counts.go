package ledger

import "encoding/binary"

// Counters of what lives now: "t" principal → open explicit tasks; "p" principal, role →
// live leases; "i" principal, instance, role → live leases.

func (v *view) count(parts ...string) int {
	return int(toUint(v.Get(bucketCount, key(parts...))))
}

func (s *state) addCount(delta int, parts ...string) {
	n := s.count(parts...) + delta
	if n <= 0 {
		s.del(bucketCount, key(parts...))
		return
	}
	s.put(bucketCount, key(parts...), beUint(uint64(n)))
}

const minuteMS = 60_000

// rate returns how often principal minted role in the current minute.
func (v *view) rate(now int64, principal, role string) int {
	b := v.Get(bucketCount, key("m", principal, role))
	if len(b) != 16 || int64(binary.BigEndian.Uint64(b)) != now/minuteMS {
		return 0
	}
	return int(binary.BigEndian.Uint64(b[8:]))
}

func (s *state) addRate(now int64, principal, role string) {
	n := s.rate(now, principal, role) + 1
	s.put(bucketCount, key("m", principal, role), append(beUint(uint64(now/minuteMS)), beUint(uint64(n))...))
}

// checkCaps refuses a lease that would exceed the role's caps. credit is how
// many live leases the same command ends.
func (s *state) checkCaps(c *context, role RoleSpec, l Lease, credit int) Result {
	perPrincipal, perMinute := role.Caps.PerPrincipal, role.Caps.MintsPerMinute
	if perPrincipal == 0 {
		perPrincipal = DefaultPerPrincipal
	}
	if perMinute == 0 {
		perMinute = DefaultMintsPerMinute
	}
	g := l.Grant
	if s.count("p", g.Principal, g.Role)-credit >= perPrincipal {
		return refuse(CodeCapRole, "%s holds %d live leases on %s, the most that caps.per_principal allows. End a task or revoke some first.", g.Principal, perPrincipal, g.Role)
	}
	if n := role.Caps.PerInstance; n > 0 && g.Instance != "" && s.count("i", g.Principal, g.Instance, g.Role)-credit >= n {
		return refuse(CodeCapInstance, "This instance of %s holds %d live leases on %s, the most that caps.per_instance allows.", g.Principal, n, g.Role)
	}
	return s.checkRate(c, g.Principal, g.Role, perMinute)
}

func (s *state) checkRate(c *context, principal, role string, perMinute int) Result {
	if s.rate(c.now, principal, role) >= perMinute {
		return refuse(CodeCapRate, "%s minted %s %d times this minute, the most that caps.mints_per_minute allows.", principal, role, perMinute)
	}
	return done("")
}

// countLease moves the live counters by delta.
func (s *state) countLease(l Lease, delta int) {
	g := l.Grant
	s.addCount(delta, "p", g.Principal, g.Role)
	if g.Instance != "" {
		s.addCount(delta, "i", g.Principal, g.Instance, g.Role)
	}
}
