package node

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-broker/mayfly/broker"
	"github.com/mayfly-broker/mayfly/broker/audit"
	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/notify"
	"github.com/mayfly-broker/mayfly/broker/seal"
	"github.com/mayfly-broker/mayfly/raftstore"
	"github.com/mayfly-broker/mayfly/secret"
)

// Secrets that the keyring carries to every node.
const (
	secretCACert     = "cluster-ca-certificate"
	secretCAKey      = "cluster-ca-key"
	secretCheckpoint = "checkpoint-key"
)

// newSecrets makes what a new cluster's keyring carries: the cluster CA and
// the key that signs checkpoints.
func newSecrets(k *seal.Keyring, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mayfly cluster " + k.ClusterID()},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	_, sign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	return errors.Join(
		k.SetSecret(secretCACert, secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))),
		k.SetSecret(secretCAKey, secret.New(base64.StdEncoding.EncodeToString(der))),
		k.SetSecret(secretCheckpoint, secret.New(base64.StdEncoding.EncodeToString(sign.Seed()))),
	)
}

// authority reads the cluster CA out of the keyring.
func authority(k *seal.Keyring) (raftstore.Authority, error) {
	var ca raftstore.Authority
	text, err := k.Secret(secretCACert)
	if err != nil {
		return ca, err
	}
	block, _ := pem.Decode([]byte(text.Reveal()))
	if block == nil {
		return ca, errors.New("node: the keyring's cluster CA does not read")
	}
	if ca.Certificate, err = x509.ParseCertificate(block.Bytes); err != nil {
		return ca, fmt.Errorf("node: cluster CA: %w", err)
	}
	key, err := keyringBytes(k, secretCAKey)
	if err != nil {
		return ca, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(key)
	signer, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return ca, errors.New("node: the keyring's cluster CA key does not read")
	}
	ca.Signer = signer
	return ca, nil
}

func keyringBytes(k *seal.Keyring, name string) ([]byte, error) {
	text, err := k.Secret(name)
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(text.Reveal())
	if err != nil {
		return nil, fmt.Errorf("node: the keyring's %s does not read", name)
	}
	return b, nil
}

// signer returns the cluster's checkpoint signer and its verifier key.
func signer(k *seal.Keyring) (note.Signer, string, error) {
	seed, err := keyringBytes(k, secretCheckpoint)
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, "", errors.Join(errors.New("node: the keyring's checkpoint key does not read"), err)
	}
	return audit.NewSigner(k.ClusterID(), ed25519.NewKeyFromSeed(seed))
}

// open starts store and engine with an unsealed keyring. The caller holds life.
func (n *Node) open(ctx context.Context, k *seal.Keyring, bootstrap bool) error {
	ca, err := authority(k)
	if err != nil {
		return err
	}
	sign, _, err := signer(k)
	if err != nil {
		return err
	}
	r := &run{grown: make(chan struct{}, 1)}
	r.teller = notify.New(&telling{node: n.cfg.ID, run: r}, notify.Options{Logger: n.log})
	r.store, err = raftstore.Open(raftstore.Config{
		NodeID: n.cfg.ID, Dir: n.path(raftDir), Listen: n.cfg.ClusterListen, Advertise: n.cfg.ClusterAdvertise,
		CA: ca, Sealer: k, Logger: n.log, Bootstrap: bootstrap, Timing: n.cfg.timing,
		Handler: n.clusterHandler(), OnJoin: n.onJoin, Disk: raftstore.Disk{Reserve: n.cfg.Disk.ReserveMiB << 20, Floor: n.cfg.Disk.FloorMiB << 20},
		Hooks: raftstore.Hooks{
			Preamble:   preamble(k),
			OnPreamble: func(b []byte) error { return n.absorb(k, b) },
			Digest:     r.digestOnce,
			OnDigest:   func(id string, d []byte) { n.compareOnce(r, id, d) },
		},
	}, machine{ledger: new(ledger.Machine), applied: r.grew})
	if err != nil {
		return err
	}
	r.log = replicated{r.store}
	r.engine, err = broker.New(broker.Config{
		Log: r.log, Node: n.cfg.ID, Kinds: n.cfg.Kinds, Plugins: n.cfg.Plugins, Barrier: k, Issuer: n.cfg.Issuer, URLs: n.cfg.URLs,
		HTTP: n.cfg.HTTP, Logger: n.log, Hint: n.cfg.Hint, Signer: sign,
	})
	if err != nil {
		return errors.Join(err, r.store.Close())
	}
	r.ready.Store(true)
	var runCtx context.Context
	runCtx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	r.store.Lead(r.engine.Lead)
	r.store.Lead(r.teller.Run)
	n.condition.keyring, n.condition.run, n.condition.state, n.condition.unsealer = k, r, running, nil
	n.publish()
	r.wg.Go(func() { n.watchStore(runCtx, r) })
	r.wg.Go(func() { n.followSinks(runCtx, r) })
	r.wg.Go(func() { n.followKeyring(runCtx, r, k) })
	r.wg.Go(func() { n.followTurns(runCtx, r, k) })
	r.wg.Go(func() { n.followPlugins(runCtx, r) })
	if err := n.finishJoin(runCtx, r); err != nil {
		n.log.Warn("not a voter yet; trying again", "error", err)
	}
	return nil
}

// grew leaves a mark that the ledger has grown.
func (r *run) grew() {
	r.teller.Wake()
	select {
	case r.grown <- struct{}{}:
	default:
	}
}

