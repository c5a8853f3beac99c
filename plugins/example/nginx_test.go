package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-broker/mayfly/e2e/servertest"
	"github.com/mayfly-broker/mayfly/issuers"
)

// site is a real nginx with two places, each behind a password file.
type site struct {
	url   string
	files map[string]string
}

const nginxConf = `worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr error;
events { worker_connections 256; }
http {
  access_log off;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  server {
    listen %s;
    location /intranet { auth_basic "intranet"; auth_basic_user_file %s; return 204; }
    location /wiki { auth_basic "wiki"; auth_basic_user_file %s; try_files /nothing =204; }
  }
}
`

// startSite starts nginx for one test. Its password files belong to whoever the
// plugin runs as.
func startSite(t *testing.T) *site {
	t.Helper()
	program, err := findNginx()
	if err != nil {
		t.Fatal(err)
	}
	as, err := servertest.Choose("nobody")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "site")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	auth := filepath.Join(dir, "auth")
	for _, d := range []string{dir, auth, filepath.Join(dir, "tmp")} {
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chmod(d, 0o755), as.Own(d)); err != nil {
			t.Fatal(err)
		}
	}
	s := &site{files: map[string]string{"intranet": filepath.Join(auth, "intranet"), "wiki": filepath.Join(auth, "wiki")}}
	for _, f := range s.files {
		if err := errors.Join(os.WriteFile(f, []byte(others), 0o644), as.Own(f)); err != nil {
			t.Fatal(err)
		}
	}
	address, err := servertest.Address()
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + address
	conf := strings.NewReplacer("return 204;", "try_files /nothing =204;").Replace(fmt.Sprintf(nginxConf, address, s.files["intranet"], s.files["wiki"]))
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := servertest.Start(servertest.Command{Path: program, Args: []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr"}, Dir: dir, Account: as})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	awaitListener(t, address, p)
	return s
}

// others are lines that were in the files before, and stay.
const others = "# the doctors\nann:$apr1$x$y\n\nbo:{PLAIN}secret\n"

func findNginx() (string, error) {
	if p, err := exec.LookPath("nginx"); err == nil {
		return p, nil
	}
	if _, err := os.Stat("/usr/sbin/nginx"); err == nil {
		return "/usr/sbin/nginx", nil
	}
	return "", errors.New("nginx is missing; run: make setup")
}

func awaitListener(t *testing.T, address string, p *servertest.Process) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("nginx does not listen: %s", p.Output())
		case <-p.Done():
			t.Fatalf("nginx has ended: %s", p.Output())
		case <-tick.C:
		}
	}
}

// enter asks nginx for each realm that the credential names.
func (s *site) enter(ctx context.Context, c issuers.Credential) error {
	for _, realm := range strings.Split(c.Public["realms"], ",") {
		status, err := s.get(ctx, realm, c.Public["username"], c.Secret["password"].Reveal())
		if err != nil {
			return err
		}
		if status != http.StatusNoContent {
			return fmt.Errorf("nginx answers %d for %s", status, realm)
		}
	}
	return nil
}

func (s *site) get(ctx context.Context, realm, user, password string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/"+realm, nil)
	if err != nil {
		return 0, err
	}
	req.SetBasicAuth(user, password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Body.Close()
}

// gone reads the files as they are.
func (s *site) gone(_ context.Context, l issuers.Lease) error {
	for realm, f := range s.files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if strings.Contains(string(text), l.Name) || strings.Contains(string(text), l.ID) {
			return fmt.Errorf("the file of %s has %s", realm, l.Name)
		}
	}
	return nil
}

// intact reports whether others' lines are as they were.
func (s *site) intact(context.Context) error {
	for realm, f := range s.files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(string(text), others) {
			return fmt.Errorf("the file of %s has lost lines of others: %q", realm, text)
		}
	}
	return nil
}
