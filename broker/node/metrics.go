package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/notify"
	"github.com/mayfly-broker/mayfly/client/wire"
)

// What a node tells of itself. Names are stable; labels hold targets' names,
// which operators chose.
var (
	descUnsealed = desc("unsealed", "1 while the node is unsealed.")
	descLeader   = desc("leader", "1 while the node leads.")
	descFresh    = desc("fresh", "1 while the node may answer reads: it is in contact with a quorum.")
	descTerm     = desc("term", "Raft term.")
	descCommit   = desc("raft_commit_index", "Newest committed log entry known here.")
	descApplied  = desc("raft_applied_index", "Newest log entry applied here.")
	descDisk     = desc("disk_free_bytes", "Free space under the data directory.")
	descSize     = desc("ledger_size", "Commands recorded.")
	descEnding   = desc("leases_ending", "Leases that wait for their target's word that they are gone.", "target")
	descFailing  = desc("rotations_failing", "Secrets whose replacing has failed and is tried again.", "target")
	descDiverged = desc("replica_diverged", "1 when this leader has seen a replica with another Merkle root.")

	descPluginUp       = desc("plugin_up", "1 while the plugin runs on this node.", "plugin")
	descPluginCurrent  = desc("plugin_current", "1 while the file runs that is registered.", "plugin")
	descPluginRestarts = desc("plugin_restarts_total", "Times that the plugin ended by itself or by its health check, and was started again.", "plugin")
	descPluginFailures = desc("plugin_start_failures_total", "Starts that failed: no file, another hash, no user, no handshake.", "plugin")
	descPluginRefused  = desc("plugin_refused_answers_total", "Answers of the plugin that could not be true.", "plugin")

	descTold    = desc("notifications_delivered_total", "Messages that a webhook took, of this node as leader.", "sink")
	descMissed  = desc("notifications_failed_total", "Attempts to deliver a message that failed.", "sink")
	descGivenUp = desc("notifications_given_up_total", "Messages that were never delivered.", "sink")
	descLag     = desc("notifications_lag_seconds", "Age of the message that is being tried; 0 when there is none.", "sink")
)

// maxEndingCounted bounds what one scrape reads.
const maxEndingCounted = 100_000

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("mayfly_"+name, help, labels, nil)
}

// Describe implements [prometheus.Collector].
func (n *Node) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUnsealed, descLeader, descFresh, descTerm, descCommit, descApplied, descDisk, descSize, descEnding, descFailing, descDiverged, descPluginUp, descPluginCurrent, descPluginRestarts, descPluginFailures, descPluginRefused, descTold, descMissed, descGivenUp, descLag} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (n *Node) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	flag := func(d *prometheus.Desc, on bool) {
		v := 0.0
		if on {
			v = 1
		}
		gauge(d, v)
	}
	r, err := n.current()
	flag(descUnsealed, err == nil)
	if err != nil {
		return
	}
	st := r.store.Stats()
	flag(descLeader, r.store.IsLeader())
	flag(descFresh, st.Fresh)
	flag(descDiverged, r.diverged.Load())
	gauge(descTerm, float64(st.Term))
	gauge(descCommit, float64(st.CommitIndex))
	gauge(descApplied, float64(st.AppliedIndex))
	gauge(descDisk, float64(st.DiskFree))
	collectTold(ch, r.teller.Status())
	if n.cfg.Plugins != nil {
		collectPlugins(ch, n.cfg.Plugins.Status())
	}
	ending, failing := map[string]int{}, map[string]int{}
	err = r.log.View(func(rd ledger.Reader) error {
		q, counted := ledger.NewQuery(rd), 0
		gauge(descSize, float64(q.Size()))
		q.Endings("", func(x ledger.Ending) bool {
			ending[x.Target]++
			counted++
			return counted < maxEndingCounted
		})
		q.Rotations(func(x ledger.Rotation) bool {
			if x.Tries > 0 {
				failing[x.Target]++
			}
			return true
		})
		return q.Err()
	})
	if err != nil {
		n.log.Warn("metrics cannot read the ledger", "error", err)
	}
	for target, count := range ending {
		gauge(descEnding, float64(count), target)
	}
	for target, count := range failing {
		gauge(descFailing, float64(count), target)
	}
}

// collectPlugins tells how plugins do here; those that are registered, so their
// names are as many as operators have chosen.
func collectPlugins(ch chan<- prometheus.Metric, all []wire.NodePlugin) {
	for _, p := range all {
		tell := func(d *prometheus.Desc, t prometheus.ValueType, n int) {
			ch <- prometheus.MustNewConstMetric(d, t, float64(n), p.Name)
		}
		up, current := 0, 0
		if p.Running {
			up = 1
			if p.SHA256 == p.Registered {
				current = 1
			}
		}
		tell(descPluginUp, prometheus.GaugeValue, up)
		tell(descPluginCurrent, prometheus.GaugeValue, current)
		tell(descPluginRestarts, prometheus.CounterValue, p.Restarts)
		tell(descPluginFailures, prometheus.CounterValue, p.Failures)
		tell(descPluginRefused, prometheus.CounterValue, p.Refused)
	}
}

// collectTold tells how webhooks fare.
func collectTold(ch chan<- prometheus.Metric, all []notify.Status) {
	for _, s := range all {
		count := func(d *prometheus.Desc, n uint64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), s.Sink)
		}
		count(descTold, s.Delivered)
		count(descMissed, s.Failed)
		count(descGivenUp, s.GivenUp)
		ch <- prometheus.MustNewConstMetric(descLag, prometheus.GaugeValue, s.Lag.Seconds(), s.Sink)
	}
}
