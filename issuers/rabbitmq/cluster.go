package rabbitmq

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"
)

// whole says whether every node that the cluster knows is part of it now. A node
// that another one takes for dead may be cut off instead: then it still has the
// users that were deleted here, and lets them in (HAZARDS 12). The error names it.
func (is *Issuer) whole(ctx context.Context, c *http.Client) error {
	r, err := is.api.do(ctx, c, call{method: http.MethodGet, path: at("nodes") + "?columns=name,running,partitions"})
	if err == nil && r.status != http.StatusOK {
		err = said(r)
	}
	if err != nil {
		return err
	}
	var nodes []struct {
		Name       string   `json:"name"`
		Running    bool     `json:"running"`
		Partitions []string `json:"partitions"`
	}
	if err := json.Unmarshal(r.body, &nodes); err != nil {
		return fmt.Errorf("the list of nodes cannot be read: %w", err)
	}
	if len(nodes) == 0 {
		return errors.New("the server lists no node")
	}
	for _, n := range nodes {
		name := strings.Map(func(c rune) rune {
			if !unicode.IsPrint(c) {
				return ' '
			}
			return c
		}, n.Name)
		switch {
		case !n.Running:
			return fmt.Errorf("the node %.100s does not run, or is cut off and still lets withdrawn users in; start it, or, if it never comes back: rabbitmqctl forget_cluster_node %.100s", name, name)
		case len(n.Partitions) > 0:
			return fmt.Errorf("the node %.100s does not see %d others of the cluster, and users that were deleted there may stand here or the other way round; restart the side that is to give way", name, len(n.Partitions))
		}
	}
	return nil
}
