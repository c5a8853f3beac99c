package api

import (
	"net/http"
	"strings"
	"time"
)

// prefix is where the native API lives.
const prefix = "/api/v1"

// access says what a caller must show.
type access int

const (
	needSession access = iota // the zero value: nobody without a session
	needKey                   // login: the proof of a key or a certificate
	needClient                // OAuth: a session, or the proof of a key beside which evidence stands in the body
	needShares                // operator calls that key shares authorise
	needNothing
)

// place says which node may answer.
type place int

const (
	atLeader place = iota // the zero value: whatever changes something
	anywhere              // this node; the leader if the engine says so
	hereOnly              // this very node is meant
)

// route is one operation of the API.
type route struct {
	method, path string
	id, summary  string
	tag          string
	access       access
	place        place
	timeout      time.Duration // zero: shortCall
	maxBody      int64         // zero: smallBody
	// rest says that the last path parameter takes slashes too.
	rest bool
	// stream says that the answer has a deadline per write, not for the whole.
	stream bool

	body     *shape // nil: the route takes no body
	optional bool   // the body may be left out
	form     bool   // an OAuth call: the body is a form, errors are RFC 6749's
}

// mutates reports whether an outcome that nobody heard of must be asked for
// again with the same idempotency key.
func (rt *route) mutates() bool { return rt.method != http.MethodGet }

// pattern is the route for [http.ServeMux].
func (rt *route) pattern() string {
	path := rt.path
	if rt.rest {
		path = strings.TrimSuffix(path, "}") + "...}"
	}
	return rt.method + " " + path
}

func (rt *route) limit() int64 {
	switch {
	case rt.maxBody > 0:
		return rt.maxBody
	case rt.body == nil && !rt.form:
		return 1 << 10 // an empty object, from clients that always send one
	default:
		return smallBody
	}
}

func (rt *route) patience() time.Duration {
	if rt.timeout > 0 {
		return rt.timeout
	}
	return shortCall
}
