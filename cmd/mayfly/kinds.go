package main

import (
	"slices"
	"strings"
)

// kinds are the objects' kinds in the order in which they are written: what is
// named comes before what names it.
var kinds = []string{"Zone", "Principal", "Group", "AuthMethod", "Target", "Role", "Policy", "Account", "Sink", "Plugin", "Cluster"}

// kindOf accepts "role", "Role" and "roles" for Role.
func kindOf(word string) (string, error) {
	w := strings.ToLower(word)
	for _, k := range kinds {
		l := strings.ToLower(k)
		if w == l || w == l+"s" || k == "Policy" && w == "policies" {
			return k, nil
		}
	}
	return "", usage("%q is not a kind; kinds are %s", word, strings.Join(kinds, ", "))
}

// cutKind splits KIND/NAME at the first slash; ok is false if the part before
// it is no kind.
func cutKind(word string) (kind, name string, ok bool) {
	head, tail, slash := strings.Cut(word, "/")
	if !slash || tail == "" {
		return "", "", false
	}
	k, err := kindOf(head)
	return k, tail, err == nil
}

// kindName reads "KIND NAME", "KIND/NAME" or, where name is optional, "KIND".
func kindName(args []string) (kind, name string, err error) {
	switch len(args) {
	case 1:
		if k, n, ok := cutKind(args[0]); ok {
			return k, n, nil
		}
		kind, err = kindOf(args[0])
		return kind, "", err
	default:
		kind, err = kindOf(args[0])
		return kind, args[1], err
	}
}

// named strips a kind that was said although only one is meant: "Target
// orders" and "target/orders" are both orders where a target is expected.
func named(kind string, args []string) (string, error) {
	if len(args) == 2 {
		k, err := kindOf(args[0])
		if err != nil || k != kind {
			return "", usage("want the name of one %s, not %q", kind, strings.Join(args, " "))
		}
		return args[1], nil
	}
	if k, n, ok := cutKind(args[0]); ok && k == kind {
		return n, nil
	}
	return args[0], nil
}

// whom reads what is contained or released: a principal as it is, target/NAME
// and zone/NAME.
func whom(args []string) (string, error) {
	kind, name := "", args[0]
	if len(args) == 2 {
		k, err := kindOf(args[0])
		if err != nil {
			return "", err
		}
		kind, name = k, args[1]
	} else if k, n, ok := cutKind(args[0]); ok {
		kind, name = k, n
	}
	switch {
	case kind == "Principal", kind == "" && strings.Contains(name, ":"):
		return name, nil
	case slices.Contains([]string{"Target", "Zone"}, kind):
		return strings.ToLower(kind) + "/" + name, nil
	default:
		return "", usage("%q is neither a principal (kind:name), nor target/NAME, nor zone/NAME", strings.Join(args, " "))
	}
}
