package node

import (
	"context"
	"time"
)

// pluginsEvery is how often a node looks which plugins are registered.
const pluginsEvery = 500 * time.Millisecond

// followPlugins has the registered plugins run on this node, leader or not: a
// follower's are ready when it leads, and what is wrong with them shows before. It
// gives them no secret; only the leader opens targets. They end with the run: a
// sealed node runs no plugin.
func (n *Node) followPlugins(ctx context.Context, r *run) {
	host := n.cfg.Plugins
	if host == nil {
		return
	}
	defer host.Set(nil)
	t := time.NewTicker(pluginsEvery)
	defer t.Stop()
	for {
		if err := r.engine.SyncPlugins(); err != nil {
			n.log.Debug("plugins not looked at", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
