package node_test

import (
	"testing"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
)

// broken has one plugin that does not run, and one of an older file.
type broken struct{}

func (broken) Kind(string) (issuers.Kind, bool, error) { return nil, false, nil }
func (broken) Set(map[string]ledger.PluginSpec)        {}

func (broken) Status() []wire.NodePlugin {
	return []wire.NodePlugin{{Name: "gone", Registered: "b", Problem: "no such file", Failures: 7}, {Name: "old", Running: true, SHA256: "a", Registered: "b", Restarts: 2, Refused: 3}}
}

// TestMetricsOfPlugins: a node whose plugin is broken says so, leader or not.
func TestMetricsOfPlugins(t *testing.T) {
	t.Parallel()
	cfg := config(t, "n1", t.TempDir())
	cfg.Plugins = broken{}
	n := start(t, cfg)
	initialise(t, n)
	for _, c := range []struct {
		metric, plugin string
		want           float64
	}{
		{"mayfly_plugin_up", "gone", 0}, {"mayfly_plugin_up", "old", 1}, {"mayfly_plugin_current", "gone", 0}, {"mayfly_plugin_current", "old", 0},
		{"mayfly_plugin_start_failures_total", "gone", 7}, {"mayfly_plugin_restarts_total", "old", 2}, {"mayfly_plugin_refused_answers_total", "old", 3},
	} {
		if got := metric(t, n, c.metric, c.plugin); got != c.want {
			t.Errorf("%s of %s is %g; want %g", c.metric, c.plugin, got, c.want)
		}
	}
}
