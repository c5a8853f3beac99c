package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// transport is raft's own, but for pipelines that let go of whoever sends.
type transport struct{ *raft.NetworkTransport }

// AppendEntriesPipeline implements [raft.Transport].
func (t transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, answers: make(chan raft.AppendFuture), closed: make(chan struct{})}
	go p.pass()
	return p, nil
}

// pipeline ends with the first answer that is no success: raft reads none after it,
// and may send once more all the same. raft's own pipeline holds that sender until
// somebody reads, which nobody does: the follower hears heartbeats and gets no entry
// again, however long this node leads, and this node's raft cannot be shut down.
type pipeline struct {
	raft.AppendPipeline
	answers chan raft.AppendFuture
	once    sync.Once
	closed  chan struct{}
}

// Consumer implements [raft.AppendPipeline].
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close implements [raft.AppendPipeline].
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.AppendPipeline.Close()
}

// pass hands on the answers up to the last one that raft reads.
func (p *pipeline) pass() {
	for {
		select {
		case answer := <-p.AppendPipeline.Consumer():
			last := !answer.Response().Success || answer.Response().Term > answer.Request().Term
			if last {
				_ = p.AppendPipeline.Close() // before raft knows: what it sends from now on fails
			}
			select {
			case p.answers <- answer:
			case <-p.closed:
				return
			}
			if last {
				return
			}
		case <-p.closed:
			return
		}
	}
}
