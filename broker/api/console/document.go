package console

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/mayfly-broker/mayfly/broker/cosign"
	"github.com/mayfly-broker/mayfly/broker/fault"
	"github.com/mayfly-broker/mayfly/client/wire"
	"github.com/mayfly-broker/mayfly/scope"
)

// Paper is the document of a grant, read for people: what they see is what the
// hash covers.
type Paper struct {
	Common cosign.Common
	Access *cosign.GrantDocument  // nil for a change
	Change *cosign.ChangeDocument // nil for access
	Scope  scope.Scope
	Alarms []Alarm
	Tree   []Branch
	Facts  []Fact
	// Exact is the document byte for byte; Sum the hash that this page computed
	// of it, and True says that it is the grant's.
	Exact string
	Sum   string
	True  bool
}

// Fact is a thing that an attestation proved.
type Fact struct{ Name, Value string }

// paper reads a grant's document. A document that cannot be read, or whose hash
// is another than the grant says, is shown as such and cannot be signed here.
func paper(g wire.Grant) (*Paper, error) {
	if len(g.Document) == 0 {
		return nil, nil
	}
	sum := cosign.Sum(g.Domain, g.Document).String()
	p := &Paper{Exact: string(g.Document), Sum: sum, True: subtle.ConstantTimeCompare([]byte(sum), []byte(g.Hash)) == 1}
	unreadable := fault.New(fault.Invalid, "document_unreadable", "The grant's document is of a newer kind than this page can show. Approve it with a newer Mayfly.")
	switch g.Domain {
	case cosign.DomainGrant:
		var d cosign.GrantDocument
		if decode(g.Document, &d) != nil || d.Type != g.Domain || d.GrantID != g.ID {
			return p, unreadable
		}
		p.Access, p.Common = &d, d.Common
		var err error
		if p.Scope, err = scope.Parse(d.Scope); err != nil {
			return p, unreadable
		}
		p.Tree, p.Alarms = scopeTree(p.Scope), alarms(p.Scope)
	case cosign.DomainChange:
		var d cosign.ChangeDocument
		if decode(g.Document, &d) != nil || d.Type != g.Domain || d.GrantID != g.ID {
			return p, unreadable
		}
		p.Change, p.Common = &d, d.Common
	default:
		return p, unreadable
	}
	for _, name := range slices.Sorted(maps.Keys(p.Common.Requester.Facts)) {
		p.Facts = append(p.Facts, Fact{Name: name, Value: p.Common.Requester.Facts[name]})
	}
	return p, nil
}

// decode is strict: nobody signs a member that the page does not show.
func decode(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// Requested is when the requester asked; CollectBefore, EndsBy and Deadline are
// the document's other instants.
func (p *Paper) Requested() time.Time { return time.UnixMilli(p.Common.RequestedMS) }

// CollectBefore is until when it can be approved and collected.
func (p *Paper) CollectBefore() time.Time { return time.UnixMilli(p.Common.CollectBeforeMS) }

// EndsBy is when the last credential made under it has ended.
func (p *Paper) EndsBy() time.Time { return time.UnixMilli(p.Access.EndsByMS) }

// TTL is the life of one credential before it is renewed.
func (p *Paper) TTL() time.Duration { return time.Duration(p.Access.TTLS) * time.Second }

// Total is the life of one credential with all renewals.
func (p *Paper) Total() time.Duration { return time.Duration(p.Access.TotalS) * time.Second }
