package kubernetes

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/mayfly-broker/mayfly/issuers"
)

// get reads an object's metadata from etcd itself: without a resourceVersion the
// API server does not answer from a cache that may lag.
func (c *client) get(ctx context.Context, at ref) (metadata, error) {
	var out object
	err := c.do(ctx, call{method: http.MethodGet, path: at.path(), accept: asMetadata}, &out)
	return out.Metadata, err
}

// look is get, where NotFound is no error. A 404 that is not the API server's own
// word proves nothing.
func (c *client) look(ctx context.Context, at ref) (m metadata, there bool, err error) {
	m, err = c.get(ctx, at)
	if f, status := said(err); status == http.StatusNotFound && f.reason == "NotFound" {
		return m, false, nil
	}
	return m, err == nil, err
}

// remove deletes exactly the object that was seen.
func (c *client) remove(ctx context.Context, at ref, seen metadata) error {
	type preconditions struct {
		UID string `json:"uid"`
	}
	body := struct {
		APIVersion    string        `json:"apiVersion"`
		Kind          string        `json:"kind"`
		Grace         int           `json:"gracePeriodSeconds"`
		Propagation   string        `json:"propagationPolicy"`
		Preconditions preconditions `json:"preconditions"`
	}{"v1", "DeleteOptions", 0, "Background", preconditions{seen.UID}}
	return c.do(ctx, call{method: http.MethodDelete, path: at.path(), body: body, accept: asMetadata}, nil)
}

// list calls each with the metadata of every object of a collection that the
// selector finds. A list that has become too old while it was read begins again.
func (c *client) list(ctx context.Context, res resource, namespace, selector string, each func(metadata)) error {
	for range attempts {
		var found []metadata
		err := c.pages(ctx, res, namespace, selector, &found)
		if err == nil {
			for _, m := range found {
				each(m)
			}
			return nil
		}
		if !isStatus(err, http.StatusGone) {
			return err
		}
	}
	return &issuers.Error{Kind: issuers.Unreachable, Detail: "the list of " + res.plural + " changes faster than it can be read"}
}

func (c *client) pages(ctx context.Context, res resource, namespace, selector string, found *[]metadata) error {
	next := ""
	for range maxPages {
		q := url.Values{"labelSelector": {selector}, "limit": {strconv.Itoa(pageSize)}}
		if next != "" {
			q.Set("continue", next)
		}
		var page struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []object `json:"items"`
		}
		if err := c.do(ctx, call{method: http.MethodGet, path: res.in(namespace), query: q, accept: asList, limit: maxPage}, &page); err != nil {
			return err
		}
		for _, o := range page.Items {
			*found = append(*found, o.Metadata)
		}
		if next = page.Metadata.Continue; next == "" {
			return nil
		}
	}
	return &issuers.Error{Kind: issuers.Refused, Detail: "more " + res.plural + " bear this target's label than can be read"}
}
