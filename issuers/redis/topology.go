package redis

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mayfly-broker/mayfly/issuers"
)

// node is one server of a deployment, as the deployment describes it now.
type node struct {
	addr    string
	replica bool
	// down says that the deployment itself takes the node for dead.
	down bool
	// slot is one that the node serves (a replica: its master); -1 outside clusters.
	slot int
}

// gate is where a lease's gate stands on this node: in a cluster, under a hash
// tag that lies in a slot of the node's own.
func (n node) gate(leaseID string) string {
	if n.slot < 0 {
		return gatePrefix + leaseID
	}
	return gatePrefix + "{" + slotTag(n.slot) + "}:" + leaseID
}

// topology asks for the nodes. Masters come first. It is asked anew for every
// mint and withdrawal: two round trips at most, and never a stale answer that
// leaves a node out.
func (f *fleet) topology(ctx context.Context) ([]node, error) {
	var nodes []node
	var err error
	switch f.spec.Topology {
	case topologySentinel:
		nodes, err = f.askSentinels(ctx)
	case topologyCluster:
		nodes, err = f.askCluster(ctx)
	default:
		return []node{{addr: f.spec.seeds[0], slot: -1}}, nil
	}
	if err != nil {
		return nil, err
	}
	if len(nodes) > maxNodes {
		return nil, refused("the deployment names %d nodes; at most %d are handled", len(nodes), maxNodes)
	}
	slices.SortFunc(nodes, func(a, b node) int {
		if a.replica != b.replica {
			return map[bool]int{true: 1, false: -1}[a.replica]
		}
		return strings.Compare(a.addr, b.addr)
	})
	return nodes, nil
}

// view is what one Sentinel says.
type view struct {
	epoch    uint64
	master   string
	changing bool // a failover is under way
	nodes    []node
	err      error
}

// askSentinels takes the master from the answer of the highest configuration
// epoch, and every node that any of them knows: whichever was a master once may
// hold users. A majority must answer, or a Sentinel that is cut off could name an
// old master alone.
func (f *fleet) askSentinels(ctx context.Context) ([]node, error) {
	views := make([]view, len(f.spec.seeds))
	var wg sync.WaitGroup
	for i, addr := range f.spec.seeds {
		wg.Go(func() { views[i] = f.askSentinel(ctx, addr) })
	}
	wg.Wait()
	var best view
	var last error
	known, heard, changing := map[string]node{}, 0, false
	for _, v := range views {
		if v.err != nil {
			last = v.err
			continue
		}
		heard++
		changing = changing || v.changing
		if best.master == "" || v.epoch > best.epoch {
			best = v
		}
		for _, n := range v.nodes {
			if old, ok := known[n.addr]; ok {
				n.down = n.down && old.down
			}
			known[n.addr] = n
		}
	}
	if heard*2 <= len(f.spec.seeds) {
		return nil, beforeError(fmt.Sprintf("%d of %d Sentinels answer; a majority is needed", heard, len(f.spec.seeds)), last)
	}
	var out []node
	for _, n := range known {
		n.replica = changing || n.addr != best.master // nobody can say which is master now
		out = append(out, n)
	}
	return out, nil
}

func (f *fleet) askSentinel(ctx context.Context, addr string) view {
	c, err := f.sentinel(addr)
	if err != nil {
		return view{err: err}
	}
	pipe := c.Pipeline()
	master := pipe.Do(ctx, "SENTINEL", "MASTER", f.spec.MasterName)
	replicas := pipe.Do(ctx, "SENTINEL", "REPLICAS", f.spec.MasterName)
	if _, err := pipe.Exec(ctx); err != nil {
		return view{err: err}
	}
	m := fields(master.Val())
	epoch, err := strconv.ParseUint(m["config-epoch"], 10, 64)
	if err != nil || m["ip"] == "" {
		return view{err: refused("the Sentinel at %s describes no master %s", addr, f.spec.MasterName)}
	}
	v := view{epoch: epoch, master: net.JoinHostPort(m["ip"], m["port"]), changing: strings.Contains(m["flags"], "failover_in_progress")}
	v.nodes = append(v.nodes, sentinelNode(m))
	list, _ := replicas.Val().([]any)
	for _, r := range list {
		if n := sentinelNode(fields(r)); n.addr != ":" {
			v.nodes = append(v.nodes, n)
		}
	}
	return v
}

