package main

import (
	"encoding/hex"
	"log/slog"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/issuers"
	"github.com/mayfly-broker/mayfly/plugins/host"
)

// plugins runs what the ledger's Plugin objects name ([broker.Plugins]).
type plugins struct {
	host *host.Host
	log  *slog.Logger
}

func newPlugins(cfg pluginConfig, log *slog.Logger) *plugins {
	return &plugins{log: log, host: host.New(host.Options{Dir: cfg.Dir, SameUser: cfg.SameUser, Log: log})}
}

// pluginConfig is the node's own part: where plugins' files are, and whether they
// may run as the node's user.
type pluginConfig struct {
	Dir      string `json:"dir"`
	SameUser bool   `json:"same_user"`
}

// Kind implements [broker.Plugins].
func (p *plugins) Kind(name string) (issuers.Kind, bool, error) { return p.host.Kind(name) }

// Set implements [broker.Plugins]. A plugin whose kind this build has itself does
// not run: its targets are the built-in kind's.
func (p *plugins) Set(all map[string]ledger.PluginSpec) {
	var out []host.Spec
	for name, s := range all {
		if builtIn(name) {
			p.log.Error("a plugin is not run: this version has its kind built in", "plugin", name)
			continue
		}
		x := host.Spec{Name: name, File: s.File, User: s.User, Limits: host.Limits(s.Limits)}
		if n, err := hex.Decode(x.SHA256[:], []byte(s.SHA256)); err != nil || n != len(x.SHA256) {
			continue // every replica has refused such a thing
		}
		out = append(out, x)
	}
	p.host.Set(out)
}

// Status implements [broker.Plugins].
func (p *plugins) Status() (out []wire.NodePlugin) {
	for _, s := range p.host.Status() {
		x := wire.NodePlugin{Name: s.Name, Running: s.Running, SHA256: s.SHA256, Registered: s.Wanted, Problem: s.Problem, Restarts: s.Restarts, Failures: s.Failures, Refused: s.Lies}
		if s.Running {
			since := s.Since.UTC()
			x.Since = &since
		} else {
			x.SHA256 = ""
		}
		out = append(out, x)
	}
	return out
}

func builtIn(name string) bool {
	for _, k := range targetKinds() {
		if k.Name() == name {
			return true
		}
	}
	return false
}
