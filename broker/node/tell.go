package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-broker/mayfly/broker/ledger"
	"github.com/mayfly-broker/mayfly/broker/notify"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/secret"
)

// telling is the ledger as webhooks follow it ([notify.Source]).
type telling struct {
	node string
	run  *run
}

// view reads the ledger.
func (s *telling) view(fn func(q ledger.Query) error) error {
	return s.run.log.View(func(r ledger.Reader) error {
		q := ledger.NewQuery(r)
		if err := fn(q); err != nil {
			return err
		}
		return q.Err()
	})
}

// Cluster implements [notify.Source].
func (s *telling) Cluster(context.Context) (id string, incarnation int, err error) {
	err = s.view(func(q ledger.Query) error {
		g, ok := q.Genesis()
		if !ok {
			return fmt.Errorf("node: the cluster is not initialised")
		}
		id, incarnation = g.Cluster, g.Incarnation
		return nil
	})
	return id, incarnation, err
}

// Sinks implements [notify.Source].
func (s *telling) Sinks(context.Context) (out []notify.Sink, err error) {
	err = s.view(func(q ledger.Query) error {
		for _, o := range q.Objects(ledger.KindSink) {
			var k ledger.SinkSpec
			if _, ok := q.Spec(ledger.KindSink, o.Name, &k); !ok || k.Type != ledger.SinkWebhook {
				continue
			}
			if k.URL == "" {
				k.URL = string(q.Secret(ledger.KindSink, o.Name, ledger.SinkURL))
			}
			out = append(out, notify.Sink{
				Name: o.Name, Version: o.Version, URL: secret.New(k.URL), Secret: secret.New(string(q.Secret(ledger.KindSink, o.Name, ledger.SinkSecret))),
				Format: k.Format, Events: k.Events, Groups: k.Groups,
			})
		}
		return nil
	})
	return out, err
}

// toldTypes are the commands that may be worth telling. Others are not decoded.
var toldTypes = []string{
	(&ledger.Freeze{}).Type(), (&ledger.RequestGrant{}).Type(), (&ledger.ApproveGrant{}).Type(), (&ledger.EndGrant{}).Type(),
}

// Entries implements [notify.Source].
func (s *telling) Entries(_ context.Context, from uint64, limit int) (out []notify.Entry, next uint64, err error) {
	next = from
	err = s.view(func(q ledger.Query) error {
		end := min(q.Size(), from+uint64(limit))
		for ; next < end; next++ {
			e, ok := q.Entry(next)
			if !ok {
				return fmt.Errorf("node: entry %d is missing", next)
			}
			if e.Result != ledger.CodeOK || !slices.Contains(toldTypes, e.Type()) {
				continue
			}
			d, err := ledger.DecodePublic(e.Public)
			if err != nil {
				return err
			}
			if told, ok := tell(e, d); ok {
				out = append(out, told)
			}
		}
		return nil
	})
	return out, next, err
}

// tell is what a decoded command says to people; false where it says nothing.
func tell(e ledger.Entry, d ledger.Decoded) (notify.Entry, bool) {
	out := notify.Entry{Seq: e.Seq, At: time.UnixMilli(e.TimeMS).UTC(), Type: d.Type}
	switch b := d.Body.(type) {
	case *ledger.Freeze:
		out.Contained = &notify.Containment{Kind: b.Kind, Name: b.Name, By: d.Header.Actor.Principal, Reason: b.Reason}
	case *ledger.RequestGrant:
		switch {
		case b.Change != nil:
			out.Grant = b.Change.GrantID
		case b.Access.Emergency: // its lease follows in the same breath
			out.Grant, out.Type = b.Access.GrantID, (&ledger.OpenLease{}).Type()
		default:
			out.Grant = b.Access.GrantID
		}
	case *ledger.ApproveGrant:
		out.Grant = b.GrantID
	case *ledger.EndGrant:
		out.Grant, out.Reason = b.GrantID, b.State
	default:
		return out, false
	}
	return out, true
}

// Grant implements [notify.Source].
func (s *telling) Grant(_ context.Context, id string) (notify.View, bool, error) {
	n, ok, err := s.run.engine.Notice(id)
	if err != nil || !ok {
		return notify.View{}, false, err
	}
	v := notify.View{
		ID: n.ID, Kind: n.Kind, State: n.State, Role: n.Role, Principal: n.Principal, Purpose: n.Purpose, Reason: n.Reason,
		Needs: needs(n.Needs), RequestedAt: n.RequestedAt, Hash: n.Hash, URL: n.URL, ApprovedSeq: n.ApprovedSeq,
	}
	if n.CollectBefore != nil {
		v.CollectBefore = *n.CollectBefore
	}
	if r := n.Review; r != nil {
		v.Review = &notify.Review{Due: r.Due, Done: r.Done, Needs: needs(r.Needs)}
	}
	return v, true, nil
}

func needs(list []wire.Need) []notify.Need {
	var out []notify.Need
	for _, n := range list {
		out = append(out, notify.Need{Group: n.Group, Required: n.Required, Have: n.Have})
	}
	return out
}

// Pending implements [notify.Source].
func (s *telling) Pending(ctx context.Context, fn func(notify.View) bool) error {
	ids, err := s.run.engine.Unsettled()
	if err != nil {
		return err
	}
	for _, id := range ids {
		v, ok, err := s.Grant(ctx, id)
		if err != nil {
			return err
		}
		if ok && !fn(v) {
			return nil
		}
	}
	return nil
}

// Cursor implements [notify.Source].
func (s *telling) Cursor(_ context.Context, sink string) (c notify.Cursor, err error) {
	err = s.view(func(q ledger.Query) error {
		d, ok := q.Delivery(sink)
		if !ok {
			return fmt.Errorf("node: the ledger does not say how far the webhook %s has come", sink)
		}
		c = notify.Cursor{Seq: d.Seq, Due: time.UnixMilli(d.DueMS).UTC()}
		return nil
	})
	return c, err
}

// Record implements [notify.Source].
func (s *telling) Record(ctx context.Context, cursors []notify.Delivery) error {
	var cmd ledger.RecordDelivery
	for _, c := range cursors {
		cmd.Items = append(cmd.Items, ledger.Delivery{Sink: c.Sink, Seq: c.Seq, DueMS: c.Due.UnixMilli()})
	}
	raw, err := ledger.Encode(ledger.Header{AtMS: time.Now().UnixMilli(), Node: s.node, Term: s.run.log.Term()}, &cmd)
	if err != nil {
		return err
	}
	res, err := s.run.log.Propose(ctx, raw, false)
	if err == nil && !res.OK() {
		err = fmt.Errorf("node: deliveries were not recorded: %s", strings.TrimSuffix(res.Detail, "."))
	}
	return err
}