func sentinelNode(m map[string]string) node {
	return node{addr: net.JoinHostPort(m["ip"], m["port"]), slot: -1, down: strings.Contains(m["flags"], "_down")}
}

// fields reads a flat array of names and values (RESP2's form of a map).
func fields(reply any) map[string]string {
	list, _ := reply.([]any)
	out := map[string]string{}
	for i := 0; i+1 < len(list); i += 2 {
		k, ok1 := list[i].(string)
		v, ok2 := list[i+1].(string)
		if ok1 && ok2 {
			out[k] = v
		}
	}
	return out
}

// askCluster reads CLUSTER NODES from the first seed that answers.
func (f *fleet) askCluster(ctx context.Context) ([]node, error) {
	var last error
	for _, addr := range f.spec.seeds {
		l, err := f.to(addr)
		if err != nil {
			return nil, err
		}
		text, err := l.end.ClusterNodes(ctx).Result()
		if err == nil {
			host, _, _ := net.SplitHostPort(addr) // checked when the spec was read
			return parseClusterNodes(text, host)
		}
		last = err
	}
	return nil, beforeError("no node of the cluster answers", last)
}

// parseClusterNodes reads lines of "id ip:port@bus[,host] flags master ping pong
// epoch link slot…" (Redis documentation, CLUSTER NODES). A node that does not
// know its own address yet is the one that was asked.
func parseClusterNodes(text, asked string) ([]node, error) {
	slots, masterOf := map[string]int{}, map[string]string{}
	var out []node
	var ids []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) < 8 {
			return nil, refused("CLUSTER NODES has a line of %d words", len(f))
		}
		flags := strings.Split(f[2], ",")
		if slices.Contains(flags, "handshake") {
			continue // not a member yet
		}
		addr, _, _ := strings.Cut(f[1], "@")
		if strings.HasPrefix(addr, ":") {
			addr = net.JoinHostPort(asked, addr[1:])
		}
		n := node{addr: addr, replica: slices.Contains(flags, "slave"), slot: -1}
		n.down = slices.Contains(flags, "fail") || slices.Contains(flags, "fail?") || slices.Contains(flags, "noaddr")
		slots[f[0]], masterOf[f[0]] = firstSlot(f[8:]), f[3]
		out, ids = append(out, n), append(ids, f[0])
	}
	for i, id := range ids {
		if out[i].replica {
			id = masterOf[id]
		}
		if s, ok := slots[id]; ok {
			out[i].slot = s
		}
	}
	if len(out) == 0 {
		return nil, &issuers.Error{Kind: issuers.Unreachable, Detail: "CLUSTER NODES names no node"}
	}
	return out, nil
}

// firstSlot reads "0-5460", "7"; "[…" are slots on their way.
func firstSlot(words []string) int {
	for _, w := range words {
		from, _, _ := strings.Cut(w, "-")
		if n, err := strconv.Atoi(from); err == nil && n >= 0 && n < clusterSlots {
			return n
		}
	}
	return -1
}

const clusterSlots = 16384

// slotTags holds for every slot a short hash tag that lies in it.
var slotTags = sync.OnceValue(func() []string {
	tags, left := make([]string, clusterSlots), clusterSlots
	for i := 0; left > 0; i++ {
		tag := strconv.FormatInt(int64(i), 36)
		if s := crc16(tag) % clusterSlots; tags[s] == "" {
			tags[s] = tag
			left--
		}
	}
	return tags
})

func slotTag(slot int) string { return slotTags()[slot] }

// crc16 is CRC-16/XMODEM, by which Redis spreads keys over slots (Redis Cluster
// specification, appendix A).
func crc16(s string) uint16 {
	var crc uint16
	for i := range len(s) {
		crc ^= uint16(s[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

// conn takes one connection of a client; done gives it back.
func conn(c *goredis.Client) (cn *goredis.Conn, done func()) {
	cn = c.Conn()
	return cn, func() { _ = cn.Close() } // its only error is that it was given back already
}
