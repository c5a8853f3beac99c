package rabbitmq_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/issuers/rabbitmq"
)

// playing is a fixture whose server is played by f: what a real one does seldom,
// or never should.
func playing(t *testing.T, f http.HandlerFunc) *rabbitmq.Issuer {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return newFixture(t).at(strings.TrimPrefix(s.URL, "http://")).open(1)
}

// Two withdrawals overlap: the server finds the user, then does not, and says 500.
func TestHazard12RabbitMQOverlappingWithdrawalsAreNoFailure(t *testing.T) {
	var deleted atomic.Bool
	var tags string
	is := playing(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodDelete && strings.HasPrefix(r.URL.Path, "/api/users/"):
			deleted.Store(true)
			w.WriteHeader(http.StatusInternalServerError)
		case strings.HasPrefix(r.URL.Path, "/api/connections/"):
			fmt.Fprint(w, "[]")
		case r.URL.Path == "/api/nodes":
			fmt.Fprint(w, `[{"name":"rabbit@a","running":true,"partitions":[]}]`)
		case deleted.Load():
			w.WriteHeader(http.StatusNotFound)
		default:
			fmt.Fprintf(w, `{"name":%q,"tags":["%s"]}`, strings.TrimPrefix(r.URL.Path, "/api/users/"), tags)
		}
	})
	f := newFixture(t)
	l := lease(allow([]string{"read"}))
	tags = strings.Join(rabbitmq.OwnTags(is, 1, 1), `","`)
	f.withdraw(is, l)
	if !deleted.Load() {
		t.Error("nothing was deleted: this test proves nothing")
	}
}

// The same answer while the user stays is a failure.
func TestUserThatStaysHasNoReceipt(t *testing.T) {
	var tags string
	is := playing(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet:
			w.WriteHeader(http.StatusInternalServerError)
		case strings.HasPrefix(r.URL.Path, "/api/connections/"):
			fmt.Fprint(w, "[]")
		default:
			fmt.Fprintf(w, `{"name":%q,"tags":["%s"]}`, strings.TrimPrefix(r.URL.Path, "/api/users/"), tags)
		}
	})
	tags = strings.Join(rabbitmq.OwnTags(is, 1, 1), `","`)
	for n := range 2 { // one by one, and several in one request
		var batch []issuers.Lease
		for range n + 1 {
			batch = append(batch, lease(allow([]string{"read"})))
		}
		for _, o := range is.Withdraw(t.Context(), batch) {
			wantKind(t, o.Err, issuers.Unknown)
		}
	}
}

// A node that is cut off goes on letting in whom the others have deleted: seen on
// two real nodes of which one stood still for more than a minute. The user is
// deleted where that can be, and there is no receipt until the cluster is whole.
func TestHazard12RabbitMQReceiptNeedsEveryNode(t *testing.T) {
	for nodes, ok := range map[string]bool{
		`[{"name":"rabbit@a","running":true,"partitions":[]},{"name":"rabbit@b","running":true,"partitions":[]}]`:           true,
		`[{"name":"rabbit@a","running":true,"partitions":[]},{"name":"rabbit@b","running":false}]`:                          false,
		`[{"name":"rabbit@a","running":true,"partitions":["rabbit@b"]},{"name":"rabbit@b","running":true,"partitions":[]}]`: false,
		`[{"name":"rabbit@a"}]`: false, `[]`: false, `{}`: false, ``: false,
	} {
		var deleted atomic.Bool
		var tags string
		is := playing(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodDelete:
				deleted.Store(true)
				w.WriteHeader(http.StatusNoContent)
			case strings.HasPrefix(r.URL.Path, "/api/connections/"):
				fmt.Fprint(w, "[]")
			case r.URL.Path == "/api/nodes":
				fmt.Fprint(w, nodes)
			case deleted.Load():
				w.WriteHeader(http.StatusNotFound)
			default:
				fmt.Fprintf(w, `{"name":%q,"tags":["%s"]}`, strings.TrimPrefix(r.URL.Path, "/api/users/"), tags)
			}
		})
		tags = strings.Join(rabbitmq.OwnTags(is, 1, 1), `","`)
		o := is.Withdraw(t.Context(), []issuers.Lease{lease(allow([]string{"read"}))})[0]
		if !deleted.Load() {
			t.Errorf("%s: the user was not deleted", nodes)
		}
		if ok != (o.Err == nil) || ok != (o.Receipt.Proof == issuers.ProofAbsent) || !ok && issuers.KindOf(o.Err) != issuers.Unknown {
			t.Errorf("%s: %+v", nodes, o)
		}
	}
}

// Answers are bounded, and what cannot be read is no answer.
func TestAnswersThatAreNone(t *testing.T) {
	for what, body := range map[string]string{
		"too long": `{"name":"` + strings.Repeat("x", 2<<20) + `"}`, "no JSON": "<html>", "another user": `{"name":"somebody","tags":[]}`, "nothing": "",
		"a list that was cut": `[{"name":"a","tags":[]},`, "no list": `{"users":[]}`,
	} {
		is := playing(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
		l := lease(allow([]string{"read"}))
		if _, err := is.Mint(t.Context(), l); issuers.KindOf(err) != issuers.Unreachable {
			t.Errorf("%s: Mint: %v", what, err)
		}
		if out := is.Withdraw(t.Context(), []issuers.Lease{l}); out[0].Err == nil {
			t.Errorf("%s: a receipt", what)
		}
		if found, err := is.List(t.Context()); err == nil {
			t.Errorf("%s: List shows %v", what, found)
		}
	}
}

// A redirect is not followed: the password is for this server.
func TestRedirectsAreNotFollowed(t *testing.T) {
	var reached atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer elsewhere.Close()
	is := playing(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) })
	_, err := is.Mint(t.Context(), lease(allow([]string{"read"})))
	wantKind(t, err, issuers.Refused)
	if reached.Load() {
		t.Error("the redirect was followed")
	}
}

// A server that has trouble of its own may have acted; one that is asked for too
// much at once has not.
func TestStatusesOfACreation(t *testing.T) {
	for status, want := range map[int]issuers.ErrorKind{
		http.StatusInternalServerError: issuers.Unknown, http.StatusBadGateway: issuers.Unknown, http.StatusServiceUnavailable: issuers.Unknown,
		http.StatusBadRequest: issuers.Refused, http.StatusUnauthorized: issuers.Refused, http.StatusForbidden: issuers.Refused, http.StatusPreconditionFailed: issuers.Superseded,
	} {
		is := playing(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.WriteHeader(status)
		})
		_, err := is.Mint(t.Context(), lease(allow([]string{"read"})))
		if issuers.KindOf(err) != want {
			t.Errorf("%d: %v; want kind %s", status, err, want)
		}
	}
}
