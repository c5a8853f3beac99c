package kv

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mayfly-broker/mayfly/scope"
)

const (
	scopeType  = "kv"
	actionRead = "read"
	// maxDelivered bounds one credential: half a MiB with the largest values.
	maxDelivered = 16
)

const allowedScope = `allowed is type kv, action read, and as locations entries by name, or PREFIX/* for those below it`

// compile returns the entries that a scope names, sorted. Each detail names some:
// an empty list of locations is never everything.
func (s *spec) compile(in scope.Scope) ([]string, error) {
	n, err := in.Normalise()
	if err != nil {
		return nil, err
	}
	if len(n) == 0 {
		return nil, errors.New("the scope is empty; " + allowedScope)
	}
	var out []string
	for _, d := range n {
		switch {
		case d.Type != scopeType:
			return nil, fmt.Errorf("type: %q; %s", d.Type, allowedScope)
		case len(d.Actions) != 1 || d.Actions[0] != actionRead:
			return nil, fmt.Errorf("actions: %q; %s", d.Actions, allowedScope)
		case d.Identifier != "" || len(d.Datatypes) > 0 || len(d.Privileges) > 0 || len(d.Tables) > 0:
			return nil, errors.New("identifier, datatypes, privileges and tables mean nothing here; " + allowedScope)
		case len(d.Locations) == 0:
			return nil, errors.New("locations: at least one entry is needed; " + allowedScope)
		}
		for _, l := range d.Locations {
			found, err := s.named(l)
			if err != nil {
				return nil, err
			}
			out = append(out, found...)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) > maxDelivered {
		return nil, fmt.Errorf("locations: %d entries; one credential holds at most %d", len(out), maxDelivered)
	}
	return out, nil
}

// named resolves one location. A * stands for whole words alone, so that the
// algebra's prefixes and these names agree: "billing/*" covers what it says.
func (s *spec) named(location string) ([]string, error) {
	prefix, open := strings.CutSuffix(location, "*")
	if !open {
		if _, there := s.Entries[location]; !there {
			return nil, fmt.Errorf("locations: the target has no entry %q; %s", location, allowedScope)
		}
		return []string{location}, nil
	}
	if !strings.HasSuffix(prefix, "/") {
		return nil, fmt.Errorf("locations: %q; %s", location, allowedScope)
	}
	var out []string
	for _, name := range s.names {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("locations: the target has no entry below %q", location)
	}
	return out, nil
}
