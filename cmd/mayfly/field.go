package main

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// pick follows a --field path through a document: names joined by dots, numbers
// for places in lists, as in leases[0].id or leases.0.id. A name applied to a
// list applies to each of its members.
func pick(doc any, path string) ([]any, error) {
	steps := strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
	if len(steps) == 0 {
		return nil, usage("--field needs a path like lease_id or leases[0].id")
	}
	at := []any{doc}
	for i := 0; i < len(steps); i++ {
		// Names of credentials' fields and labels may hold dots themselves.
		next, used := follow(at, steps[i:])
		if used == 0 {
			return nil, noField(steps[i], at)
		}
		at, i = next, i+used-1
	}
	return at, nil
}

func follow(at []any, steps []string) (found []any, used int) {
	for n := 1; n <= len(steps); n++ {
		if found = step(at, strings.Join(steps[:n], ".")); found != nil {
			return found, n
		}
	}
	return nil, 0
}

func step(at []any, name string) []any {
	var out []any
	for _, v := range at {
		switch v := v.(type) {
		case map[string]any:
			member, ok := v[name]
			if !ok {
				return nil
			}
			out = append(out, member)
		case []any:
			if i, err := strconv.Atoi(name); err == nil {
				if i < 0 {
					i += len(v)
				}
				if i < 0 || i >= len(v) {
					return nil
				}
				out = append(out, v[i])
				continue
			}
			inner := step(v, name)
			if inner == nil && len(v) > 0 {
				return nil
			}
			out = append(out, inner...)
			if out == nil {
				out = []any{}
			}
		default:
			return nil
		}
	}
	return out
}

func noField(name string, at []any) error {
	have := ""
	if len(at) > 0 {
		if list, ok := at[0].([]any); ok && len(list) > 0 {
			at = list
		}
		if m, ok := at[0].(map[string]any); ok {
			var keys []string
			for k := range m {
				keys = append(keys, k)
			}
			sort.Strings(keys)
			have = "; there are " + strings.Join(slices.Compact(keys), ", ")
		}
	}
	return failed("no_field", "%s", fmt.Sprintf("--field: the result has no %q%s", name, have))
}
