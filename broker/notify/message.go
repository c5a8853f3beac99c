package notify

import (
	"encoding/json"
	"time"
)

// message is the plain format. Its members are public: they may be added, not
// changed.
type message struct {
	ID        string         `json:"id"`
	Event     string         `json:"event"`
	At        string         `json:"at"`
	Cluster   string         `json:"cluster"`
	Grant     *grantPart     `json:"grant,omitempty"`
	Contained *containedPart `json:"contained,omitempty"`
}

type grantPart struct {
	ID            string     `json:"id"`
	Kind          string     `json:"kind"`
	State         string     `json:"state"` // when the message was made
	Role          string     `json:"role,omitempty"`
	Principal     string     `json:"principal"`
	Purpose       string     `json:"purpose,omitempty"` // claimed
	Reason        string     `json:"reason,omitempty"`  // claimed
	Needs         []needPart `json:"needs"`
	CollectBefore string     `json:"collect_before,omitempty"`
	ReviewDue     string     `json:"review_due,omitempty"`
	HashPrefix    string     `json:"hash_prefix,omitempty"`
	URL           string     `json:"url,omitempty"`
}

type needPart struct {
	Group    string `json:"group"`
	Required int    `json:"required"`
	Have     int    `json:"have"`
}

type containedPart struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"` // claimed
}

func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// compose makes the message of an event; every text in it is clean and bounded.
func compose(cluster string, e Event) message {
	m := message{ID: e.ID, Event: e.Kind, At: instant(e.At), Cluster: clean(cluster, maxName)}
	if c := e.Contained; c != nil {
		m.Contained = &containedPart{Kind: clean(c.Kind, maxWord), Name: clean(c.Name, maxName), By: clean(c.By, maxName), Reason: clean(c.Reason, maxText)}
	}
	if v := e.Grant; v.ID != "" {
		m.Grant = &grantPart{
			ID: clean(v.ID, maxName), Kind: clean(v.Kind, maxWord), State: clean(v.State, maxWord),
			Role: clean(v.Role, maxName), Principal: clean(v.Principal, maxName),
			Purpose: clean(v.Purpose, maxText), Reason: clean(v.Reason, maxText),
			Needs: []needPart{}, CollectBefore: instant(v.CollectBefore), URL: link(v.URL),
		}
		if v.Review != nil {
			m.Grant.ReviewDue = instant(v.Review.Due)
		}
		if len(v.Hash) >= hashPrefix {
			m.Grant.HashPrefix = clean(v.Hash[:hashPrefix], hashPrefix)
		}
		for _, n := range v.asked()[:min(len(v.asked()), maxNeeds)] {
			m.Grant.Needs = append(m.Grant.Needs, needPart{Group: clean(n.Group, maxName), Required: n.Required, Have: n.Have})
		}
	}
	return m
}

// encode makes the body in a sink's format.
func (m message) encode(format string) ([]byte, error) {
	if format == FormatSlack {
		return json.Marshal(m.slack())
	}
	return json.Marshal(m)
}
