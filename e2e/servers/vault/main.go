// Command vault is a real Vault server for tests: the product's own core and HTTP
// handler with the few backends that tests use, since the whole product does not
// build from its published module. It is a test process only; nothing of it is
// linked into Mayfly.
//
// It listens until it is told to end. Whoever starts it initialises and unseals it
// by its own API.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	log "github.com/hashicorp/go-hclog"
	jwt "github.com/hashicorp/vault-plugin-auth-jwt"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/audit"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/cert"
	"github.com/hashicorp/vault/builtin/logical/database"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/builtin/logical/ssh"
	"github.com/hashicorp/vault/builtin/logical/transit"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/vault"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	data := flag.String("data", "", "directory of its storage")
	certFile := flag.String("cert", "", "certificate in PEM; without it there is no TLS")
	keyFile := flag.String("key", "", "its private key in PEM")
	clientCA := flag.String("client-ca", "", "CA whose clients alone may connect, in PEM")
	flag.Parse()

	logger := log.New(&log.LoggerOptions{Level: log.Warn, Output: os.Stderr})
	storage, err := file.NewFileBackend(map[string]string{"path": *data}, logger)
	if err != nil {
		return err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:      storage,
		StorageType:   "file",
		DisableMlock:  true,
		Logger:        logger,
		AuditBackends: map[string]audit.Factory{"file": audit.NewFileBackend},
		LogicalBackends: map[string]logical.Factory{
			"kv": kv.Factory, "transit": transit.Factory, "pki": pki.Factory, "ssh": ssh.Factory, "database": database.Factory,
		},
		CredentialBackends: map[string]logical.Factory{"approle": approle.Factory, "cert": cert.Factory, "jwt": jwt.Factory},
		BuiltinRegistry:    registry{},
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	if *certFile != "" {
		config, err := tlsConfig(*certFile, *keyFile, *clientCA)
		if err != nil {
			return err
		}
		listener = tls.NewListener(listener, config)
	}
	server := &http.Server{
		Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{
			Core:           core,
			ListenerConfig: &configutil.Listener{Address: *listen, TLSDisable: *certFile == ""},
		}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return core.ShutdownWait()
}

func tlsConfig(certFile, keyFile, clientCA string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}
	if clientCA == "" {
		return config, nil
	}
	pem, err := os.ReadFile(clientCA)
	if err != nil {
		return nil, err
	}
	config.ClientCAs = x509.NewCertPool()
	config.ClientCAs.AppendCertsFromPEM(pem)
	config.ClientAuth = tls.RequireAndVerifyClientCert
	return config, nil
}

// registry names what is built in: of database plugins the one for PostgreSQL.
type registry struct{}

var plugins = map[consts.PluginType][]string{
	consts.PluginTypeDatabase:   {"postgresql-database-plugin"},
	consts.PluginTypeSecrets:    {"kv", "transit", "pki", "ssh", "database"},
	consts.PluginTypeCredential: {"approle", "cert", "jwt"},
}

func (registry) Contains(name string, kind consts.PluginType) bool {
	for _, n := range plugins[kind] {
		if n == name {
			return true
		}
	}
	return false
}

func (r registry) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	if kind == consts.PluginTypeDatabase && r.Contains(name, kind) {
		return postgresql.New, true
	}
	return nil, false
}

func (registry) Keys(kind consts.PluginType) []string { return plugins[kind] }

func (r registry) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, r.Contains(name, kind)
}

func (registry) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
