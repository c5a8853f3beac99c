package kubernetes

import "time"

// Bounds on what comes from outside, and the times of a target.
const (
	maxSpecBytes       = 256 << 10 // a CA bundle is the largest part
	maxNamespaces      = 256       // a spec's lists
	maxAudience        = 256       // bytes; the API server itself has no bound
	maxScopeNamespaces = 32        // places that one lease gets rights in: two objects each
	maxConnections     = 200
	defaultConnections = 16
	endConnections     = 8 // kept for withdrawal and upkeep, so that slow mints never starve them (HAZARDS 17)

	maxAnswer    = 1 << 20 // one object; etcd holds no larger one
	maxPage      = 8 << 20 // a page of a list, metadata alone
	pageSize     = 100
	maxPages     = 2000
	maxTokenFile = 64 << 10
	maxMessage   = 600 // of the server's own words in an error

	dialTimeout    = 3 * time.Second
	requestTimeout = 10 * time.Second
	idleTime       = time.Minute
	// defaultDeadline stands in for a mint without one.
	defaultDeadline = 30 * time.Second
	// minToken is the shortest life that TokenRequest gives (validation of the
	// API server itself).
	minToken = 10 * time.Minute
	// cacheTime is how long an API server remembers that it accepted a token;
	// TokenSuccessCacheTTL of kube-apiserver, which no flag changes.
	cacheTime = 10 * time.Second
	// watchLag is how far an API server's own watches may follow behind.
	watchLag      = 2 * time.Second
	defaultSettle = cacheTime + watchLag
	maxSettle     = 40 * time.Second // a withdrawal has a minute in all
	// readyTime bounds the wait until the API servers have noticed new rights.
	readyTime = 3 * time.Second

	defaultMaxTTL         = 24 * time.Hour // longer ones are cut short by most clusters
	defaultMaxTTLForeign  = time.Hour      // where other audiences are allowed (HAZARDS 18)
	longestMaxTTL         = 30 * 24 * time.Hour
	throttledPause        = time.Second // where 429 says no time
	longestThrottledPause = 10 * time.Second
	attempts              = 20 // of a step that others disturb
)
