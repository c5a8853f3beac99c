// Package api is the broker's HTTP surface: it decodes requests, proves who
// sent them, calls the engine, and encodes what comes back.
//
// A request passes, in this order: the front (request id, Host and Origin,
// security headers, recovery, access log, metrics), its route's limits, the
// proof of its session's key, the strict reading of its body, and then the
// engine here or, for what only the leader can do, the leader's own surface
// over the cluster port, where the proof is checked again.
//
// Two handlers come out of it: [Server.Handler] for clients, [Server.Forwarded]
// for the calls that other nodes pass on. The OpenAPI document is made from the
// same code that serves.
//
// The package must not know what policy allows, how the ledger stores, or how
// nodes reach each other. It holds no state but counters and rate limits.
package api
