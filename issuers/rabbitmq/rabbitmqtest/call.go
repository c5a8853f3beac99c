package rabbitmqtest

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"
)

// maxAnswer bounds what [Server.Call] reads.
const maxAnswer = 16 << 20

// Call asks the management API as the administrator, and returns the status and
// the body of the answer. A path begins with /api/.
func (s *Server) Call(ctx context.Context, method, path, body string) (status int, answer string, err error) {
	return s.CallAs(ctx, AdminUser, s.Password, method, path, body)
}

// CallAs is [Server.Call] as another user.
func (s *Server) CallAs(ctx context.Context, user, password, method, path, body string) (status int, answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.API+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.SetBasicAuth(user, password)
	req.Header.Set("Content-Type", "application/json")
	req.Close = true // no connection outlives a server that tests stop
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, string(b), err
}