// preamble is what snapshots begin with: the keyring, wrapped, and a sealer that
// keeps to it (HAZARDS 22).
func preamble(k *seal.Keyring) func() ([]byte, raftstore.Sealer, error) {
	return func() ([]byte, raftstore.Sealer, error) {
		w, sealer, err := k.Pinned()
		if err != nil {
			return nil, nil, err
		}
		doc, err := w.Marshal()
		return doc, sealer, err
	}
}

// document is the keyring, wrapped, for nodes that join or look for a newer one.
func document(k *seal.Keyring) ([]byte, error) {
	w, err := k.Rewrap()
	if err != nil {
		return nil, err
	}
	return w.Marshal()
}

// absorb learns the keys of a newer wrapped keyring and stores it.
func (n *Node) absorb(k *seal.Keyring, doc []byte) error {
	w, err := seal.Parse(doc)
	if err != nil {
		return err
	}
	_, err = k.AbsorbStored(w, n.keep)
	return err
}

// keep stores the keyring's document, before anything in it is used.
func (n *Node) keep(w *seal.Wrapped) error {
	// Stored before it is told of, too: whoever reads that the old shares open
	// nothing may rely on it over a crash.
	if err := w.WriteFile(n.path(keyringFile)); err != nil {
		return err
	}
	n.newest.Store(w)
	return nil
}

// Paths on the cluster port that are the nodes' own business.
const (
	pathURL     = "/cluster/url"
	pathKeyring = "/cluster/keyring"
	pathRecord  = "/cluster/record"
)

// clusterHandler serves peers: their own questions, and forwarded API calls.
func (n *Node) clusterHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathURL, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, n.cfg.URL) })
	mux.HandleFunc("GET "+pathKeyring, func(w http.ResponseWriter, _ *http.Request) {
		k := n.published.Load().keyring
		if k == nil {
			http.Error(w, "sealed", http.StatusServiceUnavailable)
			return
		}
		doc, err := document(k)
		if err != nil {
			http.Error(w, "no keyring", http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(doc)
	})
	mux.HandleFunc("POST "+pathRecord, n.recordFor)
	mux.Handle("/", n.forward)
	return mux
}

// askLeader calls the leader's cluster port; body nil makes it a GET.
func (r *run) askLeader(ctx context.Context, path string, body []byte) ([]byte, error) {
	return ask(ctx, r.store.LeaderTransport(), path, body)
}

// ask calls a member's cluster port.
func ask(ctx context.Context, member http.RoundTripper, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://member"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := member.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("node: the member answered %s", resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, raftstore.MaxPreamble))
}

// recordFor commits a decision that another node made about itself, such as to
// seal it. Nothing but decisions is taken.
func (n *Node) recordFor(w http.ResponseWriter, req *http.Request) {
	r, err := n.current()
	if err != nil {
		http.Error(w, "sealed", http.StatusServiceUnavailable)
		return
	}
	command, err := io.ReadAll(io.LimitReader(req.Body, raftstore.MaxCommandSize))
	if err != nil {
		http.Error(w, "unreadable", http.StatusBadRequest)
		return
	}
	if d, err := ledger.Decode(command); err != nil || d.Type != (&ledger.RecordDecision{}).Type() {
		http.Error(w, "not a decision", http.StatusBadRequest)
		return
	}
	if res, err := r.log.Propose(req.Context(), command, true); err != nil || !res.OK() {
		http.Error(w, "not recorded", http.StatusServiceUnavailable)
	}
}

// record commits a decision here or, on a follower, at the leader.
func (r *run) record(ctx context.Context, command []byte) error {
	if r.store.IsLeader() {
		_, err := r.log.Propose(ctx, command, true)
		return err
	}
	if _, err := r.askLeader(ctx, pathRecord, command); err != nil {
		return storeFault(fmt.Errorf("%w: %w", raftstore.ErrNoLeader, err))
	}
	return nil
}

// keyringEvery is how often a node looks whether the keyring was reshared.
const keyringEvery = 15 * time.Second

// followKeyring keeps this node's keyring file as new as any other's, so that after a
// rekey the old shares open no node. All are asked, also by the leader: whoever made
// the new shares may lead no more when others have yet to hear of them. Of two
// documents the newer one counts, and none of another root.
func (n *Node) followKeyring(ctx context.Context, r *run, k *seal.Keyring) {
	t := time.NewTicker(keyringEvery)
	defer t.Stop()
	last := map[string][]byte{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, p := range r.store.Peers() {
			if p.Self {
				continue
			}
			doc, err := ask(ctx, r.store.PeerTransport(p.ID), pathKeyring, nil)
			if err != nil || bytes.Equal(doc, last[p.ID]) {
				continue // it is away or sealed, or has nothing new
			}
			if err := n.absorb(k, doc); err != nil {
				n.log.Warn("another node's keyring cannot be taken over", "node", p.ID, "error", err)
				continue
			}
			last[p.ID] = doc
		}
	}
}

// LeaderURL returns the leader's own external URL. The answer is kept as long
// as the same node leads in the same term.
func (n *Node) LeaderURL(ctx context.Context) (string, error) {
	r, err := n.current()
	if err != nil {
		return "", err
	}
	if r.store.IsLeader() {
		return n.cfg.URL, nil
	}
	id, _, _ := r.store.Leader()
	at := leaderAt{id: id, term: r.store.Term()}
	if known := r.leader.Load(); known != nil && known.id == at.id && known.term == at.term && id != "" {
		return known.url, nil
	}
	b, err := r.askLeader(ctx, pathURL, nil)
	if err != nil {
		return "", storeFault(fmt.Errorf("%w: %w", raftstore.ErrNoLeader, err))
	}
	at.url = string(b)
	r.leader.Store(&at)
	return at.url, nil
}

// leaderAt is where a leader was found.
type leaderAt struct {
	id   string
	term uint64
	url  string
}
