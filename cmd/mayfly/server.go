package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"

	"github.com/mayfly-broker/mayfly/broker/api"
	"github.com/mayfly-broker/mayfly/broker/node"
)

// serverFile is the configuration of `mayfly server`: YAML, unknown keys are
// errors. Everything but tls and log takes a restart.
type serverFile struct {
	NodeID  string `json:"node_id"`
	DataDir string `json:"data_dir"`
	// Listen is the API's address; ExternalURL is the cluster's, the same on
	// every node; NodeURL is this node's own.
	Listen      string   `json:"listen"`
	ExternalURL string   `json:"external_url"`
	NodeURL     string   `json:"node_url"`
	PeerURLs    []string `json:"peer_urls"` // the other nodes' own
	Hosts       []string `json:"hosts"`     // further names for health checks
	TLS         struct {
		CertFile string `json:"cert_file"`
		KeyFile  string `json:"key_file"`
		CAFile   string `json:"ca_file"`
	} `json:"tls"`
	Cluster struct {
		Listen    string `json:"listen"`
		Advertise string `json:"advertise"`
	} `json:"cluster"`
	Seal struct {
		Type    string `json:"type"` // shamir (default) or local
		KeyFile string `json:"key_file"`
	} `json:"seal"`
	Join struct {
		TokenFile string `json:"token_file"`
	} `json:"join"`
	Policy struct {
		File string `json:"file"` // what a new cluster begins with
	} `json:"policy"`
	Disk struct {
		ReserveMiB uint64 `json:"reserve_mib"`
		FloorMiB   uint64 `json:"floor_mib"`
	} `json:"disk"`
	Log struct {
		Level  string `json:"level"`
		Format string `json:"format"`
	} `json:"log"`
	Plugins   pluginConfig `json:"plugins"`
	Telemetry struct {
		OTLP string `json:"otlp"`
	} `json:"telemetry"`
}

// readServerFile reads and checks a configuration; the error lists every
// problem.
func readServerFile(path string) (serverFile, error) {
	var f serverFile
	b, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	if err := yaml.UnmarshalStrict(b, &f); err != nil {
		return f, fmt.Errorf("%s: %w", path, err)
	}
	var problems []error
	need := func(name, value string) {
		if value == "" {
			problems = append(problems, fmt.Errorf("%s: %s is missing", path, name))
		}
	}
	need("node_id", f.NodeID)
	need("data_dir", f.DataDir)
	need("listen", f.Listen)
	need("external_url", f.ExternalURL)
	need("tls.cert_file", f.TLS.CertFile)
	need("tls.key_file", f.TLS.KeyFile)
	need("tls.ca_file", f.TLS.CAFile)
	need("cluster.listen", f.Cluster.Listen)
	if f.NodeURL == "" {
		f.NodeURL = f.ExternalURL
	}
	switch f.Seal.Type {
	case "", "shamir":
		if f.Seal.KeyFile != "" {
			problems = append(problems, fmt.Errorf("%s: seal.key_file goes with seal.type local", path))
		}
	case "local":
		need("seal.key_file", f.Seal.KeyFile)
	default:
		problems = append(problems, fmt.Errorf("%s: seal.type is shamir or local, not %q", path, f.Seal.Type))
	}
	if d := f.Plugins.Dir; d != "" && !filepath.IsAbs(d) {
		problems = append(problems, fmt.Errorf("%s: plugins.dir is an absolute path", path))
	}
	return f, errors.Join(problems...)
}

