package console

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/mayfly-broker/mayfly/broker/fault"
)

// live tells a page that the ledger has grown, so that it can look again (the
// server-sent events of HTML). Nothing but the ledger's size is in the stream.
func (s *Console) live(x *exchange) error {
	if s.streams.Add(1) > maxStreams {
		s.streams.Add(-1)
		return fault.New(fault.Unavailable, "overloaded", "This node serves as many live pages as it can. Load the page again to see what is new.")
	}
	defer s.streams.Add(-1)
	h := x.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	out := http.NewResponseController(x.w)
	size := s.cfg.Node.Status().Size
	if _, err := fmt.Fprintf(x.w, "retry: 3000\n\nevent: size\ndata: %d\n\n", size); err != nil {
		return nil // the page has gone
	}
	_ = out.Flush()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	end := time.NewTimer(streamFor)
	defer end.Stop()
	for {
		select {
		case <-x.r.Context().Done():
			return nil
		case <-end.C:
			return nil
		case <-tick.C:
		}
		if _, err := x.engine.Session(x.r.Context(), x.token.Reveal()); fault.KindOf(err) == fault.Unauthenticated {
			_, _ = fmt.Fprint(x.w, "event: ended\ndata: session\n\n")
			_ = out.Flush()
			return nil
		}
		if now := s.cfg.Node.Status().Size; now != size {
			size = now
			if _, err := fmt.Fprintf(x.w, "event: size\ndata: %d\n\n", size); err != nil {
				return nil
			}
			_ = out.Flush()
		}
	}
}

// writeJSON answers the page's script.
func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "{}", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