// serviceConfig turns the file into what is run. The listener is still missing.
func (f serverFile) serviceConfig() (serviceConfig, error) {
	var cfg serviceConfig
	var err error
	if cfg.log, err = newLogger(f.Log.Level, f.Log.Format); err != nil {
		return cfg, err
	}
	ca, err := os.ReadFile(f.TLS.CAFile)
	if err != nil {
		return cfg, err
	}
	if cfg.certs, err = api.NewCertificates(f.certificate); err != nil {
		return cfg, err
	}
	urls := append([]string{f.NodeURL}, f.PeerURLs...)
	cfg.hosts, cfg.otlp, cfg.plugins = f.Hosts, f.Telemetry.OTLP, f.Plugins
	cfg.node = node.Config{
		ID: f.NodeID, Dir: f.DataDir, ClusterListen: f.Cluster.Listen, ClusterAdvertise: f.Cluster.Advertise,
		Issuer: f.ExternalURL, URL: f.NodeURL, URLs: urls, HTTP: outbound(),
		Disk: node.Disk{ReserveMiB: f.Disk.ReserveMiB, FloorMiB: f.Disk.FloorMiB},
	}
	if cfg.node.ClusterAdvertise == "" {
		cfg.node.ClusterAdvertise = f.Cluster.Listen
	}
	if cfg.node.Hint, err = hint(ca, urls...); err != nil {
		return cfg, err
	}
	if f.Seal.Type == "local" {
		cfg.node.LocalKey = f.Seal.KeyFile
	}
	if f.Policy.File != "" {
		text, err := os.ReadFile(f.Policy.File)
		if err != nil {
			return cfg, err
		}
		cfg.node.FirstPolicy = string(text)
	}
	if f.Join.TokenFile != "" {
		token, err := os.ReadFile(f.Join.TokenFile)
		if err != nil {
			return cfg, err
		}
		cfg.node.Join = &node.Join{Token: strings.TrimSpace(string(token))}
	}
	return cfg, nil
}

// certificate reads the server's certificate and sends the CA along with it,
// so that a newcomer who knows only the CA's hash, from an enrolment token,
// recognises the node.
func (f serverFile) certificate() (tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(f.TLS.CertFile, f.TLS.KeyFile)
	if err != nil {
		return cert, err
	}
	b, err := os.ReadFile(f.TLS.CAFile)
	if err != nil {
		return cert, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return cert, fmt.Errorf("%s holds no PEM certificate", f.TLS.CAFile)
	}
	for _, sent := range cert.Certificate {
		if bytes.Equal(sent, block.Bytes) {
			return cert, nil
		}
	}
	cert.Certificate = append(cert.Certificate, block.Bytes)
	return cert, nil
}

func serverCommand(s *shell) *cli.Command {
	return &cli.Command{
		Name: "server", Category: forCluster,
		Usage: "run a node of a cluster",
		Description: `Runs one node until it is stopped. SIGHUP reads the TLS certificate anew. A new
node waits, sealed or uninitialised, and says so to whoever asks.

Examples:
  mayfly server --config /etc/mayfly/server.yaml --check     # read everything, start nothing
  mayfly server --config /etc/mayfly/server.yaml
  mayfly operator init --shares 5 --threshold 3 --admin human:ann --admin human:bo`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Required: true, Usage: "the node's configuration, YAML (`FILE`)"},
			&cli.BoolFlag{Name: "check", Usage: "read and check the configuration, then stop"},
		},
		Action: func(c *cli.Context) error {
			return runServer(c.Context, c.String("config"), c.Bool("check"), s.out)
		},
	}
}

func runServer(ctx context.Context, path string, check bool, out io.Writer) error {
	f, err := readServerFile(path)
	if err != nil {
		return err
	}
	cfg, err := f.serviceConfig()
	if err != nil {
		return err
	}
	if check {
		_, err := fmt.Fprintf(out, "%s: the configuration is good\n", path)
		return err
	}
	if cfg.listener, err = net.Listen("tcp", f.Listen); err != nil {
		return err
	}
	svc, err := newService(ctx, cfg)
	if err != nil {
		return errors.Join(err, cfg.listener.Close())
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go svc.reloadOn(ctx, hup)
	return svc.run(ctx, func() error {
		st := svc.node.Status()
		svc.log.Info("node started", "node", st.Node, "role", st.Role, "listen", f.Listen, "version", st.Version)
		return nil
	})
}

// reloadOn exchanges what can change without a restart: the certificate.
func (s *service) reloadOn(ctx context.Context, hup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		if err := s.certs.Reload(); err != nil {
			s.log.Error("certificate not reloaded; the old one stays", "error", err)
			continue
		}
		s.log.Info("certificate reloaded")
	}
}
